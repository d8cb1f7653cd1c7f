"""Linear layers with 8 or 4 bits per weight, which reduces what a CPU must read for each token.

PyTorch ships kernels for bfloat16 inputs with such weights. Taught in notebooks/09_inference.ipynb.
"""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

# Inputs are cast to this: torch's kernels for float32 inputs are plain loops, slower even on
# a processor without bfloat16 instructions.
INPUTS = torch.bfloat16
# 4-bit weights that share one scale and one offset.
BLOCK = 32
# The kernels need a multiple of this many outputs.
OUTPUTS = 16


class Int8Linear(nn.Module):
    """Eight bits per weight, one scale per output; inputs of shape (..., in_features)."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.float().abs().amax(dim=1).clamp(min=1e-8) / 127
        codes = (linear.weight.float() / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale.to(INPUTS))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, (..., out_features)."""
        flat = x.reshape(-1, x.shape[-1]).to(INPUTS).contiguous()
        outputs = torch._weight_int8pack_mm(flat, self.weight, self.scale).to(x.dtype)
        return with_bias(outputs, self.bias, x)


class Int4Linear(nn.Module):
    """Four bits per weight, scale and offset per BLOCK; inputs of shape (..., in_features)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        blocks = linear.weight.float().unflatten(1, (-1, BLOCK))
        low, high = blocks.amin(dim=2), blocks.amax(dim=2)
        scale = ((high - low) / 15).clamp(min=1e-8).to(INPUTS).float()
        codes = ((blocks - low[:, :, None]) / scale[:, :, None]).round().clamp(0, 15).int()
        # A weight is (code - 8) * scale + offset.
        offsets = torch.stack([scale, low + 8 * scale], dim=2).transpose(0, 1)
        self.register_buffer("weight", torch._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1))
        self.register_buffer("scale", offsets.to(INPUTS).contiguous())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, (..., out_features)."""
        flat = x.reshape(-1, x.shape[-1]).to(INPUTS).contiguous()
        outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.weight, BLOCK, self.scale).to(x.dtype)
        return with_bias(outputs, self.bias, x)


def with_bias(outputs: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Return outputs in the shape of the inputs `x`, plus the bias if there is one."""
    outputs = outputs.view(*x.shape[:-1], -1)
    return outputs if bias is None else outputs + bias


def quantized(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Return a model on a CPU with 8- or 4-bit weights instead of its linear layers; `model` is not changed.

    The output layer always gets eight bits, because four cost the most there. A layer of a size that the kernels do
    not support keeps its weights. Other parts are shared with `model`.
    """
    kinds = {8: Int8Linear, 4: Int4Linear}
    changed = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, layer in list(changed.named_modules()):
        if isinstance(layer, nn.Linear) and layer.in_features % BLOCK == layer.out_features % OUTPUTS == 0:
            kind = Int8Linear if layer is changed.get_output_embeddings() else kinds[bits]
            changed.set_submodule(name, kind(layer))
    return changed
