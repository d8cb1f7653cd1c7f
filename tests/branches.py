"""Fail where too few branches are covered: python tests/branches.py COVERAGE.json, from `slipcover --json`."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What a bug costs most: saved weights, and what strangers can reach.
STRICT = ("ftlab/runs/checkpoint.py", "ftlab/apps/serve/")
LEAST, LEAST_STRICT = 0.90, 0.98


def share(summaries: Iterable[dict[str, Any]]) -> float:
    """Return the share of branches that ran, 1 where there are none."""
    listed = list(summaries)
    covered = sum(summary["covered_branches"] for summary in listed)
    total = covered + sum(summary["missing_branches"] for summary in listed)
    return covered / total if total else 1.0


def main(path: str) -> int:
    """Print both shares; return 1 if one is too small."""
    files = json.loads(Path(path).read_text())["files"]
    summaries = {name: file["summary"] for name, file in files.items()}
    everything = share(summaries.values())
    strict = share(summary for name, summary in summaries.items() if name.startswith(STRICT))
    print(f"branches covered: {everything:.1%} of ftlab (at least {LEAST:.0%})", end=", ")
    print(f"{strict:.1%} of {' and '.join(STRICT)} (at least {LEAST_STRICT:.0%})")
    return int(everything < LEAST or strict < LEAST_STRICT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
