"""The project's own files agree with each other."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import branches
import lessons
import nbformat
import pytest
from ruamel.yaml import YAML

from ftlab.apps import lesson_files, notebooks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LESSONS = lesson_files.lessons()
# llamacpp is built from source for minutes; mutants is for whoever measures the tests, site for `make site`.
BY_HAND = {"benchmarks", "deepspeed", "gguf", "llamacpp", "mutants", "optim", "ray", "site", "trackers"}


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!\[; ]", requirement)[0].lower().replace("_", "-")


def test_every_requirement_is_pinned_and_torch_comes_first():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert pins[0].startswith("torch==") and all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {name_of(pin) for pin in pins}
    wanted = PROJECT["dependencies"] + [one for extra in PROJECT["optional-dependencies"].values() for one in extra]
    assert {name_of(requirement) for requirement in wanted} <= pinned


def test_the_conda_environment_installs_the_same_extras_as_make():
    conda = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    extras = ",".join(extra for extra in PROJECT["optional-dependencies"] if extra not in BY_HAND)
    assert pip == ["-c constraints.txt", f"-e .[{extras}]"]
    assert f".[{extras}]" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("language", lesson_files.LANGUAGES)
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_committed_notebooks_are_those_of_their_source(lesson, language):
    committed = nbformat.read(lesson.notebook(language), as_version=4)
    made = lessons.edition(lesson, language)
    assert [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in committed.cells] == [
        (cell.id, cell.cell_type, cell.source, cell.metadata) for cell in made.cells
    ]
    minutes = {"ftlab": committed.metadata["ftlab"]} if "ftlab" in committed.metadata else {}
    assert committed.metadata == made.metadata | minutes, "widget state and the like are stripped"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_committed_pictures_are_small(lesson):
    notebooks.refuse_big_pictures(nbformat.read(lesson.notebook(), as_version=4))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_committed_notebooks_carry_a_clean_run(lesson):
    english, chinese = (
        notebooks.code_cells(nbformat.read(lesson.notebook(language), as_version=4))
        for language in lesson_files.LANGUAGES
    )
    assert [cell.execution_count for cell in english] == list(range(1, len(english) + 1))
    assert [cell.outputs for cell in english] == [cell.outputs for cell in chinese]
    assert not any(output.output_type == "error" for cell in english for output in cell.outputs)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_the_minutes_in_lesson_and_readme_are_those_that_the_runs_recorded(lesson):
    recorded = {name: max(1, round(spent)) for name, spent in notebooks.minutes(lesson).items()}
    with_bfloat16, without = recorded.get("bfloat16"), recorded.get("float32")
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if f"{lesson.name}.ipynb" in line)
    told = row.split(" | ")[2:4]
    assert told[0] == f"{with_bfloat16} min" if with_bfloat16 else told[0] == "-" or told[0].startswith("~")
    assert told[1] == (f"{without} min" if without else "-")
    english, chinese = (
        "".join(cell.source for cell in lessons.edition(lesson, language).cells) for language in lesson_files.LANGUAGES
    )
    if with_bfloat16:
        assert f"**Cost:** about {with_bfloat16} minutes" in english
        assert re.search(rf"约 ?{with_bfloat16} 分钟", chinese)
    if without:
        assert re.search(rf"\b{without} (minutes and [\d.]+ GB on two CPU cores )?without bfloat16", english)
        assert f"不支持 bfloat16 时约 {without} 分钟" in chinese


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_every_prose_cell_has_its_chinese_twin(lesson):
    english, chinese = (lessons.edition(lesson, language).cells for language in lesson_files.LANGUAGES)
    same = [a.id for a, b in zip(english, chinese, strict=True) if a.cell_type == "markdown" and a.source == b.source]
    assert not same


def test_git_carries_nothing_heavy():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in files if (ROOT / name).exists() and (ROOT / name).stat().st_size > 500_000]
    assert not [name for name in files if name.endswith((".safetensors", ".gguf", ".bin", ".whl"))]


def test_the_readme_s_picture_is_the_lesson_s():
    import base64

    cells = notebooks.code_cells(nbformat.read(ROOT / "notebooks" / "03_lora.ipynb", as_version=4))
    (cell,) = [cell for cell in cells if cell.id == "forgetting"]
    (picture,) = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    assert base64.b64decode(picture) == (ROOT / "notebooks" / "forgetting.png").read_bytes(), (
        "copy it from the notebook"
    )


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_to_commits_and_only_read_the_repository(path):
    workflow = YAML(typ="safe").load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for line in path.read_text().splitlines():
        if "uses:" in line:
            assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_the_workflow_tests_what_the_makefile_tests():
    (job,) = YAML(typ="safe").load((ROOT / ".github/workflows/test.yml").read_text())["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run" and "make test" in (ROOT / ".ci/run").read_text()


def test_the_weekly_workflow_lifts_the_limits_of_pyproject():
    steps = [
        step
        for job in YAML(typ="safe").load((ROOT / ".github/workflows/weekly.yml").read_text())["jobs"].values()
        for step in job["steps"]
    ]
    (lift,) = [step["run"] for step in steps if step.get("run", "").startswith("sed")]
    arguments = shlex.split(lift.replace("sed -i", "sed").replace("pyproject.toml", str(ROOT / "pyproject.toml")))
    lifted = tomllib.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    assert {"trl>=1.16", "peft>=0.21"} <= set(lifted["project"]["dependencies"])


@pytest.mark.parametrize(
    ("tokens", "server", "code"), [((90, 100), (49, 50), 0), ((80, 100), (50, 50), 1), ((100, 100), (48, 50), 1)]
)
def test_too_few_covered_branches_fail(tmp_path, capsys, tokens, server, code):
    shares = {"ftlab/tokens.py": tokens, "ftlab/apps/serve/app.py": server, "ftlab/errors.py": (0, 0)}
    files = {
        name: {"summary": {"covered_branches": covered, "missing_branches": total - covered}}
        for name, (covered, total) in shares.items()
    }
    (tmp_path / "coverage.json").write_text(json.dumps({"files": files}))
    assert branches.main(str(tmp_path / "coverage.json")) == code
    assert f"{server[0] / server[1]:.1%} of ftlab/runs/checkpoint.py and ftlab/apps/serve/" in capsys.readouterr().out
