"""Data sets and models of ModelScope, fetched by its own package from a server that speaks its protocol."""

import hashlib
import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlparse

import pytest

from ftlab import models
from ftlab.data import registry
from ftlab.errors import LabError

pytest.importorskip("modelscope", reason="pip install modelscope")
ROWS = [{"instruction": "问", "input": "", "output": f"答 {number}"} for number in range(3)]


class ModelScope(http.server.BaseHTTPRequestHandler):
    """The two calls that a download makes: the tree of a repository, and one file of it."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append(url.path)
        if url.path.endswith(("/repo/tree", "/repo/files")):
            self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": self.tree()}}).encode())
        elif url.path.endswith("/repo") and query["FilePath"] in self.files:
            self.answer(self.files[query["FilePath"]])
        else:
            self.answer(b'{"Code": 404, "Success": false, "Message": "not found"}', 404)

    do_HEAD = do_GET

    def tree(self) -> list[dict[str, object]]:
        """Return the entries of the listing."""
        return [
            {
                "Path": name,
                "Name": Path(name).name,
                "Type": "blob",
                "Size": len(content),
                "Sha256": hashlib.sha256(content).hexdigest(),
                "Revision": "master",
            }
            for name, content in self.files.items()
        ]

    def answer(self, content: bytes, code: int = 200) -> None:
        """Send one answer."""
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *values: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server; the package asks where it is when it is first used, and never again."""
    home = tmp_path_factory.mktemp("modelscope")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ModelScope) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("MODELSCOPE_CACHE", str(home))
        patch.setenv("HOME", str(home))
        yield
        server.shutdown()


@pytest.fixture
def hub(server, monkeypatch):
    """The server, its files empty."""
    monkeypatch.setattr(ModelScope, "files", {})
    monkeypatch.setattr(ModelScope, "asked", [])
    return ModelScope


def entry(place: Path, url: str, **more: str) -> Path:
    (place / "dataset_info.json").write_text(json.dumps({"scope": {"ms_hub_url": url} | more}))
    return place


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_a_data_set_is_fetched_and_read(hub, tmp_path):
    hub.files |= {"train.jsonl": lines(ROWS), "README.md": b"# a set\n"}
    rows = registry.load("scope", entry(tmp_path, "org/set"))
    assert [row["messages"][-1]["content"] for row in rows] == ["答 0", "答 1", "答 2"]
    assert any(path.startswith("/api/v1/datasets/org/set/repo") for path in hub.asked)


def test_folder_and_split_are_those_of_the_entry(hub, tmp_path):
    hub.files |= {
        "other/train.jsonl": lines(ROWS),
        "small/test.jsonl": lines(ROWS[:1]),
        "small/train.jsonl": lines(ROWS),
    }
    assert len(registry.load("scope", entry(tmp_path, "org/parts", folder="small", split="test"))) == 1


def test_a_set_that_is_not_there_is_one_line(hub, tmp_path):
    with pytest.raises(LabError, match="the data set could not be downloaded"):
        registry.load("scope", entry(tmp_path, "org/none"))


def test_a_model_is_fetched_without_its_pickles(hub, tiny_model_dir):
    hub.files |= {path.name: path.read_bytes() for path in tiny_model_dir.iterdir() if path.is_file()}
    hub.files["pytorch_model.bin"] = b"a pickle"
    folder = Path(models.fetch("modelscope:org/name"))
    assert (folder / "config.json").is_file() and not list(folder.rglob("*.bin"))
