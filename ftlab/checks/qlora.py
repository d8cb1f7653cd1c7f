"""Lesson 04: the bytes of NF4, the nearest level, scales, and the way back to weights."""

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_nf4_bytes(answer: object) -> Verdict:
    """6.5 billion weights of four bits, and a 4-byte scale for every 64."""
    return check_number("nf4_bytes", answer, 3_656_250_000)


def check_nearest_level(answer: object) -> Verdict:
    """A function of x and a list of levels to the index of the nearest one."""
    levels, others = [-1.0, -0.25, 0.5, 1.0], [0.0, 0.1, 0.7, 0.9, 2.0]
    cases = [(x, levels) for x in (-0.9, 0.1, 0.2, 2.0)] + [(x, others) for x in (-3.0, 0.45, 1.4, 1.6)]
    return check_function(
        "nearest_level", answer, lambda x, values: min(range(len(values)), key=lambda i: abs(values[i] - x)), cases
    )


def check_block_scales(answer: object) -> Verdict:
    """A function of a flat tensor and a block size; in some blocks the largest weight is negative."""
    cases = [
        (normal(seed, blocks * size), size) for seed, blocks, size in ((1, 3, 4), (2, 2, 7), (3, 5, 64), (4, 1, 6))
    ]
    return check_function(
        "block_scales", answer, lambda weights, size: weights.reshape(-1, size).abs().amax(dim=1), cases
    )


def check_restored_weights(answer: object) -> Verdict:
    """A function of codes (blocks, block size), levels and scales (blocks,)."""
    sizes = [(3, 4, 5), (4, 4, 16), (1, 6, 2)]
    cases = [
        (normal(blocks, blocks, size).mul(1000).long() % levels, normal(2, levels), normal(3, blocks).abs())
        for blocks, size, levels in sizes
    ]
    return check_function(
        "restored_weights", answer, lambda codes, levels, scales: levels[codes] * scales[:, None], cases
    )
