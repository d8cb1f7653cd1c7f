"""Rows one behind the other, without padding, and the same rows as a padded batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where the tokens of rows one behind the other stand in a padded batch.

    Attributes:
        rows: how many rows. length: tokens of the longest.
        there: (rows * length,), which packed token stands at each padded place; any where none does.
        back: (tokens,), the padded place of each packed token. empty: the padded places where none stands.
    """

    rows: int
    length: int
    there: Tensor
    back: Tensor
    empty: Tensor


def places(starts: Tensor, length: int) -> Places:
    """Return where packed tokens go.

    Args:
        starts: (rows + 1,), where each row begins among the packed tokens, and where the last one ends.
    """
    lengths = starts.diff()
    column = torch.arange(length)
    there = starts[:-1, None] + column
    real = (column < lengths[:, None]).flatten()
    numbers = torch.arange(len(real))
    last = int(starts[-1]) - 1
    return Places(len(lengths), length, there.flatten().clamp(max=last), numbers[real], numbers[~real])


class Pad(torch.autograd.Function):
    """Packed tokens, (tokens, width), as a padded batch, (rows * length, width), with zeros at its empty places."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, where: Places) -> Tensor:
        """Pad."""
        ctx.where = where
        return packed.index_select(0, where.there).index_fill_(0, where.empty, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pack."""
        return gradient.index_select(0, ctx.where.back), None


class Pack(torch.autograd.Function):
    """A padded batch, (rows * length, width), as packed tokens, (tokens, width)."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, where: Places) -> Tensor:
        """Pack."""
        ctx.where = where
        return padded.index_select(0, where.back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pad."""
        return gradient.index_select(0, ctx.where.there).index_fill_(0, ctx.where.empty, 0), None


def joined(heads: Tensor) -> Tensor:
    """Return (1, heads, tokens, head_dim) as (tokens, heads * head_dim)."""
    return heads[0].transpose(0, 1).flatten(1)


def split(tokens: Tensor, rows: int, heads: int) -> Tensor:
    """Return (rows * length, heads * head_dim) as (rows, heads, length, head_dim)."""
    return tokens.unflatten(1, (heads, -1)).unflatten(0, (rows, -1)).transpose(1, 2)
