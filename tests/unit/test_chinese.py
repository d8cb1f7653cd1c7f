"""With FTLAB_LANG=zh everything that a user reads is Chinese: no English sentence, but names of keys and products."""

import re
from typing import Any

import pytest

from ftlab.errors import LabError
from ftlab.recipe import explain, hub_token, keys, translated_keys
from ftlab.recipe import read as recipes

# Three English words in a row are a sentence; between backticks or quotes there are keys, values and commands.
SENTENCE = re.compile(r"[A-Za-z][a-z']*(?: [a-z'][a-z']*){2,}")
BASE = {"model_name_or_path": "m"}


@pytest.fixture(autouse=True)
def in_chinese(monkeypatch):
    monkeypatch.setenv("FTLAB_LANG", "zh")


def english(text: str) -> list[str]:
    """Return the English sentences of a text."""
    return SENTENCE.findall(re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"", "", text))


def test_sentences_are_found():
    assert english("这是 the wrong one，`not this one` 也不是 'nor that one'") == ["the wrong one"]
    assert not english("请用 LoRA Plus 或 bf16、fp16")


EXPLAINED = [*keys.Recipe.model_fields, *keys.TRAINING_HINTS, *translated_keys.RENAMED, *translated_keys.DROPPED]
EXPLAINED += [*translated_keys.OUT_OF_REACH, *keys.REFUSED_TRAINING, *explain.RESOLVED_MEANING, hub_token.KEY]


@pytest.mark.parametrize("name", sorted({*EXPLAINED} - {"training"}))
def test_explanations_are_chinese(name):
    text = explain.explain(name)
    assert text.startswith(f"{name}：") and re.search("[\u4e00-\u9fff]", text) and not english(text)


def test_every_key_has_a_chinese_meaning_and_no_other():
    assert explain.chinese().keys() == keys.Recipe.model_fields.keys() | keys.TRAINING_HINTS.keys()


WRONG: list[Any] = ["x", "", 3, -7, 1.5, -0.5, True, [], ["x"], [1], {}, {"a": []}, {1: None}, 10**15, 1e30]
ALL = sorted({*keys.Recipe.model_fields, *keys.TRAINING_HINTS, *recipes.RESOLVED} - {"training"})


@pytest.mark.parametrize("name", ALL)
def test_refusals_of_values_are_chinese(name):
    for value in WRONG:
        try:
            _, notes = recipes.read(BASE | {name: value})
        except LabError as error:
            notes = [str(error)]
        assert not any(english(note) for note in notes), (value, notes)
