"""LLaMA-Factory's texts and labels beside ftlab's: `python -m benchmarks llamafactory_tokens` writes the file."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tiny import make_tokenizer

from benchmarks import llamafactory_tokens as sides

GOLDEN = json.loads(sides.GOLDEN.read_text(encoding="utf-8"))
RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"


def name_of(case: dict) -> str:
    """Return what the test of a case is called."""
    return " ".join([case["set"], case["template"], *map(str, case.get("options", {}).items())])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name_of)
def test_texts_and_labels_are_llama_factorys_or_a_named_difference(case):
    data = GOLDEN["sets"][case["set"]]
    tokenizer = sides.family_of(case["template"], make_tokenizer())
    own = [sides.marked(tokenizer, *one) for one in sides.ours(case, data, make_tokenizer)]
    theirs = [sides.without_line_break(text, case, data) for text in case["llamafactory"]]
    assert own == case.get("ftlab", theirs)
    assert (own != theirs) == ("why" in case)


def test_most_cases_are_equal_and_every_difference_has_its_reason_in_the_documentation():
    reasons = Counter(reason for case in GOLDEN["cases"] for reason in case.get("why", []))
    equal = sum("why" not in case for case in GOLDEN["cases"])
    assert equal > len(GOLDEN["cases"]) / 2
    section = RECIPES.read_text(encoding="utf-8").partition("## Compared with LLaMA-Factory")[2].partition("\n## ")[0]
    assert [reason for reason in reasons if f"| {reason} |" not in section] == []
