"""Checkpoints that can be trusted after a crash: a manifest written last, verified before anything is read.

Trainer's own optimizer.pt, scheduler.pt and rng_state.pth are pickles. They are read only out of a checkpoint whose
manifest carries this run's id and the sha256 of every file in it, and Trainer reads them with `weights_only=True`.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ftlab.errors import fail
from ftlab.runs.target import claimed
from ftlab.system_errors import explained

MANIFEST = "manifest.json"
LOCK, OWNER = "run.lock", "run.pid"
PREFIX = "checkpoint-"
# A name that nothing globs for: neither Trainer nor `find_resume` looks at it again.
ASIDE, DELETING, PARTIAL = "set-aside-", "deleting-", "partial-"
# Without these Trainer resumes silently with a fresh optimizer, schedule or random stream.
NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


class Skipped(NamedTuple):
    """A checkpoint that was not used, and why."""

    path: Path
    reason: str


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Seal a folder: every file on disk for good, then a manifest of their sizes and sha256, renamed into place.

    Args:
        about: what else the manifest says (run_id, step, fingerprints, versions).
    Raises:
        OSError: a write failed; the folder has no manifest then, and is not trusted.
    """
    files = {}
    for path in contents(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    write_json(folder / MANIFEST, about | {"files": files})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file so that a crash leaves the old one or the new one, never a part."""
    partial = path.with_name(PARTIAL + path.name)
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def contents(folder: Path) -> list[Path]:
    """Return the files of a folder, its manifest left out."""
    own = (MANIFEST, PARTIAL + MANIFEST)
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in own
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, None where there is none or it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def problem(folder: Path, about: dict[str, Any]) -> str:
    """Return why a folder cannot be trusted, "" if every byte of it is what its manifest says.

    Args:
        about: entries that the manifest must have with these values.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return "it has no readable manifest: the save was cut short"
    for name, value in about.items():
        if manifest.get(name) != value:
            return f"its {name} is another one"
    files = manifest.get("files")
    if not isinstance(files, dict):
        return "its manifest names no files"
    extra = {path.relative_to(folder).as_posix() for path in contents(folder)} - set(files)
    if extra:
        return f"{min(extra)} was not written by this run"
    return next((reason for name, entry in files.items() if (reason := file_problem(folder / name, entry))), "")


def file_problem(path: Path, entry: Any) -> str:
    """Return why a file is not what its manifest entry says, "" if it is."""
    if not path.is_file():
        return f"{path.name} is missing"
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("size"):
        return f"{path.name} has another size"
    with path.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == entry.get("sha256")
    return "" if same else f"{path.name} has other content"


def checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, highest step first."""
    numbered = [path for path in run_folder.glob(PREFIX + "*") if path.is_dir() and step_of(path) >= 0]
    return sorted(numbered, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name, -1 where there is none."""
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() and number.isascii() else -1


def find_resume(run_folder: Path, about: dict[str, Any]) -> tuple[Path | None, list[Skipped]]:
    """Return the newest checkpoint that verifies, and those newer ones that do not. Nothing is deleted."""
    skipped = []
    for path in checkpoints(run_folder):
        reason = resume_problem(path, about)
        if not reason:
            return path, skipped
        skipped.append(Skipped(path, reason))
    return None, skipped


def resume_problem(path: Path, about: dict[str, Any]) -> str:
    """Return why a run cannot go on from a checkpoint, "" if it can."""
    reason = problem(path, about | {"step": step_of(path)})
    if reason:
        return reason
    files = (read_manifest(path) or {}).get("files", {})
    missing = [name for name in NEEDED if name not in files]
    sharded = any("/" in name for name in files)
    return f"it was saved without {missing[0]}" if missing and not sharded else ""


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that could not be used, so that its place is free, and return its new path."""
    number = 1
    while (target := path.with_name(f"{ASIDE}{path.name}-{number}")).exists():
        number += 1
    path.rename(target)
    return target


def rotate(run_folder: Path, run_id: str, keep: int, protected: set[Path]) -> list[Path]:
    """Delete this run's oldest checkpoints beyond `keep`, and return them.

    Only folders whose manifest carries `run_id` are counted or touched, and none that `protected` names.
    """
    own = [path for path in checkpoints(run_folder) if (read_manifest(path) or {}).get("run_id") == run_id]
    gone = [path for path in own[max(keep, 1) :] if path.resolve() not in protected]
    for path in gone:
        # Renamed first: a crash in the middle leaves no half checkpoint under a checkpoint's name.
        doomed = path.with_name(DELETING + path.name)
        path.rename(doomed)
        shutil.rmtree(doomed)
    return gone


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a save that the disk cannot take, before it begins.

    Raises:
        LabError: less than `needed_bytes` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        values = {"needed": f"{needed_bytes / 1e6:.0f}", "free": f"{free / 1e6:.0f}"}
        raise fail("checkpoint_space", where=str(folder), exit_code=1, **values)


def size_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def lock(run_folder: Path) -> Iterator[None]:
    """Hold a run folder: no second run can enter it. The system drops the lock of a process that died.

    Where no run began, no lock file stays behind, and no folder that was made for it.

    Raises:
        LabError: another process holds it, whose id is named, or the system refused to write there.
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
            if not (run_folder / MANIFEST).exists():
                # While it is held: a process that opened it before finds it gone, and makes another.
                (run_folder / LOCK).unlink(missing_ok=True)
            held.release()


def owner(run_folder: Path) -> str:
    """Return the process id of whoever holds a run folder, "?" in the moment before it is written."""
    try:
        return (run_folder / OWNER).read_text().strip() or "?"
    except OSError:
        return "?"
