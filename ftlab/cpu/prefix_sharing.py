"""Prefixes that the rows of a batch share are computed once: a group's question, the first lines of a template.

A decoder's values for a token depend only on the tokens before it. Two rows with the same first tokens have the same
values there, so a batch is a tree: each node is one token to compute, each row is a path through it. Norms,
projections and MLPs treat every token separately and take the nodes as one row without padding; only attention needs
to know the paths.

A worked example, two rows that share two tokens; row 1 is padded by one:

    input_ids    7 8 9 4        attention_mask  1 1 1 1
                 7 8 5 0                        1 1 1 0

`shared_with` finds that row 1 has 2 first tokens in common with row 0, so row 0 owns 4 nodes and row 1 owns 1:

    node         0 1 2 3 4      5 instead of 8 places are computed
    tokens       7 8 9 4 5
    depths       0 1 2 3 2      position ids: node 4 is the third token of its row
    nodes        0 1 2 3        the node at each place; padding may show any node, nothing reads it
                 0 1 4 0

A node may attend to the nodes of its rows that do not come after it. In a small tree that is one mask over all nodes:

    node 2 sees  0 1 2          node 3 sees 0 1 2 3          node 4 sees 0 1 4

The mask of n nodes has n * n entries, most of them hidden when there are many rows. A large tree (more than `TOGETHER`)
therefore attends in tables instead: the queries are the tokens that a row owns, the keys are all tokens of the row.
Row 1 has a single query, node 4 at depth 2, and the keys of nodes 0 1 4: 1 x 3 entries.

In the backward pass a shared node gets the sum of the gradients at its places (`Spread`): node 1 that of both rows.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.cpu.attention import attend_padded
from ftlab.cpu.patches import replace

# Up to this many nodes one mask over all of them is faster than gathering every row's keys and values.
TOGETHER = 256
# oneDNN compiles a kernel for every new shape: a millisecond each, about forty a step. Rounded sizes repeat; the spare
# nodes cost less than the kernels.
GRAIN = 16
# Allowed arguments of a call: any other might depend on a row's own positions.
UNDERSTOOD = ("use_cache", "position_ids", "output_hidden_states")


class Places(NamedTuple):
    """Where the tokens of packed rows are in a padded batch.

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
        """Return the padded batch."""
        ctx.where = where
        return packed.index_select(0, where.there).index_fill_(0, where.empty, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the packed tokens."""
        return gradient.index_select(0, ctx.where.back), None


class Pack(torch.autograd.Function):
    """A padded batch, (rows * length, width), as packed tokens, (tokens, width)."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, where: Places) -> Tensor:
        """Return the packed tokens."""
        ctx.where = where
        return padded.index_select(0, where.back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the padded batch."""
        return gradient.index_select(0, ctx.where.there).index_fill_(0, ctx.where.empty, 0), None


def joined(heads: Tensor) -> Tensor:
    """Return (1, heads, tokens, head_dim) as (tokens, heads * head_dim)."""
    return heads[0].transpose(0, 1).flatten(1)


def split(tokens: Tensor, rows: int, heads: int) -> Tensor:
    """Return (rows * length, heads * head_dim) as (rows, heads, length, head_dim)."""
    return tokens.unflatten(1, (heads, -1)).unflatten(0, (rows, -1)).transpose(1, 2)


class Spread(torch.autograd.Function):
    """Tokens, (tokens, width), at every place of a padded batch, (places, width); a token may stand at many."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, there: Tensor) -> Tensor:
        """Return the token at every place."""
        ctx.there, ctx.tokens = there, len(packed)
        return packed.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the sum of the gradients of a token's places, added in float32: 16 bits would lose small ones."""
        total = gradient.new_zeros(ctx.tokens, gradient.shape[1], dtype=torch.float32)
        total.index_add_(0, ctx.there, gradient.float())
        return total.to(gradient.dtype), None


class Table(NamedTuple):
    """The attention of some rows: each one's own tokens against all tokens up to them.

    Attributes:
        own: which packed tokens these are. where: their places, (rows, longest).
        keys: (rows * keys,), the token at each place of the whole rows. mask: (rows, 1, longest, keys).
    """

    own: slice
    where: Places
    keys: Tensor
    mask: Tensor


class Tree(NamedTuple):
    """A batch whose rows share prefixes.

    Attributes:
        tokens, depths: (nodes,), each node's token, and how many tokens stand before it in its rows. The last few nodes
            are spare: they fill up a whole number of `GRAIN` and are at no place.
        nodes: (batch, seq_len), the node at each place; any at padding.
        mask: (1, 1, nodes, nodes), of few nodes: added to their scores.
        tables: of many nodes, the attention of all but the spare ones, in their order.
    """

    tokens: Tensor
    depths: Tensor
    nodes: Tensor
    mask: Tensor | None
    tables: list[Table]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Return the attention (1, nodes, heads, head_dim) of (1, heads, nodes, head_dim)."""
        if self.mask is not None:
            return attend_padded(module, query, key, value, self.mask.to(query.dtype), scaling, dropout)
        flat, outputs = [joined(part) for part in (query, key, value)], []
        for one in self.tables:
            rows = one.where.rows
            mine = split(Pad.apply(flat[0][one.own], one.where), rows, query.shape[1])
            keys, values = (split(Spread.apply(part, one.keys), rows, key.shape[1]) for part in flat[1:])
            result = attend_padded(module, mine, keys, values, one.mask.to(query.dtype), scaling, dropout)
            outputs.append(Pack.apply(result.flatten(0, 1).flatten(1), one.where))
        spare = query.shape[2] - sum(map(len, outputs))
        return nn.functional.pad(torch.cat(outputs), (0, 0, 0, spare)).view(1, -1, *query.shape[1::2])


def grow(input_ids: Tensor, attention_mask: Tensor) -> Tree:
    """Return the tree of a padded batch, (batch, seq_len); the tokens of a row stand side by side."""
    real = attention_mask.bool()
    lengths = real.sum(1)
    column = torch.arange(in_grains(int(lengths.max())))
    there = column < lengths[:, None]
    ids = input_ids.new_full(there.shape, -1)
    ids[there] = input_ids[real]
    common, like = shared_with(ids, lengths)
    own = lengths - common
    # A table is as wide as its longest row: the short ends of rows with a long shared prefix get their own table,
    # else each of them would be padded to the length of a whole row.
    short = own <= len(column) // 2
    groups = [rows for kind in (~short, short & (own > 0)) if len(rows := kind.nonzero()[:, 0])]
    order = torch.cat(groups)
    starts = torch.zeros_like(own)
    starts[order] = own[order].cumsum(0) - own[order]
    # A row's own tokens are numbered from its start; what it shares has the numbers of the earlier row, which are final
    # when the loop comes to this one.
    nodes = starts[:, None] + column - common[:, None]
    for i in range(len(nodes)):
        nodes[i, : common[i]] = nodes[like[i], : common[i]]
    nodes[~there] = 0
    size = in_grains(int(own.sum()))
    tokens, depths = ids.new_zeros(size), ids.new_zeros(size)
    tokens[nodes[there]], depths[nodes[there]] = ids[there], column.expand_as(nodes)[there]
    padded = torch.zeros_like(input_ids)
    padded[real] = nodes[there]
    if size <= TOGETHER:
        return Tree(tokens, depths, padded, ancestry(nodes, there, depths), [])
    tables = [attended(nodes[rows], lengths[rows], common[rows], int(starts[rows[0]])) for rows in groups]
    return Tree(tokens, depths, padded, None, tables)


def in_grains(size: int) -> int:
    """Return the next whole number of `GRAIN`."""
    return -(-size // GRAIN) * GRAIN


def ancestry(nodes: Tensor, there: Tensor, depths: Tensor) -> Tensor:
    """Return the mask of all nodes: a node sees those of its rows that do not stand behind it.

    Args:
        nodes, there: (rows, longest), the node at each place, and whether there is one. depths: (nodes,).
    """
    seen = torch.zeros(len(depths), len(depths), dtype=torch.bool)
    for row, real in zip(nodes, there, strict=True):
        seen[row[real, None], row[real]] = True
    return blocked(~seen | (depths > depths[:, None]))[None]


def blocked(hidden: Tensor) -> Tensor:
    """Return what is added to scores, (rows, 1, queries, keys), where keys are hidden, (rows, queries, keys)."""
    # Not -inf, which turns a fully hidden row (a spare node) into NaN. bfloat16's smallest number stays finite when it
    # is added to a score, in float32 and in bfloat16.
    return torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.bfloat16).min).unsqueeze(-3)


def shared_with(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many first tokens each row (batch, longest) shares with an earlier row, and which row that is."""
    # Padding is -1 here, so two rows are also alike where both have ended: no row shares more than it has.
    alike = (ids[:, None] == ids).cumprod(2).sum(2).minimum(lengths[:, None])
    common, like = alike.tril(-1).max(1)
    return common, like


def attended(nodes: Tensor, lengths: Tensor, common: Tensor, first: int) -> Table:
    """Return the table of some rows.

    Args:
        nodes: (rows, longest), the token at each of their places. lengths, common: (rows,), how many tokens they have,
            and how many of those are other rows'. first: the number of the first token that is their own.
    """
    own = lengths - common
    where = places(nn.functional.pad(own.cumsum(0), (1, 0)), in_grains(int(own.max())))
    width = in_grains(int(lengths.max()))
    depth = common[:, None] + torch.arange(where.length)
    mask = blocked(torch.arange(width) > depth[:, :, None])
    return Table(slice(first, first + len(where.back)), where, nodes[:, :width].flatten(), mask)


def fits(body: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, given: dict[str, Any]) -> bool:
    """Return True if a call passes a padded batch of whole rows and needs only hidden states."""
    if attention_mask.shape != input_ids.shape:
        return False
    cached = given.get("use_cache")
    if body.config.use_cache if cached is None else cached:
        return False
    # Not `value in (None, False)`, which would compare tensors.
    if any(value is not None and value is not False for name, value in given.items() if name not in UNDERSTOOD):
        return False
    if body.training and drops(body):
        return False
    real = attention_mask.bool()
    # Exactly one run of tokens per row: padding on either side, no hole, no empty row.
    begins = real[:, 0].int() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    window = getattr(body.config, "sliding_window", None)
    if not bool((begins == 1).all()) or (window is not None and input_ids.shape[1] > window):
        return False
    positions = given.get("position_ids")
    return positions is None or torch.equal(positions.expand_as(real)[real], (real.cumsum(1) - 1)[real])


def drops(body: PreTrainedModel) -> bool:
    """Return True if a body uses dropout in training: every row has its own mask, so nothing can be shared."""
    chances = [layer.p for layer in body.modules() if isinstance(layer, nn.Dropout)]
    return any(chances) or bool(getattr(body.config, "attention_dropout", 0))


def forward(
    body: PreTrainedModel, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **given: Any
) -> Any:
    """Return what the body's own `forward` returns; a padded batch of whole rows is computed as a tree."""
    if input_ids is None or attention_mask is None or not fits(body, input_ids, attention_mask, given):
        return type(body).forward(body, input_ids=input_ids, attention_mask=attention_mask, **given)
    tree = grow(input_ids, attention_mask)
    given |= {"position_ids": tree.depths[None], "use_cache": False}
    output = type(body).forward(body, input_ids=tree.tokens[None], shared=tree, **given)

    def at_every_place(hidden: Tensor) -> Tensor:
        return Spread.apply(hidden[0], tree.nodes.flatten()).view(*input_ids.shape, -1)

    output.last_hidden_state = at_every_place(output.last_hidden_state)
    if output.hidden_states is not None:
        output.hidden_states = tuple(map(at_every_place, output.hidden_states))
    return output


def install(body: PreTrainedModel) -> None:
    """Make the body of a model that uses `attention.attention` compute shared prefixes once."""
    replace(body, "forward", partial(forward, body))
