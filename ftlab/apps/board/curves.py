"""Pictures of loss curves, and the last output of a process."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab.apps.board.words import Words
from ftlab.runs.folder import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Points drawn of a curve: more than the picture has columns only cost time.
POINTS = 800


def picture(curves: Mapping[str, Sequence[Row]]) -> bytes:
    """Return a PNG of loss curves with English labels; no pyplot, so a thread may call it.

    Args:
        curves: name -> log rows. The first is the current run, the others are for comparison.
    """
    return png(drawn(curves, "training loss", "validation loss"))


def picture_and_legend(curves: Mapping[str, Sequence[Row]], words: Words) -> tuple[bytes, str]:
    """Return a PNG of loss curves that holds numbers only, and what it shows as HTML, in the language of `words`.

    The machine that draws may have no font with Chinese characters; the browser has one.
    """
    from matplotlib.colors import to_hex

    figure = drawn(curves, words("plot_training"), words("plot_validation"))
    (axes,) = figure.axes
    axes.set(xlabel="", ylabel="")
    if legend := axes.get_legend():
        legend.remove()
    names = [
        f'<span><i style="background: {to_hex(line.get_color())}"></i>{html.escape(str(line.get_label()))}</span>'
        for line in axes.get_lines()
    ]
    return png(figure), f'<p class="ft-legend"><b>{html.escape(words("plot_axes"))}</b>{"".join(names)}</p>'


def drawn(curves: Mapping[str, Sequence[Row]], training: str, validation: str) -> "Figure":
    """Draw loss curves; where there are several runs, each is called by its name."""
    # Imported here: matplotlib is slow to import, and a page without a curve does not need it.
    from matplotlib.figure import Figure

    from ftlab import plots

    figure = Figure(figsize=(6.4, 3.2), dpi=90, layout="constrained")
    axes = figure.subplots()
    for name, rows in curves.items():
        if rows:
            labels = (name, f"{name}, {validation}") if len(curves) > 1 else (training, validation)
            plots.plot_loss(thinned(rows), axes, *labels)
    if not any(curves.values()):
        axes.set(xlabel="optimizer step", ylabel="loss per trained token")
        axes.grid(alpha=0.3)
    return figure


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG."""
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


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
