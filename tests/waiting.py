"""Waiting in tests for work in a thread or another process."""

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true; the limit of ten minutes only ends a test that hangs."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
