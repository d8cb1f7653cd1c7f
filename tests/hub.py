"""A small local server that speaks the hub's protocol, and a process that fetches a model from it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safetensors.torch import save
from torch import zeros

REVISION = "0" * 40


def commit(repository: str) -> str:
    """Return the commit of a repository's main branch, or of `NAME@REVISION`."""
    return hashlib.sha1(repository.encode()).hexdigest() if "@" in repository else REVISION


FILES = {"config.json": b"{}", "model.safetensors": save({"w": zeros(1)}), "evil.bin": b"\x80\x04."}
PICKLED = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."}
FETCH = """
import sys
from ftlab.errors import LabError
from ftlab import models
try: print(models.fetch(sys.argv[1], False, *sys.argv[2:]))
except LabError as error: print(error); raise SystemExit(error.exit_code)
"""


class Hub(BaseHTTPRequestHandler):
    """GET /api/models/ORG/NAME[/revision/R|/tree/R], HEAD/GET /ORG/NAME/resolve/R/FILE, and what an upload posts.

    Revision R of ORG/NAME has the files of `ORG/NAME@R`; the main branch those of `ORG/NAME`.
    """

    def version(self, repository: str, revision: str) -> str:
        """Return the name that the files of a revision, or of its commit, have; "" where there is no such revision."""
        others = [one for one in self.server.repositories if one.startswith(f"{repository}@")]
        named = (one for one in others if revision in (one.partition("@")[2], commit(one)))
        return next(named, repository if revision in ("main", REVISION) else "")

    def allowed(self, repository: str) -> bool:
        """Return True if a repository asks for no token, or the request has the one that it asks for."""
        token = self.server.tokens.get(repository)
        return not token or self.headers["Authorization"] == f"Bearer {token}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            parts = path.split("/")
            repo = "/".join(parts[2:4])
            if repo == "org/gated" or not self.allowed(repo):
                return self.answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
            if repo not in self.server.repositories:
                return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            version = self.version(repo, parts[5] if len(parts) > 5 else "main")
            if not version:
                return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            files = self.server.repositories[version]
            if "tree" in parts:
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                return self.answer(json.dumps(tree).encode())
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return self.answer(json.dumps({"id": repo, "sha": commit(version), "siblings": siblings}).encode())
        repo, _, rest = path.partition("/resolve/")
        if not self.allowed(repo):
            return self.answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        version = self.version(repo, rest.partition("/")[0])
        content = self.server.repositories.get(version, {}).get(path.rsplit("/", 1)[-1])
        if content is None:
            return self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit(version)})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            name = "{organization}/{name}".format(**json.loads(body))
            self.server.repositories.setdefault(name, {})
            return self.answer(json.dumps({"url": f"http://{self.headers['Host']}/{name}"}).encode())
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            way = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"]} | way for file in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": files}).encode())
        if "/commit/" in self.path:
            written = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in written if line["key"] == "file"]
            self.server.repositories[repo] |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            url = f"http://{self.headers['Host']}/{repo}/commit/{REVISION}"
            return self.answer(json.dumps({"commitUrl": url, "commitOid": REVISION}).encode())
        return self.answer(b"{}")  # validate-yaml: no errors, no warnings

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.server.requests.append(self.path)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def local_hub(
    repositories: dict[str, dict[str, bytes]], tokens: dict[str, str] | None = None
) -> Iterator[ThreadingHTTPServer]:
    """Serve these repositories, {name: {file: content}}, on a free port; `requests` lists the paths that were asked.

    Args:
        tokens: name of a repository -> the token without which it is not served.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.repositories, server.tokens = [], dict(repositories), tokens or {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def settings(hub: ThreadingHTTPServer, home: Path) -> dict[str, str]:
    """Return the environment of a process whose hub this is; huggingface_hub reads it on import."""
    return os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
    }


def fetched(
    hub: ThreadingHTTPServer, home: Path, name: str, *more: str, **environment: str
) -> subprocess.CompletedProcess:
    """Call `models.fetch` in a fresh process, with `more` for its revision and cache folder."""
    command = [sys.executable, "-c", FETCH, name, *more]
    return subprocess.run(command, env=settings(hub, home) | environment, capture_output=True, text=True)
