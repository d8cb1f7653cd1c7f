"""Side-by-side measurements: python -m benchmarks NAME [--json FILE] [--repeats N] [--steps N] [--only PART ...].

Each prints a table and its ratios; the variants that a ratio compares run alternately on this machine, in one call.
`gpu` is different: it checks one GPU within a few minutes.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

NAMES = (
    "limit",
    "start",
    "levers",
    "train",
    "dpo",
    "grpo",
    "generate",
    "extraction",
    "evaluate",
    "memory",
    "course",
    "board",
    "board_evaluation",
    "harm",
    "kill",
    "gpu",
    "llamafactory_tokens",
)


def main() -> None:
    """Run one benchmark, print its results, and write them if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often each variant is run, alternating with the others"
    )
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of one run")
    parser.add_argument(
        "--only",
        nargs="+",
        help="train: lora, qlora, full, installed; levers: variants; memory: methods, stages; harm: recipes",
    )
    parser.add_argument("--llamafactory", help="train: the path of llamafactory-cli; llamafactory_tokens: its folder")
    parser.add_argument(
        "--minutes", type=float, default=8, help="gpu: parts that do not fit are skipped with a message"
    )
    parser.add_argument("--dry-run", action="store_true", help="gpu: every part on the CPU, with tiny models")
    parser.add_argument("--needs", action="store_true", help="gpu: list the packages to copy to the machine")
    options = parser.parse_args()
    if options.name == "gpu":
        from benchmarks import gpu

        sys.exit(gpu.main(options.minutes, options.json, options.dry_run, options.needs))
    chosen = {"only": options.only} if options.only else {}
    chosen |= {"command": options.llamafactory} if options.llamafactory else {}
    found = importlib.import_module(f"benchmarks.{options.name}").measure(options.repeats, options.steps, **chosen)
    for name, ratio in found["ratios"].items():
        print(f"{name:<48} {ratio:.3f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
