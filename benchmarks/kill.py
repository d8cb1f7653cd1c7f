"""kill -9 at many moments, half of them inside a save: does the run end with the very same log and weights?

    python benchmarks/kill.py [--kills 50] [--seed 0]

A process that has imported everything forks one child per training of a tiny random model (half a second each) and
kills it: at a random time, or as soon as a chosen file of a save appears. Then the same recipe is started again.
Prints one line per kill and ends with `R1 passed/total`; exit code 1 if one failed.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
SAVED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer_config.json",
    "tokenizer.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "partial-manifest.json",
    "manifest.json",
)
# The results of a run are a save too.
RESULTS = ("partial-manifest.json", "partial-adapter", "adapter", "loss.png", "metrics.json")


class Kill(NamedTuple):
    """When to kill: at `seconds` after the start, or `seconds` after `file` appeared."""

    file: str
    seconds: float

    def __str__(self) -> str:
        return f"{1000 * self.seconds:6.1f} ms after {self.file or 'the start'}"


def moments(count: int, seconds: float, draw: random.Random) -> list[Kill]:
    """Return `count` moments: half at random over a whole run of that many seconds, half inside saves."""
    inside = count // 2
    files = [f"checkpoint-{step}/{name}" for step in (4, 2, 6) for name in SAVED] + list(RESULTS)
    chosen = [files[i * len(files) // max(inside, 1)] for i in range(inside)]
    saves = [Kill(file, draw.choice((0.0, 0.0, 0.002))) for file in chosen]
    return saves + [Kill("", draw.uniform(0, seconds)) for _ in range(count - inside)]


def forked(work: Callable[[], object], log: Path) -> int:
    """Run `work` in a forked child whose output goes to `log`, and return the child's process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_when(child: int, kill: Kill, folder: Path) -> bool:
    """Kill the child at its moment; False if it had ended before."""
    started = time.monotonic()
    watched = folder / kill.file
    while kill.file and not watched.exists():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if time.monotonic() - started > 120:
            raise TimeoutError(f"{watched} never appeared")
    time.sleep(kill.seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> tuple[str, str]:
    """Return the log and the sha256 of the final weights."""
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return (folder / "train_log.jsonl").read_text(), hashlib.sha256(weights).hexdigest()


def main() -> int:
    """Run all kills and print the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    passed = 0
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ["HF_DATASETS_CACHE"] = str(place / "datasets")
        import tiny
        import torch

        from ftlab.runs import recipe, train

        torch.set_num_threads(1)
        model, rows = tiny.make_model(place / "model"), tiny.make_rows(place)

        def start(folder: Path) -> int:
            values = tiny.make_recipe(model, rows, folder)
            return forked(lambda: train.train(recipe.load(values)), place / "log.txt")

        os.waitpid(start(place / "warm-up"), 0)
        began = time.monotonic()
        os.waitpid(start(place / "whole"), 0)
        seconds = time.monotonic() - began
        expected = outcome(place / "whole")
        draw = random.Random(options.seed)
        for number, kill in enumerate(moments(options.kills, seconds, draw)):
            attempt = 0
            while not kill_when(start(folder := place / f"run{number}-{attempt}"), kill, folder):
                # It had ended before the moment came: that is no kill, so another moment is drawn.
                attempt, kill = attempt + 1, Kill(kill.file, draw.uniform(0, seconds) if not kill.file else 0.0)
            code = os.waitpid(start(folder), 0)[1]
            same = code == 0 and outcome(folder) == expected
            passed += same
            print(f"{number + 1:3} killed {kill}: {'same' if same else 'DIFFERENT'}", flush=True)
            if not same:
                print((place / "log.txt").read_text()[-3000:])
                break
    print(f"R1 {passed}/{options.kills}")
    return int(passed != options.kills)


if __name__ == "__main__":
    sys.exit(main())
