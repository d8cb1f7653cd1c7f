"""A running training, mainly as a separate process that outlives page and kernel."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil

from ftlab import manifests
from ftlab.apps.board import controls, curves
from ftlab.recipe.keys import Recipe
from ftlab.runs import folder as folders

if TYPE_CHECKING:
    from ftlab.apps.board.thread_job import InThread

# Trainings in threads of this kernel, by run folder: a panel that is created again finds its training here.
THREADS: dict[Path, "InThread"] = {}
# How far the time of a process's creation may be from the recorded one: it moves when the system's clock is set.
CLOCK_SECONDS = 60


class InProcess:
    """A training in a separate process; another panel finds it by its id and the time of its creation."""

    def __init__(
        self, folder: Path, process: psutil.Process, child: subprocess.Popen | None = None, asked: bool = False
    ) -> None:
        self.folder, self.pid, self.asked = folder, process.pid, asked
        self.process, self.child = process, child
        self.steps: int | None = None

    @classmethod
    def start(cls, made: Recipe, written: dict[str, Any], fresh: bool, lang: str) -> "InProcess":
        """Run `ftlab train` on the YAML in a detached process, which ends neither with the page nor with the kernel."""
        folder = folder_of(made)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / folders.PANEL_RECIPE
        recipe.write_text(controls.yaml_lines(written), encoding="utf-8")
        command = [sys.executable, "-m", "ftlab", "train", str(recipe), *(["fresh=true"] if fresh else [])]
        with (folder / folders.PANEL_OUTPUT).open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"FTLAB_LANG": lang},
                start_new_session=True,
            )
        job = cls(folder, psutil.Process(child.pid), child)
        job.write()
        return job

    def write(self) -> None:
        """Record the process, for a panel that is opened later, and whether it was asked to stop."""
        about = {"pid": self.pid, "created": self.process.create_time(), "asked": self.asked}
        manifests.write_json(self.folder / folders.PANEL_JOB, about)

    @classmethod
    def attach(cls, folder: Path) -> "InProcess | None":
        """Return the process that trains into a folder, None if there is none (any more)."""
        try:
            about = json.loads((folder / folders.PANEL_JOB).read_text(encoding="utf-8"))
            process = psutil.Process(int(about["pid"]))
            same = abs(process.create_time() - float(about["created"])) < CLOCK_SECONDS
            job = cls(folder, process, asked=about.get("asked") is True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, psutil.Error):
            return None
        return job if same and job.alive() else None

    def alive(self) -> bool:
        """Return True if that very process is still running; its id may have been reused."""
        if self.child is not None:
            return self.child.poll() is None
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def problem(self) -> str:
        """Return the last output of a process that failed, "" for one that finished or stopped as asked."""
        words = curves.last_words(self.folder / folders.PANEL_OUTPUT)
        failed = words.startswith("ftlab:") or (self.child is not None and self.child.returncode not in (0, None))
        return words if failed else ""

    def memory_bytes(self) -> int:
        """Return the memory of the process."""
        with contextlib.suppress(psutil.Error):
            return self.process.memory_info().rss
        return 0


Job: TypeAlias = "InThread | InProcess"


def ask_to_stop(job: Job) -> None:
    """Ask a training to save and stop after its step; the panel asks again until it ends.

    A training that has only just begun may have no folder yet, or take the request for one to an earlier run.
    """
    with contextlib.suppress(FileNotFoundError):
        (job.folder / folders.STOP).touch()
    if not job.asked:
        job.asked = True
        if isinstance(job, InProcess):
            # A panel that finds it later reports that it stopped, not that it failed.
            job.write()


def folder_of(recipe: Recipe) -> Path:
    """Return the run folder of a recipe."""
    return Path(recipe.output_dir or "").expanduser()


def living(folder: Path) -> "Job | None":
    """Return the training that is writing into a folder, whichever panel started it."""
    return THREADS.get(folder.resolve()) or InProcess.attach(folder)


def living_under(root: Path) -> InProcess | None:
    """Return a process that trains into a folder under `root`: a page that is opened again shows it."""
    job_files = folders.newest_first(root.glob(f"*/{folders.PANEL_JOB}"))
    return next((job for path in job_files if (job := InProcess.attach(path.parent))), None)
