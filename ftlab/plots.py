"""Plots of plain rows. Each `plot_` function draws on given Axes; without pyplot, so a thread may call it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, float]
# The steps from raw text to a served model; every lesson is about one of them.
STEPS = ("data", "SFT", "merge", "preference", "serve")


def plot_loss(rows: Sequence[Row], ax: Axes, label: str = "training loss", eval_label: str = "validation loss") -> Axes:
    """Draw the loss over optimizer steps.

    Args:
        rows: `trainer.state.log_history` or the rows of a train_log.jsonl: `step` with `loss` and/or `eval_loss`.
    """
    for key, name, style in (("loss", label, "-"), ("eval_loss", eval_label, "o--")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            ax.plot(*zip(*points, strict=True), style, label=name)
    ax.set(xlabel="optimizer step", ylabel="loss per trained token")
    ax.locator_params(axis="x", integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def plot_scores(shares: Mapping[str, float], total: int, ax: Axes) -> Axes:
    """Draw one bar per share of right answers, in percent, with its 95% interval.

    Args:
        shares: name -> share of `total` questions answered right, 0 to 1.
    """
    # Imported here: it imports torch, which a loss curve does not need.
    from ftlab.evaluate import interval

    heights = [100 * share for share in shares.values()]
    ends = [interval(share, total) for share in shares.values()]
    below = [height - 100 * low for height, (low, _) in zip(heights, ends, strict=True)]
    above = [100 * high - height for height, (_, high) in zip(heights, ends, strict=True)]
    ax.bar(list(shares), heights, yerr=[below, above], capsize=4, color="#4c956c", ecolor="#555")
    for column, height in enumerate(heights):
        ax.text(column + 0.08, height + 1, f"{height:.0f}%", fontweight="bold")
    ax.set(ylim=(0, 112), ylabel="right answers, %", title=f"{total} questions")
    ax.grid(axis="y", alpha=0.3)
    return ax


def plot_pipeline(here: str, ax: Axes) -> Axes:
    """Draw the steps from data to a served model, with the step `here`, one of STEPS, filled."""
    for column, step in enumerate(STEPS):
        box = {"boxstyle": "round,pad=0.5", "edgecolor": "#4c956c", "facecolor": "#4c956c" if step == here else "white"}
        ax.text(column, 0, step, ha="center", va="center", color="white" if step == here else "#333", bbox=box)
        if column:
            ax.annotate("", (column - 0.3, 0), (column - 0.7, 0), arrowprops={"arrowstyle": "->", "color": "#555"})
    ax.set(xlim=(-0.5, len(STEPS) - 0.5), ylim=(-1, 1))
    ax.axis("off")
    return ax


def save_loss(rows: Sequence[Row], path: Path) -> None:
    """Write the loss curve of `rows` as a PNG file."""
    figure = Figure(figsize=(6, 3), dpi=90, layout="constrained")
    plot_loss(rows, figure.subplots())
    figure.savefig(path)
