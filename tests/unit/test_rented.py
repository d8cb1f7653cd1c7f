"""`ftlab env` on AutoDL: what is not set yet is said, before a run is paid for."""

import socket

import pytest

from ftlab.apps import cli, lesson_setup, rented


@pytest.fixture
def autodl(tmp_path, monkeypatch):
    """A machine with a data disk, and nothing set."""
    disk = tmp_path / "autodl-tmp"
    disk.mkdir()
    monkeypatch.setattr(lesson_setup, "DATA_DISK", disk)
    monkeypatch.setattr(rented, "PIP_FILES", (tmp_path / "pip.conf",))
    monkeypatch.setattr(rented, "PORTS", ())
    monkeypatch.setattr(rented, "NEEDED_BYTES", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HOME", "HF_ENDPOINT", "USE_MODELSCOPE_HUB", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return disk


def wrong() -> list[str]:
    return [finding.text for finding in rented.preflight() if not finding.fine]


def test_what_is_missing_is_named_with_what_to_set(autodl, capsys):
    assert cli.main(["env", "--autodl"]) == 1
    told = capsys.readouterr().out.partition("AutoDL:\n")[2]
    for word in (f"export HF_HOME={autodl}", f"export FTLAB_CACHE={autodl}", "HF_ENDPOINT", "global.index-url"):
        assert word in told
    assert told.count("✗") == 4 and told.endswith("shutdown\n")


def test_a_prepared_machine_passes(autodl, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(autodl / "hf"))
    monkeypatch.setenv("FTLAB_CACHE", str(autodl / "ftlab"))
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    (autodl.parent / "pip.conf").write_text("[global]\nindex-url = https://me:secret@mirror.example/simple\n")
    assert wrong() == [] and cli.main(["env", "--autodl"]) == 0
    told = capsys.readouterr().out
    assert "pip installs from mirror.example\n" in told and "secret" not in told


def test_the_check_is_automatic_there_and_fails_no_command_that_did_not_ask(autodl, monkeypatch, capsys):
    assert cli.main(["env"]) == 0 and "✗" in capsys.readouterr().out
    monkeypatch.setattr(lesson_setup, "DATA_DISK", autodl / "none")
    assert cli.main(["env"]) == 0 and "AutoDL" not in capsys.readouterr().out
    assert cli.main(["env", "--autodl"]) == 1 and f"data disk not found: {autodl / 'none'}" in capsys.readouterr().out


def test_a_full_disk_and_a_taken_port_are_said(autodl, monkeypatch):
    monkeypatch.setattr(rented, "NEEDED_BYTES", 10**18)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(rented, "PORTS", (port,))
        assert [text for text in wrong() if "GB free" in text]
        assert [text for text in wrong() if text.startswith(f"port {port} is taken")]


@pytest.mark.parametrize("text", ["", "no section\n", "[global]\nindex-url\n", "[install]\nuser = true\n"])
def test_a_strange_pip_conf_is_none(autodl, text):
    (autodl.parent / "pip.conf").write_text(text)
    assert rented.pip_index() == ""
