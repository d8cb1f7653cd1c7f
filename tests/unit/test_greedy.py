"""Answers that are drafted by the expected ones are the greedy answers, token by token, in every family."""

import copy
from collections import Counter

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from ftlab import evaluate, responses
from ftlab.memory import PLAIN_ATTENTION
from ftlab.runs import greedy
from ftlab.tokens import IGNORED

END, PAD, MOST = 299, 0, 12


class Tokenizer:
    """As much of a tokenizer as generating asks for."""

    pad_token_id = PAD


def model_of(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 1,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()


def prompts(shared: int) -> list[list[int]]:
    """Return eleven prompts of different lengths that begin with the same tokens."""
    torch.manual_seed(1)
    first = torch.randint(3, 299, (shared,)).tolist()
    return [first + torch.randint(3, 299, (3 + n % 5,)).tolist() for n in range(11)]


def by_generate(model, asked: list[list[int]]) -> list[list[int]]:
    """Return what transformers' `generate` writes, one prompt at a time."""
    model.generation_config.eos_token_id = [END]
    made = [model.generate(torch.tensor([ids]), max_new_tokens=MOST, do_sample=False) for ids in asked]
    return [whole[0, len(ids) :].tolist() for whole, ids in zip(made, asked, strict=True)]


def examples(asked: list[list[int]], answers: list[list[int]]) -> list[greedy.Example]:
    return [
        {"input_ids": ids + answer, "labels": [IGNORED] * len(ids) + answer}
        for ids, answer in zip(asked, answers, strict=True)
    ]


def expected_of(answers: list[list[int]]) -> list[list[int]]:
    """Return expected answers: right, wrong from some token on, shorter or longer than the model's own."""
    changed = copy.deepcopy(answers)
    for number, answer in enumerate(changed):
        if number % 4 == 1:
            answer[number % len(answer)] = 5
        if number % 4 == 2:
            del answer[-2:]
        if number % 4 == 3:
            answer += [7, 8]
    return changed


def left(ids: list[int]) -> int:
    return 0 if ids[-1] == END else max(0, MOST - len(ids))


def drafted(model, asked, expected, advance=lambda done: None) -> list[list[int]]:
    checked = greedy.check(model, examples(asked, expected), PAD, lambda done: None)
    answers = [each.beginning[:MOST] for each in checked]
    greedy.write(model, PAD, asked, answers, lambda _, ids: left(ids), advance)
    return answers


@pytest.mark.parametrize("family", PLAIN_ATTENTION)
def test_every_family_answers_as_generate_does(family):
    model = model_of(family)
    for shared in (0, 6):
        asked = prompts(shared)
        answers = by_generate(model, asked)
        assert greedy.plain(model) and drafted(model, asked, expected_of(answers)) == answers


def test_an_answer_that_is_the_expected_one_is_not_generated(monkeypatch):
    model = model_of("llama")
    asked = prompts(4)
    answers = by_generate(model, asked)
    calls = Counter()
    monkeypatch.setattr(greedy.Batch, "step", lambda *_: calls.update(step=1))
    # What ended within the limit, or reached it.
    assert drafted(model, asked, answers) == answers and not calls


def test_batches_and_their_progress_add_up(monkeypatch):
    monkeypatch.setattr(greedy, "READ", 40)
    monkeypatch.setattr(greedy, "WRITTEN", 3)
    model, told = model_of("llama"), []
    asked = prompts(5)
    answers = by_generate(model, asked)
    expected = expected_of(answers)
    beginnings = [each.beginning for each in greedy.check(model, examples(asked, expected), PAD, told.append)]
    assert sum(told) == len(asked) and len(told) > 2
    told.clear()
    assert drafted(model, asked, expected, told.append) == answers
    assert sum(told) == sum(left(ids[:MOST]) for ids in beginnings)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_pass_gives_loss_and_token_accuracy(family):
    model = model_of(family)
    asked = prompts(3)
    given = examples(asked, [[9, 10, END], *[[11, END]] * 10])
    # An answer in the history, that is trained on too.
    given[0]["labels"][1:3] = given[0]["input_ids"][1:3]
    found = greedy.check(model, given, PAD, lambda done: None)
    for one, example in zip(found, given, strict=True):
        logits = model(torch.tensor([example["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(example["labels"][1:])
        loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
        assert one.loss == pytest.approx(loss, abs=1e-4) and one.labels == int(labels.ne(IGNORED).sum())
        assert one.likeliest == int((logits.argmax(-1) == labels).sum())
        prompt, answer = responses.split(example)
        likeliest = logits.argmax(-1)[len(prompt) - 1 :][: len(answer)].tolist()
        known = one.beginning
        assert known == likeliest[: len(known)] and known[:-1] == answer[: len(known) - 1]
    mean = evaluate.mean_token_loss(model, given, PAD)
    assert sum(one.loss for one in found) / sum(one.labels for one in found) == pytest.approx(mean, abs=1e-5)


def test_settings_that_change_the_likeliest_token_leave_it_to_generate():
    model = model_of("llama")
    model.generation_config.temperature = 0.2
    assert greedy.plain(model)
    model.generation_config.repetition_penalty = 1.3
    assert not greedy.plain(model) and not greedy.plain(model_of("gpt_neox"))


def test_rows_that_are_alike_share_all_but_their_last_token():
    model = model_of("llama")
    assert greedy.Prefix(model, [[5, 6, 7], [5, 6, 7]], 9).size == 2
    assert greedy.Prefix(model, [[5, 6, 7], [5, 6, 7, 8], [5, 6]], 9).size == 1
    assert greedy.Prefix(model, [[5, 6, 7, 9], [5, 6, 8, 9]], 1).size == 1
    assert greedy.Prefix(model, [[5, 6], [6, 5]], 9).size == 0 == greedy.Prefix(model, [[5, 6, 7]], -1).size
