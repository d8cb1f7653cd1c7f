"""A manifest: the size and sha256 of every file in a folder, written last, to detect an interrupted save."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ftlab.errors import say

MANIFEST = "manifest.json"
# Prefix of a file's name while it is written.
PARTIAL = "partial-"


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Seal a folder: sync every file to disk, then write a manifest of sizes and sha256 and rename it into place.

    Args:
        about: further entries of the manifest (run_id, step, fingerprints, versions).
    Raises:
        OSError: a write failed; the folder has no manifest then, and is not trusted.
    """
    files = {}
    for path in contents(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, about | {"files": files})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file atomically: a crash leaves the old or the new one, never a part."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a crash leaves the old or the new one, never a part."""
    partial = path.with_name(PARTIAL + path.name)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
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
    """Return the manifest of a folder, None if it is missing or unreadable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def problem(folder: Path, about: dict[str, Any]) -> str:
    """Return why a folder does not match its manifest, "" if every byte does.

    Args:
        about: entries that the manifest must have with these values.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return say("manifest_unreadable")
    for name, value in about.items():
        if manifest.get(name) != value:
            return say("manifest_other", name=name)
    files = manifest.get("files")
    if not isinstance(files, dict):
        return say("manifest_no_files")
    extra = {path.relative_to(folder).as_posix() for path in contents(folder)} - set(files)
    if extra:
        return say("manifest_extra", name=min(extra))
    return next((reason for name, entry in files.items() if (reason := file_problem(folder / name, entry))), "")


def file_problem(path: Path, entry: Any) -> str:
    """Return why a file does not match its manifest entry, "" if it does."""
    if not path.is_file():
        return say("manifest_missing", name=path.name)
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("size"):
        return say("manifest_size", name=path.name)
    return "" if sha256(path) == entry.get("sha256") else say("manifest_content", name=path.name)


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
