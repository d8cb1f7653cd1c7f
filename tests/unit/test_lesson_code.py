"""From-scratch code of lessons 08, 09 and 14 against what it stands for."""

import pytest
import torch
from lessons import definitions
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ftlab import memory


@pytest.fixture
def rounding():
    """Return (to_levels, gptq) of lesson 08."""
    (to_levels,) = definitions("08_merge_export", "to_levels")
    (gptq,) = definitions("08_merge_export", "gptq", torch=torch, to_levels=to_levels)
    return to_levels, gptq


def layer(seed=0):
    """Return a weight (12, 32) and its scales (12, 1)."""
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(seed))
    return weight, weight.abs().amax(dim=1, keepdim=True) / 7


def test_gptq_is_plain_rounding_where_no_input_says_anything_about_another(rounding):
    to_levels, gptq = rounding
    weight, scale = layer()
    assert torch.equal(gptq(weight, 3 * torch.eye(32), scale), to_levels(weight, scale))


def test_gptq_lowers_the_error_of_the_outputs_for_correlated_inputs(rounding):
    to_levels, gptq = rounding
    weight, scale = layer()
    # Four directions with a little noise: what one column loses, others can make up for.
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 4, generator=generator) @ torch.randn(4, 32, generator=generator)
    inputs += 0.1 * torch.randn(400, 32, generator=generator)
    errors = [(inputs @ (found - weight).T).norm() for found in (gptq(weight, inputs, scale), to_levels(weight, scale))]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    "settings", [(0.5, 5, 0.9, 0.0), (1.0, 50, 0.5, 0.0), (1.5, 50, 1.0, 0.2), (2.0, 20, 0.95, 0.05)]
)
def test_cut_leaves_the_scores_that_transformers_leaves(settings):
    (cut,) = definitions("09_inference", "cut", torch=torch)
    temperature, top_k, top_p, min_p = settings
    scores = 3 * torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    expected = scores
    warpers = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    for warper in [*warpers, MinPLogitsWarper(min_p)]:
        expected = warper(None, expected)
    assert torch.equal(cut(scores, temperature, top_k, top_p, min_p), expected)


@pytest.mark.parametrize("stage", range(4))
def test_the_bytes_of_lesson_14_are_those_of_the_memory_estimate(stage):
    (zero_bytes,) = definitions("14_scale_out", "zero_bytes")
    decoder = memory.Decoder(4, 64, 4, 2, 16, 128, 1000, tied=True)
    needs = memory.estimate(decoder, memory.Training(1, 128, decoder.parameters, gpus=8, shard=stage))
    told = zero_bytes(decoder.parameters, 8, stage, weight_bytes=2, gradient_bytes=2, state_bytes=4)
    assert [int(part) for part in told] == [needs.weights, needs.gradients, needs.optimizer]
