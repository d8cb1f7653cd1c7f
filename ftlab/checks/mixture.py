"""Lesson 13: active parameters, the router's weights, the balancing loss, and what a capacity drops."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_active_parameters(answer: object) -> Verdict:
    """2 billion shared weights, and 2 of 8 experts of 5 billion each."""
    return check_number("active_parameters", answer, 2e9 + 2 * 5e9)


def check_router_weights(answer: object) -> Verdict:
    """A function of scores (tokens, experts) and k: weights (tokens, experts) that add up to 1."""
    cases = [(torch.tensor([[1.0, 1.0, 0.0]]), 2), (normal(1, 5, 4), 1), (2 * normal(2, 7, 8), 2), (normal(3, 3, 6), 6)]
    return check_function("router_weights", answer, top_weights, cases)


def top_weights(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the softmax over the best k scores of each token, 0 elsewhere."""
    values, chosen = scores.topk(k)
    return torch.zeros_like(scores).scatter(1, chosen, values.softmax(-1))


def check_switch_loss(answer: object) -> Verdict:
    """A function of probabilities (tokens, experts); experts are chosen unevenly in most cases."""
    cases = [(torch.tensor([[0.9, 0.1], [0.2, 0.8]]),)]
    cases += [
        ((normal(seed, tokens, experts) * 2).softmax(-1),)
        for seed, (tokens, experts) in enumerate([(9, 3), (20, 8), (5, 4)])
    ]
    return check_function("switch_loss", answer, uneven_load, cases)


def uneven_load(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the Switch Transformer's balancing loss (Fedus et al. 2021, equation 4, without its weight)."""
    share = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).float().mean(0)
    return probabilities.shape[-1] * (share * probabilities.mean(0)).sum()


def check_dropped_tokens(answer: object) -> Verdict:
    """A function of the experts of all tokens, in order, and the capacity of each."""
    cases = [
        ([0, 0, 0, 1], 2),
        ([0, 1, 2, 3], 1),
        ([3, 3, 3, 3, 3], 0),
        ([1, 2, 1, 2, 1, 2, 5], 2),
        ([4] * 9 + [7] * 4, 3),
    ]
    return check_function("dropped_tokens", answer, above_capacity, cases)


def above_capacity(experts: Sequence[int], capacity: int) -> int:
    """Return how many tokens find their expert full."""
    return sum(max(0, count - capacity) for count in Counter(experts).values())
