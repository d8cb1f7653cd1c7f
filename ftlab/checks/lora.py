"""Lesson 03: LoRA's size, its scale, its forward pass, and what is frozen."""

from collections.abc import Callable

import torch
from torch import nn

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_lora_parameters(answer: object) -> Verdict:
    """The parameters of LoRA with r = 8 on a layer of 576 inputs and 1536 outputs."""
    return check_number("lora_parameters", answer, 8 * (576 + 1536))


def check_lora_scale(answer: object) -> Verdict:
    """A function of lora_alpha and r; some results are not integers."""
    cases = [(16, 16), (32, 8), (8, 32), (5, 2), (10, 4)]
    return check_function("lora_scale", answer, lambda lora_alpha, r: lora_alpha / r, cases)


def check_lora_forward(answer: object) -> Verdict:
    """A function of x (tokens, inputs), W (outputs, inputs), A (r, inputs), B (outputs, r) and the scale."""
    sizes = [(4, 5, 3, 2, 2.0), (1, 3, 7, 1, 0.5), (6, 4, 4, 4, 1.5)]
    cases = [
        (normal(1, tokens, inputs), normal(2, outputs, inputs), normal(3, r, inputs), normal(4, outputs, r), scale)
        for tokens, inputs, outputs, r, scale in sizes
    ]
    return check_function("lora_forward", answer, lambda x, W, A, B, scale: x @ W.T + scale * (x @ A.T @ B.T), cases)


def check_lora_freeze(answer: object) -> Verdict:
    """A function that sets requires_grad of a module's parameters in place."""
    cases = [(named(["weight", "lora_A", "lora_B"]),), (named(["lora_B", "weight", "bias", "norm"]),)]
    return check_function(
        "lora_freeze",
        trained_after(answer) if callable(answer) and answer is not ... else answer,
        lambda model: ["lora_" in name for name, _ in model.named_parameters()],
        cases,
    )


def trained_after(change: Callable) -> Callable:
    """Return a function of a module: which parameters are trained after `change` (`...` for an untouched cell)."""

    def trained(model: nn.Module) -> object:
        if change(model) is ...:
            return ...
        return [parameter.requires_grad for parameter in model.parameters()]

    return trained


def named(names: list[str]) -> nn.Module:
    """Build a module of modules with these parameters, every second one frozen."""
    parameters = {name: nn.Parameter(torch.ones(2), requires_grad=place % 2 == 0) for place, name in enumerate(names)}
    return nn.ModuleDict({"layer": nn.ParameterDict(parameters)})
