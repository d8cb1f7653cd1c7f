"""The one renderer: what is trained on, to the token."""

import pytest
from datasets import Dataset
from lessons import definitions
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from ftlab import tokens
from ftlab.errors import LabError

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


def trained_text(tokenizer, row, **options) -> str:
    (encoded,) = tokens.encode(tokenizer, row, **options)
    return "".join(t.text for t in tokens.tokens(tokenizer, **encoded) if t.trained)


def test_the_answers_and_their_turn_ends_are_trained_on(tiny_tokenizer):
    assert trained_text(tiny_tokenizer, {"messages": CHAT}) == "Hello<|im_end|>See you<|im_end|>"


def test_masked_history_leaves_the_last_answer(tiny_tokenizer):
    assert trained_text(tiny_tokenizer, {"messages": CHAT}, mask_history=True) == "See you<|im_end|>"


def test_lesson_01_masks_a_conversation_by_hand_as_the_renderer_does(tiny_tokenizer):
    _, to_labels = definitions("01_data", "chat_ids", "to_labels", tokenizer=tiny_tokenizer)
    assert [to_labels(CHAT)] == tokens.encode(tiny_tokenizer, {"messages": CHAT})


def test_prompt_and_completion_train_the_completion(tiny_tokenizer):
    row = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    assert trained_text(tiny_tokenizer, row) == "See you<|im_end|>"


def test_train_on_prompt_trains_every_token(tiny_tokenizer):
    (encoded,) = tokens.encode(tiny_tokenizer, {"messages": CHAT}, train_on_prompt=True)
    assert encoded["labels"] == encoded["input_ids"]


def test_plain_text_ends_with_eos(tiny_tokenizer):
    (encoded,) = tokens.encode(tiny_tokenizer, {"text": "abc"})
    assert encoded["input_ids"][-1] == tiny_tokenizer.eos_token_id and encoded["labels"] == encoded["input_ids"]


def test_a_long_example_keeps_its_answer(tiny_tokenizer):
    row = {"messages": [{"role": "user", "content": "q" * 200}, {"role": "assistant", "content": "yes"}]}
    (cut,) = tokens.encode(tiny_tokenizer, row, cutoff_len=64)
    (whole,) = tokens.encode(tiny_tokenizer, row)
    # "yes", its end and ChatML's line break take 5 tokens; the prompt keeps its beginning.
    assert cut["input_ids"] == whole["input_ids"][:59] + whole["input_ids"][-5:]
    assert [label for label in cut["labels"] if label != tokens.IGNORED] == whole["input_ids"][-5:-1]


def test_later_turns_go_first(tiny_tokenizer):
    (whole,) = tokens.encode(tiny_tokenizer, {"messages": CHAT})
    first = len(tokens.encode(tiny_tokenizer, {"messages": CHAT[:2]})[0]["input_ids"])
    (cut,) = tokens.encode(tiny_tokenizer, {"messages": CHAT}, cutoff_len=first)
    assert cut == {name: ids[:first] for name, ids in whole.items()}


def test_the_prompt_is_the_beginning_of_the_trained_row(tiny_tokenizer):
    prompt = tokens.prompt(tiny_tokenizer, CHAT[:3])
    assert tokens.encode(tiny_tokenizer, {"messages": CHAT})[0]["input_ids"][: len(prompt)] == prompt


def test_a_base_model_without_template_is_said(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    with pytest.raises(LabError, match="no chat template"):
        tokens.prompt(tiny_tokenizer, CHAT[:1])


def test_a_template_that_leaves_answers_out_is_refused(tiny_tokenizer, monkeypatch):
    last_only = "{% for m in messages %}{{ m['content'] if loop.last else '' }}<|im_end|>{% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", last_only)
    with pytest.raises(LabError, match=r"message 1 \(user\) is missing"):
        tokens.encode(tiny_tokenizer, {"messages": CHAT})


def test_our_ids_are_trl_s_own(tiny_tokenizer, tiny_model_dir, tmp_path):
    row = {"prompt": CHAT[:1], "completion": CHAT[1:2]}
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list([row]), processing_class=tiny_tokenizer)
    (ours,), theirs = tokens.encode(tiny_tokenizer, row), trainer.train_dataset[0]
    assert ours["input_ids"] == theirs["input_ids"]
    # TRL also trains on ChatML's line break after the turn end; generation has stopped before it.
    assert ours["labels"][:-1] == theirs["labels"][:-1]
    assert (ours["labels"][-1], tiny_tokenizer.decode(theirs["labels"][-1])) == (tokens.IGNORED, "\n")


def test_html_shows_text_as_text():
    shown = tokens.to_html([tokens.Token(7, "<b>", True)])
    assert "&lt;b&gt;" in shown and "<b>" not in shown
