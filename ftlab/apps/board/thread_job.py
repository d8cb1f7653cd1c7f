"""A training in a thread beside the notebook; in its own file, because its imports take seconds."""

import os
import threading
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlab import errors
from ftlab.apps.board import training_job
from ftlab.apps.board.background import said
from ftlab.recipe.keys import Recipe
from ftlab.runs import train


class Total(TrainerCallback):
    """Remember how many steps a training will take."""

    def __init__(self) -> None:
        self.steps: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Read the number of steps that Trainer computed."""
        self.steps = state.max_steps


class InThread:
    """A training in a thread of this process."""

    def __init__(self, recipe: Recipe, fresh: bool, lang: str) -> None:
        self.folder, self.pid, self.asked = training_job.folder_of(recipe), os.getpid(), False
        self.made, self.fresh, self.lang = recipe, fresh, lang
        self.total, self.ended = Total(), threading.Event()
        self.run: train.Run | None = None
        self.error: BaseException | None = None
        training_job.THREADS[self.folder.resolve()] = self
        threading.Thread(target=self.work, name="ftlab training", daemon=True).start()

    def work(self) -> None:
        """Train and keep an error, because a thread's traceback would be lost."""
        try:
            with errors.speaking(self.lang):
                self.run = train.train(self.made, callbacks=[self.total], fresh=self.fresh, quiet=True)
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()
            training_job.THREADS.pop(self.folder.resolve(), None)

    def alive(self) -> bool:
        """Return True while it is training."""
        return not self.ended.is_set()

    @property
    def steps(self) -> int | None:
        """The total number of steps, None before training has begun."""
        return self.total.steps

    def problem(self) -> str:
        """Return the error message, "" if there was no error."""
        return "" if self.error is None else said(self.error)

    def memory_bytes(self) -> int:
        """Return the memory in use now, in bytes: the GPU's if there is one, otherwise this process's."""
        if torch.cuda.is_available():
            return torch.cuda.memory_allocated()
        return psutil.Process().memory_info().rss
