"""Lesson 06: the linear schedule, clipping, the loss of accumulated batches, and what training holds in memory."""

from collections.abc import Sequence

import torch

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_linear_rate(answer: object) -> Verdict:
    """A function of step, total, warmup and peak."""
    cases = [
        (0, 20, 10, 1.0),
        (5, 20, 10, 1.0),
        (10, 20, 10, 2.0),
        (15, 20, 10, 1.0),
        (29, 30, 4, 3e-4),
        (7, 10, 0, 0.5),
    ]
    return check_function("linear_rate", answer, rate_at, cases)


def rate_at(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the learning rate of the linear schedule with warm-up."""
    return peak * step / warmup if step < warmup else peak * (total - step) / (total - warmup)


def check_clipped_gradient(answer: object) -> Verdict:
    """A function of a gradient vector and the largest norm allowed; some are short enough."""
    cases = [
        (torch.tensor([3.0, 4.0]), 1.0),
        (torch.tensor([0.3, -0.4]), 1.0),
        (normal(1, 9), 0.5),
        (normal(2, 5), 100.0),
        (-7 * normal(3, 30), 2.0),
    ]
    return check_function("clipped_gradient", answer, clipped_to, cases)


def clipped_to(gradient: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Return the gradient with a norm of at most `max_norm`."""
    return gradient * min(1.0, max_norm / gradient.norm().item())


def check_accumulated_loss(answer: object) -> Verdict:
    """A function of lists of losses per token and their masks; micro-batches have different shapes."""
    shapes: list[list[tuple[int, ...]]] = [[(3,), (2,)], [(2, 5), (1, 9), (3, 4)], [(4, 4)]]
    cases = [
        ([normal(i, *shape) for i, shape in enumerate(case)], [mask(i, shape) for i, shape in enumerate(case)])
        for case in shapes
    ]
    return check_function("accumulated_loss", answer, mean_over_tokens, cases)


def mask(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return zeros and ones, the first of them a one."""
    chosen = (normal(seed + 5, *shape) > 0.3).long()
    chosen.view(-1)[0] = 1
    return chosen


def mean_over_tokens(losses: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss over all tokens that count."""
    total = torch.stack([(loss * kept).sum() for loss, kept in zip(losses, masks, strict=True)]).sum()
    return total / torch.stack([kept.sum() for kept in masks]).sum()


def check_state_bytes(answer: object) -> Verdict:
    """Float32 weights, gradients and two moments of 135 million weights."""
    return check_number("state_bytes", answer, 135e6 * 4 * 4)
