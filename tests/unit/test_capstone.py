"""The decisions of lesson 16: shapes of files, leaks, the baseline without a model, the verdict, the gate."""

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import lessons
import pytest

from ftlab import evaluate
from ftlab.data import check

DATA = Path(__file__).parents[2] / "data"
GIVEN = {"hashlib": hashlib, "json": json, "math": math, "re": re, "Counter": Counter}


def of_lesson(*names: str, **given: object) -> list:
    """Return functions of the lesson, with what they read from the cells around them."""
    return lessons.definitions("16_capstone", *names, **GIVEN | given)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Open?", "response": "Yes."},
        {"prompt": "Open?", "completion": "Yes."},
        {"instruction": "Open?", "input": "", "output": "Yes."},
        {"instruction": "", "input": "Open?", "output": "Yes.", "messages": None},
        {"conversations": [{"from": "human", "value": "Open?"}, {"from": "gpt", "value": "Yes."}]},
        {"messages": [{"role": role, "content": text} for role, text in (("user", "Open?"), ("assistant", "Yes."))]},
    ],
)
def test_a_pair_is_read_from_every_shape(row):
    (to_pair,) = of_lesson("to_pair")
    assert to_pair(row) == {"instruction": "Open?", "output": "Yes."}


def test_the_same_question_is_in_the_same_part_however_it_is_written():
    _, part_of = of_lesson("folded", "part_of")
    parts = Counter(part_of(f"question {number}") for number in range(2000))
    assert all(part_of(f"question {n}") == part_of(f" QUESTION\n {n}") for n in range(100))
    assert 300 < parts["test"] < 500 and 160 < parts["validation"] < 320


def test_answers_are_right_as_json_or_as_text():
    _, is_right = of_lesson("folded", "is_right")
    assert is_right('{"a": 1, "b": null}', '{"b":null,"a":1}') and is_right("Yes,  we DO.", "yes, we do.")
    assert not is_right('{"a": 1}', '{"a": 2}') and not is_right("no", '{"a": 1}') and not is_right("", "yes")


def pairs_of(name: str, folder: Path) -> list[dict[str, str]]:
    """Return the repaired rows of a raw file as the lesson's pairs."""
    (to_pair,) = of_lesson("to_pair")
    check.check(str(DATA / name), fix_to=folder / "clean.jsonl")
    return [to_pair(json.loads(line)) for line in (folder / "clean.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "verdict"), [("support_raw.jsonl", "look it up"), ("tickets_raw.jsonl", "tune")])
def test_questions_with_ready_answers_are_looked_up_and_records_are_not(name, verdict, tmp_path):
    _, nearest, share_of, _, decide = of_lesson("words_of", "nearest", "share_of", "bounds", "decide", target=0.8)
    pairs = pairs_of(name, tmp_path)[:100]
    others = [[pair for pair in pairs if pair is not asked] for asked in pairs]
    found = [nearest(asked["instruction"], rows)["output"] for asked, rows in zip(pairs, others, strict=True)]
    right = share_of([answer == pair["output"] for answer, pair in zip(found, pairs, strict=True)])
    assert decide({"look it up": right, "system prompt": 0.1}, len(pairs)) == verdict
    assert decide({"look it up": 0.5, "system prompt": 0.95}, len(pairs)) == "system prompt"
    assert decide({"look it up": 0.8}, len(pairs)) == "ask more"


@pytest.mark.parametrize(("share", "total"), [(0.0, 4), (0.5, 60), (0.97, 33), (1.0, 200)])
def test_the_interval_is_wilson_s(share, total):
    (bounds,) = of_lesson("bounds")
    assert bounds(share, total) == pytest.approx(evaluate.interval(share, total), abs=1e-9)


def test_the_gate_refuses_a_small_gain_and_a_large_loss():
    _, _, gate = of_lesson("share_of", "bounds", "gate", allowed_drop=0.15)
    few, half, most = ([True] * n + [False] * (60 - n) for n in (6, 30, 54))
    assert list(gate(few, most, most, most).values()) == [True, True]
    assert list(gate(half, [True] * 36 + [False] * 24, most, half).values()) == [False, False]
