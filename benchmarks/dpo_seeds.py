"""What do DPO alone, SFT alone and both teach in lesson 12, with any seed? Its own cells, run once per seed.

    python benchmarks/dpo_seeds.py [--seeds 0 1 2] [--profile cpu]

Prints one row per seed and run; exit code 1 unless each seed meets the lesson's figures: with SFT, alone or beside DPO,
at least 80% preferred style; with DPO alone at most 60%; at most 12 points of general knowledge lost with both.
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
    "prepare", "kl", "measure", "train", "results", "general",
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


def meets(got: dict[str, Any]) -> bool:
    """Return True if a run of the lesson's cells met its figures."""
    style = {name: found["style"] for name, found in got["results"].items()}
    lost = got["general_before"] - got["general_after"]["both"]
    return style["DPO alone"] <= 0.6 and min(style["SFT alone"], style["both"]) >= 0.8 and lost <= 0.12


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    asked = parser.parse_args()
    os.chdir(ROOT)
    passed = 0
    print(f"{'seed':<6}{'run':<16}{'style':>7}{'general':>9}{'KL':>7}")
    for seed in asked.seeds:
        got = run(seed, asked.profile)
        print(f"{seed:<6}{'before':<16}{got['preferred_before']:>7.0%}{got['general_before']:>9.1%}")
        for name, found in got["results"].items():
            scores = f"{found['style']:>7.0%}{got['general_after'][name]:>9.1%}{found['kl']:>7.2f}"
            print(f"{seed:<6}{name:<16}{scores}", flush=True)
        passed += meets(got)
    print(f"{passed} of {len(asked.seeds)} seeds")
    return 0 if passed == len(asked.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
