"""LoRA on a CPU: an adapter's two low-rank products as one autograd function, in the dtype of their layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from ftlab.cpu.patches import replace

# PEFT's classes for a linear layer: plain, and in 4 and 8 bits.
KINDS = ("Linear", "Linear4bit", "Linear8bitLt")


class Adapter(torch.autograd.Function):
    """result + scale * x A^T B^T, with A and B rounded to the format of `x` for the products.

    PEFT takes four steps, each an autograd node, and casts `x` to the adapter's float32 first. The matrices are
    small: rounding them instead, as autocast does, costs nothing.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return a tensor of the shape of `result`, (..., outputs).

        Args:
            x: (..., inputs). a: (r, inputs). b: (outputs, r).
        """
        rows = x.reshape(-1, x.shape[-1])
        thin = narrow(rows, a, scale)
        ctx.save_for_backward(rows, thin, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return torch.addmm(result.reshape(-1, result.shape[-1]), thin, b.to(x.dtype).t()).view(result.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of result, x, a and b."""
        rows, thin, a, b = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_thin, of_a, of_b = gradients(rows, thin, flat, a, b, ctx.scale)
        of_x = (of_thin @ a.to(flat.dtype)).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return gradient, of_x, of_a, of_b, None


class AdaptedMatrix(torch.autograd.Function):
    """x W^T + scale * x A^T B^T with a frozen W: as `Adapter`, with its base layer in the same step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return (..., outputs).

        Args:
            x: (..., inputs). weight: (outputs, inputs). a: (r, inputs). b: (outputs, r).
        """
        rows = x.reshape(-1, x.shape[-1])
        thin = narrow(rows, a, scale)
        ctx.save_for_backward(rows, thin, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return (rows @ weight.t()).addmm_(thin, b.to(x.dtype).t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, a and b."""
        rows, thin, weight, a, b = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_thin, of_a, of_b = gradients(rows, thin, flat, a, b, ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (flat @ weight).addmm_(of_thin, a.to(flat.dtype)).view(ctx.shape)
        return of_x, None, of_a, of_b, None


def narrow(rows: Tensor, a: Tensor, scale: float) -> Tensor:
    """Return scale * rows A^T, (rows, r), in the format of the rows."""
    return (rows @ a.to(rows.dtype).t()).mul_(scale)


def gradients(
    rows: Tensor, thin: Tensor, gradient: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows A^T, in the format of `gradient`, and of A and B, in their own."""
    of_thin = (gradient @ b.to(gradient.dtype)).mul_(scale)
    return of_thin, (of_thin.t() @ rows).to(a.dtype), (gradient.t() @ thin).to(b.dtype)


def install(model: nn.Module) -> int:
    """Make every plain LoRA layer of a model compute its adapter in one step; return their number.

    DoRA and similar variants, dropout, several active adapters, and disabled or merged adapters use PEFT's own code.
    """
    adapters = layers(model)
    for layer in adapters:
        replace(layer, "forward", partial(forward, layer))
    return len(adapters)


def layers(model: nn.Module) -> list[Any]:
    """Return the plain LoRA layers of a model."""
    return [m for m in model.modules() if isinstance(m, LoraLayer) and type(m).__name__ in KINDS]


@contextmanager
def rounded(model: nn.Module) -> Iterator[None]:
    """Keep the adapters rounded while nothing is trained: generation would round them again for every token.

    Adapters must not change inside the block.
    """
    adapters = layers(model)
    try:
        for layer in adapters:
            layer.kept = {}
        yield
    finally:
        for layer in adapters:
            del layer.kept


def forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute a LoRA layer: its base unchanged, its adapter in one step if that gives the same result."""
    active = layer.active_adapters
    name = active[0] if len(active) == 1 else ""
    plain = name in layer.lora_A and name not in layer.lora_variant and not args and not kwargs
    if not plain or layer.disable_adapters or layer.merged or not isinstance(layer.lora_dropout[name], nn.Identity):
        return type(layer).forward(layer, x, *args, **kwargs)
    a, b = layer.lora_A[name], layer.lora_B[name]
    if b.bias is not None:
        return type(layer).forward(layer, x)
    base = layer.base_layer
    if torch.is_grad_enabled() and is_frozen_matrix(base, x):
        return AdaptedMatrix.apply(x, base.weight, a.weight, b.weight, layer.scaling[name])
    result = base(x)
    if torch.is_grad_enabled() or not hasattr(layer, "kept"):
        return Adapter.apply(result, x.to(result.dtype), a.weight, b.weight, layer.scaling[name])
    if name not in layer.kept:
        layer.kept[name] = a.weight.to(result.dtype).t(), b.weight.to(result.dtype).t()
    down, up = layer.kept[name]
    thin = x.to(result.dtype).reshape(-1, x.shape[-1]) @ down
    flat = torch.addmm(result.view(-1, result.shape[-1]), thin, up, alpha=layer.scaling[name])
    return flat.view(result.shape)


def is_frozen_matrix(base: nn.Module, x: Tensor) -> bool:
    """Return True if a layer is just a frozen matrix in the format of its input."""
    plain = type(base) is nn.Linear and base.bias is None and not base.weight.requires_grad
    return plain and base.weight.dtype == x.dtype and not torch.is_autocast_enabled(x.device.type)
