"""Watch an evaluation or an export: its progress, the answers so far, and requests to stop."""

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

# The exit code of stopped work.
STOPPED = 130
LINE = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed} elapsed, {remaining} left"


class Stopped(BaseException):
    """Raised in work that has been asked to stop.

    Not an Exception, because libraries, and the code that turns their errors into one line, catch those.
    """


class Watch:
    """The progress of an evaluation or an export, and the stop: Ctrl-C, SIGTERM, or a file STOP in the run folder.

    Args:
        run: the run folder, None without one.
    Attributes:
        phase: the work before and between passes ("loading", "preparing"), "" during a pass.
        done, total: rows of the current pass.
        begun: finished part of the current batch, in rows: a batch takes seconds on a CPU.
        began: start of the pass on the monotonic clock.
        answers: model -> its answers so far, in the order of the examples.
    """

    def __init__(self, run: Path | None) -> None:
        self.run, self.signals = run, callbacks.Stop(run or Path())
        self.phase, self.done, self.total, self.begun, self.began = "", 0, 0, 0.0, 0.0
        self.answers: dict[str, list[Answered]] = {}

    def stop(self) -> None:
        """Request a stop, from any thread."""
        self.signals.asked.set()

    def listening(self) -> AbstractContextManager[None]:
        """Return a context in which the first signal requests a stop; a second one acts as usual."""
        return self.signals.listening()

    def requested(self) -> bool:
        """Return True if a stop was requested, and remove the STOP file."""
        file = self.run / STOP if self.run else None
        if file and file.exists():
            file.unlink(missing_ok=True)
            self.signals.asked.set()
        return self.signals.asked.is_set()

    @property
    def share(self) -> float:
        """The finished share of the current pass, 0 to 1."""
        return min(1.0, (self.done + self.begun) / self.total) if self.total else 0.0

    def enter(self, phase: str) -> None:
        """Start a phase without rows to count."""
        self.phase, self.done, self.total, self.begun = phase, 0, 0, 0.0

    @contextmanager
    def line(self, what: str, total: int) -> Iterator[Advance]:
        """Show a progress line on stderr, if that is a terminal, and yield the function that advances it.

        The function raises Stopped if a stop was requested.
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
        """Raise Stopped before the next layer of `model` after a stop was requested.

        A batch takes seconds on a CPU, and work inside another library can only be stopped at its layers. The layers
        also give the progress within the batch.
        """
        lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
        layers = max(lists, key=len, default=[model])

        def ask(number: int, inputs: tuple[Any, ...]) -> None:
            if self.requested():
                raise Stopped
            # Hidden states (batch, seq, hidden); inputs of a mixture's experts have no batch dimension.
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
        """Raise Stopped before this thread's next call of a torch function after a stop was requested.

        Loading, merging and saving make thousands of such calls inside other libraries.
        """
        with Asking(self):
            yield


class Asking(TorchFunctionMode):
    """Check for a stop before each torch function; torch keeps such modes per thread."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or raise Stopped."""
        if self.watch.requested():
            raise Stopped
        return func(*args, **(kwargs or {}))
