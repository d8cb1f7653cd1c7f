"""The hub path, against a small local server that speaks the hub's protocol."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from safetensors.torch import save
from torch import zeros

REVISION = "0" * 40
FILES = {"config.json": b"{}", "model.safetensors": save({"w": zeros(1)}), "evil.bin": b"\x80\x04."}
REPOSITORIES = {"org/good": FILES, "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."}}


class Hub(BaseHTTPRequestHandler):
    """GET /api/models/ORG/NAME[/revision/R|/tree/R] and HEAD/GET /ORG/NAME/resolve/R/FILE."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            parts = path.split("/")
            repo = "/".join(parts[2:4])
            if repo == "org/gated":
                return self.answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
            if repo not in REPOSITORIES:
                return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            if "tree" in parts:
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in REPOSITORIES[repo].items()
                ]
                return self.answer(json.dumps(tree).encode())
            siblings = [{"rfilename": name, "size": len(content)} for name, content in REPOSITORIES[repo].items()]
            return self.answer(json.dumps({"id": repo, "sha": REVISION, "siblings": siblings}).encode())
        repo, file = path.split("/resolve/")[0], path.rsplit("/", 1)[-1]
        content = REPOSITORIES[repo][file]
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.server.requests.append(self.path)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def fetch(hub, tmp_path):
    """Call `models.fetch` in a fresh process, because huggingface_hub reads its environment on import."""

    def call(name: str, **environment: str) -> subprocess.CompletedProcess:
        import os

        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        }
        code = (
            "import sys\nfrom ftlab.errors import LabError\nfrom ftlab import models\n"
            "try: print(models.fetch(sys.argv[1]))\n"
            "except LabError as error: print(error); raise SystemExit(error.exit_code)"
        )
        command = [sys.executable, "-c", code, name]
        return subprocess.run(command, env=os.environ | settings | environment, capture_output=True, text=True)

    return call


def test_a_hub_model_is_fetched_without_its_pickles_and_then_found_offline(fetch, hub, tmp_path):
    first = fetch("org/good")
    assert first.returncode == 0, first.stderr
    folder = first.stdout.splitlines()[-1]
    assert "fetching org/good" in first.stdout and folder.startswith(str(tmp_path))
    assert not list(tmp_path.rglob("evil.bin"))
    hub.requests.clear()
    again = fetch("org/good", HF_HUB_OFFLINE="1")
    assert again.stdout.splitlines()[-1] == folder and hub.requests == []


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("org/nobody", {}, "unknown model `org/nobody`"),
        ("org/pickled", {}, "ftlab does not load"),
        ("org/gated", {}, "access must be requested"),
        ("org/good", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=1"),
        ("org/good", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "is unreachable"),
    ],
)
def test_what_can_go_wrong_is_said(fetch, name, environment, message):
    done = fetch(name, **environment)
    assert done.returncode == 2 and message in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
