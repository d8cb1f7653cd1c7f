"""Training, validation and test rows that do not overlap, because duplicates go before the split."""

import json
import random
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ftlab.data.read import Row
from ftlab.errors import fail


@dataclass(frozen=True)
class Split:
    """The rows of each part, and how many duplicates were left out before: kept + dropped = read."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    dropped: int

    def __str__(self) -> str:
        kept = len(self.train) + len(self.validation) + len(self.test)
        return (
            f"{kept + self.dropped} rows read = {len(self.train)} train + {len(self.validation)} validation + "
            f"{len(self.test)} test + {self.dropped} duplicates dropped"
        )


def folded(row: Row) -> str:
    """Return what two rows share when they say the same: NFKC, lower case, single spaces."""
    text = unicodedata.normalize("NFKC", json.dumps(row, ensure_ascii=False, sort_keys=True))
    return " ".join(text.casefold().replace("\\n", " ").replace("\\t", " ").split())


def asked(row: Row) -> str:
    """Return the folded question of a row: a test row must not share even that with a training row."""
    for key in ("prompt", "messages"):
        if key in row:
            last = len(row[key]) if key == "prompt" else -1
            return folded({"asked": row[key][:last]})
    return folded(row)


def overlap(first: Sequence[Row], second: Sequence[Row]) -> int:
    """Return how many rows of `second` ask what a row of `first` asks."""
    known = {asked(row) for row in first}
    return sum(asked(row) in known for row in second)


def split(
    rows: Sequence[Row],
    val_size: float = 0.1,
    test_size: float = 0.1,
    seed: int = 42,
    stratify: str | None = None,
) -> Split:
    """Divide rows into train, validation and test; rows that ask the same stay together.

    Args:
        val_size, test_size: share of the rows, 0 to 1.
        stratify: a column whose values keep their shares in every part.
    Raises:
        LabError: the sizes leave nothing to train on.
    """
    if not 0 <= val_size + test_size < 1 or min(val_size, test_size) < 0:
        raise fail("data_split_size", where="val_size, test_size", got=f"{val_size} and {test_size}")
    unique = list({folded(row): row for row in rows}.values())
    strata: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in unique:
        strata[str(row.get(stratify)) if stratify else ""][asked(row)].append(row)
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    chance = random.Random(seed)
    for groups in strata.values():
        order = list(groups.values())
        chance.shuffle(order)
        held_out = {"test": round(test_size * len(order)), "validation": round(val_size * len(order))}
        for part, size in held_out.items():
            parts[part] += [row for group in order[:size] for row in group]
            order = order[size:]
        parts["train"] += [row for group in order for row in group]
    return Split(**parts, dropped=len(rows) - len(unique))
