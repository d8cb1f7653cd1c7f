"""Lesson 01: labels, padding, the shift by one token."""

from torch.nn import functional as F

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_labels(answer: object) -> Verdict:
    """A function of token ids (a list), the start and the end of what is trained."""
    cases = [([5, 6, 7, 8, 9], 2, 4), ([3, 1, 4, 1, 5, 9, 2], 1, 7), ([8, 2, 6], 0, 1), (list(range(20, 32)), 5, 8)]
    return check_function(
        "labels",
        answer,
        lambda ids, start, end: [token if start <= place < end else -100 for place, token in enumerate(ids)],
        cases,
    )


def check_padding_share(answer: object) -> Verdict:
    """The share of padding in a batch of 20, 30 and 50 tokens."""
    return check_number("padding_share", answer, 1 / 3, tolerance=0.005)


def check_next_token_loss(answer: object) -> Verdict:
    """A function of logits (tokens, vocabulary) and token ids (tokens,)."""
    cases = [
        (normal(seed, tokens, 9), normal(seed + 9, tokens).mul(40).long().abs() % 9)
        for seed, tokens in ((1, 6), (2, 3), (3, 11))
    ]
    return check_function("next_token_loss", answer, lambda logits, ids: F.cross_entropy(logits[:-1], ids[1:]), cases)


def check_pad_right(answer: object) -> Verdict:
    """A function of rows of token ids and the id of the padding token."""
    cases = [([[5, 6], [7, 8, 9]], 0), ([[1], [2, 3, 4, 5], [6, 7]], 99), ([[4, 4, 4, 4, 4, 4]], 1)]
    return check_function(
        "pad_right",
        answer,
        lambda rows, pad: [row + [pad] * (max(map(len, rows)) - len(row)) for row in rows],
        cases,
    )
