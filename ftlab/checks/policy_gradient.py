"""Lesson 11: advantages, the clipped loss, and the estimate of the KL divergence."""

import torch

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_rloo_advantage(answer: object) -> Verdict:
    """Rewards 1, 0 and 0.5 in one group: the advantage of the first under RLOO."""
    return check_number("rloo_advantage", answer, 0.75)


def check_clipped_pull(answer: object) -> Verdict:
    """A function of ratio and advantage: does the loss, clipped at 0.2, still have a gradient there?"""
    cases = [(ratio, advantage) for ratio in (0.5, 0.85, 1.0, 1.15, 1.5) for advantage in (1.0, -1.0, 0.3, -0.3, 0.0)]
    return check_function(
        "clipped_pull",
        answer,
        lambda ratio, advantage: advantage != 0 and (ratio < 1.2 if advantage > 0 else ratio > 0.8),
        cases,
    )


def check_grpo_advantages(answer: object) -> Verdict:
    """A function of rewards (prompts, completions)."""
    cases = [(normal(1, 2, 4),), (normal(2, 3, 8) + 5,), (normal(3, 3, 3),)]

    def right(rewards: torch.Tensor) -> torch.Tensor:
        return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)

    # 1e-4 in the denominator, forgotten or not, is below the tolerance where rewards are spread out.
    return check_function("grpo_advantages", answer, right, [*cases, (normal(4, 2, 4) * 1e-3,)])


def check_kl_estimate(answer: object) -> Verdict:
    """A function of the policy's and the reference's log-probabilities."""
    cases = [(-normal(1, 5).abs(), -normal(2, 5).abs()), (-normal(3, 2, 3).abs(), -normal(4, 2, 3).abs())]
    return check_function(
        "kl_estimate",
        answer,
        lambda policy, reference: torch.expm1(reference - policy) - (reference - policy),
        cases,
    )
