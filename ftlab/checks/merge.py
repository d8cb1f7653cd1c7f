"""Lesson 08: merging and mixing adapters, and the bytes and the rounding of Q8_0."""

import torch

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_q8_bytes(answer: object) -> Verdict:
    """A million weights in blocks of 32 bytes and a 2-byte scale."""
    return check_number("q8_bytes", answer, 1_062_500)


def check_merged_weight(answer: object) -> Verdict:
    """A function of W (outputs, inputs), A (r, inputs), B (outputs, r) and lora_alpha; r differs from case to case."""
    sizes = [(3, 4, 2, 8), (5, 2, 1, 16), (4, 4, 4, 6)]
    cases = [
        (normal(1, outputs, inputs), normal(2, r, inputs), normal(3, outputs, r), alpha)
        for outputs, inputs, r, alpha in sizes
    ]
    return check_function("merged_weight", answer, lambda W, A, B, alpha: W + alpha / len(A) * (B @ A), cases)


def check_mixed_weight(answer: object) -> Verdict:
    """A function of W, a list of updates and a list of their weights."""
    cases = [
        (normal(0, 3, 4), [normal(seed, 3, 4) for seed in range(1, len(mix) + 1)], mix)
        for mix in ([0.5, 0.25], [1.0, 0.7, 0.1], [0.3])
    ]

    def right(W: torch.Tensor, updates: list[torch.Tensor], mix: list[float]) -> torch.Tensor:
        return W + sum(share * update for share, update in zip(mix, updates, strict=True))

    return check_function("mixed_weight", answer, right, cases)


def check_q8_roundtrip(answer: object) -> Verdict:
    """A function of one block of weights to the weights that come back."""

    def right(block: torch.Tensor) -> torch.Tensor:
        scale = block.abs().max() / 127
        return torch.round(block / scale) * scale

    cases = [(normal(1, 32),), (-normal(2, 32).abs(),), (normal(3, 8) * 50,)]
    return check_function("q8_roundtrip", answer, right, cases)
