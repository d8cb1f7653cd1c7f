"""The encoder on the embedded model's own tokenizer, whose merges cross the border between prompt and answer."""

import pytest

from ftlab import embedded, models

ANSWERS = {
    # answer -> its tokens, as the model would write them.
    "Hello": ["Hello", "<|im_end|>"],
    "    x = 1": ["   ", " x", " =", " ", "1", "<|im_end|>"],
    "\n\ny": ["\n", "\n", "y", "<|im_end|>"],
    "\n    y": ["\n   ", " y", "<|im_end|>"],
}


@pytest.mark.notebook
@pytest.mark.parametrize("said", ANSWERS)
def test_an_answer_is_trained_in_the_tokens_that_generation_writes(said):
    # Here, because the lessons' tests do without these imports.
    from transformers import AutoTokenizer

    from ftlab import tokens

    embedded.fetch()
    tokenizer = AutoTokenizer.from_pretrained(models.fetch("smollm2-135m"))
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": said}]
    (example,) = tokens.encode(tokenizer, {"messages": messages})
    trained = [label for label in example["labels"] if label != tokens.IGNORED]
    assert [tokenizer.decode([token]) for token in trained] == ANSWERS[said]
    prompt = tokens.prompt(tokenizer, messages[:1])
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [tokens.IGNORED] * len(prompt)
