"""How responsive the training panel is: a slider, the first plot after Start, and Stop."""

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import turns

MOVES = (1, 4, 64, 16, 128, 2, 32, 8)
WAIT_SECONDS = 120


def measure(repeats: int, steps: int) -> dict:
    """Print and return the medians for a training in a thread of the kernel and for one in its own process.

    Columns: seconds from a slider's move to updated estimates, the slowest of eight; seconds from Start to the first
    plot with a loss; steps after Stop was pressed; seconds from Stop to a saved checkpoint; seconds of a step.
    """
    found = turns.in_turns("benchmarks.board", ["thread", "process"], repeats, str(steps))
    table = turns.medians(found)
    turns.show(table)
    return {"board": table, "ratios": {}}


def until(true) -> float:
    """Wait until a condition is true, and return the seconds."""
    started = time.perf_counter()
    while not true():
        if time.perf_counter() - started > WAIT_SECONDS:
            raise SystemExit("the panel did nothing for two minutes")
        time.sleep(0.005)
    return time.perf_counter() - started


def main(mode: str, steps: int) -> None:
    """Use one panel on the page's initial settings, and print the times as JSON."""
    from ftlab.apps.board import page
    from ftlab.apps.board.train_panel import TrainPanel
    from ftlab.runs import folder as folders

    with tempfile.TemporaryDirectory() as folder:
        values = page.BEGINNING | {"output_dir": f"{folder}/run", "max_steps": 10 * steps, "save_steps": 10**6}
        panel = TrainPanel(values, mode=mode)
        # The first estimates of a training in its own process are made in a thread, because of their imports.
        until(lambda: panel.words("counting") not in panel.view.readouts.value)
        moves = []
        for rank in MOVES:
            before, started = panel.view.readouts.value, time.perf_counter()
            panel.form.controls["lora_rank"].value = rank
            moves.append(time.perf_counter() - started)
            assert panel.view.readouts.value != before and f"lora_rank: {rank}\n" in panel.view.command.value
        empty = panel.view.plot.value
        panel.view.start.click()
        first = until(lambda: panel.view.plot.value != empty)
        until(lambda: folders.last_step(panel.rows) >= steps // 2)
        began, at = time.perf_counter(), folders.last_step(panel.rows)
        until(lambda: folders.last_step(panel.rows) >= at + 3)
        step_seconds = (time.perf_counter() - began) / (folders.last_step(panel.rows) - at)
        pressed = folders.last_step(folders.read_log(Path(f"{folder}/run")))
        panel.view.stop.click()
        stop_seconds = until(panel.idle.is_set)
        after = folders.last_step(folders.read_log(Path(f"{folder}/run"))) - pressed
        assert (Path(folder) / "run" / f"checkpoint-{pressed + after}").is_dir()
    figures = {"slider_seconds": max(moves), "first_plot_seconds": first, "steps_after_stop": after}
    print(json.dumps(figures | {"stop_seconds": stop_seconds, "step_seconds": step_seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
