"""Five families of chat templates: every token and every label as written in tests/golden/templates.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from ftlab import tokens

FAMILIES = tomllib.loads((Path(__file__).parents[1] / "golden" / "templates.toml").read_text(encoding="utf-8"))
CONVERSATIONS = {
    "one_turn": [{"role": "user", "content": "Hi, 你好 🙂"}, {"role": "assistant", "content": "Hello"}],
    "two_turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"},
    ],
}


def tokenizer_of(family: dict) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with the family's control tokens and template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": family["special"]})
    tokenizer.eos_token = family.get("eos", family["special"][0])
    tokenizer.chat_template = family["template"]
    return tokenizer


def expected(tokenizer: PreTrainedTokenizerFast, golden: str) -> dict[str, list[int]]:
    """Return ids and labels of a text in which ⟦ ⟧ enclose what is trained."""
    input_ids, labels = [], []
    for part in re.split("(⟦.*?⟧)", golden, flags=re.DOTALL):
        ids = tokenizer(part.strip("⟦⟧"), add_special_tokens=False).input_ids
        input_ids += ids
        labels += ids if part.startswith("⟦") else [tokens.IGNORED] * len(ids)
    return {"input_ids": input_ids, "labels": labels}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_labels(family, conversation):
    tokenizer = tokenizer_of(FAMILIES[family])
    golden = expected(tokenizer, FAMILIES[family][conversation])
    row = {"messages": CONVERSATIONS[conversation]}
    (encoded,) = tokens.encode(tokenizer, row)
    assert tokenizer.decode(encoded["input_ids"]) == tokenizer.decode(golden["input_ids"])
    assert encoded == golden
    assert tokens.ends_with_turn_end(tokenizer, encoded)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_what_the_answer_was_trained_after(family):
    tokenizer = tokenizer_of(FAMILIES[family])
    (encoded,) = tokens.encode(tokenizer, {"messages": CONVERSATIONS["one_turn"]})
    prompt = tokens.prompt(tokenizer, CONVERSATIONS["one_turn"][:1])
    assert prompt == encoded["input_ids"][: len(prompt)]
    assert all(label == tokens.IGNORED for label in encoded["labels"][: len(prompt)])
