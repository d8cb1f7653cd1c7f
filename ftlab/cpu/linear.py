"""The last position of many rows, multiplied on a CPU without a copy of the weight per row."""

import torch
from torch import Tensor, nn

from ftlab.cpu.patches import replace


def install() -> None:
    """Make torch multiply the rows of a batch as one matrix.

    Asked for the last position of many rows, as `generate` does with every batch of prompts, torch copies the output
    layer's whole weight once per row (pytorch/pytorch issue 151934): 5.6 GB for a hundred prompts and a vocabulary of
    50,000. Inputs that are contiguous in memory avoid it. Replaced in the class, because models that are loaded
    later need it too.
    """
    replace(nn.Linear, "forward", multiply_contiguous)


def multiply_contiguous(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Return what `Linear.forward` returns, for inputs (..., in_features) made contiguous where they are not."""
    return torch.nn.functional.linear(inputs.contiguous(), layer.weight, layer.bias)
