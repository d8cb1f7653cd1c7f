"""What watches a long evaluation: a progress line with the time left, and whether it has been asked to stop."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ftlab.runs import callbacks
from ftlab.runs.folder import STOP
from ftlab.runs.greedy import Advance

LINE = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed} elapsed, {remaining} left"


class Stopped(Exception):
    """Raised in the middle of work that has been asked to stop."""


class Watch:
    """The progress of an evaluation, and the stop: Ctrl-C, SIGTERM, or a file STOP in the run folder.

    Args:
        run: the run folder, None where there is none.
    Attributes:
        done, total: rows of the pass under way.
        began: when the pass began, on the monotonic clock.
    """

    def __init__(self, run: Path | None) -> None:
        self.run, self.signals = run, callbacks.Stop(run or Path())
        self.done, self.total, self.began = 0, 0, 0.0

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

    @contextmanager
    def line(self, what: str, total: int) -> Iterator[Advance]:
        """Show a line on stderr, if that is a terminal, and yield what it is told of finished work.

        What is yielded raises Stopped where a stop was asked for.
        """
        self.done, self.total, self.began = 0, total, time.monotonic()
        with tqdm(total=total, desc=what, bar_format=LINE, leave=False, disable=None) as bar:

            def advance(done: int) -> None:
                bar.update(done)
                self.done += done
                if self.requested():
                    raise Stopped

            yield advance

    @contextmanager
    def stopping(self, layer: torch.nn.Module) -> Iterator[None]:
        """Raise Stopped before `layer` is next computed where a stop was asked for: the work is another library's."""

        def ask(*_: object) -> None:
            if self.requested():
                raise Stopped

        hook = layer.register_forward_pre_hook(ask)
        try:
            yield
        finally:
            hook.remove()
