"""Write the course to a learner's folder and open it, for those who have the package but no checkout."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftlab import __version__, packages
from ftlab.apps import lesson_files, notebooks
from ftlab.errors import fail
from ftlab.manifests import PARTIAL, sha256, write_json

# Everything that a lesson, a recipe or `ftlab course` reads, at its path in a checkout.
PARTS = ("notebooks", "data", "recipes", "constraints.txt", "benchmarks/methods.json")
# In the learner's folder: the sha256 of each file as written, to tell an edited file from an outdated one.
LAID_OUT = ".ftlab-course.json"


def lay_out(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Write this version's course into `folder`; a file that was edited there is kept, with the new one next to it.

    Returns:
        the files written or updated, and kept file -> the new version next to it; both relative to `folder`.
    Raises:
        LabError: `folder` is a file, or a link to nothing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise fail("course_no_folder", where=str(folder)) from error
    before = laid_out(folder)
    written: list[str] = []
    kept: dict[str, str] = {}
    with course_of_this_version() as course:
        new = {path.relative_to(course).as_posix(): digest(path) for path in files_of(course)}
        for name, its_digest in new.items():
            there, laid = digest(folder / name), before.get(name)
            changed = there not in ("", laid)
            if there == its_digest or (changed and laid == its_digest):
                continue
            target = name
            if changed:
                target = kept[name] = beside(folder, name, its_digest)
            put(course / name, folder / target)
            written.append(target)
    write_json(folder / LAID_OUT, {"version": __version__, "files": new})
    return written, kept


def open_lab(folder: Path, language: str) -> int:
    """Open JupyterLab on the first lesson and return its exit code; blocks until it is closed."""
    packages.require("jupyterlab")
    first = folder / lesson_files.LANGUAGES[language] / "00_first_finetune.ipynb"
    environment = os.environ | {"FTLAB_LANG": language}
    return subprocess.run([sys.executable, "-m", "jupyterlab", str(first)], cwd=folder, env=environment).returncode


@contextmanager
def course_of_this_version() -> Iterator[Path]:
    """Yield a temporary folder with the course that this package contains, both editions of the lessons built.

    A wheel contains only the English notebooks: the pictures in their outputs are most of its size.
    """
    packages.require("jupytext")
    with tempfile.TemporaryDirectory() as place:
        course = Path(place)
        for part in PARTS:
            source = lesson_files.carried() / part
            if source.is_dir():
                shutil.copytree(
                    source, course / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
                )
            else:
                put(source, course / part)
        for lesson in lesson_files.lessons(course=course):
            notebooks.build(lesson)
        yield course


def laid_out(folder: Path) -> dict[str, str]:
    """Return file -> sha256 as last written to `folder`; empty for a new one."""
    try:
        return dict(json.loads((folder / LAID_OUT).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> str:
    """Return the sha256 of a file, "" where there is none."""
    return sha256(path) if path.is_file() else ""


def beside(folder: Path, name: str, its_digest: str) -> str:
    """Return the path for this version's file next to an edited one; earlier such files may have been edited too."""
    names = (versioned(name, number) for number in itertools.count(1))
    return next(one for one in names if digest(folder / one) in ("", its_digest))


def versioned(name: str, number: int = 1) -> str:
    """Return a name for this version's file next to an edited one.

    >>> versioned("notebooks/03_lora.ipynb"), versioned("notebooks/03_lora.ipynb", 2)
    ('notebooks/03_lora.v0.1.0.ipynb', 'notebooks/03_lora.v0.1.0-2.ipynb')
    """
    path = Path(name)
    again = f"-{number}" if number > 1 else ""
    return path.with_name(f"{path.stem}.v{__version__}{again}{path.suffix}").as_posix()


def put(source: Path, target: Path) -> None:
    """Copy a file atomically: a crash leaves the old or the new one, never a part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(PARTIAL + target.name)
    shutil.copyfile(source, partial)
    partial.replace(target)
