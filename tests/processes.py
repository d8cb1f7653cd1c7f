"""Train several recipes one after the other in the processes that torchrun started: `processes.py JOBS.json`.

Each process writes what it saw into JOBS.json.RANK: the ids of the examples of every step, and how each run ended.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import train


class Watch(TrainerCallback):
    """Note the examples that reach the model, and touch STOP in one process when asked."""

    def __init__(self, stop: Path | None) -> None:
        self.stop, self.ids = stop, []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Listen at the embedding."""
        model.get_input_embeddings().register_forward_pre_hook(self.see)

    def see(self, module: torch.nn.Module, inputs: tuple) -> None:
        """Note a digest of each row."""
        for row in inputs[0]:
            self.ids.append(hashlib.sha256(str([token for token in row.tolist() if token]).encode()).hexdigest()[:8])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a stop after the second step."""
        if self.stop and state.global_step == 2:
            self.stop.touch()


def run(values: dict[str, Any], rank: str) -> dict[str, Any]:
    """Train one recipe and return what this process saw."""
    folder = Path(values["output_dir"])
    watch = Watch(folder / "STOP" if values.pop("stop_by", None) == rank else None)
    try:
        done = train.train(recipes.load(values), callbacks=[watch])
    except LabError as error:
        return {"error": str(error), "ids": watch.ids}
    return {"stopped_at": done.stopped_at, "reused": done.reused, "ids": watch.ids}


if __name__ == "__main__":
    jobs, rank = Path(sys.argv[1]), os.environ["RANK"]
    seen = {name: run(values, rank) for name, values in json.loads(jobs.read_text()).items()}
    jobs.with_name(f"{jobs.name}.{rank}").write_text(json.dumps(seen))
