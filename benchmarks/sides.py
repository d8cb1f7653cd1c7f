"""Measure one side of a comparison: the times of its steps, the tokens it trained on, its peak memory."""

import hashlib
import math
import resource
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from benchmarks.limit import DTYPE, ON

ON_CPU = ON == "cpu"
WARM_UP = 2  # steps that are not timed: the first ones fill caches and pools
LAST = 4  # steps whose mean is the final loss


class Side(TrainerCallback):
    """Watch one training: every side starts with the same adapters, and records a digest of its tokens.

    Attributes:
        ends: when each optimizer step ended, in seconds; the first entry is the start of training.
        losses: the loss of each step.
        seen: per batch, in order, a digest of its tokens (padding left out) and their number with a label; how many
            tokens there were, and that number. A batch that passes through the model twice is listed once.
        rows: per batch, in the same order, its tokens row by row.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.seen: dict[str, tuple[int, int]] = {}
        self.rows: dict[str, list[list[int]]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """Begin."""
        self.begin(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record when a step ended."""
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Record a step's loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def begin(self, model: nn.Module) -> None:
        """Initialize the model's adapters as for all sides, and watch its forward passes."""
        same_start(model)
        model.register_forward_pre_hook(self.look, with_kwargs=True)
        self.ends.append(time.perf_counter())

    def look(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Record a batch of `input_ids`, `attention_mask` and `labels`, each of shape (batch, seq_len)."""
        if not model.training or inputs.get("labels") is None:
            return
        ids, labels = inputs["input_ids"], inputs["labels"]
        real = torch.ones_like(ids) if inputs.get("attention_mask") is None else inputs["attention_mask"]
        digest = hashlib.sha256(ids[real.bool()].cpu().numpy().tobytes()).hexdigest()
        tokens, trained = int(real.sum()), int((labels[:, 1:] != -100).sum())
        self.seen[f"{digest} {trained}"] = (tokens, trained)
        self.rows[digest] = [row[keep.bool()].tolist() for row, keep in zip(ids, real, strict=True)]

    def seconds(self) -> float:
        """Return the seconds of the timed steps together."""
        return self.ends[-1] - self.ends[WARM_UP]

    def steps(self) -> int:
        """Return how many steps were timed."""
        return len(self.ends) - 1 - WARM_UP

    def figures(self) -> dict[str, Any]:
        """Return what every side reports; the first figure is the one whose spread is shown.

        Batches are counted in the order they came, one per step, as many as were timed.
        """
        timed = list(self.seen.values())[-self.steps() :]
        tokens, trained = (sum(column) for column in zip(*timed, strict=True))
        return {
            "trained_tokens_per_second": trained / self.seconds(),
            "tokens_per_second": tokens / self.seconds(),
            "distinct_share": self.distinct() / tokens,
            "seconds_per_step": self.seconds() / self.steps(),
            "peak_gib": peak_gib(),
            "final_loss": statistics.fmean(self.losses[-LAST:]),
            "samples": hashlib.sha256("".join(self.seen).encode()).hexdigest()[:12],
        }

    def distinct(self) -> int:
        """Return the number of tokens in the timed batches, counting shared prefixes of the rows of a batch once."""
        timed = list(self.rows.values())[-self.steps() :]
        return sum(len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}) for rows in timed)


def precision() -> dict[str, Any]:
    """Return the arguments with which another library's trainer uses bfloat16 only if the machine supports it.

    TRL's own default is bfloat16 on every machine; a processor without such instructions emulates it, far slower.
    """
    return {"bf16": torch.bfloat16 == DTYPE}


def figures_of(run: Callable[[int, "Side", str], None], steps: int, side: "Side") -> dict[str, Any]:
    """Return the figures of one training, whose run folder is temporary."""
    with tempfile.TemporaryDirectory() as folder:
        run(steps, side, str(Path(folder) / "run"))
    return side.figures()


def same_start(model: nn.Module) -> None:
    """Draw every LoRA matrix A with a seed from its name, as PEFT does (uniform, 1 / sqrt(inputs)); B stays 0."""
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            drawn = torch.rand(weight.shape, generator=generator) * 2 - 1
            weight.data.copy_(drawn / math.sqrt(weight.shape[1]))


def peak_gib() -> float:
    """Return the peak memory of this process in GiB: on the GPU, if there is one.

    VmHWM if the kernel has it: getrusage starts a child process with its parent's peak.
    """
    if not ON_CPU:
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
