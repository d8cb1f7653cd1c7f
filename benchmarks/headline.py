"""The headline ratios of README: python -m benchmarks.headline prints their table and draws headline.png."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
COLUMNS = ("what", "compared with", "times as fast", "times the memory", "spread", "machine", "date")


def rows() -> list[dict[str, Any]]:
    """Return the ratios in the order of the table: what, against, ratio, memory, spread, machine, date."""
    return json.loads((FOLDER / "headline.json").read_text(encoding="utf-8"))


def table() -> str:
    """Return the ratios as a table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[str(value) for value in row.values()] for row in rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(picture: Path) -> None:
    """Draw a bar for each ratio; the line at 1 is what it is compared with."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    ax = figure.subplots()
    names = [f"{row['what']} / {row['against']}".replace("`", "") for row in rows()]
    drawn = ax.barh(names, [row["ratio"] for row in rows()], color="#4c956c")
    ax.bar_label(drawn, fmt="%g", padding=2)
    ax.margins(x=0.1)
    ax.axvline(1, color="#555", linewidth=1)
    ax.invert_yaxis()
    ax.set(xlabel="times as fast")
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    print(table())
    draw(FOLDER / "headline.png")
