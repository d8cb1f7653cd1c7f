"""Lesson 05: its score against real generation, and its learning rates against the search that chose them."""

import ast
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from lessons import SOURCES, definitions
from tiny import make_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from benchmarks import methods

SEARCHED = json.loads((Path(methods.__file__).parent / "methods.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("model")), dtype="float32").eval()


def greedy(model, prompt, length):
    """Return the greedy answer to a prompt, token by token."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_one_forward_pass_judges_as_generation_does(model):
    def other(token):
        return 1 if token != 1 else 2

    rows, wanted = [], []
    for length in (3, 6, 9):
        prompt = [7 * length % 50 + i for i in range(2 * length)]
        answer = greedy(model, prompt, length)
        first_wrong = [other(answer[0]), *answer[1:]]
        last_wrong = [*answer[:-1], other(answer[-1])]
        for changed, right in ((answer, True), (first_wrong, False), (last_wrong, False)):
            rows.append({"prompt": prompt, "answer": changed})
            wanted.append(right)
    given = {"torch": torch, "F": F, "to_ids": lambda row: (row["prompt"], row["answer"])}
    (score,) = definitions("05_methods", "score", **given)
    exact, loss = score(model, Dataset.from_list(rows * 3))
    assert exact == wanted * 3
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["prompt"] + row["answer"]])
        logits = model(input_ids=ids).logits[0, len(row["prompt"]) - 1 : -1]
        total += F.cross_entropy(logits, ids[0, len(row["prompt"]) :], reduction="sum").item()
        count += len(row["answer"])
    assert loss == pytest.approx(total / count, rel=1e-4)


def lesson_rates():
    """Return the learning rate of every method that lesson 05 declares."""
    lesson = ast.parse((SOURCES / "05_methods.py").read_text(encoding="utf-8"))
    rates = {}
    for node in ast.walk(lesson):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("methods["):
            rates[node.targets[0].slice.value] = rate_of(node.value)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            rates |= {key.value: rate_of(value) for key, value in pairs if isinstance(value, ast.Dict)}
    return {name: rate for name, rate in rates.items() if rate}


def rate_of(node):
    """Return the number at "learning_rate" of a dict, None if it has none."""
    pairs = zip(node.keys, node.values, strict=True)
    return next((value.value for key, value in pairs if getattr(key, "value", "") == "learning_rate"), None)


def test_every_method_of_the_lesson_has_a_place_in_the_search():
    assert lesson_rates().keys() == methods.CENTRES.keys()


def test_a_searched_method_is_trained_at_the_rate_with_the_lowest_validation_loss():
    assert len(SEARCHED) >= 14
    rates = lesson_rates()
    assert {name: rates[name] for name in SEARCHED} == {
        name: float(min(losses, key=losses.get)) for name, losses in SEARCHED.items()
    }


def test_every_searched_method_was_tried_at_the_same_number_of_rates():
    assert methods.tried(3e-3) == [1e-3, 3e-3, 9e-3]
    for name, losses in SEARCHED.items():
        assert sorted(map(float, losses)) == methods.tried(methods.CENTRES[name])
