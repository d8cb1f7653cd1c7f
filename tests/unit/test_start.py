"""What answers at once does not import the libraries that train: each of them takes a second or more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "pyarrow", "matplotlib", "jupytext", "nbformat"}
VERBS = (
    ("--help",), ("train", "--help"), ("models",), ("recipe", "explain", "learning_rate"),
    ("recipe", "explain", "template"), ("recipe", "show", "recipes/sft_lora.yaml", "--as", "swift"),
    ("memory", "qwen3-8b"), ("course", "list"), ("env",), ("version",), ("nonsense",),
)  # fmt: skip


def imported(code: str) -> set[str]:
    """Return the top-level modules that a fresh process has imported after some lines of Python."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_verb_that_answers_at_once_imports_no_library_that_trains(verb):
    code = (
        f"from ftlab import device; device.may_have_accelerator = bool\nfrom ftlab.apps.cli import main; main({verb})"
    )
    assert not imported(code) & HEAVY


def test_a_run_imports_neither_torchs_compiler_nor_what_draws_serves_and_reports(tiny_recipe, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(tiny_recipe | {"max_steps": 1, "save_strategy": "no", "plot_loss": False}))
    code = (
        "import sys\nfrom ftlab.apps.cli import main\n"
        f"assert main(['recipe', 'check', {str(path)!r}]) == 0 and main(['train', {str(path)!r}]) == 0\n"
        # torch.compile of the decorators that bitsandbytes has, which PEFT imports.
        "assert 'torch._inductor.compile_fx' not in sys.modules"
    )
    assert not imported(code) & {"matplotlib", "IPython", "ipywidgets", "fastapi", "uvicorn", "tensorboard", "nbformat"}


READERS = (
    "ftlab.runs.folder", "ftlab.apps.board.curves", "ftlab.apps.board.validation", "ftlab.apps.board.estimates",
)  # fmt: skip


@pytest.mark.parametrize("module", READERS)
def test_what_only_reads_run_folders_imports_no_trainer(module):
    assert not imported(f"import {module}") & {"torch", "trl", "peft", "datasets"}


def test_a_run_folder_is_looked_at_without_a_trainer(tmp_path):
    look = "from pathlib import Path\nfrom ftlab.recipe import read\nfrom ftlab.runs import folder"
    folder = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text('{"run_id": "a", "settings": {}}')
    (tmp_path / "run" / "train_log.jsonl").write_text('{"step": 3, "loss": 1.5}')
    (tmp_path / "run" / "recipe.yaml").write_text("stage: sft")
    keys = {"model_name_or_path": "smollm2-135m", "dataset": "a", "output_dir": folder}
    code = (
        f"made = read.read({keys})[0]\nassert folder.state(made, dict).name == 'other'\n"
        f"(found,) = folder.list_runs(Path({str(tmp_path)!r}))\nassert (found.step, found.loss) == (3, 1.5)"
    )
    assert not imported(f"{look}\n{code}") & HEAVY
