"""Attention for short rows on a CPU: plain products, no key or value repeated."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from ftlab.cpu.patches import remember

NAME = "short_rows"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    shared: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' plain attention returns, (batch, query_len, heads, head_dim), and no weights.

    Args:
        query: (batch, heads, query_len, head_dim). key, value: (batch, kv_heads, key_len, head_dim).
        attention_mask: (batch, 1, query_len, key_len), added to the scores.
        shared: for a batch of one that holds the tokens of many rows, their tree (`prefix_sharing.Tree`).
    """
    if shared is not None:
        return shared.attend(module, query, key, value, scaling, dropout), None
    return attend_padded(module, query, key, value, attention_mask, scaling, dropout), None


def attend_padded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    """Return the attention of a padded batch, (batch, query_len, heads, head_dim)."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    # Heads that share keys and values become rows of one matrix product.
    grouped = query.reshape(batch, groups, -1, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).view(batch, heads, length, -1)
    scores = scores * scaling if mask is None else torch.add(mask, scores, alpha=scaling)
    # Computed in float32 and rounded once, as transformers does in two steps that keep both.
    weights = nn.functional.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, dropout, module.training)
    result = torch.matmul(weights.view(batch, groups, -1, key.shape[2]), value)
    return result.view(batch, heads, length, width).transpose(1, 2).contiguous()


def use(model: PreTrainedModel) -> None:
    """Let a model of a family in `memory.PLAIN_ATTENTION` attend with this file's function."""
    # An additional name in the library's registry: it replaces nothing, so there is nothing to undo.
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    remember(model, "attention", partial(attend_as_before, kernel=model.config._attn_implementation))
    model.set_attn_implementation(NAME)


def attend_as_before(model: PreTrainedModel, kernel: str) -> None:
    """Restore the attention that a model was loaded with."""
    model.set_attn_implementation(kernel)


def used(model: nn.Module) -> bool:
    """Return True if a model attends with this file's function."""
    return getattr(model.config, "_attn_implementation", "") == NAME
