"""Lesson 12: the DPO loss, log-probabilities of answers, and the SFT term."""

import math

import torch

from ftlab.checks.trying import Verdict, check_function, check_names, normal


def check_dpo_loss(answer: object) -> Verdict:
    """A function of two gains (policy minus reference, in nats) and beta."""
    cases = [(0.0, 0.0, 0.1), (5.0, 5.0, 0.1), (10.0, -10.0, 0.1), (-2.0, 1.0, 0.5), (3.0, 2.0, 1.0)]
    return check_function(
        "dpo_loss", answer, lambda chosen, rejected, beta: math.log1p(math.exp(-beta * (chosen - rejected))), cases
    )


def check_reference_free(answer: object) -> Verdict:
    """Those of dpo, ipo, kto, orpo and simpo that need no reference model."""
    return check_names("reference_free", answer, {"orpo", "simpo"})


def check_answer_logp(answer: object) -> Verdict:
    """A function of logits (tokens, vocabulary) and shifted labels (tokens,) with -100 outside the answer."""
    labels = [-100, -100, 3, 0, 1], [2, -100], [-100, 5, 4, 4, -100, -100, 1]
    cases = [(normal(seed, len(row), 6), torch.tensor(row)) for seed, row in enumerate(labels)]
    return check_function(
        "answer_logp",
        answer,
        lambda logits, row: -torch.nn.functional.cross_entropy(logits, row, reduction="sum"),
        cases,
    )


def check_loss_with_sft(answer: object) -> Verdict:
    """A function of DPO losses, log-probabilities and lengths of the chosen answers, and the SFT weight."""
    rows = [([3, 9, 4], 0.5), ([7, 2], 1.0), ([5, 6, 1, 8], 0.1)]
    cases = [
        (normal(1, len(row)).abs(), -10 * normal(2, len(row)).abs(), torch.tensor(row), weight) for row, weight in rows
    ]

    def right(losses: torch.Tensor, logps: torch.Tensor, lengths: torch.Tensor, weight: float) -> torch.Tensor:
        return losses.mean() + weight * -logps.sum() / lengths.sum()

    return check_function("loss_with_sft", answer, right, cases)
