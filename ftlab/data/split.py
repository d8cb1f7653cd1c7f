"""Training, validation and test rows that do not overlap, because duplicates are dropped before the split."""

import hashlib
import json
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlab.data.convert import on_texts
from ftlab.data.read import Row, suggestion
from ftlab.errors import fail, say

if TYPE_CHECKING:
    from datasets import Dataset


class Split(NamedTuple):
    """The rows of each part, and the number of duplicates dropped before; together they are all rows read."""

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    dropped: int

    def __str__(self) -> str:
        parts = {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}
        shared = overlap(self.train, self.validation) + overlap(self.train, self.test)
        shared += overlap(self.validation, self.test)
        read = sum(parts.values()) + self.dropped
        return say("data_split", read=read, dropped=self.dropped, overlap=shared, **parts)


def folded(text: str) -> str:
    """Return a text in a normal form for comparison: NFKC, casefolded, single spaces.

    >>> folded(" Ｈello\\n WORLD ")
    'hello world'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(value: Any) -> bytes:
    """Return a 16-byte digest of the normal form of a row or a part of it."""
    text = json.dumps(on_texts(value, folded), ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def question(row: Row) -> bytes:
    """Return the digest of a row's question: all but its answer, or the whole of a raw text."""
    if "messages" in row:
        return digest(row["messages"][:-1])
    return digest(row["prompt"]) if "prompt" in row else digest(content(row))


def conversation(row: Row) -> list[Any]:
    """Return the turns of a row, of a pair those with the chosen answer; [] for raw text."""
    if "messages" in row:
        return row["messages"]
    prompt, answer = row.get("prompt"), row.get("chosen") or row.get("completion")
    return [*prompt, *answer] if isinstance(prompt, list) and isinstance(answer, list) else []


def beginnings(turns: Iterable[Any]) -> list[bytes]:
    """Return a digest of the first turn, of the first two, and so on to all."""
    return list(accumulate(map(digest, turns), lambda before, turn: hashlib.blake2b(before + turn).digest()))


def families(rows: Iterable[Row]) -> list[bytes]:
    """Return for each row a digest that rows with the same question share, and conversations that continue them."""
    begun = [(number, question(row), beginnings(conversation(row))) for number, row in enumerate(rows)]
    found, by_conversation = [b""] * len(begun), dict[bytes, bytes]()
    # The shorter ones first. Rows with the same question continue the same ones.
    for number, asked, parts in sorted(begun, key=lambda one: len(one[2])):
        continued = next((by_conversation[part] for part in parts if part in by_conversation), asked)
        found[number] = continued
        if parts:
            by_conversation[parts[-1]] = continued
    return found


def content(row: Row) -> Row:
    """Return a row without its place."""
    return {name: value for name, value in row.items() if name != "where"}


def overlap(first: Iterable[Row], second: Iterable[Row]) -> int:
    """Return how many rows of `second` have the same question as a row of `first`."""
    known = {question(row) for row in first}
    return sum(question(row) in known for row in second)


def dedup(dataset: "Dataset") -> tuple["Dataset", int]:
    """Return the rows without duplicates of earlier ones, and the number of duplicates."""
    first: dict[bytes, int] = {}
    for number, row in enumerate(dataset):
        first.setdefault(digest(content(row)), number)
    return dataset.select(sorted(first.values())), len(dataset) - len(first)


def split(
    dataset: "Dataset",
    val_size: float = 0.1,
    test_size: float = 0.1,
    seed: int = 42,
    stratify: str | None = None,
) -> Split:
    """Divide rows into train, validation and test, and print the counts.

    Duplicates are dropped first; rows with the same question stay in the same part, so the overlap is 0. So do a
    conversation and those that continue it, unless they are more rows than are left to train on.

    Args:
        val_size, test_size: share of the rows (below 1), or number of rows.
        stratify: a column whose values keep their shares in every part.
    Returns:
        Each part in the order of the rows.
    Raises:
        LabError: the sizes leave nothing to train on, or there is no such column.
    """
    if stratify is not None and stratify not in dataset.column_names:
        known = suggestion(stratify, dataset.column_names)
        raise fail("data_no_column", where="stratify", column=stratify, near=known)
    unique, dropped = dedup(dataset)
    sizes = [size_of(size, len(unique)) for size in (test_size, val_size)]
    if sum(sizes) >= len(unique):
        raise fail("data_split_size", where="val_size, test_size", got=f"{val_size}, {test_size}", rows=len(unique))
    parts = dealt(strata_of(unique, stratify, len(unique) - sum(sizes)), sizes, len(unique), random.Random(seed))
    test, validation, train = (unique.select(sorted(part)) for part in parts)
    result = Split(train, validation, test, dropped)
    print(result)
    return result


def strata_of(rows: "Dataset", stratify: str | None, room: int) -> list[list[list[int]]]:
    """Return the numbers of the rows: for each value of `stratify`, the groups that stay in one part.

    Args:
        room: rows that are left to train on; of a larger family only rows with the same question stay together.
    """
    family = families(rows)
    members = Counter(family)
    strata: dict[str, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        together = family[number] if members[family[number]] <= room else question(row)
        strata[json.dumps(row[stratify]) if stratify else ""][together].append(number)
    return [list(groups.values()) for groups in strata.values()]


def dealt(strata: list[list[list[int]]], sizes: list[int], total: int, chance: random.Random) -> list[list[int]]:
    """Return the rows of test, validation and training, each group in random order to the first that has room.

    Args:
        sizes: of test and validation.
    """
    parts: list[list[int]] = [[], [], []]
    done = 0
    for order in strata:
        chance.shuffle(order)
        done += sum(map(len, order))
        # The total that the strata so far should have contributed, so that rounding errors do not add up.
        goals = [round(size * done / total) for size in sizes]
        for group in order:
            part = next((n for n in (0, 1) if len(parts[n]) + len(group) <= goals[n]), 2)
            parts[part] += group
    return parts


def size_of(size: float, rows: int) -> int:
    """Return a share or number of rows as a number.

    Raises:
        LabError: below 0, or neither a share nor a whole number.
    """
    if isinstance(size, bool) or not size >= 0 or (size > 1 and size != int(size)):
        raise fail("data_split_size", where="val_size, test_size", got=size, rows=rows)
    return round(size * rows) if size < 1 else int(size)
