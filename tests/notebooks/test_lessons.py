"""Every lesson through papermill on the real model, smoke profile, where no network is."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from waiting import until

from ftlab import device, embedded
from ftlab.apps import cli, lesson_files, notebooks

HERE = Path(__file__).parent
# What this machine would not choose, and the lessons that show in the fewest seconds that it works all the same.
# Without bfloat16 instructions that format is emulated, and a lesson takes minutes: one there.
OTHER_DTYPE = "bfloat16" if device.describe().dtype == "float32" else "float32"
SHORT = ["16"] if OTHER_DTYPE == "bfloat16" else ["04", "05", "08", "12"]
LOOK = "import os, urllib.request as u\ntry: u.urlopen(os.environ['HF_ENDPOINT'], timeout=1)\nexcept OSError: pass"
pytestmark = pytest.mark.notebook
OFFLINE = ["unshare", "-rn", sys.executable, str(HERE / "offline.py")]


@pytest.fixture(scope="session")
def no_network() -> list[str]:
    """The words before a command that cut the network, [] where the system does not allow it (said in the report)."""
    if shutil.which("unshare") and subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0:
        return OFFLINE
    print("this system makes no network namespaces: the lessons run with the network on")
    return []


@pytest.fixture(scope="session")
def forked_kernels(no_network, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variable with which Jupyter forks kernels from a process of this session: forked_kernels.py."""
    place, program = tmp_path_factory.mktemp("kernels"), str(HERE / "forked_kernels.py")
    # The path of a socket has room for 104 bytes on macOS, 108 on Linux.
    with tempfile.TemporaryDirectory(prefix="ftlab-") as folder:
        address = f"{folder}/forked"
        kernel = {"argv": [sys.executable, "-IS", program, "ask", address, "-f", "{connection_file}"]}
        (place / "kernels" / "python3").mkdir(parents=True)
        spec = kernel | {"display_name": "Python 3", "language": "python"}
        (place / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
        environment = os.environ | {"PYTHONPATH": str(lesson_files.root())}
        server = subprocess.Popen([*no_network[:2], sys.executable, program, "serve", address], env=environment)
        try:
            until(lambda: Path(address).exists() or server.poll() is not None)
            yield {"JUPYTER_PATH": str(place)}
        finally:
            server.kill()
            server.wait()


@pytest.mark.parametrize("lesson", lesson_files.lessons(), ids=lambda lesson: lesson.name)
def test_a_lesson_runs_without_network(lesson, forked_kernels, monkeypatch, capfd):
    """The kernel has no network; the command, the same for all lessons, has none in the test below."""
    for name in ("FTLAB_OUTCOMES", "FTLAB_HEADLESS", "TORCH_CPP_LOG_LEVEL", "HF_HUB_OFFLINE"):
        # The command sets these, and they are restored.
        monkeypatch.setenv(name, "")
    for name, value in forked_kernels.items():
        monkeypatch.setenv(name, value)
    embedded.fetch()
    code = cli.main(["course", "run", lesson.number, "--profile", "smoke"])
    printed, said = capfd.readouterr()
    assert code == 0, printed[-3000:] + said[-3000:]
    assert not said
    print(printed.splitlines()[-1])


@pytest.mark.parametrize("lesson", lesson_files.lessons(SHORT), ids=lambda lesson: lesson.name)
def test_a_short_lesson_runs_in_the_other_format(lesson, no_network, forked_kernels):
    """As `make course` runs it: the lesson and its libraries say nothing on stderr, nobody looks for the hub."""
    embedded.fetch()
    command = [*no_network, sys.executable, "-m", "ftlab", "course", "run", lesson.number, "--profile", "smoke"]
    # HF_HUB_OFFLINE is unset: the lesson itself must not look for the hub.
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= forked_kernels | {"FTLAB_DTYPE": OTHER_DTYPE}
    done = subprocess.run(command, cwd=lesson_files.root(), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not done.stderr
    print(done.stdout.splitlines()[-1])


def test_the_listener_notices_a_look_at_the_hub(no_network):
    if not no_network:
        pytest.skip("this system makes no network namespaces")
    assert subprocess.run([*no_network, sys.executable, "-c", LOOK]).returncode == 3


@pytest.mark.parametrize(("code", "said"), [("pass", ""), (LOOK, "the kernel looked for the hub\n")])
def test_a_forked_kernel_s_look_at_the_hub_is_noticed(forked_kernels, monkeypatch, capfd, code, said):
    monkeypatch.setenv(*next(iter(forked_kernels.items())))
    cell = nbformat.v4.new_code_cell(f"import sys\nassert 'trl' in sys.modules\n{code}")
    with notebooks.kernel_settings() as settings:
        NotebookClient(nbformat.v4.new_notebook(cells=[cell]), **settings).execute()
    assert capfd.readouterr().err == said
