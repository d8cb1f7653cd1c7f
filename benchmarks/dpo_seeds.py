"""Does the DPO of lesson 12 work with any seed? Its own cells, run once per seed.

    python benchmarks/dpo_seeds.py [--seeds 0 1 2] [--profile cpu]

Prints one row per seed; exit code 1 unless each meets the lesson's figures: preferred style at most 30% before and at
least 80% after, at most 5 points of general knowledge lost, at most 180 seconds of training.
"""

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import jupytext

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
CELLS = (
    "imports", "parameters", "profile", "data", "conversations", "load", "answers", "before", "scratch-logps", "config",
    "train", "kl", "after",
)  # fmt: skip


def run(seed: int, profile: str) -> dict[str, Any]:
    """Run the lesson's cells up to the scores after training; return its variables."""
    lesson = jupytext.read(ROOT / "notebooks" / "source" / "12_dpo.py", fmt="py:percent")
    variables: dict[str, Any] = {}
    for cell in lesson.cells:
        if cell.cell_type == "code" and cell.metadata.get("id") in CELLS:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, variables)
            if cell.metadata["id"] == "parameters":
                variables |= {"seed": seed, "PROFILE": profile}
    return variables


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    asked = parser.parse_args()
    os.chdir(ROOT)
    passed = 0
    print(f"{'seed':<6}{'style before':>13}{'after':>8}{'general before':>16}{'after':>8}{'KL':>7}{'seconds':>9}")
    for seed in asked.seeds:
        got = run(seed, asked.profile)
        before, after = got["preferred_before"], got["preferred_after"]
        lost = got["general_before"] - got["general_after"]
        good = before <= 0.3 and after >= 0.8 and lost <= 0.05 and got["train_seconds"] <= 180
        passed += good
        print(
            f"{seed:<6}{before:>13.0%}{after:>8.0%}{got['general_before']:>16.1%}{got['general_after']:>8.1%}"
            f"{got['kl_after']:>7.2f}{got['train_seconds']:>9.0f}  {'ok' if good else 'MISSED'}",
            flush=True,
        )
    print(f"{passed} of {len(asked.seeds)} seeds")
    return 0 if passed == len(asked.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
