"""Lesson 00: the loss mask, one step of gradient descent, the share that is trained."""

import torch
from torch import nn

from ftlab.checks.trying import Verdict, check_function, check_number, normal


def check_supervised_tokens(answer_only: object, prompt_too: object) -> Verdict:
    """Of 60 tokens 22 are the answer's: those trained without, and with the prompt."""
    return check_number("supervised_tokens", (answer_only, prompt_too), (22, 60))


def check_answer_loss(answer: object) -> Verdict:
    """A function of token losses and a mask (two equal shapes)."""
    masks = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]]), torch.tensor([1.0, 0, 1])
    cases = [(normal(seed, *mask.shape).abs(), mask) for seed, mask in enumerate(masks)]
    return check_function("answer_loss", answer, lambda losses, mask: (losses * mask).sum() / mask.sum(), cases)


def check_gradient_step(answer: object) -> Verdict:
    """A function of weights, gradient and learning rate."""
    cases = [
        (normal(1, 4), normal(2, 4), 0.1),
        (normal(3, 2, 3), normal(4, 2, 3), 0.5),
        (normal(5, 1), normal(6, 1), 2.0),
    ]
    return check_function("gradient_step", answer, lambda weights, gradient, rate: weights - rate * gradient, cases)


def check_trainable_share(answer: object) -> Verdict:
    """A function of a module, some of whose parameters are frozen."""

    def right(model: nn.Module) -> float:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        return sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)

    return check_function(
        "trainable_share", answer, right, [(half_frozen(3, 5),), (half_frozen(7, 2),), (nn.Linear(2, 2),)]
    )


def half_frozen(inputs: int, outputs: int) -> nn.Module:
    """Build two layers of different size, the first one frozen."""
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.Linear(outputs, 1))
    model[0].requires_grad_(False)
    return model
