"""Pictures of loss curves, and the last output of a process."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftlab.runs.folder import Row

# Points drawn of a curve: more than the picture has columns only cost time.
POINTS = 800


def picture(curves: Mapping[str, Sequence[Row]], title: str = "") -> bytes:
    """Return a PNG of loss curves; no pyplot, so a thread may call it.

    Args:
        curves: name -> log rows. The first is the current run, the others are for comparison.
    """
    # Imported here: matplotlib is slow to import, and a page without a curve does not need it.
    from matplotlib.figure import Figure

    from ftlab import plots

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
    """Return the last informative line of a process's output."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    words = [line.strip() for line in lines if line.strip()]
    problem = [line for line in words if line.startswith("ftlab:")]
    return (problem or words or [""])[-1][:300]
