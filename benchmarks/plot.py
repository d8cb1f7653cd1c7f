"""Plot the output of `python -m benchmarks NAME --json FILE`: python -m benchmarks.plot FILE.json ... PICTURE.png."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 2


def tables(found: dict[str, Any], title: str = "") -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Yield (title, variant -> figures) for every table of medians in a benchmark's JSON."""
    for name, value in found.items():
        if name == "ratios" or not isinstance(value, dict):
            continue
        # The tables of `train` are named by batch size.
        label = f"{title}, batch {name}" if name.isdigit() else f"{title} {name}".strip().removeprefix("tables ")
        if value and all(isinstance(row, dict) and "spread" in row for row in value.values()):
            yield label, value
        else:
            yield from tables(value, label)


def bars(table: dict[str, dict[str, float]], title: str, ax: Axes) -> None:
    """Draw the first figure of each variant as a bar, with the spread of its turns as an error bar."""
    name = next(iter(next(iter(table.values()))))
    values = [row[name] for row in table.values()]
    spreads = [row[name] * row["spread"] / 2 for row in table.values()]
    colours = ["#4c956c" if variant == "ftlab" else "#9ecae1" for variant in table]
    drawn = ax.barh(list(table), values, xerr=spreads, color=colours, ecolor="#555", capsize=3)
    ax.bar_label(drawn, fmt="%.0f", label_type="center", color="#222")
    ax.invert_yaxis()
    ax.set(title=title, xlabel=name.replace("_", " "))


def main(sources: list[str], picture: str) -> None:
    """Write one picture of all tables in some JSON files."""
    found = [panel for source in sources for panel in tables(json.loads(Path(source).read_text(encoding="utf-8")))]
    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(4.5 * COLUMNS, 2.2 * rows), dpi=90, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for ax in axes[len(found) :]:
        ax.remove()
    for (title, table), ax in zip(found, axes, strict=False):
        bars(table, title, ax)
    figure.savefig(picture)


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
