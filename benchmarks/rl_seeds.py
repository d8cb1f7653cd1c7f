"""Do PPO and GRPO of lesson 11 learn with any seed? Its own cells, run once per seed.

    python benchmarks/rl_seeds.py [--methods ppo grpo] [--seeds 0 1 2] [--profile cpu]

Prints one row per method and seed; exit code 1 unless each meets the figures: mean reward on held-out questions
up by at least 0.3 of its range, which is 1, in at most 360 seconds of training.
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
CELLS = ("imports", "parameters", "profile", "data", "reward", "load", "answers", "before", "settings", "adapter")
TRAINING = {"ppo": ("ppo-train",), "grpo": ("train", "grpo-train")}


def run(method: str, seed: int, profile: str) -> dict[str, Any]:
    """Run the lesson's cells up to one method's answers; return its variables."""
    lesson = jupytext.read(ROOT / "notebooks" / "source" / "11_ppo_grpo.py", fmt="py:percent")
    variables: dict[str, Any] = {}
    for cell in lesson.cells:
        if cell.cell_type == "code" and cell.metadata.get("id") in CELLS + TRAINING[method]:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, variables)
            if cell.metadata["id"] == "parameters":
                variables |= {"seed": seed, "PROFILE": profile}
    return variables


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ppo", "grpo"], choices=TRAINING)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    asked = parser.parse_args()
    os.chdir(ROOT)
    rows = [(method, seed) for method in asked.methods for seed in asked.seeds]
    passed = 0
    print(f"{'method':<8}{'seed':<6}{'reward before':>14}{'after':>8}{'right':>8}{'words':>7}{'KL':>7}{'seconds':>9}")
    for method, seed in rows:
        got = run(method, seed, asked.profile)
        before, name = got["ppo_reward_before"], method.upper()
        after, right, words = got["scores"](got["replies"][name])
        kl = [row["kl"] for row in got["logs"][name] if "kl" in row][-1]
        good = after - before >= 0.3 and got["seconds"][name] <= 360
        passed += good
        print(
            f"{method:<8}{seed:<6}{before:>14.2f}{after:>8.2f}{right:>8.0%}{words:>7.1f}{kl:>7.2f}"
            f"{got['seconds'][name]:>9.0f}  {'ok' if good else 'MISSED'}",
            flush=True,
        )
    print(f"{passed} of {len(rows)} runs")
    return 0 if passed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
