"""Lesson 16: leaks between parts, the interval of a gain, pass@k, and pairs for a second stage."""

import math
from collections.abc import Sequence

import torch

from ftlab.checks.trying import Verdict, check_function


def check_leaked_questions(answer: object) -> Verdict:
    """A function of two lists of questions: for each of the second, True if the first asks it too."""
    cases = [
        (["When do you open?", "Is it far?"], ["is  it FAR?", "What does it cost?"]),
        (["a b", "c"], ["c", "A\nB", "d", " c "]),
        (["a"], ["b", "ab"]),
        (["Straße 5"], ["x", "STRASSE 5"]),
        ([], ["a"]),
    ]
    return check_function("leaked_questions", answer, leaked, cases)


def leaked(train: Sequence[str], test: Sequence[str]) -> list[bool]:
    """Return, for each test question, whether train holds it; case and white space don't count."""
    known = {" ".join(question.casefold().split()) for question in train}
    return [" ".join(question.casefold().split()) in known for question in test]


def check_gain_interval(answer: object) -> Verdict:
    """A function of (share, low, high) before and after: the two ends of the interval of the difference."""
    cases = [
        ((0.1, 0.05, 0.2), (0.9, 0.8, 0.95)),
        ((0.5, 0.3, 0.7), (0.6, 0.5, 0.65)),
        ((0.0, 0.0, 0.06), (1.0, 0.94, 1.0)),
        ((0.8, 0.7, 0.87), (0.4, 0.3, 0.52)),
    ]
    return check_function("gain_interval", answer, newcombe, cases)


def newcombe(before: tuple[float, float, float], after: tuple[float, float, float]) -> tuple[float, float]:
    """Return the interval of a difference of two shares from their own intervals (Newcombe 1998, method 10)."""
    (first, low, high), (second, low_after, high_after) = before, after
    below, above = math.hypot(second - low_after, high - first), math.hypot(high_after - second, first - low)
    return second - first - below, second - first + above


def check_pass_at_k(answer: object) -> Verdict:
    """A function of right (rows, draws), bool, and k: the mean over rows of the unbiased pass@k."""
    rows = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    cases = [(rows, 1), (rows, 2), (rows[:3, :3], 2), (rows, 4), (torch.tensor([[True, False] * 4]), 3)]
    return check_function("pass_at_k", answer, unbiased, cases)


def unbiased(right: torch.Tensor, k: int) -> float:
    """Return 1 - C(wrong, k) / C(draws, k), averaged over the rows (Chen et al. 2021)."""
    draws = right.shape[1]
    wrong = (draws - right.sum(1)).tolist()
    return sum(1 - math.comb(count, k) / math.comb(draws, k) for count in wrong) / len(wrong)


def check_preference_rows(answer: object) -> Verdict:
    """A function of right (rows, draws), bool: True for each row with a right and a wrong draw, (rows,)."""
    rows = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1]]).bool()
    cases = [(rows,), (rows[:, :2],), (rows[1:3],), (rows.repeat(1, 2),), (rows[:, :1],)]
    return check_function("preference_rows", answer, lambda right: right.any(1) & ~right.all(1), cases)
