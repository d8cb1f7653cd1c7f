"""JupyterLab on a free loopback port, kept away from the user's own settings."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ftlab.apps.board import voila_server

TOKEN = "only-for-these-tests"
SETTINGS = {
    # Every cell is drawn, wherever the page is scrolled to.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def private(folder: Path) -> dict[str, str]:
    """Return the variables that keep Jupyter inside a folder."""
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib"}
    return {name: str(folder / place) for name, place in places.items()}


@contextlib.contextmanager
def lab(root: Path, private_folder: Path) -> Iterator[str]:
    """Serve `root` in JupyterLab and yield its address."""
    for name, values in SETTINGS.items():
        path = private_folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port = voila_server.free("127.0.0.1", 0)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    log = private_folder / "lab.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | private(private_folder), start_new_session=True
        )
    try:
        voila_server.wait_for(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        voila_server.end(process)
