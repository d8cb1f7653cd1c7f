"""What runs have left on the disk: their logs, curves and settings, to be opened again and compared."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ftlab import manifests, plots
from ftlab.recipe import strict_yaml
from ftlab.runs import folder as folders

Row = dict[str, float]
# Points drawn of a curve: more than the picture has columns only cost time.
POINTS = 800


class Past(NamedTuple):
    """A run folder: whether its run is finished, and its last logged step and loss."""

    folder: Path
    finished: bool
    step: int
    loss: float | None


def earlier(root: Path, most: int = 50) -> list[Past]:
    """Return the runs in the folders under `root`, the newest first."""
    found = [path.parent for path in root.glob(f"*/{folders.RECIPE}")]
    found.sort(key=lambda folder: (folder / folders.RECIPE).stat().st_mtime, reverse=True)
    return [look(folder) for folder in found[:most]]


def look(folder: Path) -> Past:
    """Return what a run folder holds."""
    rows = rows_in(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    manifest = manifests.read_manifest(folder) or {}
    return Past(folder, bool(manifest.get("finished")), last_step(rows), losses[-1] if losses else None)


def last_step(rows: Sequence[Row]) -> int:
    """Return the last step that a log has, 0 for an empty one."""
    return int(rows[-1]["step"]) if rows else 0


def settings(folder: Path) -> dict[str, Any]:
    """Return the keys of a run's recipe.

    Raises:
        LabError: there is none, or it cannot be read.
    """
    return strict_yaml.read(folder / folders.RECIPE)[0]


def rows_in(folder: Path) -> list[Row]:
    """Return the rows of a run's log; a line that is being written is left for the next look."""
    try:
        text = (folder / folders.LOG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            found.append(row)
    return found


def next_name(folder: Path) -> Path:
    """Return NAME-2 for NAME, NAME-3 for NAME-2, and so on.

    >>> next_name(Path("runs/first")), next_name(Path("runs/first-9"))
    (PosixPath('runs/first-2'), PosixPath('runs/first-10'))
    """
    stem, _, number = folder.name.rpartition("-")
    stem, count = (stem, int(number)) if stem and number.isdecimal() else (folder.name, 1)
    return folder.with_name(f"{stem}-{count + 1}")


def free_name(folder: Path) -> Path:
    """Return the first of NAME-2, NAME-3 ... that does not exist."""
    while (folder := next_name(folder)).exists():
        pass
    return folder


def picture(curves: Mapping[str, Sequence[Row]], title: str = "") -> bytes:
    """Return a PNG of loss curves; no pyplot, so a thread may call it.

    Args:
        curves: name -> log rows. The first is the run in hand, the others are what it is compared with.
    """
    figure = Figure(figsize=(6.4, 3.2), dpi=90, layout="constrained")
    axes = figure.subplots()
    drawn = {name: thinned(rows) for name, rows in curves.items() if rows}
    for name, rows in drawn.items():
        plots.plot_loss(rows, axes, name if len(curves) > 1 else "training loss")
    if not drawn:
        axes.set(xlabel="optimizer step", ylabel="loss per trained token")
        axes.grid(alpha=0.3)
    if title:
        axes.set_title(title)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Return every nth training row of a long log, and all of its validation rows."""
    every = max(1, len(rows) // POINTS)
    last = len(rows) - 1
    return [row for i, row in enumerate(rows) if i % every == 0 or i == last or "eval_loss" in row]


def last_words(path: Path) -> str:
    """Return the last line that says something in a process's output."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    problem = [line for line in said if line.startswith("ftlab:")]
    return (problem or said or [""])[-1][:300]
