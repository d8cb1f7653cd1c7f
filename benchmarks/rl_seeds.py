"""Do PPO, RLOO and GRPO of lesson 11 learn with any seed? Its own cells, run once per seed.

    python benchmarks/rl_seeds.py [--methods ppo rloo grpo] [--seeds 0 1 2] [--profile cpu]

Prints one row per method and seed; exit code 1 unless each meets the figures: exact answers to held-out messages up
by at least 15 points over the model that training starts from, and a KL of at most 1 nat per token in the last 3 logs.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import jupytext

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
METHODS = ["ppo", "rloo", "grpo"]
SHARED = (
    "imports",
    "parameters",
    "profile",
    "data",
    "reward",
    "load",
    "answers",
    "settings",
    "sft",
    "budget",
    "train",
)


def run(methods: list[str], seed: int, profile: str) -> dict[str, Any]:
    """Run the lesson's cells up to these methods' answers; return its variables."""
    lesson = jupytext.read(ROOT / "notebooks" / "source" / "11_ppo_grpo.py", fmt="py:percent")
    variables: dict[str, Any] = {"replies": {}}  # the lesson has the prompting baseline in it by then
    for cell in lesson.cells:
        if cell.cell_type == "code" and cell.metadata.get("id") in (*SHARED, *(f"{m}-train" for m in methods)):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, variables)
            if cell.metadata["id"] == "parameters":
                variables |= {"seed": seed, "PROFILE": profile}
    return variables


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    asked = parser.parse_args()
    os.chdir(ROOT)
    passed = 0
    print(f"{'seed':<6}{'method':<8}{'exact before':>13}{'after':>7}{'KL':>7}{'seconds':>9}")
    for seed in asked.seeds:
        got = run(asked.methods, seed, asked.profile)
        before = got["start_share"]
        for name in map(str.upper, asked.methods):
            after = got["exact_share"](got["replies"][name])
            kl = statistics.mean([row["kl"] for row in got["logs"][name] if "kl" in row][-3:])
            good = after - before >= 0.15 and kl <= 1
            passed += good
            print(
                f"{seed:<6}{name:<8}{before:>13.0%}{after:>7.0%}{kl:>7.2f}"
                f"{got['seconds'][name]:>9.0f}  {'ok' if good else 'MISSED'}",
                flush=True,
            )
    runs = len(asked.seeds) * len(asked.methods)
    print(f"{passed} of {runs} runs")
    return 0 if passed == runs else 1


if __name__ == "__main__":
    sys.exit(main())
