"""Print a sample of a module's mutants, the same one every time: python tests/sample_mutants.py ftlab.tokens 60."""

import json
import random
import sys
from pathlib import Path


def main(module: str, count: str) -> None:
    """Print at most `count` names of mutants that `mutmut run` has written for a module or package."""
    files = Path("mutants").rglob("*.meta")
    names = sorted(name for file in files for name in json.loads(file.read_text())["exit_code_by_key"])
    names = [name for name in names if name.startswith(f"{module}.")]
    print(*(random.Random(0).sample(names, int(count)) if len(names) > int(count) else names))


if __name__ == "__main__":
    main(*sys.argv[1:])
