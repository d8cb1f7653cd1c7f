"""Lesson 09: the bytes of the cache, top-p, temperature, and attention with a cache."""

import itertools

import torch

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_cache_bytes(answer: object) -> Verdict:
    """1,000 tokens, 28 layers, 4 key-value heads of 128 numbers, two bytes each, keys and values."""
    return check_number("cache_bytes", answer, 2 * 28 * 4 * 128 * 2 * 1000)


def check_top_p(answer: object) -> Verdict:
    """A function of sorted probabilities and top_p to the number of tokens kept; the sums are exact in binary."""

    def right(probabilities: list[float], top_p: float) -> int:
        return next(kept for kept, total in enumerate(itertools.accumulate(probabilities), 1) if total >= top_p)

    lists = [0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25], [0.75, 0.125, 0.0625, 0.0625]
    return check_function("top_p", answer, right, [(list(p), top_p) for p in lists for top_p in (0.7, 0.4, 0.75, 1.0)])


def check_temperature(answer: object) -> Verdict:
    """A function of logits (sequences, vocabulary) and a temperature."""
    cases = [(normal(1, 2, 5), 0.5), (normal(2, 3, 3), 2.0), (normal(3, 1, 8), 1.0)]
    return check_function("temperature", answer, lambda logits, heat: torch.softmax(logits / heat, -1), cases)


def check_cached_attention(answer: object) -> Verdict:
    """A function of a query (size,), keys and values (tokens, size)."""

    def right(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.softmax(keys @ query / query.numel() ** 0.5, 0) @ values

    cases = [
        (normal(1, size), normal(2, tokens, size), normal(3, tokens, size)) for tokens, size in ((5, 4), (3, 9), (6, 6))
    ]
    return check_function("cached_attention", answer, right, cases)
