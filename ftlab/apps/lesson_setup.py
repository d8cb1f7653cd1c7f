"""The first cell of every lesson: install what is missing, and change to the folder of the course.

This module imports only the standard library and what a Jupyter kernel has: it runs before the extras are installed.
"""

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ftlab.apps import lesson_files
from ftlab.errors import fail, say

EXTRA = "course"
# AutoDL's data disk: larger than the system disk, and kept when the machine is shut down (autodl.com/docs/env).
DATA_DISK = Path("/root/autodl-tmp")
# A file that every folder of the course has.
MARK = Path("data") / "dataset_info.json"
LAID_OUT = "ftlab-course"


def enter() -> None:
    """Install the packages of the course that are missing or too old, and make its folder the working directory.

    Packages that are new enough stay as they are. If a package that this kernel has already loaded was replaced, the
    kernel is restarted, once; the cell then has to be run again.
    Raises:
        LabError: pip could not install them.
    """
    if missing := unmet():
        before = versions()
        install(missing)
        if stale := loaded(before):
            restart(stale)
            return
    os.chdir(course_folder())


def unmet() -> list[Requirement]:
    """Return the requirements of the course that this environment lacks; [] if ftlab is just a folder on the path."""
    try:
        listed = [Requirement(text) for text in metadata.requires("ftlab") or []]
    except metadata.PackageNotFoundError:
        return []
    applicable = [one for one in listed if one.marker is None or one.marker.evaluate({"extra": EXTRA})]
    there = versions()
    return [one for one in applicable if not is_met(one, there.get(canonicalize_name(one.name)))]


def is_met(requirement: Requirement, version: str | None) -> bool:
    """Return True if a package is installed in a version that meets the requirement."""
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def versions() -> dict[str, str]:
    """Return package -> version of all installed packages."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}


def install(missing: list[Requirement]) -> None:
    """Install packages with pip, in the versions that the course was run with.

    Raises:
        LabError: pip failed.
    """
    names = ", ".join(one.name for one in missing)
    print(say("setup_installing", names=names))
    with tempfile.TemporaryDirectory() as place:
        pins = Path(place) / "constraints.txt"
        pins.write_text("".join(pins_for(missing)), encoding="utf-8")
        words = [f"{one.name}{one.specifier}" for one in missing]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "-c", str(pins), *words], capture_output=True, text=True
        )
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or [""]
        raise fail("setup_pip", exit_code=1, names=names, reason=last)


def pins_for(missing: list[Requirement]) -> list[str]:
    """Return the lines of constraints.txt for missing packages; pins of installed ones would make pip replace them."""
    names = {canonicalize_name(one.name) for one in missing}
    kept = set(versions()) - names
    lines = (lesson_files.carried() / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if canonicalize_name(line.partition("==")[0].strip()) not in kept]


def loaded(before: dict[str, str]) -> list[str]:
    """Return the packages that were replaced since `before` although this process has loaded a module of theirs."""
    now = versions()
    replaced = {name for name, was in before.items() if now.get(name) != was}
    modules = {name.partition(".")[0] for name in sys.modules}
    owners = metadata.packages_distributions()
    return sorted(replaced & {canonicalize_name(one) for module in modules for one in owners.get(module, [])})


def restart(stale: list[str]) -> None:
    """Restart the kernel, if there is one, and tell the user to run the cell again."""
    print(say("setup_restart", names=", ".join(stale)))
    from IPython import get_ipython

    if shell := get_ipython():
        shell.kernel.do_shutdown(restart=True)


def course_folder() -> Path:
    """Return the folder of the course: this one or one above it, the imported checkout, else a new copy."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / MARK).is_file():
            return folder
    if (lesson_files.carried() / "pyproject.toml").is_file():
        return lesson_files.carried()
    folder = (DATA_DISK if DATA_DISK.is_dir() else Path.cwd()) / LAID_OUT
    if not (folder / MARK).is_file():
        # Imported here: it needs packages that may have just been installed.
        from ftlab.apps import course_start

        written, _ = course_start.lay_out(folder)
        print(say("course_laid_out", count=len(written), where=folder))
    return folder
