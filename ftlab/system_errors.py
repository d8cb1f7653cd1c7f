"""Errors of the system and of missing packages, whichever library raises them, as one line for the user."""

import errno
import os
import shutil
from pathlib import Path

from ftlab import packages
from ftlab.errors import LabError, fail


def explained(error: BaseException, where: str = "") -> LabError | None:
    """Return the LabError for an error of the system or a missing package, None for any other exception.

    Libraries may raise these anywhere: out of memory, a full disk, an unreadable file, a module
    that is not installed. Their meaning depends on the exception alone.
    """
    if isinstance(error, LabError):
        return error
    if out_of_memory(error):
        return fail("out_of_memory", where=where, exit_code=1)
    if lost_contact(error):
        return fail("world_contact", where=where, exit_code=1)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("ftlab"):
        return packages.missing(error.name, where)
    if isinstance(error, OSError) and error.errno is not None:
        place = where or str(error.filename or "")
        key = "system_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system_refused"
        return fail(key, where=place, exit_code=1, reason=os.strerror(error.errno))
    return None


def free_bytes(target: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    there = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def require_space(target: Path, needed_bytes: int, key: str, exit_code: int = 2) -> None:
    """Refuse a write without enough disk space, before it begins.

    Args:
        key: the message, which names what would be written.
    Raises:
        LabError: with the megabytes needed and free.
    """
    free = free_bytes(target)
    if free < needed_bytes:
        values = {"needed": f"{needed_bytes / 1e6:.0f}", "free": f"{free / 1e6:.0f}"}
        raise fail(key, where=str(target), exit_code=exit_code, **values)


def out_of_memory(error: BaseException) -> bool:
    """Return True if an exception means out of memory, whichever library raised it."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and any(word in str(error) for word in words)
    )


def lost_contact(error: BaseException) -> bool:
    """Return True if another process of the training no longer responds; with gloo torch has no class for it."""
    words = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL error")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
