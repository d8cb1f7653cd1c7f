"""Attention for short rows on a CPU: plain products, no key or value repeated, packed rows each in its own table."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "short_rows"
# Families whose attention is Llama's: nothing is done to the scores beside scaling and masking.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3")


class Places(NamedTuple):
    """Where the tokens of packed rows stand in a padded batch.

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


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    shared: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' plain attention returns, (batch, query_len, heads, head_dim), and no weights.

    Args:
        query: (batch, heads, query_len, head_dim). key, value: (batch, kv_heads, key_len, head_dim).
        attention_mask: (batch, 1, query_len, key_len), added to the scores.
        cu_seq_lens_q: for a batch of one that holds packed rows, where each begins; they do not see each other.
        shared: for a batch of one that holds rows which begin alike, their tree (`shared.Tree`).
    """
    if shared is not None:
        return shared.attend(module, query, key, value, scaling, dropout), None
    if cu_seq_lens_q is None or max_length_q is None:
        return table(module, query, key, value, attention_mask, scaling, dropout), None
    where = places(cu_seq_lens_q, max_length_q)
    padded = [split(Pad.apply(joined(part), where), where.rows, part.shape[1]) for part in (query, key, value)]
    distance = torch.arange(where.length)[:, None] - torch.arange(where.length)
    hidden = (distance < 0) | (distance >= (sliding_window or where.length))
    mask = query.new_zeros(where.length, where.length).masked_fill_(hidden, torch.finfo(query.dtype).min)
    result = table(module, *padded, mask, scaling, dropout)
    return Pack.apply(result.flatten(0, 1).flatten(1), where).view(1, -1, *result.shape[2:]), None


def joined(heads: Tensor) -> Tensor:
    """Return (1, heads, tokens, head_dim) as (tokens, heads * head_dim)."""
    return heads[0].transpose(0, 1).flatten(1)


def split(tokens: Tensor, rows: int, heads: int) -> Tensor:
    """Return (rows * length, heads * head_dim) as (rows, heads, length, head_dim)."""
    return tokens.unflatten(1, (heads, -1)).unflatten(0, (rows, -1)).transpose(1, 2)


def table(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    """Return the attention of a padded batch, (batch, query_len, heads, head_dim)."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    # Heads that share keys and values are rows of one product.
    grouped = query.reshape(batch, groups, -1, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).view(batch, heads, length, -1)
    scores = scores * scaling if mask is None else torch.add(mask, scores, alpha=scaling)
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    result = torch.matmul(weights.view(batch, groups, -1, key.shape[2]), value)
    return result.view(batch, heads, length, width).transpose(1, 2).contiguous()


def use(model: PreTrainedModel) -> bool:
    """Let a model attend with this file's function, if it is of a family where that computes the same; say whether."""
    if model.config.model_type not in FAMILIES:
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    return True


def used(model: nn.Module) -> bool:
    """Say whether a model attends with this file's function."""
    return getattr(model.config, "_attn_implementation", "") == NAME
