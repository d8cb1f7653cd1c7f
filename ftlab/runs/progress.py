"""The progress of a training: one line with loss and time left in a terminal, one row per log in a file or pipe."""

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlab.runs.callbacks import row_of

LINE = "{desc} {n}/{total} |{bar:30}| {elapsed} elapsed, {remaining} left{postfix}"
# The most informative numbers; the run folder's log has all of them.
SHOWN = ("loss", "eval_loss", "reward", "kl", "rewards/accuracies", "accuracy", "mean_token_accuracy", "learning_rate")


class Progress(TrainerCallback):
    """Show the progress on stderr; rows are printed if stderr is not a terminal."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the progress line, in the main process."""
        if state.is_world_process_zero:
            off = True if args.disable_tqdm else None  # None: disabled if stderr is not a terminal
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="step", bar_format=LINE, disable=off)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the progress line."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show a log entry: at the end of the line, or as a row; an evaluation is always a row."""
        if self.bar is None or "train_loss" in (logs or {}):
            return
        text = shown(row_of({"step": state.global_step} | (logs or {})))
        if self.bar.disable or "eval_loss" in (logs or {}):
            self.bar.write(f"step {state.global_step}/{state.max_steps}: {text}")
        else:
            self.bar.set_postfix_str(text)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the progress line, so that further output starts below it."""
        if self.bar is not None:
            self.bar.close()


def shown(row: dict[str, float]) -> str:
    """Return the most informative numbers of a log row as text.

    >>> shown({"step": 3, "entropy": 1.5, "learning_rate": 0.0001, "loss": 1.23456})
    'loss 1.235, learning_rate 0.0001'
    """
    return ", ".join(f"{name} {row[name]:.4g}" for name in SHOWN if name in row)
