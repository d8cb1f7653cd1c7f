"""Score lesson 15's diagnoses: the faults that an answer names, in English or Chinese, and hints for wrong ones."""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ftlab.apps import clinic
from ftlab.errors import language, say

# Wrong diagnoses so far, per round and patient: the first hint names the probe to look at, later ones explain it.
misses: Counter[tuple[int, int]] = Counter()


@cache
def faults() -> dict[str, Any]:
    """Return the table: fault -> `names`, `fixes`, `probe_en`, `how_en` and their Chinese twins."""
    return tomllib.loads(Path(__file__).with_name("diagnoses.toml").read_text(encoding="utf-8"))


def named(answer: object, kind: str = "names") -> set[str]:
    """Return the faults that an answer names, or with "fixes" those that it fixes.

    >>> named("LR 10x"), named("学习率过大"), named("leak, or double BOS?") == {"validation_leak", "double_bos"}
    ({'tenfold_rate'}, {'tenfold_rate'}, True)
    """
    text = str(answer).casefold()
    return {fault for fault, entry in faults().items() if any(holds(text, phrase) for phrase in entry[kind])}


def holds(text: str, phrase: str) -> bool:
    """Return True if each word of a phrase begins a word of the text; Chinese words may be anywhere in it."""
    words = phrase.split()
    return all(re.search(rf"(?<![a-z0-9_]){re.escape(word)}" if word.isascii() else word, text) for word in words)


def right(seed: int, names: Mapping[int, object]) -> set[int]:
    """Return the patients of a round for which exactly the right fault is named."""
    truth = dict(enumerate(clinic.order(seed), start=1))
    return {number for number, fault in truth.items() if named(names.get(number, "")) == {fault}}


def fixed(seed: int, fixes: Mapping[int, object]) -> set[int]:
    """Return the patients of a round whose fix is given; an answer with more than two fixes is a guess."""
    truth = dict(enumerate(clinic.order(seed), start=1))
    given = {number: named(fixes.get(number, ""), "fixes") for number in truth}
    return {number for number, fault in truth.items() if fault in given[number] and len(given[number]) <= 2}


def report(seed: int, names: Mapping[int, object], fixes: Mapping[int, object]) -> str:
    """Return the score of a round, with a hint for every wrong diagnosis: first the probe, then its meaning.

    Args:
        names: patient -> the fault, in your words; `...` or missing: not answered yet.
        fixes: patient -> what you would change.
    """
    well, cured = right(seed, names), fixed(seed, fixes)
    lines = [say("clinic_score", named=len(well), fixed=len(cured & well), total=len(clinic.order(seed)))]
    for number, fault in enumerate(clinic.order(seed), start=1):
        if number not in well and names.get(number, ...) is not ...:
            lines.append(say("clinic_wrong", number=number, hint=hint(seed, number, faults()[fault])))
        elif number in well - cured:
            lines.append(say("clinic_no_fix", number=number))
    return "\n".join(lines)


def hint(seed: int, number: int, entry: Mapping[str, str]) -> str:
    """Count a wrong diagnosis and return a hint: the probe to look at; from the second time what it shows."""
    misses[seed, number] += 1
    probe = entry[f"probe_{language()}"]
    return probe if misses[seed, number] == 1 else f"{probe} {entry[f'how_{language()}']}"
