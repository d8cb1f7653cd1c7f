"""Run variants alternately, each in its own process, so that none warms up another or competes with it."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def in_turns(module: str, variants: Sequence[str], repeats: int, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Return what `python -m MODULE VARIANT ARGUMENTS` printed as its last line (JSON), `repeats` times per variant."""
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for turn in range(repeats):
        # In both directions, so that a machine that slows down affects all variants.
        for variant in variants if turn % 2 == 0 else reversed(variants):
            found[variant].append(once(module, variant, *arguments))
            print(f"  {variant}, turn {turn + 1}: {found[variant][-1]}", file=sys.stderr, flush=True)
    return found


def once(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module in a fresh process and return the JSON of its last line."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return variant -> figure -> median over its turns, and `spread`: (largest - smallest) / median of the first.

    A figure that is text must be the same in every turn.
    """
    table: dict[str, dict[str, Any]] = {}
    for variant, turns in found.items():
        table[variant] = {name: middle(variant, [turn[name] for turn in turns]) for name in turns[0]}
        first = next(iter(turns[0]))
        values = [turn[first] for turn in turns]
        table[variant]["spread"] = (max(values) - min(values)) / table[variant][first]
    return table


def middle(variant: str, values: list[Any]) -> Any:
    """Return the median of numbers, or the text that all turns have in common."""
    if not isinstance(values[0], str):
        return statistics.median(values)
    if len(set(values)) > 1:
        raise SystemExit(f"{variant}: its turns differ: {', '.join(sorted(set(values)))}")
    return values[0]


def same(table: dict[str, dict[str, Any]], figure: str) -> None:
    """End the benchmark if a figure differs that must be the same for all variants."""
    found = {variant: row[figure] for variant, row in table.items()}
    if len(set(found.values())) > 1:
        raise SystemExit(f"{figure} differ, so the variants cannot be compared: {found}")


def show(table: dict[str, dict[str, Any]]) -> None:
    """Print one row per variant, with a dash for a figure that it does not report."""
    names = list(next(iter(table.values())))
    widths = {name: max(len(name), 12) + 2 for name in names}
    print(f"{'':<24}" + "".join(f"{name:>{widths[name]}}" for name in names))
    for variant, row in table.items():
        values = (row.get(name, "-") for name in names)
        cells = (value if isinstance(value, str) else f"{value:.3f}" for value in values)
        print(f"{variant:<24}" + "".join(f"{cell:>{widths[name]}}" for name, cell in zip(names, cells, strict=True)))
