"""From-scratch code of lesson 07 against what it stands for."""

import math
import random
import re

import pytest
import torch
from lessons import definitions
from rouge_score.rouge_scorer import RougeScorer

from ftlab import figures

WORDS = ["the", "capital", "of", "India", "is", "New", "Delhi.", "Mumbai", "it's", "3.5"]


@pytest.fixture(scope="module")
def mcnemar():
    return definitions("07_forgetting", "mcnemar", math=math)[0]


@pytest.mark.parametrize("seed", range(20))
def test_mcnemar_is_that_of_ftlab_eval(mcnemar, seed):
    generator = random.Random(seed)
    before, after = ([generator.random() < 0.6 for _ in range(30)] for _ in range(2))
    (changes,) = definitions("07_forgetting", "changes")
    found = figures.paired(before, after)
    assert changes(before, after) == (found.gained, found.lost)
    assert mcnemar(found.gained, found.lost) == pytest.approx(found.p)


def test_mcnemar_of_no_difference_is_one(mcnemar):
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0


@pytest.mark.parametrize("seed", range(40))
def test_rouge_l_is_that_of_the_library(seed):
    (words,) = definitions("07_forgetting", "words", re=re)
    (rouge_l,) = definitions("07_forgetting", "rouge_l", words=words)
    generator = random.Random(seed)
    one, other = (" ".join(generator.choices(WORDS, k=generator.randint(0, 9))) for _ in range(2))
    wanted = RougeScorer(["rougeL"]).score(one, other)["rougeL"].fmeasure
    assert rouge_l(one, other) == pytest.approx(wanted)


def test_kl_is_zero_for_the_same_model_and_torchs_for_another():
    (kl,) = definitions("07_forgetting", "kl")
    base, other = torch.randn(2, 7, 50).unbind()
    wanted = torch.nn.functional.kl_div(other.log_softmax(-1), base.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(kl(base, other), wanted, atol=1e-5)
    assert kl(base, base + 3).abs().max() < 1e-5


def test_only_a_point_that_another_beats_is_dominated():
    (dominated,) = definitions("07_forgetting", "dominated")
    points = [(0, 9), (5, 5), (5, 4), (9, 0), (5, 5)]
    assert [dominated(point, points) for point in points] == [False, False, True, False, False]


def test_equal_models_give_few_false_alarms_and_many_questions_find_a_drop(mcnemar):
    (power,) = definitions("07_forgetting", "power", torch=torch, mcnemar=mcnemar)
    assert power(0.0, 0.1, 100) < 0.07
    assert power(0.1, 0.05, 400) > 0.9 > power(0.1, 0.05, 20)
