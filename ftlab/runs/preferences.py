"""Preferences between two answers to a question, picked blind by a person or a rater, as a data set to train on."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ftlab.data import dataset_info
from ftlab.errors import fail

Rater = Callable[[str, str, str], int]
LEFT, RIGHT, SKIP = 0, 1, -1


class Labels:
    """Questions with two answers each, and the preferences so far.

    Every pick is saved at once to `folder/NAME.jsonl`, which `folder/dataset_info.json` registers. Created again
    with the same name, the object continues where it stopped. `seed` decides which answer is on the left, so that
    a rater who always takes the left one has no preference.

    Attributes:
        rows: the pairs still to rate, the next one first: (question, left answer, right answer).
        path: the file of the preferences.
    Raises:
        LabError: two answers to one question are the same, or another data set has this name.
    """

    def __init__(self, rows: Sequence[tuple[str, str, str]], name: str, folder: str | Path, seed: int = 0) -> None:
        for number, (_, one, other) in enumerate(rows, 1):
            if one.strip() == other.strip():
                raise fail("data_equal_sides", where=f"rows[{number - 1}]")
        self.path = Path(folder) / f"{name}.jsonl"
        chance = random.Random(seed)
        swapped = [(question, *chance.sample([one, other], 2)) for question, one, other in rows]
        rated = {row["instruction"] for row in self.preferences()}
        self.rows = [row for row in swapped if row[0] not in rated]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        dataset_info.register(name, {"file_name": self.path.name, "ranking": True}, self.path.parent)

    def preferences(self) -> list[dict[str, str]]:
        """Return the preferences written so far, in the alpaca ranking format."""
        if not self.path.is_file():
            return []
        # Not `splitlines`: an answer may contain a line separator, U+2028, which JSON leaves as it is.
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n") if line]

    def pick(self, side: int) -> None:
        """Rate the next pair: LEFT (0) or RIGHT (1) is the better answer, SKIP (-1) says neither."""
        question, *answers = self.rows.pop(0)
        if side == SKIP:
            return
        row = {"instruction": question, "input": "", "chosen": answers[side], "rejected": answers[1 - side]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rate(self, rater: Rater) -> int:
        """Let `rater(question, left, right)` rate all remaining pairs; return the number of preferences."""
        while self.rows:
            self.pick(rater(*self.rows[0]))
        return len(self.preferences())
