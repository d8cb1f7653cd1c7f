"""Every lesson through papermill on the real model, smoke profile, where no network is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftlab import device, embedded
from ftlab.apps import lesson_files

HERE = Path(__file__).parent
# What this machine would not choose, and the lessons that show in the fewest seconds that it works all the same.
# Without bfloat16 instructions that format is emulated, and a lesson takes minutes: one there.
OTHER_DTYPE = "bfloat16" if device.describe().dtype == "float32" else "float32"
SHORT = ["16"] if OTHER_DTYPE == "bfloat16" else ["04", "05", "08", "12"]
OFFLINE = ["unshare", "-rn", sys.executable, str(HERE / "offline.py")]


@pytest.fixture(scope="session")
def no_network() -> list[str]:
    """The words before a command that cut the network, [] where the system does not allow it (said in the report)."""
    if shutil.which("unshare") and subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0:
        return OFFLINE
    print("this system makes no network namespaces: the lessons run with the network on")
    return []


@pytest.mark.notebook
@pytest.mark.parametrize("lesson", lesson_files.lessons(), ids=lambda lesson: lesson.name)
def test_a_lesson_runs_without_network(lesson, no_network):
    run(lesson, no_network, {})


@pytest.mark.notebook
@pytest.mark.parametrize("lesson", lesson_files.lessons(SHORT), ids=lambda lesson: lesson.name)
def test_a_short_lesson_runs_in_the_other_format(lesson, no_network):
    run(lesson, no_network, {"FTLAB_DTYPE": OTHER_DTYPE})


def run(lesson: lesson_files.Lesson, no_network: list[str], settings: dict[str, str]) -> None:
    """Run a lesson as `make course` does; the lesson and its libraries say nothing on stderr."""
    embedded.fetch()
    command = [*no_network, sys.executable, "-m", "ftlab", "course", "run", lesson.number, "--profile", "smoke"]
    # HF_HUB_OFFLINE is unset: the lesson itself must not look for the hub.
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= settings
    done = subprocess.run(command, cwd=lesson_files.root(), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not done.stderr
    print(done.stdout.splitlines()[-1])


def test_the_listener_notices_a_look_at_the_hub(no_network):
    if not no_network:
        pytest.skip("this system makes no network namespaces")
    code = "import os, urllib.request as u\ntry: u.urlopen(os.environ['HF_ENDPOINT'], timeout=1)\nexcept OSError: pass"
    assert subprocess.run([*no_network, sys.executable, "-c", code]).returncode == 3
