"""Lesson 05: the memory of full fine-tuning, the Pareto front, IA3 and DoRA."""

import torch

from ftlab.checks.trying import Verdict, check_function, check_names, check_number, normal


def check_full_bytes(answer: object) -> Verdict:
    """100 million bfloat16 weights, their gradients and AdamW's two moments, 2 bytes each."""
    return check_number("full_bytes", answer, 800_000_000)


def check_front(answer: object) -> Verdict:
    """Of (1 MiB, 60%), (4 MiB, 55%) and (9 MiB, 90%) those that no other one beats in both."""
    return check_names("front", answer, {"a", "c"})


def check_ia3_forward(answer: object) -> Verdict:
    """A function of x (tokens, inputs), W (outputs, inputs) and one factor per output."""
    sizes = [(4, 5, 3), (1, 2, 6), (3, 3, 3)]
    cases = [
        (normal(1, tokens, inputs), normal(2, outputs, inputs), normal(3, outputs)) for tokens, inputs, outputs in sizes
    ]
    return check_function("ia3_forward", answer, lambda x, W, scale: x @ W.T * scale, cases)


def check_dora_weight(answer: object) -> Verdict:
    """A function of W and its update (outputs, inputs) and the magnitude (outputs,)."""
    sizes = [(3, 5), (6, 2), (4, 4)]
    cases = [(normal(1, *size), normal(2, *size), normal(3, size[0]).abs()) for size in sizes]

    def right(W: torch.Tensor, update: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(W + update, dim=1) * magnitude[:, None]

    return check_function("dora_weight", answer, right, cases)
