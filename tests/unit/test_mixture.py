"""Lesson 13's from-scratch layers and losses against transformers', on other sizes than the lesson's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import MistralConfig, MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from tests import lessons


@pytest.mark.parametrize(("experts", "k"), [(2, 1), (8, 2), (6, 6)])
def test_the_mixture_by_hand_is_mixtral_s(experts, k):
    _, mixture = lessons.definitions("13_moe", "route", "mixture", torch=torch, F=F)
    torch.manual_seed(experts)
    config = MixtralConfig(hidden_size=24, intermediate_size=40, num_local_experts=experts, num_experts_per_tok=k)
    config._experts_implementation = "eager"
    block, x = MixtralSparseMoeBlock(config), torch.randn(3, 5, 24)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        mine = mixture(x.flatten(0, 1), block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj, k)
        torch.testing.assert_close(mine, block(x).flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("capacity", [1, 3, 20])
def test_the_switch_layer_by_hand_drops_the_library_s_tokens(capacity):
    (switch,) = lessons.definitions("13_moe", "switch", torch=torch, F=F)
    torch.manual_seed(capacity)
    config = SwitchTransformersConfig(d_model=16, d_ff=24, num_experts=3, expert_capacity=capacity)
    block, x = SwitchTransformersSparseMLP(config).eval(), torch.randn(2, 20, 16)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        mine, kept = switch(x, block.router.classifier.weight, block.experts.values(), capacity)
        torch.testing.assert_close(mine, block(x), atol=1e-5, rtol=1e-5)
    assert kept.sum(1).max() <= 3 * capacity and kept.all() == (capacity == 20)


@pytest.mark.parametrize(("experts", "k"), [(4, 1), (8, 2), (5, 3)])
def test_the_balancing_loss_by_hand_is_the_library_s(experts, k):
    (balancing_loss,) = lessons.definitions("13_moe", "balancing_loss", torch=torch, F=F)
    layers = tuple(torch.randn(40, experts) * 2 for _ in range(3))
    library = load_balancing_loss_func(layers, experts, k)
    torch.testing.assert_close(balancing_loss(torch.cat(layers), k), library)


def test_the_cache_of_mixtral_is_a_quarter_of_that_without_groups():
    (cache_bytes,) = lessons.definitions("13_moe", "cache_bytes")
    grouped, alone = (MixtralConfig(num_key_value_heads=heads) for heads in (8, 32))
    assert 4 * cache_bytes(grouped, 1000, 2) == cache_bytes(alone, 1000, 2) == 2 * 32 * 32 * 128 * 1000 * 2
    assert cache_bytes(MistralConfig(sliding_window=16), 1000, 2) == cache_bytes(MistralConfig(), 15, 2)
