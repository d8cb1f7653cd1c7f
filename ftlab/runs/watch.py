"""What watches an evaluation or an export: how far it is, the answers so far, whether it has been asked to stop."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from ftlab.runs import callbacks
from ftlab.runs.folder import STOP
from ftlab.runs.greedy import Advance
from ftlab.runs.predictions import Answered

# The exit code of what was stopped.
STOPPED = 130
LINE = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed} elapsed, {remaining} left"


class Stopped(BaseException):
    """Raised in the middle of work that has been asked to stop.

    Not an Exception: libraries, and what turns their errors into one line, catch those.
    """


class Watch:
    """The progress of an evaluation or an export, and the stop: Ctrl-C, SIGTERM, or a file STOP in the run folder.

    Args:
        run: the run folder, None where there is none.
    Attributes:
        phase: what is under way before the first pass and between two ("loading", "preparing"), "" in a pass.
        done, total: rows of the pass under way.
        begun: how much of the batch under way is done, in rows: a batch takes seconds on a CPU.
        began: when the pass began, on the monotonic clock.
        answers: model -> the examples that it has answered, in their order.
    """

    def __init__(self, run: Path | None) -> None:
        self.run, self.signals = run, callbacks.Stop(run or Path())
        self.phase, self.done, self.total, self.begun, self.began = "", 0, 0, 0.0, 0.0
        self.answers: dict[str, list[Answered]] = {}

    def stop(self) -> None:
        """Ask for a stop, from any thread."""
        self.signals.asked.set()

    def listening(self) -> AbstractContextManager[None]:
        """Return a context in which the first signal asks for a stop; a second one acts as usual."""
        return self.signals.listening()

    def requested(self) -> bool:
        """Return True if a stop was asked for; the file that asked is removed."""
        file = self.run / STOP if self.run else None
        if file and file.exists():
            file.unlink(missing_ok=True)
            self.signals.asked.set()
        return self.signals.asked.is_set()

    @property
    def share(self) -> float:
        """The share of the pass under way that is done, 0 to 1."""
        return min(1.0, (self.done + self.begun) / self.total) if self.total else 0.0

    def enter(self, phase: str) -> None:
        """Begin what has no rows to count."""
        self.phase, self.done, self.total, self.begun = phase, 0, 0, 0.0

    @contextmanager
    def line(self, what: str, total: int) -> Iterator[Advance]:
        """Show a line on stderr, if that is a terminal, and yield what it is told of finished work.

        What is yielded raises Stopped where a stop was asked for.
        """
        self.enter("")
        self.total, self.began = total, time.monotonic()
        with tqdm(total=total, desc=what, bar_format=LINE, leave=False, disable=None) as bar:

            def advance(done: int) -> None:
                bar.update(done)
                self.done, self.begun = self.done + done, 0.0
                if self.requested():
                    raise Stopped

            yield advance

    @contextmanager
    def stopping(self, model: Any) -> Iterator[None]:
        """Raise Stopped before the next layer of `model` is computed once a stop was asked for.

        A batch takes seconds on a CPU, and work inside another library can be stopped at its layers alone. The layers
        tell how far the batch is, too.
        """
        lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
        layers = max(lists, key=len, default=[model])

        def ask(number: int, inputs: tuple[Any, ...]) -> None:
            if self.requested():
                raise Stopped
            # Hidden states (batch, seq, hidden); what experts of a mixture are given has no batch.
            if inputs and getattr(inputs[0], "ndim", 0) == 3:
                rows = min(inputs[0].shape[0], self.total - self.done)
                self.begun = max(self.begun, rows * number / len(layers))

        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs, number=number: ask(number, inputs))
            for number, layer in enumerate(layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def stopping_anywhere(self) -> Iterator[None]:
        """Raise Stopped before the next function of torch that this thread calls once a stop was asked for.

        Loading, merging and saving are thousands of such calls, and none of them is this package's.
        """
        with Asking(self):
            yield


class Asking(TorchFunctionMode):
    """Look for a stop before each function of torch; torch keeps such modes apart for each thread."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or raise Stopped."""
        if self.watch.requested():
            raise Stopped
        return func(*args, **(kwargs or {}))
