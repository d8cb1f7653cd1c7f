"""Search lesson 05's learning rates: three rates per method, a factor of three apart, by validation loss.

    python -m benchmarks.methods TABLE.json [METHOD ...]

Methods and training are the lesson's own cells, with half of its steps. A rate that TABLE.json already has is not tried
again, so a search that was stopped goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jupytext

LESSON = Path(__file__).parents[1] / "notebooks" / "source" / "05_methods.py"
# The cells with data, training and methods; those that print or plot are left out.
CELLS = (
    "imports", "parameters", "profile", "load", "data", "forced", "answers", "training-args", "run", "first", "whole",
    "lora", "small", "optimizers", "more",
)  # fmt: skip
STEPS, FACTOR = 10, 3
# The middle one of the rates at which a method is tried.
CENTRES = {
    "full": 3e-4, "freeze": 1e-3, "LLaMA Pro": 1e-3, "BitFit": 1e-2, "LayerNorm": 2e-2,
    "LoRA": 2e-3, "LoRA q, v only": 4e-3, "rsLoRA": 1e-3, "LoRA+": 1e-3, "DoRA": 2e-3, "PiSSA": 1e-3, "VeRA": 2e-2,
    "bottleneck": 2e-3, "IA3": 3e-2, "prefix tuning": 5e-2, "Muon": 2e-2,
    "OLoRA": 5e-4, "AdaLoRA": 1e-2, "OFT": 2e-3, "NEFTune": 2e-3, "prompt tuning": 5e-2, "P-tuning": 1e-2,
    "8-bit AdamW": 2e-3, "Adafactor": 2e-3,
}  # fmt: skip


def tried(centre: float) -> list[float]:
    """Return the learning rates that a method is tried at."""
    return [float(f"{rate:.1e}") for rate in (centre / FACTOR, centre, centre * FACTOR)]


def lesson_names(**parameters: Any) -> dict[str, Any]:
    """Return what the lesson's cells define, with `methods` declared and none of them run."""
    notebook = jupytext.reads(LESSON.read_text(encoding="utf-8"), fmt="py:percent")
    sources = {cell.metadata.get("id"): cell.source for cell in notebook.cells if cell.cell_type == "code"}
    names: dict[str, Any] = {}
    for cell in CELLS:
        exec(compile(sources[cell], f"{LESSON.name}, {cell}", "exec"), names)
        if cell == "parameters":
            names |= parameters
        elif cell == "run":
            names["report"] = names["methods"].update
    names["methods"] |= names["more"]
    return names


def search(path: Path, only: list[str]) -> None:
    """Print and save the validation loss of every method at every rate, in nats per answer token.

    Args:
        path: a table {method: {rate: loss}}; missing entries are added to it.
        only: the methods to try; all by default.
    """
    lesson = lesson_names(max_steps=STEPS)
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in only or CENTRES:
        method, losses = lesson["methods"][name], table.setdefault(name, {})
        for rate in tried(CENTRES[name]):
            if str(rate) not in losses:
                model, row = lesson["train"](**method | {"learning_rate": rate})
                exact, loss = lesson["score"](model, lesson["validation"])
                losses[str(rate)] = round(loss, 4)
                print(f"{name:<14} {rate:<8} {loss:.3f} nats, {sum(exact)} exact, {row['seconds']:.0f} s", flush=True)
                path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    search(Path(sys.argv[1]), sys.argv[2:])
