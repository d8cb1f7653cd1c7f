"""Choose the parts that run in the available time: one that does not fit is skipped, one that overruns is stopped."""

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from benchmarks.gpu.parts import Part

# A part may take this many times its estimate, and at least so many seconds, before it is stopped.
PATIENCE, LEAST_SECONDS = 4.0, 60.0
# Estimates are corrected by what was measured after so many parts.
LEARNT_AFTER = 3

Result = dict[str, Any]


class Runner(Protocol):
    """What runs parts: `Worker`, or a stand-in in tests."""

    def ask(self, name: str, limit: float) -> Result:
        """Run one part for at most `limit` seconds; return `status`, and `figures` or `reason`."""


def results(
    parts: Sequence[Part], worker: Runner, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Result]:
    """Yield the result of every part, in order, within so many seconds.

    Each has `part`, `group`, `status` (ok, failed, stopped, skipped), `seconds`, and `figures` or `reason`.
    """
    ends, spent, estimated, done = clock() + seconds, 0.0, 0.0, {}
    for index, part in enumerate(parts):
        # How much slower than estimated this machine is.
        pace = spent / estimated if estimated and len(done) >= LEARNT_AFTER else 1.0
        left, needed = ends - clock(), part.seconds * pace
        reason = unready(part, done) or (f"takes about {needed:.0f} s, {max(left, 0):.0f} s are left" * (needed > left))
        begun = clock()
        if reason:
            result: Result = {"status": "skipped", "reason": reason}
        else:
            result = worker.ask(part.name, min(left, max(LEAST_SECONDS, PATIENCE * needed)))
            done[part.name] = result["status"]
            if result["status"] in ("ok", "stopped"):
                spent, estimated = spent + clock() - begun, estimated + part.seconds
        yield {"number": index + 1, "part": part.name, "group": part.group, "seconds": clock() - begun} | result


def unready(part: Part, done: dict[str, str]) -> str:
    """Return what a part lacks, "" if nothing: a package, or the result of an earlier part."""
    missing = [name for name in part.packages if not installed(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    broken = [name for name in part.after if done.get(name) != "ok"]
    return f"needs the result of: {', '.join(broken)}" if broken else ""


def installed(module: str) -> bool:
    """Return True if a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
