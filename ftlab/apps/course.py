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

from ftlab.errors import fail, language, say

# Lessons import this file for `record` alone; the imports for reading notebooks take more than a second.
if TYPE_CHECKING:
    from ftlab.apps.lesson_files import Lesson
    from ftlab.checks import Verdict

PROFILES = ("smoke", "cpu", "t4", "a24g")
# A stuck kernel must not hang the run; no lesson's cell comes near this.
CELL_TIMEOUT_SECONDS = 1800


@dataclass
class Result:
    """The result of one lesson: `status` is "ok" or "failed"; `outcomes` are the numbers it recorded."""

    name: str
    status: str
    seconds: float
    peak_memory_bytes: int
    outcomes: dict[str, float]
    error: str = ""


def record(outcomes: dict[str, float], bands: dict[str, tuple[float, float]] | None = None) -> None:
    """Print a lesson's outcomes beside their bands, and hand all of them to `ftlab course run`, which collects them.

    Args:
        bands: outcome -> (lowest, highest), the range of the lesson's own parameters over seeds.
    Raises:
        LabError: an outcome misses its band in the course's own run. With a learner's parameters it is only printed:
            another model, name or learning rate may well cause it.
    """
    path = os.environ.get("FTLAB_OUTCOMES")
    if path:
        Path(path).write_text(json.dumps({name: float(value) for name, value in outcomes.items()}))
    bands = bands or {}
    # Written so that NaN is outside every band.
    missed = [name for name, (low, high) in bands.items() if not low <= outcomes[name] <= high]
    for name, band in bands.items():
        print(outcome_line(name, outcomes[name], band, name in missed))
    if missed and path:
        raise fail("course_outcomes_missed", where=", ".join(missed))
    if missed:
        print(say("course_outcomes_explained"))


def headless() -> bool:
    """Return True if nobody is watching: the lessons' runner sets FTLAB_HEADLESS."""
    return os.environ.get("FTLAB_HEADLESS", "").lower() in ("1", "true")


def outcome_line(name: str, value: float, band: tuple[float, float], missed: bool) -> str:
    """Return a line with an outcome, its band, and a cross if it is outside."""
    low, high = (f"{end:.3g}" for end in band)
    expected = say("course_expected", low=low, high=high)
    return f"{'✗' if missed else '✓'} {name:<28} {value:>9.3g}   {expected}"


def run(
    numbers: list[str], profile: str = "smoke", seed: int | None = None, say: Callable[[str], None] = print
) -> list[Result]:
    """Execute lessons headlessly, each in a fresh kernel, and write runs/course/summary.json.

    Args:
        numbers: lesson numbers; empty means all.
        profile: one of PROFILES.
        seed: in place of each lesson's own; the summary is then `summary-seedN.json`.
    Raises:
        LabError: unknown profile or lesson, or FTLAB_DTYPE is not a dtype.
    """
    from ftlab import device
    from ftlab.apps import lesson_files

    if profile not in PROFILES:
        raise fail("course_no_profile", profile=profile, profiles=", ".join(PROFILES))
    machine = asdict(device.describe()) | {"versions": device.versions()}
    out = lesson_files.root() / "runs" / "course"
    out.mkdir(parents=True, exist_ok=True)
    chosen = {} if seed is None else {"seed": seed}
    results = []
    for lesson in lesson_files.lessons(numbers):
        say(f"running {lesson.name} ({profile})")
        results.append(run_one(lesson, {"PROFILE": profile} | chosen, out))
        if results[-1].error:
            say(results[-1].error)
    write_summary(results, profile, machine, out / f"summary{'' if seed is None else f'-seed{seed}'}.json")
    say(results_table(results))
    return results


def run_one(lesson: "Lesson", parameters: dict[str, str | int], out: Path) -> Result:
    """Execute one lesson with papermill; its executed copy is kept in `out`."""
    import papermill

    from ftlab.apps import lesson_files, notebooks

    outcomes = out / f"{lesson.name}.outcomes.json"
    outcomes.unlink(missing_ok=True)
    # Torch's C++ code reports on stderr what a profiler could not see.
    os.environ |= {"FTLAB_OUTCOMES": str(outcomes), "FTLAB_HEADLESS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if parameters["PROFILE"] in ("smoke", "cpu"):
        # These use the embedded model; libraries that would contact the hub anyway are told not to.
        os.environ["HF_HUB_OFFLINE"] = "1"
    executed = out / f"{lesson.name}.ipynb"
    started, error = time.monotonic(), ""
    with PeakMemory() as peak, notebooks.kernel_settings() as settings:
        try:
            papermill.execute_notebook(
                lesson.notebook(),
                executed,
                parameters=parameters,
                cwd=lesson_files.root(),
                start_timeout=CELL_TIMEOUT_SECONDS,
                execution_timeout=CELL_TIMEOUT_SECONDS,
                progress_bar=sys.stderr.isatty(),
                **settings,
            )
        except papermill.PapermillExecutionError as failure:
            error = f"{lesson.name}: {failure.ename}: {failure.evalue} (see {executed})"
        except Exception as failure:
            lost = notebooks.lost_kernel(failure, str(executed))
            if not lost:
                raise
            error = str(lost)
    seconds = round(time.monotonic() - started, 1)
    strip_widgets(executed)
    values = json.loads(outcomes.read_text()) if outcomes.exists() else {}
    outcomes.unlink(missing_ok=True)
    return Result(lesson.name, "failed" if error else "ok", seconds, peak.bytes, values, error)


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
    """Write the measurements of a course run on a machine as JSON."""
    rows = [{key: value for key, value in asdict(result).items() if key != "error"} for result in results]
    path.write_text(json.dumps({"profile": profile, "machine": machine, "notebooks": rows}, indent=1))


def results_table(results: list[Result]) -> str:
    """Return results as a text table: notebook, seconds, peak memory, outcome."""
    lines = [f"{'notebook':<20} {'status':<7} {'seconds':>7} {'peak GiB':>8}  outcomes"]
    for result in results:
        outcomes = ", ".join(f"{name} {value:.3g}" for name, value in result.outcomes.items())
        gib = result.peak_memory_bytes / 2**30
        lines.append(f"{result.name:<20} {result.status:<7} {result.seconds:>7.0f} {gib:>8.2f}  {outcomes}")
    return "\n".join(lines)


def check_answers(lesson: "Lesson") -> list["Verdict"]:
    """Run the exercise cells of the learner's copy of a lesson, in the learner's edition; return one verdict each."""
    import nbformat

    from ftlab.apps import notebooks

    cells = notebooks.code_cells(nbformat.read(lesson.notebook(language()), as_version=4))
    above, verdicts = "", []
    for cell in cells:
        if "exercise" in cell.metadata.get("tags", []):
            verdicts.append(verdict(cell.source, above))
        above += f"{plain_python(cell.source)}\n"
    return verdicts


def verdict(source: str, above: str) -> "Verdict":
    """Run one exercise cell with what it needs of the code above it; its last line calls the check."""
    from ftlab.checks import Verdict, trying

    namespace: dict[str, object] = {}
    try:
        *body, last = ast.parse(source).body
        needed = needed_statements(ast.parse(above).body, names_read(ast.parse(source)))
        exec(compile(ast.Module([*needed, *body], []), "exercise", "exec"), namespace)
        outcome = eval(compile(ast.unparse(last), "exercise", "eval"), namespace)
    except (Exception, SystemExit) as error:
        return Verdict(False, say("course_cell_stops", error=trying.described(error)))
    return outcome if isinstance(outcome, Verdict) else Verdict(False, say("course_no_check"))


def needed_statements(statements: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """Return the imports, literal assignments and definitions that bind `names`, and what those need in turn.

    The rest of a lesson loads and trains models, which an answer to an exercise doesn't use.
    """
    wanted = set(names)
    before: set[str] = set()
    while wanted != before:
        before = set(wanted)
        wanted.update(*(names_read(statement) for statement in statements if names_bound(statement) & before))
    return [statement for statement in statements if names_bound(statement) & wanted]


def names_bound(statement: ast.stmt) -> set[str]:
    """Return the names that an import, a definition or the assignment of a literal binds; none for other statements."""
    match statement:
        case ast.Import() | ast.ImportFrom():
            return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        case ast.FunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Assign(targets=[ast.Name(id=name)]) if is_literal(statement.value):
            return {name}
    return set()


def is_literal(node: ast.expr) -> bool:
    """Return True for numbers, strings and collections of them."""
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def names_read(tree: ast.AST) -> set[str]:
    """Return the names that are read anywhere in `tree`."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def plain_python(source: str) -> str:
    """Return a cell without its shell and magic lines; "" for a cell that isn't valid Python (yet)."""
    kept = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("!", "%")))
    try:
        ast.parse(kept)
    except SyntaxError:
        return ""
    return kept
