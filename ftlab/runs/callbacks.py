"""Trainer callbacks: the log, the guard against NaN and infinity, the stop, and the manifest of every checkpoint."""

import contextlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlab import manifests, saved_weights
from ftlab.errors import LabError, fail, reason_of, say
from ftlab.runs import checkpoint, world
from ftlab.runs.folder import STOP
from ftlab.system_errors import explained, require_space

# float16 loss scaling finds its scale by overflowing, at most a few steps in a row.
FP16_SKIPS = 25


def row_of(entry: dict[str, Any]) -> dict[str, float]:
    """Return an entry of `trainer.state.log_history` as a log row: its step, then its numbers.

    In alphabetical order, as in a resumed history. TRL's `num_tokens` is left out: it counts from the start of
    the process, not of the run.
    """
    numbers = {name: value for name, value in sorted(entry.items()) if isinstance(value, int | float)}
    return {"step": entry["step"]} | {name: value for name, value in numbers.items() if name != "num_tokens"}


def rows_of(history: Iterable[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the log rows of a history, without the summary that Trainer adds at the end."""
    return [row_of(entry) for entry in history if "train_loss" not in entry]


class Begin(TrainerCallback):
    """Write into the run folder when the training begins: by then the libraries have accepted the settings."""

    def __init__(self, write: Callable[[nn.Module], None]) -> None:
        self.write, self.begun = write, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Call `write` with the model, before any weight has changed."""
        self.write(model)
        self.begun = True

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn any exception of the libraries before the first step into one line: it is about the settings.

        Raises:
            LabError: with the library's reason.
        """
        try:
            yield
        except Exception as error:
            # Of any class: DeepSpeed has its own.
            if self.begun:
                raise
            raise explained(error) or fail("recipe_training", reason=reason_of(error)) from error


class Log(TrainerCallback):
    """Write every logged row to train_log.jsonl immediately; the first and the last step are always logged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start from the rows that a resumed run had up to its checkpoint."""
        if state.is_world_process_zero:
            self.path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(state.log_history)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log the first and the last step, however far apart the others are."""
        if state.global_step in (1, state.max_steps):
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Append the newest row.

        Raises:
            LabError: the loss is NaN or infinite.
        """
        entry = state.log_history[-1]
        if "train_loss" in entry:
            return
        row = row_of(entry)
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        for name in ("loss", "eval_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise not_finite(f"the {name}", state)


class Best(TrainerCallback):
    """Check the metric that selects the best checkpoint, and report if that checkpoint is missing."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Check that the evaluation logged the metric.

        Raises:
            LabError: with the names of the logged metrics.
        """
        name = (args.metric_for_best_model or "eval_loss").removeprefix("eval_")
        if f"eval_{name}" not in metrics and args.metric_for_best_model:
            known = ", ".join(sorted(one.removeprefix("eval_") for one in metrics if one.startswith("eval_")))
            raise fail("train_no_metric", where="metric_for_best_model", name=name, known=known)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print a note if the best evaluation has no checkpoint to load."""
        if not (args.load_best_model_at_end and state.best_global_step and state.is_world_process_zero):
            return
        kept = state.best_model_checkpoint
        step = saved_weights.step_of(Path(kept)) if kept else state.global_step
        if step != state.best_global_step:
            metric = args.metric_for_best_model
            print(say("train_best_unsaved", metric=metric, best=state.best_global_step, step=step))


class Guard(TrainerCallback):
    """Stop before a NaN or infinite gradient reaches the weights, and before such weights are saved."""

    def __init__(self) -> None:
        self.skipped = 0
        self.weights: list[torch.Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Collect the trained weights once: a model with adapters has thousands of modules to walk through."""
        self.weights = trainable_weights(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check the gradients that the optimizer is about to use.

        Raises:
            LabError: one is NaN or infinite.
        """
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        if all_finite(gradients):
            self.skipped = 0
            return
        self.skipped += 1
        if not args.fp16 or self.skipped > FP16_SKIPS:
            raise not_finite("the gradient", state)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check the weights that the optimizer just changed.

        Raises:
            LabError: one is NaN or infinite.
        """
        if not all_finite(self.weights):
            raise not_finite(say("trained_weight"), state)


def not_finite(name: str, state: TrainerState) -> Exception:
    """Build the error for a NaN or infinite number."""
    return fail("train_broken", where=f"step {state.global_step + 1}", exit_code=1, name=name)


def trainable_weights(model: nn.Module) -> list[torch.Tensor]:
    """Return the weights that training changes."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def all_finite(tensors: list[torch.Tensor]) -> bool:
    """Return True if every number in the tensors is finite, with a single synchronization."""
    # Any norm works. On a CPU torch needs six times as long to find the largest number.
    return bool(nn.utils.get_total_norm(tensors).isfinite())


class Stop(TrainerCallback):
    """Save and stop after the current step when asked: Ctrl-C, SIGTERM, or a file STOP in the run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = threading.Event()
        self.stopped_at: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell Trainer to save and stop; a run at its last step ends anyway."""
        if state.global_step >= state.max_steps:
            return
        # Every process checks for STOP before one of them removes it.
        if world.any_process(self.asked.is_set() or (self.folder / STOP).exists(), args):
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True
            (self.folder / STOP).unlink(missing_ok=True)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into the flag; a second signal acts as usual. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: object) -> None:
            self.asked.set()
            for listened, handler in before.items():
                signal.signal(listened, handler)

        for listened in before:
            signal.signal(listened, ask)
        try:
            yield
        finally:
            for listened, handler in before.items():
                signal.signal(listened, handler)


class Keeper(TrainerCallback):
    """Seal every checkpoint with a manifest after Trainer has written it, then rotate this run's own.

    It must be the last callback, so that any request for a save has been made.
    """

    def __init__(self, folder: Path, about: dict[str, Any], save_total_limit: int | None) -> None:
        self.folder, self.about, self.limit = folder, about, save_total_limit
        self.saving: Path | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Prepare a save that is about to happen."""
        self.prepare(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Prepare a save that is about to happen."""
        self.prepare(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Prepare the save that follows an evaluation."""
        control.should_evaluate = False
        self.prepare(state, control)

    def prepare(self, state: TrainerState, control: TrainerControl) -> None:
        """Log with every save, so that a resumed run averages over the same steps, and make room for the folder."""
        if not control.should_save:
            return
        control.should_log = True
        if control.should_evaluate or not state.is_world_process_zero:
            return
        last = next(iter(saved_weights.checkpoints(self.folder)), None)
        needed = checkpoint.size_bytes(last) if last else 0
        require_space(self.folder, needed, "checkpoint_space", exit_code=1)
        self.saving = self.folder / f"{saved_weights.PREFIX}{state.global_step}"
        if self.saving.exists():
            checkpoint.set_aside(self.saving)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the manifest last, then delete checkpoints beyond the limit."""
        world.wait(args)
        if not state.is_world_process_zero:
            return
        # Trainer's pickled arguments are not needed; the run folder has them as recipe.yaml.
        path = self.folder / f"{saved_weights.PREFIX}{state.global_step}"
        (path / "training_args.bin").unlink(missing_ok=True)
        manifests.write_manifest(path, self.about | {"step": state.global_step})
        self.saving = None
        if self.limit:
            best = {Path(state.best_model_checkpoint).resolve()} if state.best_model_checkpoint else set()
            checkpoint.rotate(self.folder, self.about["run_id"], self.limit, best)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Report a failed write of a checkpoint in one line, and keep the earlier checkpoints.

        Raises:
            LabError: the save failed.
        """
        try:
            with writing(self.folder, self.folder):
                yield
        except LabError:
            if self.saving and manifests.read_manifest(self.saving) is None:
                shutil.rmtree(self.saving, ignore_errors=True)
            raise


@contextlib.contextmanager
def writing(path: Path, run_folder: Path) -> Iterator[None]:
    """Turn a failed write inside the block into one line.

    Raises:
        LabError: naming `path` and the run's last good checkpoint.
    """
    try:
        yield
    except Exception as error:
        # safetensors and torch raise their own exceptions for a failed write, not always OSError.
        if not is_write_error(error):
            raise
        raise save_failed(error, path, run_folder) from error


def is_write_error(error: Exception) -> bool:
    """Return True if an exception is a failed write, whichever library raised it.

    A closed pipe is not: it concerns the output, not the files.
    """
    if isinstance(error, BrokenPipeError):
        return False
    words = ("os error", "No space left", "Input/output error", "PytorchStreamWriter", "iostream error", "enforce fail")
    return isinstance(error, OSError) or any(word in str(error) for word in words)


def save_failed(error: Exception, path: Path, folder: Path) -> Exception:
    """Build the error for a failed save."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else reason_of(error)
    kept = next((each.name for each in saved_weights.checkpoints(folder) if manifests.read_manifest(each)), "-")
    return fail("checkpoint_write", where=str(path), exit_code=1, reason=reason, kept=kept)
