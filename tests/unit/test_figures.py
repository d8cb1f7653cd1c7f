"""Figures against the libraries' own numbers, known values and simulations."""

import json
import random
from pathlib import Path

import jieba
import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from ftlab import figures, packages
from ftlab.errors import LabError

DATA = Path(__file__).parents[2] / "data"


def damaged(text: str, chance: random.Random) -> str:
    """Return a text with characters left out, words moved, or unchanged."""
    half = len(text) // 2
    return chance.choice([text, text[: half + 1], text[half:] + text[:half], "".join(chance.sample(text, len(text)))])


def pairs(name: str, column: str) -> tuple[list[str], list[str]]:
    """Return 200 (answers, references): the texts of a data set, and what could have been answered."""
    rows = json.loads((DATA / name).read_text(encoding="utf-8"))
    chance = random.Random(0)
    references = [row[column] for row in chance.choices([row for row in rows if row[column]], k=200)]
    return [damaged(text, chance) for text in references], references


@pytest.fixture(scope="module", params=["alpaca_en_demo.json", "alpaca_zh_demo.json"])
def texts(request):
    return (*pairs(request.param, "output"), "zh" in request.param)


def test_bleu_is_sacrebleu_s(texts):
    answers, references, chinese = texts
    theirs = sacrebleu.corpus_bleu(answers, [references], tokenize="zh" if chinese else "13a").score
    found = figures.bleu(answers, references)
    assert found.value == pytest.approx(theirs, abs=1e-9) and found.n == 200
    assert found.low < found.value < found.high and found == figures.bleu(answers, references)


def test_rouge_is_rouge_score_s(texts):
    answers, references, chinese = texts

    class Jieba:
        def tokenize(self, text):
            return " ".join(jieba.cut(text)).split()

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(names, tokenizer=Jieba() if chinese else None)
    scores = [scorer.score(*pair) for pair in zip(references, answers, strict=True)]
    found = figures.rouge(answers, references)
    for figure, name in zip(found.values(), names, strict=True):
        assert figure.value == pytest.approx(100 * np.mean([one[name].fmeasure for one in scores]), abs=1e-9)
        assert figure.low < figure.value < figure.high and figure.n == 200


def test_chinese_needs_its_own_words():
    assert figures.rouge(["我叫小明。"], ["我叫小红。"])["rouge-1"].value > 0
    assert figures.bleu(["法国的首都是巴黎。"], ["法国的首都是巴黎。"]).value == pytest.approx(100)
    assert not figures.chinese(["a", "b", "小明"]) and figures.chinese(["我是 Lumi", "b", "小明"])


def test_each_reference_of_a_mixed_set_has_the_tokens_of_its_script():
    english, chinese = "It is nine o'clock in the evening.", "法国的首都是巴黎，不是里昂。"
    japanese, thai = "これは日本語のぶんです。", "สวัสดีชาวโลก"
    references = [english, english, english, chinese, japanese, thai]
    found = figures.bleu(references, references)
    # By spaces the last three are one token each, of which no four follow each other.
    assert found.value == pytest.approx(100) and figures.has_four_tokens([english, english, chinese])
    # The last but one of 14 characters is wrong, which takes 1 single one, 2 pairs, 2 threes and 2 fours.
    wrong = figures.bleu([english] * 3 + ["法国的首都是巴黎，不是里斯。"], [english] * 3 + [chinese]).value
    alone = sacrebleu.corpus_bleu(["法国的首都是巴黎，不是里斯。"], [[chinese]], tokenize="zh")
    assert alone.counts == [13, 11, 10, 9] and alone.totals == [14, 13, 12, 11]
    n = len(sacrebleu.BLEU().tokenizer(english).split())
    shares = [(3 * (n - k) + right) / (3 * (n - k) + 14 - k) for k, right in enumerate(alone.counts)]
    assert wrong == pytest.approx(100 * np.prod(shares) ** 0.25)
    assert figures.has_four_tokens([chinese, "a"]) and not figures.has_four_tokens(["你好", "a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        "Привет, мир",
        "Γειά σου κόσμε",
        "안녕하세요 세계",
        "مرحبا بالعالم",
        "こんにちは",
        "你好，世界",
        "สวัสดีชาวโลก",
        "café au lait",
    ],
)
def test_rouge_of_the_same_text_is_100_in_any_script(text):
    # rouge-score drops all letters but a-z, so that it gives 0.
    english = ["Paris is old.", "So is Rome."]
    found = figures.rouge([text, *english], [text, *english])
    assert found["rouge-1"].value == pytest.approx(100)
    assert figures.rouge(["Paris", *english], [text, *english])["rouge-1"].value == pytest.approx(200 / 3)


def test_bleu_4_needs_four_tokens():
    assert not figures.has_four_tokens(["Oak.", "It is so"]) and figures.has_four_tokens(["Oak.", "It is 4."])
    assert not figures.has_four_tokens(["你好。"]) and figures.has_four_tokens(["你好吗？"])


def test_an_empty_answer_scores_nothing():
    assert figures.bleu(["", ""], ["one two", "three"]).value == 0
    assert figures.rouge(["", ""], ["one two", "three"])["rouge-l"].value == 0


@pytest.mark.parametrize(("module", "score"), [("sacrebleu", "bleu"), ("rouge_score", "rouge"), ("jieba", "rouge")])
def test_a_missing_package_is_named_with_its_extra(module, score, monkeypatch):
    known = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == module else known(name))
    with pytest.raises(LabError, match=r"ftlab\[metrics\]") as caught:
        getattr(figures, score)(["巴黎"], ["巴黎"])
    assert caught.value.exit_code == 2 and module in str(caught.value)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    # 7 and 1: Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol. 13, 91; 10 and 0: 2 / 2**10.
    [(7, 1, 0.0703125), (8, 2, 0.109375), (10, 0, 0.001953125), (5, 5, 1.0), (1, 0, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_is_the_exact_binomial_test(gained, lost, p):
    before = [False] * gained + [True] * lost + [True, False]
    after = [True] * gained + [False] * lost + [True, False]
    found = figures.paired(before, after)
    assert (found.gained, found.lost) == (gained, lost) and found.p == pytest.approx(p, rel=1e-6)
    assert figures.paired(after, before).p == found.p


def test_two_equal_models_rarely_differ():
    chance = np.random.default_rng(0)
    right = chance.random((1000, 2, 120)) < 0.6
    alarms = sum(figures.paired(*map(list, one)).p < 0.05 for one in right)
    assert 0 < alarms / 1000 <= 0.065


def test_a_better_model_is_found_better():
    chance = np.random.default_rng(1)
    found = [figures.paired(list(chance.random(200) < 0.5), list(chance.random(200) < 0.75)).p for _ in range(100)]
    assert sum(p < 0.05 for p in found) >= 95


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = figures.ratio(list(values))
    assert found.value == pytest.approx(values.mean()) and found.n == 400
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    # Examples count by their tokens: one long one against many short ones.
    assert figures.ratio([10.0, 1.0], [10, 1]).value == 1 and figures.ratio([20.0, 1.0], [10, 1]).value == 21 / 11


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"name": "Ada", "n": 2}', 1.0),
        ('{"n": 2, "name": "Ada"}', 1.0),
        ('{"name": "Ada", "n": "2"}', 0.5),
        ('{"name": "Ada"}', 0.5),
        ('{"name": "Ada", "n": 2, "more": null}', 2 / 3),
        ("<think>{}</think>" + '{"name": "Ada", "n": 2}', 1.0),
        ("[1, 2]", 0.0),
        ('{"name": "Ada", "n": 2', 0.0),
        ("", 0.0),
    ],
)
def test_fields_are_compared_by_value(answer, right):
    assert figures.share_of_fields(figures.json_object(answer), {"name": "Ada", "n": 2}) == pytest.approx(right)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [Infinity]}', '{"a": -Infinity}'])
def test_what_json_does_not_have_is_not_json(text):
    assert figures.json_object(text) is None


def test_a_number_is_the_same_with_a_decimal_point():
    assert figures.share_of_fields({"a": 10.0, "b": [{"c": 1e2}]}, {"a": 10, "b": [{"c": 100}]}) == 1
    assert figures.share_of_fields({"a": 10.5}, {"a": 10}) == 0


def test_true_is_not_one():
    assert figures.share_of_fields({"a": True}, {"a": 1}) == 0 and figures.share_of_fields({}, {}) == 1
