"""`ftlab board` from outside: where it binds, who gets in, what a stranger on the machine can read of it."""

import asyncio
import importlib
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
import weakref
from pathlib import Path

import nbformat
import psutil
import pytest
from traitlets.config import Config
from voila.execute import VoilaExecutor

from ftlab import packages
from ftlab.apps import cli
from ftlab.apps.board import voila_server
from ftlab.errors import LabError

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def test_only_this_machine_is_served_unless_asked(capsys):
    for host in ("0.0.0.0", "::", "example.org"):
        assert cli.main(["board", "--host", host]) == 2
    assert "--allow-remote" in (said := capsys.readouterr().err) and "--host" in said


def test_a_taken_port_and_an_impossible_one_are_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["board", "--port", str(taken.getsockname()[1])]) == 2
    assert cli.main(["board", "--port", "70000"]) == 2
    assert capsys.readouterr().err.count("--port") == 2


def test_a_broken_recipe_is_said_before_anything_is_served(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("model_name_or_path: smollm2-135m\nlora_rnak: 8\n")
    assert cli.main(["board", str(path)]) == 2
    assert "lora_rank" in capsys.readouterr().err


def test_without_voila_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"ftlab\[course\]"), voila_server.serving():
        pass


@pytest.mark.parametrize(
    ("code", "said"), [("import time; time.sleep(600)", "did not answer within 0 s"), ("", "has exited: no model")]
)
def test_a_server_that_exits_and_one_that_does_not_answer_are_told_apart(tmp_path, monkeypatch, code, said):
    monkeypatch.setattr(voila_server, "START_SECONDS", 0)
    (tmp_path / "voila.log").write_text("no model\n")
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        if not code:
            process.wait(60)
        with pytest.raises(LabError, match=said):
            voila_server.wait_for("http://127.0.0.1:9/", process, tmp_path / "voila.log")
    finally:
        process.kill()
        process.wait()


def test_what_a_visit_leaves_is_freed_when_its_kernel_ends(monkeypatch):
    class Left:
        """What refers to itself: only a collection frees it."""

        def __init__(self):
            self.itself = self

    async def shut(manager, kernel_id):
        ended.append(kernel_id)

    ended = []
    page = voila_server.voila_settings("127.0.0.1", 1, "")["VoilaConfiguration"]
    module, _, name = page["multi_kernel_manager_class"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(kind.__mro__[1], "shutdown_kernel", shut)
    # One that was never set up cannot tidy up either.
    monkeypatch.setattr(kind, "__del__", lambda manager: None, raising=False)
    left = weakref.ref(Left())
    assert left() is not None
    asyncio.run(kind.shutdown_kernel(object.__new__(kind), "one"))
    assert ended == ["one"] and left() is None


def test_voila_waits_for_the_panels_of_a_busy_machine():
    settings = Config(voila_server.voila_settings("127.0.0.1", 1, ""))
    assert VoilaExecutor(nbformat.v4.new_notebook(), config=settings).iopub_timeout == 120


@pytest.mark.slow
def test_the_token_lets_in_and_stands_in_no_command_line(monkeypatch):
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    monkeypatch.setattr(voila_server, "START_SECONDS", 600)
    with voila_server.serving() as served:
        bare, token = served.url.split("?token=")
        assert len(token) >= 32 and bare.startswith("http://127.0.0.1:")
        process = psutil.Process(served.process.pid)
        assert token not in " ".join(process.cmdline()) and token not in " ".join(process.environ().values())
        assert process.environ()["MALLOC_ARENA_MAX"] == "1", "or it grows at every visit"
        (folder,) = [Path(part).parent for part in process.cmdline() if part.endswith("ftlab.ipynb")]
        assert stat.S_IMODE(os.stat(folder / "voila.json").st_mode) == 0o600
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for wrong in (bare, f"{bare}?token=", f"{bare}?token={'x' * len(token)}"):
            assert "login" in opened(wrong) and not process.children(recursive=True), "no kernel for a stranger"
        for path in ("voila/files/voila.json", "voila/files/ftlab.ipynb", "files/voila.json", "api/kernels"):
            assert token not in opened(bare + path) and "IPython" not in opened(bare + path)
        for path in ("voila/files/voila.json", "voila/files/ftlab.ipynb", "voila/files/..%2f..%2fetc%2fpasswd"):
            assert "root:" not in opened(f"{bare}{path}?token={token}") and token not in opened(bare + path)
        with pytest.raises(LabError, match="--port"):
            voila_server.free("127.0.0.1", int(bare.rstrip("/").rpartition(":")[2]))
    assert served.process.poll() is not None and not folder.exists()


@pytest.mark.slow
@pytest.mark.lengthy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_and_a_kill_end_the_server(number, tmp_path):
    command = [sys.executable, "-m", "ftlab", "board", "--port", "0"]
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "IPYTHONDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | places, cwd=tmp_path) as board:
        assert "?token=" in board.stdout.readline()
        inside = psutil.Process(board.pid).children(recursive=True)
        board.send_signal(number)
        assert board.wait(60) == 0 and inside
    assert not [one for one in inside if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("port", ["many", "-1", "70000", "80 80"])
def test_gradio_variables_are_read_and_checked(monkeypatch, capsys, port):
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    assert cli.main(["webui"]) == 2
    assert "GRADIO_SERVER_PORT" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(voila_server, "serve", lambda *arguments: asked.append(arguments))
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7860")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert cli.main(["webui"]) == 2
    assert "GRADIO_SERVER_NAME" in capsys.readouterr().err and not asked
    assert cli.main(["webui", "--allow-remote"]) == 0
    assert cli.main(["board", "--port", "0", "--host", "127.0.0.1"]) == 0
    assert [(host, port) for _, host, port, *_ in asked] == [("0.0.0.0", 7860), ("127.0.0.1", 0)]


def opened(url):
    """Return what an address answers, refusals included, and where it led."""
    try:
        with DIRECT.open(url, timeout=300) as answer:
            return answer.url + answer.read().decode(errors="replace")
    except urllib.error.HTTPError as refused:
        return refused.url + refused.read().decode(errors="replace")
