"""LLaMA-Factory as a side of `train`: its own command, on the same rows, in an environment of its own.

They cannot share one: LLaMA-Factory requires older releases of the same libraries.
"""

import json
import os
import resource
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.sides import LAST, WARM_UP

NAME = "llama-factory"
DATASET = "identity"


def figures(command: str, keys: dict[str, Any], rows: list[dict[str, str]], batches: list[int], folder: Path) -> dict:
    """Train with LLaMA-Factory; return what a side reports.

    Args:
        command: its `llamafactory-cli`.
        keys: the recipe in its own keys; without `template` it uses the tokenizer's chat template, as ftlab does.
        rows: `instruction`, `input` and `output`.
        batches: trained tokens of each batch, in order.
    Raises:
        SystemExit: it failed, or logged another number of steps.
    """
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({DATASET: {"file_name": "rows.json"}}))
    run = folder / "run"
    keys = keys | {"dataset": DATASET, "dataset_dir": str(folder), "output_dir": str(run)}
    (folder / "train.yaml").write_text(json.dumps(keys))  # JSON is YAML
    ends, losses = follow([command, "train", str(folder / "train.yaml")], run / "trainer_log.jsonl")
    if len(ends) != len(batches):
        raise SystemExit(f"{command} logged {len(ends)} of {len(batches)} steps: {folder}")
    seconds = ends[-1] - ends[WARM_UP - 1]
    return {
        "trained_tokens_per_second": sum(batches[WARM_UP:]) / seconds,
        "seconds_per_step": seconds / (len(ends) - WARM_UP),
        "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "final_loss": statistics.fmean(losses[-LAST:]),
    }


def follow(command: list[str], log: Path) -> tuple[list[float], list[float]]:
    """Run a command; return when each line of its log appeared, in seconds, and the loss of each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1"}
    output = log.parent.parent / "output.txt"
    ends: list[float] = []
    with output.open("w") as said, subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process:
        while process.poll() is None:
            # A step takes seconds, so a hundred looks per second are precise enough and cost little.
            time.sleep(0.01)
            written = log.read_text().count("\n") if log.exists() else 0
            ends += [time.perf_counter()] * (written - len(ends))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.read_text()[-3000:]}")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    return ends[: len(losses)], losses
