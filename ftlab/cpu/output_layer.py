"""Log-probabilities of labels under a frozen output layer on a CPU: as TRL's, with each product computed once."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from ftlab.cpu.patches import replace
from ftlab.memory import FROZEN_ROWS, even_part

ALL = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def install(tile: int) -> None:
    """Make TRL's losses go through the vocabulary `tile` entries at a time, for labelled positions only.

    TRL's trainers never hold the logits of a whole batch; they go through the vocabulary in tiles of 32,768 entries,
    and without Triton they score every position, even those without a label. Both suit accelerators. On a CPU a
    tile should stay in the cache, and the products of a frozen output layer are computed once (`log_probs`).
    `python -m benchmarks levers` measures what that is worth. TRL has no settings for them, hence the private names.
    """
    replace(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", tile)
    # In that module this name decides whether positions without a label are skipped.
    replace(utils, "_use_triton", lambda device: True)
    # TRL calls the `apply` of an autograd function.
    replace(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=log_probs))


def log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    outputs: tuple[str, ...] = ALL,
) -> tuple[Tensor | None, ...]:
    """Return what trl's `ChunkedLogProbFunction.apply` returns for the same arguments.

    TRL's own code handles a trained or biased output layer, one in another format, capped logits, and scores without a
    gradient, which it computes faster.
    """
    own = hidden.requires_grad and not weight.requires_grad and bias is None and softcap is None
    if not own or weight.dtype != hidden.dtype or torch.is_autocast_enabled(hidden.device.type):
        rest = (temperature, chunk_size, softcap, logit_scale, outputs)
        return ChunkedLogProbFunction.apply(hidden, weight, bias, targets, *rest)
    return FrozenHead.apply(hidden, weight, targets, logit_scale / temperature, outputs)


class FrozenHead(torch.autograd.Function):
    """Log-probability of each position's label, and the other values that TRL logs.

    TRL's function computes all logits again in the backward pass, and multiplies in float32 there, because partial
    sums over a part of the vocabulary must not be rounded to 16 bits. Here all logits of a position are held, so that
    its gradient, up to a factor known only in the backward pass, is one product, computed in the forward pass:
    d log p(label) / d hidden = scale * (weight[label] - sum_v p_v weight[v]).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, outputs: tuple[str, ...]
    ) -> tuple[Tensor | None, ...]:
        """Return (log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1), each (N,), None where not asked for.

        Args:
            hidden: (N, H). weight: (V, H). targets: (N,), int64. scale: what the logits are multiplied by.
        """
        ctx.set_materialize_grads(False)
        slope = torch.empty_like(hidden)
        results = {name: hidden.new_empty(len(hidden), dtype=torch.float32) for name in ("log_probs", *outputs)}
        if "is_top1" in results:
            results["is_top1"] = results["is_top1"].bool()
        # Parts of about the same size: a small remainder would cost almost as much as a full part.
        size = even_part(len(hidden), FROZEN_ROWS)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = (hidden[part] @ weight.t()).float()
            scored, errors = score(logits if scale == 1 else logits.mul_(scale), targets[part], set(results))
            for name, values in scored.items():
                results[name][part] = values
            torch.mm(errors.to(weight.dtype), weight, out=slope[part])
            del logits, errors  # else they stay in memory while the next part is computed
        ctx.save_for_backward(hidden, weight, targets, slope)
        ctx.scale = scale
        columns = [results.get(name) for name in ("log_probs", *ALL)]
        ctx.mark_non_differentiable(*(column for column in columns[2:] if column is not None))
        return tuple(columns)

    @staticmethod
    def backward(ctx: Any, log_probs: Tensor | None, entropy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of `hidden`, (N, H)."""
        hidden, weight, targets, slope = ctx.saved_tensors
        gradient = torch.zeros_like(hidden)
        if log_probs is not None:
            gradient += slope * (-ctx.scale * log_probs).unsqueeze(-1)
        if entropy is not None:
            # Only an entropy bonus needs it, which no recipe has: TRL's own code.
            with torch.enable_grad():
                again = hidden.detach().requires_grad_()
                other = (weight, None, targets, 1.0, weight.shape[0], None, ctx.scale, ("entropy",))
                gradient += torch.autograd.grad(ChunkedLogProbFunction.apply(again, *other)[1], again, entropy)[0]
        return gradient, None, None, None, None


def score(logits: Tensor, targets: Tensor, outputs: set[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Return what is `outputs` of (n, V) float32 logits, each (n,), and softmax(logits) - onehot(targets)."""
    index = targets.unsqueeze(-1)
    scores = {"is_top1": logits.argmax(-1) == targets} if "is_top1" in outputs else {}
    label = logits.gather(-1, index)
    logs = logits.log_softmax(-1)
    scores["log_probs"] = logs.gather(-1, index).squeeze(-1)
    if "mean_logits" in outputs:
        scores["mean_logits"] = logs.mean(-1) + label.squeeze(-1) - scores["log_probs"]
    powers = torch.exp(logs, out=logits)
    if "entropy" in outputs:
        scores["entropy"] = -torch.linalg.vecdot(powers, logs)
    if "log_sum_sq_probs" in outputs:
        scores["log_sum_sq_probs"] = torch.linalg.vecdot(powers, powers).log()
    return scores, powers.scatter_add_(-1, index, torch.full_like(label, -1.0))
