"""kill -9 at fifty moments, half of them inside a save: the run that is started again ends as if nothing had been."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny

KILLS = 50
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

pytestmark = pytest.mark.slow


class KillPoint(NamedTuple):
    """When to kill: at `share` of a whole run's seconds, or that share of 10 ms after `file` appeared."""

    file: str
    share: float


def kill_points() -> list[KillPoint]:
    """Return the moments: half of them inside saves, at another file each, the rest anywhere in a run."""
    draw = random.Random(0)
    files = [f"checkpoint-{step}/{name}" for step in (4, 2, 6) for name in SAVED] + list(RESULTS)
    inside = KILLS // 2
    saves = [KillPoint(files[i * len(files) // inside], draw.choice((0.0, 0.0, 0.2))) for i in range(inside)]
    return saves + [KillPoint("", draw.random()) for _ in range(KILLS - inside)]


def train(values: dict[str, Any], log: Path) -> None:
    """Train a recipe, in the child; what it prints goes to `log`."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from ftlab.recipe import read as recipes
    from ftlab.runs.train import train as run

    torch.set_num_threads(1)
    # As conftest.py does: what the imports created is permanent.
    gc.freeze()
    try:
        run(recipes.load(values))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def outcome(folder: Path) -> tuple[str, str]:
    """Return the log and the sha256 of the final weights."""
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return (folder / "train_log.jsonl").read_text(), hashlib.sha256(weights).hexdigest()


class Runs:
    """Starts trainings of one recipe as children of a process that has imported everything and run nothing."""

    def __init__(self, place: Path, model: Path, rows: Path) -> None:
        self.place, self.model, self.rows = place, model, rows
        self.log = place / "log.txt"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["ftlab.runs.train", "trl.trainer.sft_trainer", "peft", "matplotlib.figure"]
        )
        self.finish(self.start(place / "warm-up"))
        began = time.monotonic()
        self.finish(self.start(place / "whole"))
        self.seconds = time.monotonic() - began
        self.expected = outcome(place / "whole")

    def start(self, folder: Path) -> BaseProcess:
        """Start a training into `folder`, or go on with the one that is there."""
        values = tiny.make_recipe(self.model, self.rows, folder)
        child = self.context.Process(target=train, args=(values, self.log), daemon=True)
        child.start()
        return child

    def finish(self, child: BaseProcess) -> None:
        """Wait for a training, which must end well."""
        child.join(600)
        assert child.exitcode == 0, self.log.read_text()[-3000:]

    def kill(self, folder: Path, moment: KillPoint) -> bool:
        """Start a training and kill it at its moment; False if it had ended before."""
        child = self.start(folder)
        watched = folder / moment.file
        end = time.monotonic() + 600
        while moment.file and child.is_alive() and not watched.exists():
            assert time.monotonic() < end, f"{watched} never appeared"
        time.sleep(moment.share * (0.01 if moment.file else self.seconds))
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.join()
        return child.exitcode < 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_rows: Path) -> Iterator[Runs]:
    """The runs of this file."""
    yield Runs(tmp_path_factory.mktemp("kill"), tiny_model_dir, tiny_rows)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_as_the_uninterrupted_one(runs: Runs, number: int):
    moment = kill_points()[number]
    for attempt in range(20):
        # One that had ended before its moment came was not killed: the next is killed a little earlier.
        folder = runs.place / f"run{number}-{attempt}"
        if runs.kill(folder, moment._replace(share=moment.share * 0.9**attempt)):
            break
    else:
        pytest.fail(f"twenty runs ended before {moment}")
    runs.finish(runs.start(folder))
    assert outcome(folder) == runs.expected
