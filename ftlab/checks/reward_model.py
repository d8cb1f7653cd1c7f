"""Lesson 10: Bradley-Terry, its loss, and where a reward is read."""

import math

import torch
from torch.nn import functional as F

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_preference_probability(answer: object) -> Verdict:
    """A function of two rewards; both differences of 1,000 must stay finite."""
    cases = [(3.0, 3.0), (2.0, 0.5), (-1.0, 0.25), (1000.0, 0.0), (0.0, 1000.0)]
    return check_function(
        "preference_probability", answer, lambda one, other: (1 + math.tanh((one - other) / 2)) / 2, cases
    )


def check_reward_margin(answer: object) -> Verdict:
    """The margin at which Bradley-Terry gives 90%."""
    return check_number("reward_margin", answer, math.log(9), tolerance=0.005)


def check_reward_loss(answer: object) -> Verdict:
    """A function of the rewards of chosen and rejected answers; it must stay finite for large ones."""
    large = torch.tensor([1000.0, 0.0]), torch.tensor([0.0, 1000.0])
    cases = [(normal(1, 4), normal(2, 4)), (normal(3, 7), normal(4, 7)), large]
    return check_function("reward_loss", answer, lambda chosen, rejected: F.softplus(rejected - chosen).mean(), cases)


def check_last_token_rewards(answer: object) -> Verdict:
    """A function of scores and attention mask (answers, tokens), padded on the right."""
    lengths = [3, 5, 1], [2, 4], [6, 6, 2, 3]
    cases = [
        (normal(seed, len(row), max(row)), (torch.arange(max(row)) < torch.tensor(row)[:, None]).long())
        for seed, row in enumerate(lengths)
    ]

    def right(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return scores.gather(1, mask.sum(dim=1, keepdim=True) - 1)[:, 0]

    return check_function("last_token_rewards", answer, right, cases)
