"""Seconds from process start to a recipe's first optimizer step, and to the end of other commands, all cached."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import turns
from ftlab.apps import cli

RECIPE = "recipes/sft_lora.yaml"
# `train` ends when its first step begins; `chat` answers one line.
VERBS = {
    "train": [],
    "help": ["--help"],
    "env": ["env"],
    "recipe check": ["recipe", "check", RECIPE],
    "chat": ["chat", "smollm2-135m", "max_new_tokens=1"],
}
# Packages of the import profile that are printed.
SHOWN = 12


def measure(repeats: int, steps: int) -> dict:
    """Print and return the median seconds of each command, and the imports of `train`; a cold run comes first."""
    turns.once("benchmarks.start", "train")
    table = turns.medians(turns.in_turns("benchmarks.start", list(VERBS), repeats))
    turns.show(table)
    seconds = imports()
    total = sum(seconds.values())
    print(f"\nimports of train under -X importtime: {total:.2f} s, each package without what it imports itself")
    for name, value in seconds.most_common(SHOWN):
        print(f"{name:<24}{value:12.2f} s {value / total:5.0%}")
    return {"start": table, "imports": dict(seconds.most_common(SHOWN)), "ratios": {}}


def imports() -> Counter[str]:
    """Return the seconds of every top-level package that `train` imports before its first step."""
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks.start", "train"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=turns.ROOT, env=environment, capture_output=True, text=True, check=True)
    return by_package(done.stderr)


def by_package(report: str) -> Counter[str]:
    """Return package -> seconds from the lines of `python -X importtime`: own microseconds | cumulative | module.

    >>> by_package("import time:  2000000 |  2500000 | a.b\\nimport time:   500000 |   500000 |   a.c")
    Counter({'a': 2.5})
    """
    seconds: Counter[str] = Counter()
    # The heading of the report has a word for its microseconds; between its lines is what the run prints.
    for own, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)", report, re.MULTILINE):
        seconds[module.partition(".")[0]] += int(own) / 1e6
    return seconds


def age() -> float:
    """Return the seconds since this process was started (Linux); psutil counts from a whole second of the boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def train() -> tuple[float, float]:
    """Train one step and return the seconds and the processor seconds at which it began."""
    # As `ftlab train` does.
    with cli.quick_imports():
        from transformers import TrainerCallback

        from ftlab.recipe import read as recipes
        from ftlab.runs import train

    class FirstStep(TrainerCallback):
        began = (0.0, 0.0)

        def on_step_begin(self, *_, **__):
            self.began = (age(), time.process_time())

    first = FirstStep()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output_dir={folder}/run", "max_steps=1", "save_strategy=no", "plot_loss=false"]
        train.train(recipes.load(RECIPE, overrides), callbacks=[first])
    return first.began


def main(verb: str) -> None:
    """Run one verb and print its seconds."""
    sys.stdin = io.StringIO("Hello\n")
    if verb == "train":
        seconds, processor = train()
    else:
        assert cli.main(VERBS[verb]) == 0
        seconds, processor = age(), time.process_time()
    # The prompt of `chat` ends without a line break.
    print()
    print(json.dumps({"seconds": seconds, "processor_seconds": processor}))


if __name__ == "__main__":
    main(sys.argv[1])
