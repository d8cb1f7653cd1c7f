"""The course as the wheel carries it, without a checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 5_000_000


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the wheel of this checkout is installed."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", place, ROOT], check=True)
    (wheel,) = place.glob("*.whl")
    assert wheel.stat().st_size < LIMIT_BYTES
    subprocess.run([*pip, "install", "--no-deps", "--target", place / "site", wheel], check=True)
    return place / "site"


@pytest.fixture(scope="module")
def course(installed, tmp_path_factory):
    """A folder with the course that `ftlab course start` laid out, and a function that runs ftlab there."""
    place = tmp_path_factory.mktemp("learner")

    def ftlab(*arguments: str, folder: Path = place) -> str:
        command = [sys.executable, "-m", "ftlab", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ftlab("course", "start", "--no-open")
    return place / "ftlab-course", ftlab


def test_the_wheel_has_and_lays_out_what_the_checkout_has(course, installed):
    folder, _ = course
    listed = ["git", "ls-files", "notebooks", "data", "recipes", "constraints.txt", "benchmarks/methods.json"]
    wanted = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert wanted
    for name in wanted:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes(), name
    package = subprocess.run(["git", "ls-files", "ftlab"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in package.stdout.split():
        assert (installed / name).read_bytes() == (ROOT / name).read_bytes(), name


@pytest.mark.notebook
@pytest.mark.slow
def test_a_lesson_runs_there(course):
    """The shortest lesson; the test above compares the files of the others."""
    folder, ftlab = course
    assert "02_do_you_need_it    ok" in ftlab("course", "run", "02", folder=folder)


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.lengthy
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_complete_notebook_runs_in_an_empty_folder(installed, tmp_path, lang):
    named = ["--complete", "--lang", lang, "--out", "all.ipynb"]
    execute = [sys.executable, "-m", "papermill", "all.ipynb", "done.ipynb", "-k", "python3", "-p", "PROFILE", "smoke"]
    settings = {"PYTHONPATH": str(installed), "FTLAB_HEADLESS": "1", "FTLAB_LANG": lang}
    for command in ([sys.executable, "-m", "ftlab", "course", "export", *named], execute):
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cells = json.loads((tmp_path / "done.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 100 and all(cell["execution_count"] for cell in code)
