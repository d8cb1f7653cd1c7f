"""Lesson 14: a reduce-scatter, a padded shard, bytes under ZeRO, an MLP in pieces, and a sampler's rows."""

import math
from collections.abc import Sequence

import torch

from ftlab.checks.trying import Verdict, check_function, normal


def check_reduce_scatter(answer: object) -> Verdict:
    """A function of one vector per process; there may be two, three or four."""
    shapes = [(2, 2), (2, 6), (3, 6), (4, 4)]
    cases = [([normal(10 * count + i, length) for i in range(count)],) for count, length in shapes]
    return check_function("reduce_scatter", answer, pieces_of_the_sum, cases)


def pieces_of_the_sum(vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return piece i of the sum for process i: (processes, length / processes)."""
    return list(torch.stack(list(vectors)).sum(dim=0).chunk(len(vectors)))


def check_shard(answer: object) -> Verdict:
    """A function of a flat vector, a rank and the number of processes; the last ranks may get nothing but zeros."""
    sizes = [(3, 0, 2), (3, 1, 2), (6, 1, 3), (5, 2, 4), (5, 3, 4), (7, 3, 4), (10, 2, 3)]
    cases = [(normal(length, length), rank, processes) for length, rank, processes in sizes]
    return check_function("shard", answer, padded_part, cases)


def padded_part(flat: torch.Tensor, rank: int, processes: int) -> torch.Tensor:
    """Return the part of a process, filled up with zeros to the length that all parts have."""
    length = math.ceil(len(flat) / processes)
    padded = torch.cat([flat, flat.new_zeros(processes * length - len(flat))])
    return padded[rank * length : (rank + 1) * length]


def check_bytes_per_process(answer: object) -> Verdict:
    """A function of frozen and trained weights, processes and ZeRO stage."""
    sizes = [(1000, 10, 2), (7e9, 4e7, 8), (0, 135e6, 4), (5000, 500, 1)]
    cases = [(*size, stage) for size in sizes for stage in range(4)]
    return check_function("bytes_per_process", answer, lora_bytes_under_zero, cases)


def lora_bytes_under_zero(frozen: float, trained: float, processes: int, stage: int) -> float:
    """Return the bytes of weights, gradients and AdamW's moments that one process holds."""
    parts = {3: 2 * frozen + 4 * trained, 2: 4 * trained, 1: 8 * trained}
    return sum(size / (processes if stage >= first else 1) for first, size in parts.items())


def check_mlp_partial_sums(answer: object) -> Verdict:
    """A function of rows, the two matrices of an MLP and the number of processes."""
    sizes = [(1, 2, 4, 3, 2), (3, 4, 6, 4, 2), (2, 3, 6, 5, 3), (2, 5, 4, 2, 4)]
    cases = [
        (normal(1, rows, inside), normal(2, hidden, inside), normal(3, out, hidden), processes)
        for rows, inside, hidden, out, processes in sizes
    ]
    return check_function("mlp_partial_sums", answer, partial_results, cases)


def partial_results(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, processes: int) -> list[torch.Tensor]:
    """Return what each process's hidden units add to the result: (processes, rows, out)."""
    hidden = torch.relu(x @ up.T).chunk(processes, dim=1)
    return [part @ columns.T for part, columns in zip(hidden, down.chunk(processes, dim=1), strict=True)]


def check_sampler_rows(answer: object) -> Verdict:
    """A function of the number of rows, a rank and the number of processes; the rows may not divide evenly."""
    cases = [(7, 0, 2), (7, 1, 2), (8, 1, 2), (10, 2, 4), (10, 3, 4), (9, 0, 3)]
    return check_function("sampler_rows", answer, rows_in_turn, cases)


def rows_in_turn(count: int, rank: int, processes: int) -> list[int]:
    """Return the rows of one process, none shuffled, the first ones repeated where they run out."""
    rounds = math.ceil(count / processes)
    padded = [*range(count), *range(processes * rounds - count)]
    return padded[rank::processes]
