"""Long work in a background thread, one task at a time; errors are reported, because a thread would lose them."""

import threading
from collections.abc import Callable
from typing import Any

from ftlab import errors
from ftlab.errors import LabError


class Work:
    """A runner for one task at a time.

    Args:
        lang: the language of its errors.
        failed: called with the error message.
        ended: called when a task has ended, successfully or not.
    Attributes:
        idle: set while no task is running.
    """

    def __init__(self, lang: str, failed: Callable[[str], None], ended: Callable[[], None] = lambda: None) -> None:
        self.lang, self.failed, self.ended = lang, failed, ended
        self.idle = threading.Event()
        self.idle.set()

    def begin(self, action: Callable[..., None], *given: Any) -> None:
        """Start a task in a thread; the caller has checked that none is running."""
        self.idle.clear()
        threading.Thread(target=self.run, args=(action, given), name="ftlab board", daemon=True).start()

    def run(self, action: Callable[..., None], value: tuple) -> None:
        """Run the task and report an error."""
        try:
            with errors.speaking(self.lang):
                action(*value)
        except Exception as error:
            self.failed(said(error))
        finally:
            try:
                self.ended()
            finally:
                self.idle.set()


def said(error: BaseException) -> str:
    """Return an error as readable text: the message of a LabError, and the type as well for any other exception."""
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
