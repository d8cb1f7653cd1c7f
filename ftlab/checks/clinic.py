"""Lesson 15: the last trained token, rows in two sets, updates that are rounded away, and logits of padded prompts."""

from collections.abc import Sequence

import torch

from ftlab.checks.trying import Verdict, check_function, normal


def check_ends_with(answer: object) -> Verdict:
    """A function of rows of labels, padded with -100, and the end token's id: a share."""
    cases = [
        ([[-100, -100, 5, 6, 2], [-100, 7, 2, -100, -100], [-100, 8, 9, 4, -100], [2, 3, 1, 2, 5]], 2),
        ([[-100, 4, 4, 4, 9], [9, 9, 9, 9, -100], [-100, -100, 1, 9, 9], [3, 9, 3, 3, 8]], 9),
        ([[1, 2, 3, 0], [-100, 4, 0, 6], [0, 0, 5, -100]], 0),
        ([[7, 7, 7, 7]], 3),
    ]
    return check_function("ends_with", answer, ending_share, cases)


def ending_share(labels: Sequence[Sequence[int]], end_id: int) -> float:
    """Return the share of rows whose last trained label is the end token."""
    last = [[label for label in row if label != -100][-1] for row in labels]
    return last.count(end_id) / len(last)


def check_leaked_share(answer: object) -> Verdict:
    """A function of training and validation texts; upper and lower case and the number of spaces do not matter."""
    train = ["Who are you?", "what  is your name?", "Where is Oslo?", "Who are you?"]
    cases = [
        (train, ["WHO are you?", " What is your name? ", "Who made you?", "Where is Bonn?"]),
        (train, ["where\nis oslo?", "Whereis Oslo?", "Whatis your name?"]),
        (["a"], ["b", "A", " a", "a  ", "c"]),
        (["x y", "z"], ["x  Y"]),
    ]
    return check_function("leaked_share", answer, folded_overlap, cases)


def folded_overlap(train: Sequence[str], validation: Sequence[str]) -> float:
    """Return the share of validation texts that are training texts but for case and spaces."""
    seen = {" ".join(text.casefold().split()) for text in train}
    return sum(" ".join(text.casefold().split()) in seen for text in validation) / len(validation)


def check_lost_share(answer: object) -> Verdict:
    """A function of float32 weights and the update that is added to them: a share of elements."""
    cases = [
        (0.02 * normal(1, 40, 50), torch.full((40, 50), 1e-5)),
        (normal(2, 2000), 1e-3 * normal(3, 2000)),
        (0.1 * normal(4, 30, 9), torch.full((30, 9), -3e-4)),
        (normal(5, 12), torch.ones(12)),
    ]
    return check_function("lost_share", answer, unchanged_share, cases)


def unchanged_share(weight: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return the share of weights that adding the update in bfloat16 leaves as they are."""
    stored = weight.bfloat16()
    return (stored + update.bfloat16() == stored).float().mean()


def check_next_logits(answer: object) -> Verdict:
    """A function of logits (batch, seq, vocab) and the attention mask (batch, seq); padding is on either side."""
    masks = [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
        [[0, 0, 1, 1], [1, 1, 1, 1]],
        [[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]],
    ]
    cases = [(normal(seed, len(mask), len(mask[0]), 7), torch.tensor(mask)) for seed, mask in enumerate(masks, start=1)]
    return check_function("next_logits", answer, logits_of_last_tokens, cases)


def logits_of_last_tokens(logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the logits at each row's last position that is not padding."""
    return torch.stack([row[mask.nonzero().max()] for row, mask in zip(logits, attention_mask, strict=True)])
