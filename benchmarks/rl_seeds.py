"""Do PPO, RLOO and GRPO of lesson 11 learn with any seed? Its own cells, run once per seed.

    python benchmarks/rl_seeds.py [--methods ppo rloo grpo] [--seeds 0 1 2] [--profile cpu]

Prints one row per method and seed; exit code 1 unless each meets the figures: exact orders on held-out messages up by
at least 15 points over the model that training starts from, and a KL of at most 1 nat per token at the end.
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
SHARED = (
    "imports",
    "parameters",
    "profile",
    "data",
    "reward",
    "load",
    "answers",
    "prompted",
    "settings",
    "sft",
    "budget",
)
TRAINING = {"ppo": ("ppo-train",), "rloo": ("train", "rloo-train"), "grpo": ("train", "grpo-train")}


def run(method: str, seed: int, profile: str) -> dict[str, Any]:
    """Run the lesson's cells up to one method's answers; return its variables."""
    lesson = jupytext.read(ROOT / "notebooks" / "source" / "11_ppo_grpo.py", fmt="py:percent")
    variables: dict[str, Any] = {}
    for cell in lesson.cells:
        if cell.cell_type == "code" and cell.metadata.get("id") in SHARED + TRAINING[method]:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, variables)
            if cell.metadata["id"] == "parameters":
                variables |= {"seed": seed, "PROFILE": profile}
    return variables


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ppo", "rloo", "grpo"], choices=TRAINING)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    asked = parser.parse_args()
    os.chdir(ROOT)
    rows = [(method, seed) for method in asked.methods for seed in asked.seeds]
    passed = 0
    print(f"{'method':<8}{'seed':<6}{'exact before':>13}{'after':>7}{'KL':>7}{'seconds':>9}")
    for method, seed in rows:
        got, name = run(method, seed, asked.profile), method.upper()
        before, after = got["start_share"], got["exact_share"](got["replies"][name])
        kl = [row["kl"] for row in got["logs"][name] if "kl" in row][-1]
        good = after - before >= 0.15 and kl <= 1
        passed += good
        print(
            f"{method:<8}{seed:<6}{before:>13.0%}{after:>7.0%}{kl:>7.2f}"
            f"{got['seconds'][name]:>9.0f}  {'ok' if good else 'MISSED'}",
            flush=True,
        )
    print(f"{passed} of {len(rows)} runs")
    return 0 if passed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
