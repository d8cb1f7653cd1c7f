"""What is refused is refused in one line, and leaves the disk as it was: models, code, places, settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftlab import models, saved_weights
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.runs import chat, checkpoint, evaluation, export, target, train
from ftlab.runs import folder as folders

ROOT = Path(__file__).parents[2]


def cut(name: str, part: float):
    """Return a damage: only the first part of a file is left."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * part)])

    return damage


def without(*names: str):
    """Return a damage: files are gone."""
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def config(**values: object):
    """Return a damage: entries of config.json are others."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def written(name: str, text: str):
    """Return a damage: a file says something else."""
    return lambda folder: (folder / name).write_text(text)


OWN_CODE = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
BROKEN = {
    "half the weights": (cut("model.safetensors", 0.5), "should have"),
    "half a header": (cut("model.safetensors", 0.0002), "cut short"),
    "no byte of the weights": (cut("model.safetensors", 0), "cut short: 0 bytes"),
    "no weights": (without("model.safetensors"), "no *.safetensors"),
    "weights as a pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "ftlab does not load"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "half a tokenizer": (cut("tokenizer.json", 0.5), "tokenizer cannot be loaded"),
    "a tokenizer of something else": (written("tokenizer.json", '{"a": 1}'), "KeyError: 'added_tokens'"),
    "half a config": (cut("config.json", 0.5), "config.json: not a valid JSON object"),
    "a list as config": (written("config.json", "[1]"), "a list, not an object"),
    "an unknown architecture": (config(model_type="nobody"), "model type `nobody`"),
    "no architecture": (config(model_type=None), "does not recognize this architecture"),
    "more layers than weights": (config(num_hidden_layers=4), "18 weights of this architecture are missing"),
    "wider than its weights": (config(hidden_size=128), "has shape (258, 64), expected (258, 128)"),
    "a size that is a text": (config(hidden_size="64"), "'hidden_size' expected int"),
    "an index that is none": (written("model.safetensors.index.json", "[]"), "a list, not an object"),
    "another kind of model": (config(model_type="t5"), "cannot be loaded"),
    "code of its own": (config(model_type="own", auto_map=OWN_CODE), "set `trust_remote_code: true`"),
}


@pytest.fixture
def broken(tiny_model_dir, tmp_path):
    """Return a function that makes a damaged copy of the tiny model."""

    def make(damage) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny_model_dir, folder)
        damage(folder)
        return folder

    return make


def refusal(action) -> str:
    """Return the one line, and its fix, with which something is refused."""
    with pytest.raises(LabError) as error:
        action()
    assert str(error.value).count("\n") <= 1 and error.value.fix
    return str(error.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_one_line_for_training_and_for_chat(broken, tiny_recipe, tmp_path, name):
    damage, words = BROKEN[name]
    folder = broken(damage)
    values = tiny_recipe | {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "a" / "b")}
    for action in (lambda: train.train(recipes.load(values)), lambda: chat.load(str(folder))):
        said = refusal(action)
        assert words in said and str(folder) in said
    assert not (tmp_path / "a").exists(), "a refused run left a folder"


@pytest.mark.parametrize("name", ["half the weights", "no tokenizer", "half a config", "code of its own"])
def test_a_broken_model_is_one_line_for_every_other_verb(broken, tiny_recipe, tmp_path, name):
    damage, words = BROKEN[name]
    folder = broken(damage)
    values = tiny_recipe | {"model_name_or_path": str(folder), "export_dir": str(tmp_path / "a" / "b")}
    own = recipes.load(values | {"output_dir": None})
    assert words in refusal(lambda: export.export(own)) and not (tmp_path / "a").exists()
    assert words in refusal(lambda: evaluation.score(own))
    if "config" in name or "code" in name:
        assert words in refusal(lambda: memory_needs.sizes(str(folder)))
    assert cli.main(["data", "show", own.dataset, "--model", str(folder)]) == 2


@pytest.fixture
def with_code(broken, tmp_path):
    """A model that needs two files of its own, each of which leaves a sign when it runs; the folder and the sign."""
    folder, sign = broken(config(model_type="own", auto_map=OWN_CODE)), tmp_path / "it-ran"
    line = f"from pathlib import Path\nPath({str(sign)!r}).write_text('it ran')\n"
    (folder / "configuration_own.py").write_text(
        line + "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import Own as Config\n"
        "class Own(LlamaForCausalLM):\n    config_class = Config\n"
    )
    return folder, sign


def test_code_of_a_model_runs_only_where_it_is_trusted(with_code, tiny_recipe, tmp_path, monkeypatch):
    folder, sign = with_code
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    values = tiny_recipe | {"model_name_or_path": str(folder), "max_steps": 1}
    for action in (
        lambda: train.train(recipes.load(values)),
        lambda: train.check(recipes.load(values)),
        lambda: chat.load(str(folder)),
        lambda: export.export(recipes.load(values | {"output_dir": None, "export_dir": str(tmp_path / "out")})),
        lambda: evaluation.score(recipes.load(values | {"output_dir": None})),
        lambda: memory_needs.sizes(str(folder)),
        lambda: models.load_tokenizer(folder),
    ):
        assert "trust_remote_code" in refusal(action) and not sign.exists()
    assert cli.main(["data", "check", tiny_recipe["dataset"], "--model", str(folder)]) == 2 and not sign.exists()
    trusted = recipes.load(values | {"trust_remote_code": True})
    assert train.train(trusted).stopped_at is None and sign.exists()
    assert chat.load(str(folder), trust_remote_code=True)[0].config.model_type == "own"


def test_trusted_code_that_is_missing_is_named(broken):
    folder = broken(config(model_type="own", auto_map=OWN_CODE))
    said = refusal(lambda: models.fetch(str(folder), trust_remote_code=True))
    assert "configuration_own.py, modeling_own.py" in said


def test_code_that_transformers_has_itself_needs_no_trust(broken):
    folder = broken(config(auto_map=OWN_CODE))
    assert models.fetch(str(folder)) == str(folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, and its folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.mark.parametrize("key", ["output_dir", "export_dir"])
@pytest.mark.parametrize("place", ["/", "~", "data", "model", "file", "file/below", "mine", "x" * 300, "nul\0byte"])
def test_no_place_of_somebody_elses_is_written_to(tiny_recipe, tmp_path, monkeypatch, key, place):
    home, tiny_rows = tmp_path / "home", Path(tiny_recipe["dataset"]).parent
    (home / "mine" / "model").mkdir(parents=True)
    (home / "mine" / "README.md").write_text("my own notes")
    (home / "mine" / "model" / "weights").write_text("my own weights")
    (home / "file").write_text("a file")
    shutil.copytree(tiny_rows, home / "data")
    shutil.copytree(tiny_recipe["model_name_or_path"], home / "model")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    values = tiny_recipe | {"dataset": "data/sft.json", "model_name_or_path": "model", "output_dir": None, key: place}
    before = snapshot(home)
    action = train.train if key == "output_dir" else export.export
    refusal(lambda: action(recipes.load(values)))
    assert snapshot(home) == before


def test_an_empty_home_folder_is_not_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "home folder" in refusal(lambda: target.refuse_place(Path("~").expanduser(), "output_dir"))


def test_a_place_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(target.os, "access", lambda path, mode: False)
    assert "Permission denied" in refusal(lambda: target.refuse_place(tmp_path / "run", "output_dir"))


LATE = {
    "a scheduler without what it needs": {"lr_scheduler_type": "warmup_stable_decay"},
    "an argument that the scheduler has not": {"lr_scheduler_kwargs": {"nonsense": 1}},
    "a layer that is not there": {"lora_target": "nobody"},
    "a metric that nobody measures": {"metric_for_best_model": "nonsense", "load_best_model_at_end": True},
    "a reward model that is none": {"stage": "grpo", "reward_model": "nowhere"},
    "a checkpoint of nobody": {"resume_from_checkpoint": "checkpoint-7"},
}


@pytest.mark.parametrize("name", LATE)
def test_a_refused_run_leaves_no_folder_and_changes_nothing_in_one(tiny_recipe, tmp_path, name):
    new = tmp_path / "runs" / "deep" / "run"
    refusal(lambda: train.train(recipes.load(tiny_recipe | LATE[name] | {"output_dir": str(new)})))
    assert not (tmp_path / "runs").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    refusal(lambda: train.train(recipes.load(tiny_recipe | LATE[name] | {"output_dir": str(empty)})))
    assert list(empty.iterdir()) == []


def test_a_refused_replacement_leaves_the_run_that_was_there(tiny_recipe, tmp_path):
    first = train.train(recipes.load(tiny_recipe | {"max_steps": 2}))
    before = snapshot(first.folder)
    for change in ({"lr_scheduler_kwargs": {"nonsense": 1}}, {"lora_target": "nobody"}, {"learning_rate": 1e-3}):
        fresh = "learning_rate" not in change
        refusal(lambda change=change, fresh=fresh: train.train(recipes.load(tiny_recipe | change), fresh=fresh))
        assert snapshot(first.folder) == before, change


def test_a_folder_with_another_tools_manifest_is_not_a_run(tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"name": "a web page"}')
    before = snapshot(folder)
    assert "files that" in refusal(lambda: train.train(recipes.load(tiny_recipe), fresh=True))
    assert snapshot(folder) == before


def test_a_lock_that_nothing_began_under_is_removed(tmp_path):
    with checkpoint.lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / checkpoint.LOCK).exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_reward_model_on_a_quantized_base_trains(tiny_recipe, tiny_rows, bits):
    pairs = {"stage": "rm", "dataset": str(tiny_rows / "preference.json"), "max_steps": 1}
    done = train.train(recipes.load(tiny_recipe | pairs | {"quantization_bit": bits}))
    assert done.metrics["train_loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "STOP"], ids=["Ctrl-C", "SIGTERM", "STOP"])
def test_a_stopped_run_has_saved_and_its_exit_code_says_so(tiny_recipe, tmp_path, how):
    values = tiny_recipe | {"max_steps": 2000, "save_steps": 1000}
    recipes.write(recipes.load(values), tmp_path / "r.yaml")
    command = [sys.executable, "-m", "ftlab", "train", str(tmp_path / "r.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "run" / folders.LOG
    while run.poll() is None and not (log.exists() and log.stat().st_size > 200):
        time.sleep(0.05)
    (tmp_path / "run" / "STOP").touch() if how == "STOP" else run.send_signal(how)
    said = run.communicate()[0]
    assert run.returncode == 130 and "Traceback" not in said and "saved" in said
    assert saved_weights.checkpoints(tmp_path / "run")


def test_ctrl_c_does_not_wait_for_the_server_s_model():
    program = (
        "import signal, sys, time; from ftlab.apps import cli; from ftlab.apps.serve import loading\n"
        # A job in the background of a script inherits that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "loading.load = lambda *_: (print('loading', flush=True), time.sleep(600))\n"
        "sys.exit(cli.main(['serve', 'some-model', '--port', '0']))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    server = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)
    while "loading" not in server.stdout.readline():
        assert server.poll() is None
    server.send_signal(signal.SIGINT)
    said, _ = server.communicate(timeout=120)
    assert (server.returncode, said) == (130, "ftlab: stopped\n")
