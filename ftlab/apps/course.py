"""Running and checking the lessons."""

import ast
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ftlab import checks
from ftlab.errors import fail

# Lessons import this file for `record` alone; what reads notebooks takes more than a second to import.
if TYPE_CHECKING:
    from ftlab.apps.lesson_files import Lesson

PROFILES = ("smoke", "cpu", "t4", "a24g")
# A stuck kernel must not hang the run; no lesson's cell comes near this.
CELL_TIMEOUT_SECONDS = 1800


@dataclass
class Result:
    """What one lesson did: `status` is "ok" or "failed"; `outcomes` are the numbers it recorded."""

    name: str
    status: str
    seconds: float
    peak_memory_bytes: int
    outcomes: dict[str, float]
    error: str = ""


def record(outcomes: dict[str, float]) -> None:
    """Hand a lesson's numbers to `ftlab course run`, which collects them; elsewhere it does nothing."""
    path = os.environ.get("FTLAB_OUTCOMES")
    if path:
        Path(path).write_text(json.dumps({name: float(value) for name, value in outcomes.items()}))


def run(numbers: list[str], profile: str = "smoke", say: Callable[[str], None] = print) -> list[Result]:
    """Execute lessons headlessly, each in a fresh kernel, and write runs/course/summary.json.

    Args:
        numbers: lesson numbers; empty means all.
        profile: one of PROFILES.
    Raises:
        LabError: unknown profile or lesson, or FTLAB_DTYPE is not a number format.
    """
    from ftlab import device
    from ftlab.apps import lesson_files

    if profile not in PROFILES:
        raise fail("course_no_profile", profile=profile, profiles=", ".join(PROFILES))
    machine = asdict(device.describe()) | {"versions": device.versions()}
    out = lesson_files.root() / "runs" / "course"
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for lesson in lesson_files.lessons(numbers):
        say(f"running {lesson.name} ({profile})")
        results.append(run_one(lesson, profile, out))
        if results[-1].error:
            say(results[-1].error)
    write_summary(results, profile, machine, out / "summary.json")
    say(table(results))
    return results


def run_one(lesson: "Lesson", profile: str, out: Path) -> Result:
    """Execute one lesson with papermill; its executed copy is kept in `out`."""
    import papermill

    from ftlab.apps import lesson_files, notebooks

    outcomes = out / f"{lesson.name}.outcomes.json"
    outcomes.unlink(missing_ok=True)
    # Torch's C++ side announces on stderr what a profiler could not see.
    os.environ |= {"FTLAB_OUTCOMES": str(outcomes), "FTLAB_HEADLESS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if profile in ("smoke", "cpu"):
        # These use the embedded model: libraries that look for the hub all the same are told not to.
        os.environ["HF_HUB_OFFLINE"] = "1"
    executed = out / f"{lesson.name}.ipynb"
    started, error = time.monotonic(), ""
    with PeakMemory() as peak, notebooks.kernel_settings() as settings:
        try:
            papermill.execute_notebook(
                lesson.notebook(),
                executed,
                parameters={"PROFILE": profile},
                cwd=lesson_files.root(),
                execution_timeout=CELL_TIMEOUT_SECONDS,
                progress_bar=sys.stderr.isatty(),
                **settings,
            )
        except papermill.PapermillExecutionError as failure:
            error = f"{lesson.name}: {failure.ename}: {failure.evalue} (see {executed})"
    seconds = round(time.monotonic() - started, 1)
    strip_widgets(executed)
    found = json.loads(outcomes.read_text()) if outcomes.exists() else {}
    outcomes.unlink(missing_ok=True)
    return Result(lesson.name, "failed" if error else "ok", seconds, peak.bytes, found, error)


class PeakMemory:
    """Watch the resident memory of this process's children, the kernel above all; `bytes` is the most seen."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self.bytes = max(self.bytes, sum(map(resident_bytes, psutil.Process().children(recursive=True))))


def resident_bytes(process: psutil.Process) -> int:
    """Return the resident memory of a process, 0 once it has ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def strip_widgets(path: Path) -> None:
    """Drop widget state from an executed notebook: readers on the web refuse such files."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


def write_summary(results: list[Result], profile: str, machine: dict[str, object], path: Path) -> None:
    """Write what a run of the course measured on a machine, as JSON."""
    rows = [{key: value for key, value in asdict(result).items() if key != "error"} for result in results]
    path.write_text(json.dumps({"profile": profile, "machine": machine, "notebooks": rows}, indent=1))


def table(results: list[Result]) -> str:
    """Return results as a text table: notebook, seconds, peak memory, outcome."""
    lines = [f"{'notebook':<20} {'status':<7} {'seconds':>7} {'peak GiB':>8}  outcomes"]
    for result in results:
        outcomes = ", ".join(f"{name} {value:.3g}" for name, value in result.outcomes.items())
        gib = result.peak_memory_bytes / 2**30
        lines.append(f"{result.name:<20} {result.status:<7} {result.seconds:>7.0f} {gib:>8.2f}  {outcomes}")
    return "\n".join(lines)


def check(number: str) -> list[checks.Verdict]:
    """Run the exercise cells of the learner's copy of a lesson and return one verdict each."""
    import nbformat

    from ftlab.apps import lesson_files, notebooks

    (lesson,) = lesson_files.lessons([number])
    cells = notebooks.code_cells(nbformat.read(lesson.notebook(), as_version=4))
    return [verdict(cell.source) for cell in cells if "exercise" in cell.metadata.get("tags", [])]


def verdict(source: str) -> checks.Verdict:
    """Run one exercise cell by itself; its last line calls the check."""
    statements = ast.parse(source).body
    namespace: dict[str, object] = {"checks": checks}
    try:
        *body, last = statements
        exec(compile(ast.Module(body, []), "exercise", "exec"), namespace)
        return eval(compile(ast.unparse(last), "exercise", "eval"), namespace)
    except Exception as error:
        return checks.Verdict(False, f"the cell stops with {type(error).__name__}: {error}")
