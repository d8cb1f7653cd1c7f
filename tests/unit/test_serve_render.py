"""Trainer, chat, server and a merged model ask in the very same tokens."""

import random

import pytest
import serving
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from ftlab import tokens
from ftlab.apps.serve.job import Job
from ftlab.runs import chat

WORDS = ["hello", "<|im_end|>", "中文", "🙂", "{{x}}", "\n", "", '"quote"', "What", "2+2?", "<b>é</b>", "'", "\ttab"]


def conversations(count: int = 200) -> list[list[dict[str, str]]]:
    """Return conversations of one to four rounds, some with a system turn, in several scripts."""
    chance = random.Random(0)

    def text() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 12)))

    made = []
    for _ in range(count):
        turns = [{"role": "system", "content": text()}] if chance.random() < 0.5 else []
        for _ in range(chance.randint(0, 3)):
            turns += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        made.append([*turns, {"role": "user", "content": text()}])
    return made


def trained_prompt(tokenizer, messages) -> list[int]:
    """Return what the trainer puts before the answer: the row's tokens up to the first one that is trained on."""
    answer = [{"role": "assistant", "content": "yes"}]
    (row,) = tokens.encode(tokenizer, {"prompt": messages, "completion": answer})
    start = next(i for i, label in enumerate(row["labels"]) if label != tokens.IGNORED)
    return row["input_ids"][:start]


class Seen(Exception):
    """Carries what a model was asked."""


def chat_prompt(model, tokenizer, messages, monkeypatch) -> list[int]:
    """Return what chat hands to the model."""

    def seen(**inputs):
        raise Seen(inputs["input_ids"][0].tolist())

    monkeypatch.setattr(model, "generate", seen)
    with pytest.raises(Seen) as caught:
        chat.reply(model, tokenizer, messages)
    return caught.value.args[0]


def test_200_conversations_have_no_differing_token(tiny_model_dir, tmp_path, monkeypatch):
    model, tokenizer = serving.load(tiny_model_dir)
    merged = get_peft_model(model, LoraConfig(target_modules="all-linear")).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    merged_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model, tokenizer = serving.load(tiny_model_dir)
    served: list[list[int]] = []
    with serving.serving(model, tokenizer) as server:
        # Some are longer than the tiny model's context; it is what is rendered that is compared.
        model.config.max_position_embeddings = 100_000
        submit = server.engine.submit

        def seen(jobs: list[Job]) -> None:
            served.append(jobs[0].prompt)
            for job in jobs:
                job.prompt = job.prompt[:1]
            submit(jobs)

        monkeypatch.setattr(server.engine, "submit", seen)
        for messages in conversations():
            body = {"model": "tiny", "messages": messages, "max_tokens": 1}
            assert server.http.post(serving.CHAT, json=body).status_code == 200
    assert len(served) == 200
    for messages, ids in zip(conversations(), served, strict=True):
        assert ids == trained_prompt(tokenizer, messages)
        assert ids == chat_prompt(model, tokenizer, messages, monkeypatch)
        assert ids == tokens.prompt(merged_tokenizer, messages)
    assert torch.tensor([len(ids) for ids in served]).unique().numel() > 50
