"""Checks for a rented machine before a paid run: disk, caches, mirrors, ports. Nothing is downloaded."""

import configparser
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftlab import embedded, models
from ftlab.apps import lesson_setup
from ftlab.errors import say

# The ports that the platform forwards: the panels' and the API's (autodl.com/docs/port).
PORTS = (6006, 6008)
# A 7B model in 16 bits, its merged copy, and the lessons' own files.
NEEDED_BYTES = 40 * 10**9
PIP_FILES = (Path("/etc/pip.conf"), Path("~/.pip/pip.conf"), Path("~/.config/pip/pip.conf"))


@dataclass(frozen=True)
class Finding:
    """The result of one check: whether it is fine, and the message."""

    fine: bool
    text: str

    def __str__(self) -> str:
        return f"{'✓' if self.fine else '✗'} {self.text}"


def preflight() -> Iterator[Finding]:
    """Yield the findings on an AutoDL machine, in the user's language."""
    disk = lesson_setup.DATA_DISK
    if not disk.is_dir():
        yield Finding(False, say("rented_no_disk", where=disk))
    else:
        free = shutil.disk_usage(disk).free
        line = say("rented_disk", where=disk, free=f"{free / 1e9:.0f}", needed=f"{NEEDED_BYTES / 1e9:.0f}")
        yield Finding(free >= NEEDED_BYTES, line)
        yield from (cache(name, place, disk) for name, place in caches().items())
    mirror = os.environ.get("HF_ENDPOINT") or ("ModelScope" if models.prefers_modelscope() else "")
    yield Finding(bool(mirror), say("rented_mirror", mirror=mirror) if mirror else say("rented_no_mirror"))
    index = pip_index()
    yield Finding(bool(index), say("rented_index", index=index) if index else say("rented_no_index"))
    for port in PORTS:
        yield Finding(is_free(port), say("rented_port" if is_free(port) else "rented_port_taken", port=port))


def caches() -> dict[str, Path]:
    """Return variable -> the folder where models are kept: ftlab's own, and the hub's."""
    hub = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return {"FTLAB_CACHE": embedded.cache_dir(), "HF_HOME": Path(hub)}


def cache(name: str, place: Path, disk: Path) -> Finding:
    """Return the finding whether a cache is on the data disk, not on the small system disk."""
    if place.resolve().is_relative_to(disk.resolve()):
        return Finding(True, say("rented_cache", name=name, where=place))
    return Finding(False, say("rented_cache_elsewhere", name=name, where=place, better=disk / place.name))


def pip_index() -> str:
    """Return the host of the package index that pip was told to use, "" for its own."""
    url = os.environ.get("PIP_INDEX_URL", "")
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    for path in PIP_FILES if not url else ():
        try:
            settings.read(path.expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
    url = url or settings.get("global", "index-url", fallback="")
    # An address may carry a password.
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]


def is_free(port: int) -> bool:
    """Return True if nothing listens on a port of the loopback address."""
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) != 0
