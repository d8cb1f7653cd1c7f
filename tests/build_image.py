"""Build a container file without a Docker daemon, and use the image as its learner: docs/docker.md.

python tests/build_image.py docker/Dockerfile FOLDER [OPTION ...]     (`make image`; as root, with buildah, debootstrap)

buildah reads the file and executes each RUN line in a chroot. The base image is a fresh Debian with Debian's Python,
under the name in the FROM line: no registry is needed. It is kept in FOLDER for the next file. OPTIONs go to buildah:
`--volume=$HOME/.config/pip/pip.conf:/etc/pip.conf:ro` lets the RUN lines use this machine's package index.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEBIAN = "bookworm"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
# Where the image of Python has its own; Debian's marker stops pip from installing beside Debian's packages.
AS_IN_THE_IMAGE = "ln -s /usr/bin/python3 /usr/local/bin/python && rm /usr/lib/python3*/EXTERNALLY-MANAGED"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# As the image's user: who that is, the course laid out, and its first lesson executed.
COMMANDS = (["id"], ["ftlab", "course", "start", ".", "--no-open"], ["ftlab", "course", "run", "00"])
WAIT_SECONDS = 300


class Builder:
    """buildah with its images in `folder`, and the options under which containers run."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        # vfs needs no module of the kernel, and chroot no namespace or control group.
        self.command = ["buildah", "--root", str(folder / "images"), "--runroot", str(folder / "run")]
        self.command += ["--storage-driver", "vfs"]
        self.run = ["--isolation", "chroot", *options]

    def __call__(self, *words: str | Path) -> str:
        """Run one of buildah's commands and return its standard output; its log goes to ours."""
        done = subprocess.run([*self.command, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()


def make_base(build: Builder, folder: Path, name: str) -> None:
    """Make an image `name` of a fresh Debian with Debian's Python and pip, if it isn't there."""
    if name in build("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    root = folder / "debian"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, root], check=True)
    subprocess.run(["chroot", root, "sh", "-ec", AS_IN_THE_IMAGE], check=True)
    container = build("from", "scratch")
    build("add", "--quiet", container, root, "/")
    build("config", "--env", PATH, container)
    build("commit", "--quiet", "--rm", container, name)
    subprocess.run(["rm", "-rf", root], check=True)


def ask(address: str) -> tuple[int, bytes]:
    """Return the status of an answer and its body; 0 if nothing answers."""
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def look_at_jupyter(build: Builder, container: str) -> None:
    """Run the image's own command and ask JupyterLab for the lessons, with its token and without."""
    command = json.loads(build("inspect", container))["OCIv1"]["config"]["Cmd"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = [f"--env=JUPYTER_PORT={port}", "--env=JUPYTER_TOKEN=secret"]
    run = [*build.command, "run", *build.run, *settings, container, "--", *command]
    server = subprocess.Popen(run, start_new_session=True)
    address = f"http://127.0.0.1:{port}/api/contents/notebooks"
    try:
        end = time.monotonic() + WAIT_SECONDS
        while not (refused := ask(address)[0]):
            assert server.poll() is None and time.monotonic() < end, "JupyterLab does not answer"
            time.sleep(1)
        status, body = ask(f"{address}?token=secret")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    assert (refused, status) == (403, 200), (refused, status)
    assert "00_first_finetune.ipynb" in {one["name"] for one in json.loads(body)["content"]}


def main(file: Path, folder: Path, options: list[str]) -> None:
    """Build `file` and use the image."""
    folder.mkdir(parents=True, exist_ok=True)
    build = Builder(folder, options)
    (base,) = set(re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE))
    make_base(build, folder, f"docker.io/library/{base}")
    build("bud", "--pull-never", *build.run, "--file", file, "--tag", "ftlab", ROOT)
    container = build("from", "--pull-never", "localhost/ftlab")
    try:
        for command in COMMANDS:
            print(build("run", *build.run, container, "--", *command), flush=True)
        look_at_jupyter(build, container)
    finally:
        build("rm", container)
    print(f"{file.name}: every line executed, the course runs, and JupyterLab wants its token")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), sys.argv[3:])
