"""Long work beside the page: one thing at a time, in a thread; what goes wrong is said, because a thread loses it."""

import threading
from collections.abc import Callable
from typing import Any

from ftlab import errors
from ftlab.errors import LabError


class Work:
    """A place for one piece of work at a time.

    Args:
        lang: the language of its errors.
        failed: told what went wrong.
        ended: called when a piece of work has ended, well or not.
    Attributes:
        idle: set while nothing is under way.
    """

    def __init__(self, lang: str, failed: Callable[[str], None], ended: Callable[[], None]) -> None:
        self.lang, self.failed, self.ended = lang, failed, ended
        self.idle = threading.Event()
        self.idle.set()

    def begin(self, action: Callable[..., None], *given: Any) -> None:
        """Do something in a thread; the caller has seen that nothing else is under way."""
        self.idle.clear()
        threading.Thread(target=self.run, args=(action, given), name="ftlab board", daemon=True).start()

    def run(self, action: Callable[..., None], value: tuple) -> None:
        """Do it, and say what went wrong."""
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
    """Return an error as a person reads it: a LabError says it all, of others the kind is needed."""
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
