"""Lesson 02: what a request costs, classifying without training, calibration, and the decision itself."""

from collections.abc import Sequence

import torch

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_request_cost(answer: object) -> Verdict:
    """The price of 1,000 requests of 340 prompt tokens at 0.5 per million and 40 generated ones at 2.0."""
    return check_number("request_cost", answer, 1000 * (340 * 0.5 + 40 * 2.0) / 1e6)


def check_label_probabilities(answer: object) -> Verdict:
    """A function of logits (batch, vocabulary) and the labels' token ids: probabilities (batch, labels)."""
    cases = [(normal(1, 2, 9), [0, 5]), (normal(2, 1, 4), [3, 1, 2]), (3 * normal(3, 5, 30), [29, 7])]
    return check_function("label_probabilities", answer, lambda logits, ids: logits[:, ids].softmax(-1), cases)


def check_calibrated_label(answer: object) -> Verdict:
    """A function of probabilities (batch, labels) and those after an empty question (labels,): indices (batch,)."""
    sizes = [(6, 2), (7, 3), (1, 4)]
    cases = [
        ((2 * normal(seed, batch, labels)).softmax(-1), normal(seed + 9, labels).softmax(-1))
        for seed, (batch, labels) in enumerate(sizes)
    ]
    cases.append((torch.tensor([[0.6, 0.4], [0.9, 0.1]]), torch.tensor([0.8, 0.2])))
    return check_function("calibrated_label", answer, lambda answer, empty: (answer / empty).argmax(-1), cases)


def check_cheapest_way(answer: object) -> Verdict:
    """A function of the intervals' lower ends, the costs and the target: an index, -1 where none is enough."""
    cases = [
        ([0.5, 0.9, 0.85], [0.1, 0.4, 0.3], 0.8),
        ([0.2, 0.3], [0.1, 0.2], 0.8),
        ([0.8, 0.95, 0.9], [0.3, 0.2, 0.1], 0.8),
        ([0.81, 0.99], [0.1, 0.9], 0.8),
        ([0.4, 0.6, 0.7], [5, 2, 3], 0.6),
    ]
    return check_function("cheapest_way", answer, cheapest_enough, cases)


def cheapest_enough(lows: Sequence[float], costs: Sequence[float], target: float) -> int:
    """Return the index of the cheapest way whose lower end reaches the target, else -1."""
    enough = [index for index, low in enumerate(lows) if low >= target]
    return min(enough, key=lambda index: costs[index], default=-1)
