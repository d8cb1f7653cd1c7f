"""How responsive the evaluation panel is: its first opening, the bar with the time left, and Stop."""

import json
import os
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import turns

WAIT_SECONDS = 600
ROWS = 50


def measure(repeats: int, steps: int) -> dict:
    """Print and return medians for the embedded model on the examples of `identity_en`.

    Columns: seconds from the click on the button to a bar with the time left; seconds until the step is opened for the
    first time, which imports torch; seconds from the stop, pressed while answers are generated, to its end; answers
    that are kept then. `steps` has no effect.
    """
    table = turns.medians(turns.in_turns("benchmarks.board_evaluation", ["evaluation"], repeats))
    turns.show(table)
    return {"board_evaluation": table, "ratios": {}}


def wait_for(event: threading.Event, what: str) -> float:
    """Wait until something has happened, and return the seconds."""
    started = time.perf_counter()
    if not event.wait(WAIT_SECONDS):
        raise SystemExit(f"not within {WAIT_SECONDS} s: {what}")
    return time.perf_counter() - started


def main() -> None:
    """Evaluate, stop while answers are generated, and print the times as JSON."""
    from ftlab.apps.board import controls, page

    values = page.BEGINNING | {"dataset_dir": str(turns.ROOT / "data")}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("beginning.yaml").write_text(controls.yaml_lines(values), encoding="utf-8")
        board = page.Board("beginning.yaml", "en")
        started = time.perf_counter()
        board.tabs.selected_index = list(page.STEPS).index("tab_evaluate")
        panel = board.panels["tab_evaluate"]
        open_seconds = time.perf_counter() - started
        panel.task.form.controls["eval_dataset"].value = "identity_en"
        # Answers are generated to their end, so that some are finished when it is stopped.
        panel.figures["contains"].value = True
        barred, answering = threading.Event(), threading.Event()

        def look(change: dict) -> None:
            """Record when the bar appears, and when the pass that generates answers is half done."""
            if "working_on" in change["new"]:
                barred.set()
                watch = panel.task.watch
                if watch.total > ROWS and watch.share > 0.5:
                    answering.set()

        panel.task.status.observe(look, names="value")
        panel.task.start.click()
        figures = {"bar_seconds": wait_for(barred, "the bar"), "open_seconds": open_seconds}
        wait_for(answering, "answers are generated")
        panel.task.stop.click()
        figures["stop_seconds"] = wait_for(panel.task.idle, "it has stopped")
        if "task_stopped" not in panel.task.status.value:
            raise SystemExit(f"not stopped: {panel.task.status.value}")
        kept = panel.predictions.answers.get("base", [])
        os.chdir(Path(folder).parent)
    print(json.dumps(figures | {"answers_kept": len(kept)}))


if __name__ == "__main__":
    main()
