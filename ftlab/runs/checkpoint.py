"""Checkpoints that can be trusted after a crash: a manifest written last, verified before anything is read.

Trainer's own optimizer.pt, scheduler.pt and rng_state.pth are pickles, and so are FSDP's optimizer.bin and weights.
They are read only from a checkpoint whose manifest has this run's id and the sha256 of every file, and with
`weights_only=True`.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ftlab import manifests, saved_weights
from ftlab.errors import fail, say
from ftlab.runs.folder import ASIDE, DELETING, LOCK, OWNER
from ftlab.runs.target import claimed
from ftlab.system_errors import explained

# Without one of each Trainer silently resumes with a fresh optimizer or schedule; FSDP's optimizer is the .bin.
NEEDED = (("trainer_state.json",), ("optimizer.pt", "optimizer.bin"), ("scheduler.pt",))


class Skipped(NamedTuple):
    """A checkpoint that was not used, and why."""

    path: Path
    reason: str


def find_resume(run_folder: Path, about: dict[str, Any]) -> tuple[Path | None, list[Skipped]]:
    """Return the newest checkpoint that verifies, and the newer ones that do not. Nothing is deleted."""
    skipped: list[Skipped] = []
    for path in saved_weights.checkpoints(run_folder):
        reason = resume_problem(path, about)
        if not reason:
            return path, skipped
        skipped.append(Skipped(path, reason))
    return None, skipped


def resume_problem(path: Path, about: dict[str, Any]) -> str:
    """Return why a run cannot resume from a checkpoint, "" if it can."""
    reason = manifests.problem(path, about | {"step": saved_weights.step_of(path)})
    if reason:
        return reason
    files = (manifests.read_manifest(path) or {}).get("files", {})
    missing = [names[0] for names in NEEDED if not files.keys() & set(names)]
    sharded = any("/" in name for name in files)
    return say("checkpoint_without", name=missing[0]) if missing and not sharded else ""


def set_aside(path: Path) -> Path:
    """Rename an unusable checkpoint to free its name, and return its new path."""
    number = 1
    while (target := path.with_name(f"{ASIDE}{path.name}-{number}")).exists():
        number += 1
    path.rename(target)
    return target


def rotate(run_folder: Path, run_id: str, keep: int, protected: set[Path]) -> list[Path]:
    """Delete this run's oldest checkpoints beyond `keep`, and return them.

    Only folders whose manifest has `run_id` are counted or touched, except those in `protected`.
    """
    checkpoints = saved_weights.checkpoints(run_folder)
    own = [path for path in checkpoints if (manifests.read_manifest(path) or {}).get("run_id") == run_id]
    gone = [path for path in own[max(keep, 1) :] if path.resolve() not in protected]
    for path in gone:
        # Renamed first, so that a crash leaves no partial checkpoint under a checkpoint's name.
        doomed = path.with_name(DELETING + path.name)
        path.rename(doomed)
        shutil.rmtree(doomed)
    return gone


def size_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def lock(run_folder: Path) -> Iterator[None]:
    """Lock a run folder against a second run. The system releases the lock of a process that died.

    If no run began, neither a lock file nor a folder created for it is left.

    Raises:
        LabError: another process, whose id is named, holds the lock, or the folder cannot be written to.
    """
    with claimed(run_folder):
        held = FileLock(run_folder / LOCK, timeout=0)
        try:
            held.acquire()
        except Timeout:
            raise fail("checkpoint_locked", where=str(run_folder), pid=owner(run_folder)) from None
        except OSError as error:
            raise explained(error, str(run_folder)) or error from None
        try:
            (run_folder / OWNER).write_text(str(os.getpid()))
            yield
        finally:
            (run_folder / OWNER).unlink(missing_ok=True)
            if not (run_folder / manifests.MANIFEST).exists():
                # While holding the lock: a process that opened the file before will create a new one.
                (run_folder / LOCK).unlink(missing_ok=True)
            held.release()


def owner(run_folder: Path) -> str:
    """Return the id of the process that holds a run folder, "?" until it is written."""
    try:
        return (run_folder / OWNER).read_text().strip() or "?"
    except OSError:
        return "?"
