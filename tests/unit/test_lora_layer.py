"""The LoRA layer that lesson 03 writes and puts into a model."""

import pytest
import torch
from lessons import definitions
from torch import nn


@pytest.fixture
def lora_linear() -> type[nn.Module]:
    (layer,) = definitions("03_lora", "LoRALinear", nn=nn, torch=torch)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_as_the_layer_that_it_replaces(lora_linear, dtype):
    linear, x = nn.Linear(6, 4).to(dtype), torch.randn(2, 3, 6).to(dtype)
    assert torch.equal(lora_linear(linear, r=2, lora_alpha=4)(x), linear(x))


def test_it_is_the_merged_matrix(lora_linear):
    linear, x = nn.Linear(6, 4, bias=False), torch.randn(5, 6)
    layer = lora_linear(linear, r=2, lora_alpha=6)
    nn.init.normal_(layer.B)
    merged = linear.weight + 3 * layer.B @ layer.A
    torch.testing.assert_close(layer(x), x @ merged.T)


def test_only_its_two_matrices_are_trained(lora_linear):
    layer = lora_linear(nn.Linear(6, 4).to(torch.bfloat16), r=2, lora_alpha=4)
    layer(torch.randn(5, 6).to(torch.bfloat16)).sum().backward()
    trained = {key: weight for key, weight in layer.named_parameters() if weight.requires_grad}
    assert set(trained) == {"A", "B"} and all(weight.dtype == torch.float32 for weight in trained.values())
    assert trained["B"].grad.any(), "B is zero and must leave zero"
    assert layer.linear.weight.grad is None and layer.linear.bias.grad is None


def test_every_linear_layer_is_replaced_once(lora_linear):
    (swap,) = definitions("03_lora", "swap", nn=nn, LoRALinear=lora_linear, r=2, lora_alpha=4)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))})
    swap(model)
    assert sum(isinstance(part, lora_linear) for part in model.modules()) == 3
    assert sum(isinstance(part, nn.Linear) for part in model.modules()) == 3, "each is kept inside its replacement"
