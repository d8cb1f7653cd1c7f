"""Lesson 07: the distance from the base, walking back towards it, the share of replay, and McNemar's test."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_mean_kl(answer: object) -> Verdict:
    """A function of base_logits and logits (tokens, vocabulary), and a mask (tokens,) that leaves some out."""
    masks = ([1, 0, 1], [1, 1, 0, 0, 1], [1, 1])
    cases = [
        (3 * normal(i, len(mask), 4 + i), 2 * normal(i + 9, len(mask), 4 + i), torch.tensor(mask))
        for i, mask in enumerate(masks)
    ]
    return check_function("mean_kl", answer, kl_over, cases)


def kl_over(base_logits: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean KL divergence over the positions that count."""
    base, other = base_logits.log_softmax(-1), logits.log_softmax(-1)
    return ((base.exp() * (base - other)).sum(-1) * mask).sum() / mask.sum()


def check_walk_back(answer: object) -> Verdict:
    """A function that changes a model in place, given its base and t."""
    cases = [(small_model(1), small_model(2), 0.25), (small_model(3), small_model(4), 0.8)]
    return check_function(
        "walk_back",
        weights_after(answer) if callable(answer) and answer is not ... else answer,
        lambda model, base, t: weights(base) + t * (weights(model) - weights(base)),
        cases,
    )


def weights_after(change: Callable) -> Callable:
    """Return a function of two models and t: the first one's weights after `change` (`...` for an untouched cell)."""

    def changed(model: nn.Module, base: nn.Module, t: float) -> object:
        if change(model, base, t) is ...:
            return ...
        return weights(model)

    return changed


def weights(model: nn.Module) -> torch.Tensor:
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def small_model(seed: int) -> nn.Module:
    """Build two layers, with and without a bias; the same seed gives the same weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    for place, parameter in enumerate(model.parameters()):
        parameter.data = normal(10 * seed + place, *parameter.shape)
    return model


def check_replay_count(answer: object) -> Verdict:
    """The replay examples that make up 20% together with 480 others."""
    return check_number("replay_count", answer, 120)


def check_p_value(answer: object) -> Verdict:
    """A function of two lists of right answers; in one case nothing differs, in one the halves are equal."""
    cases = [
        ([True] * 9 + [False], [False] * 9 + [True]),
        ([True, False, True, False], [True, False, True, False]),
        ([False] * 12 + [True] * 5, [True] * 10 + [False] * 2 + [False, True, True, True, True]),
        ([True, True, False, False], [False, False, True, True]),
        ([True] * 6, [False] * 6),
    ]
    return check_function("p_value", answer, mcnemar_p, cases)


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return McNemar's exact p-value, both sides."""
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    n = gained + lost
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)
