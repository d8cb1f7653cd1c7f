"""`ftlab board`: the panels as one page, published by Voila behind a token."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import nbformat

from ftlab import errors, packages
from ftlab.apps.board import curves
from ftlab.apps.board.visit import LANGUAGE, ONE_ARENA, RECIPE, WORKING_FOLDER
from ftlab.apps.notebooks import METADATA
from ftlab.errors import fail
from ftlab.recipe import read as recipes

CODE = "from ftlab.apps.board import page\n\npage.show()"
# An idle machine answers in seconds; one that is training on every core takes more than a minute.
START_SECONDS = 180
# Closing a page ends its kernel at once. A page that lost its connection can reconnect for this long; a kernel that is
# working sends its progress every second, which counts as activity.
FORGET_SECONDS = 600
# An uploaded file is one message; tornado's default of 10 MiB would cut the page's connection off.
MOST_UPLOADED_BYTES = 2**30
# Windows has no SIGHUP.
ENDING = tuple(one for one in signal.Signals if one.name in ("SIGTERM", "SIGHUP"))


class Served(NamedTuple):
    """A page that is up: its address with the token, and Voila's process."""

    url: str
    process: subprocess.Popen


def serve(source: str | None, host: str, port: int, lang: str | None, allow_remote: bool) -> None:
    """Serve the page until interrupted, ended or left by its terminal; trainings that it started go on.

    Args:
        source: the recipe that the train tab begins with.
    Raises:
        LabError: no Voila, an invalid recipe, an address that is taken or reachable from outside.
    """
    if source:
        recipes.read(source)
    for number in ENDING:
        # Under nohup, a closed terminal must not end the page.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    with (
        contextlib.suppress(KeyboardInterrupt),
        serving(source, host, port, lang, allow_remote) as served,
    ):
        print(errors.say("board_at", url=served.url), flush=True)
        served.process.wait()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Shut down as on Ctrl-C, once: a closing terminal sends several signals, and a second must not interrupt it."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def serving(
    source: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    lang: str | None = None,
    allow_remote: bool = False,
    environment: dict[str, str] | None = None,
) -> Iterator[Served]:
    """Serve the page beside the caller.

    Args:
        port: 0 takes any free one.
        environment: variables for the server and its kernels, in addition to this process's own.
    """
    for name in ("voila", "ipywidgets", "jupyterlab"):
        packages.require(name, "ftlab board")
    if not allow_remote:
        require_loopback(host, "--host")
    port = free(host, port)
    token = os.environ.get("JUPYTER_TOKEN") or secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="ftlab-board-") as folder:
        place = Path(folder)
        cell = nbformat.v4.new_code_cell(CODE, id="board")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=METADATA), place / "ftlab.ipynb")
        # In a file that only its owner can read: a command line is visible to everybody on the machine.
        (place / "voila.json").touch(mode=0o600)
        (place / "voila.json").write_text(json.dumps(voila_settings(host, port, token)), encoding="utf-8")
        variables = ONE_ARENA | os.environ | (environment or {}) | about(source, lang)
        # Voila's settings are in the first, its template `ftlab` is next to this file.
        for name, first in (("JUPYTER_CONFIG_PATH", folder), ("JUPYTER_PATH", str(Path(__file__).parent))):
            variables[name] = os.pathsep.join(filter(None, [first, variables.get(name)]))
        command = [sys.executable, "-m", "voila", str(place / "ftlab.ipynb")]
        with (place / "voila.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=variables, cwd=folder, start_new_session=True
            )
        try:
            wait_for(f"http://{host}:{port}/", process, place / "voila.log")
            yield Served(f"http://{host}:{port}/?token={token}", process)
        finally:
            end(process)


def voila_settings(host: str, port: int, token: str) -> dict[str, Any]:
    """Return Voila's settings."""
    page = {"strip_sources": True, "show_tracebacks": False, "file_allowlist": ["$^"], "template": "ftlab"}
    page |= {"multi_kernel_manager_class": "ftlab.apps.board.kernels.Kernels"}
    # jupytext's Lab extension expects a document manager, which Voila lacks.
    page |= {"extension_denylist": ["jupyterlab-jupytext"], "allow_template_override": "NO"}
    forget = {"cull_idle_timeout": FORGET_SECONDS, "cull_interval": FORGET_SECONDS // 4, "cull_connected": False}
    return {
        "MappingKernelManager": forget,
        "Voila": {
            "ip": host,
            "port": port,
            "token": token,
            "open_browser": False,
            "tornado_settings": {"websocket_max_message_size": MOST_UPLOADED_BYTES},
        },
        "VoilaConfiguration": page,
        # Of a cell that ends while the machine is busy, Voila waits four seconds for the panels, then shows none.
        "VoilaExecutor": {"iopub_timeout": 120},
    }


def about(source: str | None, lang: str | None) -> dict[str, str]:
    """Return the environment variables for the page's kernel."""
    variables = {WORKING_FOLDER: os.getcwd(), RECIPE: str(Path(source).resolve()) if source else ""}
    return variables | {LANGUAGE: lang or errors.language(), "FTLAB_HEADLESS": ""}


def require_loopback(host: str, where: str) -> None:
    """Refuse an address that is reachable from other machines.

    Args:
        where: the option or variable that names it.
    Raises:
        LabError: naming both.
    """
    if not is_written_loopback(host):
        raise fail("board_remote", where=where, host=host)


def is_written_loopback(host: str) -> bool:
    """Return True if an address is `localhost` or a loopback IP as it is written; no other name is looked up.

    >>> is_written_loopback("127.0.0.1"), is_written_loopback("localhost"), is_written_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def free(host: str, port: int) -> int:
    """Return the port if it can be bound, and a free one for 0.

    Raises:
        LabError: it is taken, or invalid.
    """
    try:
        with socket.create_server((host, port)) as bound:
            return bound.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise fail("board_bind", where=f"{host}:{port}", reason=getattr(error, "strerror", None) or error) from error


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers; a request for the token counts.

    Raises:
        LabError: the server ended, or did not answer within START_SECONDS.
    """
    until = time.monotonic() + START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < until:
        try:
            direct.open(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    if process.poll() is None:
        raise fail("board_silent", exit_code=1, seconds=START_SECONDS)
    raise fail("board_died", exit_code=1, reason=curves.last_words(log) or "-")


def end(process: subprocess.Popen) -> None:
    """Stop Voila and thereby its kernels; trainings run in sessions of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
