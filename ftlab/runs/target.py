"""Output folders of runs and exports: checks, and cleaning up after an error."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ftlab.errors import fail
from ftlab.system_errors import explained


def refuse_place(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be written to, or that is not for a single run, such as the home folder.

    Args:
        key: the recipe's key that names it.
    Raises:
        LabError: it is the root or the home folder, a file, below a file, or read-only.
    """
    try:
        place = folder.resolve()
        there = next(path for path in (place, *place.parents) if path.exists())
    except (OSError, ValueError, RuntimeError) as error:
        # A name that is too long or contains a NUL byte; a loop of links.
        raise fail("folder_refused", where=key, folder=brief(folder), reason=str(error)[:80]) from None
    if place in (Path(place.anchor), home()):
        raise fail("folder_special", where=key, folder=folder)
    if not there.is_dir():
        raise fail("folder_file", where=key, folder=folder, file=there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise fail("folder_refused", where=key, folder=folder, reason=os.strerror(errno.EACCES))


def home() -> Path | None:
    """Return the user's home folder, None where the system names none."""
    try:
        return Path.home().resolve()
    except (RuntimeError, OSError):
        return None


def brief(folder: Path) -> str:
    """Return a path as a single line for a message."""
    text = str(folder).encode("unicode_escape").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create a folder with its parents; new ones that are empty at the end are removed again.

    Raises:
        LabError: it could not be created.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, str(folder)) or error from None
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
