"""Seconds from the start of the process to the first optimizer step of a recipe, everything cached."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import turns
from ftlab.apps import cli


def measure(repeats: int, steps: int) -> dict:
    """Print and return the median seconds; the first, cold run is not counted."""
    turns.once("benchmarks.start", "ftlab")
    table = turns.medians(turns.in_turns("benchmarks.start", ["ftlab"], repeats))
    turns.show(table)
    return {"start": table, "ratios": {}}


def age() -> float:
    """Return the seconds since this process was started (Linux); psutil counts from a whole second of the boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Train one step and print when it began."""
    # As `ftlab train` does.
    with cli.uncollected():
        from transformers import TrainerCallback

        from ftlab.recipe import read as recipes
        from ftlab.runs import train

    class FirstStep(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_, **__):
            self.began = self.began or age()

    first = FirstStep()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output_dir={folder}/run", "max_steps=1", "save_strategy=no", "plot_loss=false"]
        train.train(recipes.load("recipes/sft_lora.yaml", overrides), callbacks=[first])
    print(json.dumps({"seconds_to_first_step": first.began}))


if __name__ == "__main__":
    assert sys.argv[1:] == ["ftlab"]
    main()
