"""Safe by default: the token, the address, the names."""

import asyncio
import os
import socket
import stat

import pytest

from ftlab import embedded
from ftlab.apps import cli
from ftlab.apps.serve import run, security
from ftlab.apps.serve.security import Guard, Limits
from ftlab.errors import LabError

STRONG = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("API_KEY", "API_HOST", "API_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path):
    made, _ = security.token(tmp_path / "serve")
    path = tmp_path / "serve" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert security.bits(made) >= 128 and path.read_text() == made
    again, said = security.token(tmp_path / "serve")
    assert again == made not in said
    assert security.token(tmp_path / "other")[0] != made


@pytest.mark.parametrize("terminal", [True, False])
def test_a_new_token_is_shown_on_a_terminal_only(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal)
    made, said = security.token(tmp_path)
    assert (made in said) == terminal and str(tmp_path / "token") in said


@pytest.mark.parametrize("terminal", [True, False])
def test_where_the_key_is_is_said_in_chinese(tmp_path, monkeypatch, terminal):
    monkeypatch.setenv("FTLAB_LANG", "zh")
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal)
    told = [security.token(tmp_path)[1], security.token(tmp_path)[1]]
    monkeypatch.setenv("API_KEY", STRONG)
    told.append(security.token(tmp_path)[1])
    assert all("API key" in said and "保存" in said for said in told[:2]) and "环境变量 API_KEY" in told[2]
    assert not any(word in said for said in told for word in ("token is", "the API", "kept"))


def test_the_umask_cannot_open_the_token_file(tmp_path):
    before = os.umask(0)
    try:
        security.token(tmp_path / "serve")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "serve" / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "key", ["", "secret", "a" * 64, "f" * 31, STRONG[:31], f"{STRONG} x", f"{STRONG}\n", "密" * 40]
)
def test_a_weak_key_is_refused(tmp_path, monkeypatch, key):
    monkeypatch.setenv("API_KEY", key)
    with pytest.raises(LabError, match="API_KEY"):
        security.token(tmp_path)
    assert not (tmp_path / "token").exists()


def test_a_strong_key_is_taken_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", STRONG)
    token, said = security.token(tmp_path)
    assert token == STRONG not in said and not (tmp_path / "token").exists()


@pytest.mark.parametrize("harm", ["readable", "short", "link", "folder"])
def test_a_token_file_that_others_could_know_is_refused(tmp_path, harm):
    path = tmp_path / "token"
    if harm == "folder":
        path.mkdir()
    elif harm == "link":
        (tmp_path / "real").write_text(STRONG)
        path.symlink_to(tmp_path / "real")
    else:
        path.write_text(STRONG if harm == "readable" else "short")
        path.chmod(0o644 if harm == "readable" else 0o600)
    with pytest.raises(LabError, match="delete it"):
        security.token(tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_another_address_needs_the_flag(host, capsys, monkeypatch):
    monkeypatch.setenv("API_HOST", host)
    assert cli.main(["serve", "no-such-model"]) == 2
    assert "--allow-remote" in capsys.readouterr().err


def test_loopback_by_default(monkeypatch, capsys):
    bound = []
    monkeypatch.setattr(run, "listen", lambda host, port: bound.append((host, port)) or socket.socket())
    assert cli.main(["serve", "no-such-model"]) == 2
    monkeypatch.setenv("API_PORT", "6006")
    assert cli.main(["serve", "no-such-model"]) == 2
    assert cli.main(["serve", "no-such-model", "--port", "7007", "--host", "::1"]) == 2
    assert bound == [("127.0.0.1", 8000), ("127.0.0.1", 6006), ("::1", 7007)]
    assert "unknown model" in capsys.readouterr().err


def test_a_remote_bind_still_has_a_token(monkeypatch):
    monkeypatch.setattr(run, "listen", lambda host, port: socket.socket())
    assert cli.main(["serve", "no-such-model", "--host", "0.0.0.0", "--allow-remote"]) == 2
    assert (embedded.cache_dir() / "serve" / "token").exists()
    monkeypatch.setenv("API_KEY", "weak")
    with pytest.raises(LabError, match="API_KEY"):
        run.serve("no-such-model", host="0.0.0.0", remote_names=[])


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1.5", "²"])
def test_a_port_that_is_none(monkeypatch, capsys, port):
    monkeypatch.setenv("API_PORT", port)
    assert cli.main(["serve", "no-such-model"]) == 2
    assert "API_PORT" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys):
    with run.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "no-such-model", "--port", str(port)]) == 2
    assert cli.main(["serve", "no-such-model", "--port", "70000"]) == 2
    assert capsys.readouterr().err.count("cannot bind") == 2


@pytest.mark.parametrize(
    ("host", "local", "remote"),
    [
        ("localhost", True, True),
        ("LOCALHOST:9000", True, True),
        ("127.0.0.1:8000", True, True),
        ("[::1]:8000", True, True),
        ("203.0.113.9:6006", False, True),
        ("box.example", False, True),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("", False, False),
        ("[::1", False, False),
    ],
)
def test_names_that_a_client_may_use(host, local, remote):
    guard = Guard(None, STRONG, frozenset(), False, Limits())
    open_guard = Guard(None, STRONG, frozenset({"Box.example"}), True, Limits())
    assert (guard.knows(host), open_guard.knows(host)) == (local, remote)


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr("ftlab.packages.find_spec", lambda name: None)
    assert cli.main(["serve", "tiny"]) == 2
    assert "the package fastapi" in capsys.readouterr().err


def test_a_host_that_has_no_address_is_refused():
    with pytest.raises(LabError, match=r"no-such-host\.invalid"):
        security.resolves_to_loopback("no-such-host.invalid")


def test_a_websocket_is_closed_before_the_application_sees_it():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(None, STRONG, frozenset(), False, Limits())({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_broken_origin_has_no_address():
    assert security.address_of("http://[::1") == "" and security.address_of("http://A.example:1") == "a.example:1"


def test_only_so_much_of_a_refused_body_is_read():
    taken = []

    async def receive():
        taken.append(4)
        return {"type": "http.request", "body": b"1234", "more_body": True}

    asyncio.run(security.drained(receive, Limits(), most_bytes=10))
    assert sum(taken) == 12


@pytest.mark.parametrize("as_folder", [True, False])
def test_serve_loads_the_model_says_where_it_answers_and_closes(tiny_model_dir, monkeypatch, capsys, as_folder):
    ran = []

    class Server:
        def run(self, sockets):
            ran.append(sockets[0].getsockname()[1])
            sockets[0].close()
            raise KeyboardInterrupt

    closed = []
    monkeypatch.setattr(run.Engine, "close", lambda engine, close=run.Engine.close: (closed.append(1), close(engine)))
    monkeypatch.setattr(run, "server", lambda made: Server())
    monkeypatch.setattr(run.sys.stderr, "isatty", lambda: as_folder, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run.serve(str(tiny_model_dir), port=0)
    printed = capsys.readouterr().out
    address = f"http://127.0.0.1:{ran[0]}"
    assert f"serving {tiny_model_dir.name} at {address}/v1; to chat, open {address}/\n" in printed and closed == [1]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({}, None, None),
        ({"origin": "http://localhost"}, None, None),
        ({"origin": "http://evil.example"}, 403, "wrong_origin"),
        ({"host": "evil.example"}, 403, "wrong_host"),
        ({"authorization": f"Bearer {STRONG[:-1]}x"}, 401, "invalid_api_key"),
        ({"authorization": f"Basic {STRONG}"}, 401, "invalid_api_key"),
        ({"content-type": "text/plain"}, 415, "unsupported_media_type"),
        ({"content-length": "11"}, 413, "request_too_large"),
    ],
)
def test_a_request_is_checked_by_its_headers_alone(change, status, code):
    headers = {"host": "localhost", "authorization": f"Bearer {STRONG}", "content-type": "application/json"} | change
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/models", "headers": pairs}
    guard = Guard(None, STRONG, frozenset(), False, Limits(body_bytes=10))
    if status is None:
        guard.check(scope)
        return
    with pytest.raises(security.Refused) as refused:
        guard.check(scope)
    assert (refused.value.status, refused.value.code) == (status, code)


@pytest.mark.parametrize(("chunks", "fits"), [([b"12345", b"67890"], True), ([b"12345", b"678901"], False)])
def test_a_body_without_a_length_is_read_up_to_the_limit(chunks, fits):
    class Request:
        async def stream(self):
            for chunk in chunks:
                yield chunk

    reading = security.body(Request(), Limits(body_bytes=10))
    if fits:
        assert asyncio.run(reading) == b"1234567890"
    else:
        with pytest.raises(security.Refused, match="above 10 bytes"):
            asyncio.run(reading)
