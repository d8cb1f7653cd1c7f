"""Every exercise: the right answer passes, each likely wrong one gets a hint."""

import math

import pytest

from ftlab import checks


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (checks.check_supervised_tokens, (22, 60), [(0, 0), (60, 60), (38, 60), (22, 38)]),
        (
            checks.check_labels,
            (lambda ids, start, end: [-100] * start + ids[start:end] + [-100] * (len(ids) - end),),
            [(lambda i, s, e: [],), (lambda i, s, e: i,), (lambda i, s, e: [-100] * s + i[s:],), (lambda: 1,), (3,)],
        ),
        (checks.check_nf4_bytes, (3_656_250_000,), [(0,), (3_250_000_000,), (26_406_250_000.0,), ("3.6 GB",)]),
        (
            checks.check_nearest_level,
            (lambda x, levels: min(range(len(levels)), key=lambda i: abs(levels[i] - x)),),
            [(lambda x, s: 0,), (lambda x, s: min(s, key=lambda v: abs(v - x)),), (lambda x: 1,), (3,)],
        ),
        (checks.check_full_bytes, (800_000_000,), [(0,), (200_000_000,), (1_200_000_000,), ("800 MB",)]),
        (checks.check_front, ({"a", "c"},), [({"a", "b", "c"},), ({"c"},), (set(),), ("ac",)]),
        (checks.check_q8_bytes, (1_062_500,), [(0,), (1_000_000,), (1_125_000,), ("1 MB",)]),
        (
            checks.check_merged_weight,
            (lambda W, A, B, lora_alpha: W + lora_alpha / A.shape[0] * B @ A,),
            [(lambda W, A, B, a: W,), (lambda W, A, B, a: W + B @ A,), (lambda W, A, B, a: A,), (lambda: 1,), (3,)],
        ),
        (checks.check_cache_bytes, (57_344_000,), [(0,), (28_672_000,), (57_344,), ("57 MB",)]),
        (
            checks.check_top_p,
            (lambda p, limit: next(n for n in range(1, 5) if sum(p[:n]) >= limit),),
            [
                (lambda p, limit: len(p),),
                (lambda p, limit: sum(sum(p[: n + 1]) <= limit for n in range(4)),),
                (lambda p, limit: next((n for n in range(1, 5) if sum(p[:n]) > limit), 4),),
                (lambda p, limit: 1,),
                (lambda p: 1,),
                (2,),
            ],
        ),
        (checks.check_padding_share, (1 / 3,), [(0,), (2 / 3,), (50,), ("a third",)]),
        (checks.check_lora_parameters, (16896,), [(0,), (576 * 1536,), (8 * 576 * 1536,), (4608,), (None,)]),
        (
            checks.check_lora_scale,
            (lambda lora_alpha, r: lora_alpha / r,),
            [(lambda a, r: 0,), (lambda a, r: a * r,), (lambda a, r: 1,), (lambda: 1,), (3,)],
        ),
        (
            checks.check_preference_probability,
            (lambda a, b: (1 + math.tanh((a - b) / 2)) / 2,),
            [
                (lambda a, b: 0,),
                (lambda a, b: 0.5,),
                (lambda a, b: 1 / (1 + math.exp(a - b)),),
                (lambda a, b: 1 / (1 + math.exp(b - a)),),
                (lambda a: 1,),
                (3,),
            ],
        ),
        (checks.check_rloo_advantage, (0.75,), [(0,), (0.5,), (-0.75,), (None,)]),
        (
            checks.check_clipped_pull,
            (lambda ratio, a: a != 0 and (ratio < 1.2 if a > 0 else ratio > 0.8),),
            [
                (lambda ratio, a: True,),
                (lambda ratio, a: False,),
                (lambda ratio, a: 0.8 < ratio < 1.2,),
                (lambda ratio, a: ratio < 1.2 if a > 0 else ratio > 0.8,),
                (lambda ratio: True,),
                (3,),
            ],
        ),
        (checks.check_reward_margin, (2.197,), [(0,), (-2.197,), (0.9,), (None,)]),
        (
            checks.check_dpo_loss,
            (lambda c, r, beta: math.log(1 + math.exp(-beta * (c - r))),),
            [
                (lambda c, r, beta: 0,),
                (lambda c, r, beta: math.log(1 + math.exp(-beta * c)),),
                (lambda c, r, beta: math.log(1 + math.exp(beta * (c - r))),),
                (lambda c, r, beta: math.log(1 + math.exp(-(c - r))),),
                (lambda c: 1,),
                (3,),
            ],
        ),
        (
            checks.check_reference_free,
            ({"orpo", "SimPO"},),
            [({"dpo", "orpo"},), ({"orpo"},), (set(),), (3,)],
        ),
    ],
)
def test_right_passes_and_wrong_gets_a_hint(check, right, wrong):
    assert check(*right).passed
    for answer in wrong:
        verdict = check(*answer)
        assert not verdict.passed and verdict.hint
