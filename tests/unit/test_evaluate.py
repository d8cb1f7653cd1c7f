"""Scores against plain, slow computations of the same thing."""

import families
import pytest
import torch
from transformers import AutoModelForCausalLM

from ftlab import evaluate, tokens


@pytest.fixture(scope="module")
def tiny_model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def test_the_interval_is_wilson_s():
    low, high = evaluate.interval(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert evaluate.interval(0.0, 10)[0] == 0.0 and evaluate.interval(1.0, 10)[1] == pytest.approx(1.0)


def test_batched_answers_are_the_single_ones(tiny_model, tiny_tokenizer):
    asked = [[{"role": "user", "content": text}] for text in ("a", "a much longer question", "mid size", "b")]
    together = evaluate.generate_answers(tiny_model, tiny_tokenizer, asked, max_new_tokens=8, batch_size=3)
    alone = [evaluate.generate_answers(tiny_model, tiny_tokenizer, [one], max_new_tokens=8)[0] for one in asked]
    assert together == alone


@pytest.mark.parametrize("family", families.WITH_STATE)
def test_batched_answers_of_models_with_a_state_are_the_single_ones(family, tiny_tokenizer):
    model = families.model_of(family)
    prompts = [torch.randint(200, (length,)).tolist() for length in (30, 3, 11)]
    ends = evaluate.end_ids(model, tiny_tokenizer)
    for prompt, answer in zip(prompts, evaluate.generate_ids(model, tiny_tokenizer, prompts, 8), strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8 and not set(ids[len(prompt) :]) & set(ends):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]


def test_exact_match_but_for_white_space():
    assert evaluate.exact_match([" 4 ", "44"], ["4", "4"]) == 0.5


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("It is 4.", "4", True),
        ("It is 14", "4", False),
        ("4.5, or 3.4, or 4,000", "4", False),
        ("2+2=4", "4", True),
        ("Four!", ["4", "four"], True),
        ("fourteen", ["4", "four"], False),
        ("PARIS", "Paris", True),
        ("the parish of Comparis", "Paris", False),
        ("我是Lumi，由小明训练的助手。", "Lumi", True),
        ("我叫小明。", "小明", True),
        ("我是Lumina。", "Lumi", False),
        ("made by C++ (really)", "C++", True),
        ("I am LUMI.", "Lumi", True),
        ("", "4", False),
        ("It is 4.", "", False),
        ("It is 4.", ["", "5"], False),
        ("<think>4, or 5?</think>It is 5.", "4", False),
        ("The total is 1,234,567.", "1234567", True),
        ("1234567", "1,234,567", True),
        ("1,234", "234", False),
        ("x = -5", "5", False),
        ("答案是-5", "5", False),
        ("x = \u22125", "-5", True),
        ("7-5=2", "5", True),
        ("答案是５。", "5", True),
        ("３．５", "5", False),
        ("３．５", "3.5", True),
        ("１，２，３", "2", True),
        ("ＹＥＳ", "yes", True),
        ("New\nYork", "New York", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("I don\u2019t know.", "don't", True),
        ("\u201cYes\u201d", '"yes"', True),
        ("x = \u20135", "-5", True),
        ("x = \u20135", "5", False),
        ("pages 3\u20135", "5", True),
    ],
)
def test_an_answer_contains_whole_words(answer, expected, right):
    assert evaluate.has_answer(answer, expected) is right


QUESTIONS = [
    {"question": "one?", "choices": ["a", "bcd", "ef", "g"], "answer": 0},
    {"question": "a longer second one?", "choices": ["xyz", "y", "zz"], "answer": 1},
]


def scores_alone(model, tokenizer):
    """Yield the mean log-probabilities of the choices of each of QUESTIONS, each from one pass over one row."""
    for question in QUESTIONS:
        scores = []
        prompt = tokens.prompt(tokenizer, [{"role": "user", "content": question["question"]}])
        for choice in question["choices"]:
            answer = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
            plain = [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
            scores.append(sum(plain) / len(plain))
        yield pytest.approx(scores, abs=1e-5)


def test_choices_score_as_if_each_were_read_alone(tiny_model, tiny_tokenizer):
    found = evaluate.choice_log_probabilities(tiny_model, tiny_tokenizer, QUESTIONS)
    assert found == [*scores_alone(tiny_model, tiny_tokenizer)]


@pytest.mark.parametrize("family", [*families.SIZES, *families.WITH_STATE])
def test_choices_score_so_in_every_family(family, tiny_tokenizer):
    model = families.model_of(family)
    assert evaluate.only_keys_cached(model) is (family in families.SIZES)
    found = evaluate.choice_log_probabilities(model, tiny_tokenizer, QUESTIONS)
    assert found == [*scores_alone(model, tiny_tokenizer)]


def test_multiple_choice_counts_the_likeliest(tiny_model, tiny_tokenizer):
    questions = [{"question": "q", "choices": ["a", "b", "c", "d"], "answer": n} for n in range(4)]
    assert evaluate.multiple_choice(tiny_model, tiny_tokenizer, questions, batch_size=3) == 0.25


def test_the_mean_loss_is_over_trained_tokens(tiny_model, tiny_tokenizer):
    examples = [tokens.encode(tiny_tokenizer, {"text": text})[0] for text in ("abc", "a longer text")]
    losses = []
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            logits = tiny_model(ids).logits[0, :-1].log_softmax(-1)
        losses += (-logits.gather(1, ids[0, 1:, None])).flatten().tolist()
    mean = evaluate.mean_token_loss(tiny_model, examples, tiny_tokenizer.pad_token_id)
    assert mean == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("total", range(1, 200))
def test_an_interval_holds_the_share_it_is_about(total):
    for right in (0, total // 3, total):
        low, high = evaluate.interval(right / total, total)
        assert 0 <= low <= right / total <= high <= 1
