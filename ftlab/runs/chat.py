"""Talk to a model: one reply, a streamed one, or base and tuned side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
)

from ftlab import device, evaluate, models, tokens
from ftlab.evaluate import pad_left

Message = dict[str, Any]


def load(model_name_or_path: str, adapter: str | Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model, with an adapter on it if one is named, and its tokenizer."""
    path = models.fetch(model_name_or_path)
    machine = device.describe()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=machine.dtype, device_map=machine.accelerator)
    if adapter:
        model = PeftModel.from_pretrained(model, models.adapter(adapter))
    return model.eval(), AutoTokenizer.from_pretrained(path)


def reply(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **generation: Any
) -> str:
    """Return the answer to a conversation; greedy unless `generation` (GenerationConfig fields) says otherwise."""
    return "".join(stream(model, tokenizer, messages, **generation)).strip()


def stream(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **generation: Any
) -> Iterator[str]:
    """Yield the answer to a conversation piece by piece."""
    ids = pad_left([tokens.prompt(tokenizer, messages)], tokenizer.pad_token_id).to(model.device)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120)
    settings = {"max_new_tokens": 256, "do_sample": False, "pad_token_id": tokenizer.pad_token_id} | generation
    inputs = {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape), "streamer": streamer}
    thread = Thread(target=model.generate, kwargs=inputs | settings, daemon=True)
    thread.start()
    yield from streamer
    thread.join()


def side_by_side(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_new_tokens: int = 48
) -> list[dict[str, str]]:
    """Return rows of `question`, `base` and `tuned`: the adapter is switched off for the base's answer."""
    asked = [[{"role": "user", "content": question}] for question in questions]
    tuned = evaluate.generate_answers(model, tokenizer, asked, max_new_tokens)
    with model.disable_adapter():
        base = evaluate.generate_answers(model, tokenizer, asked, max_new_tokens)
    return [
        {"question": question, "base": old, "tuned": new}
        for question, old, new in zip(questions, base, tuned, strict=True)
    ]
