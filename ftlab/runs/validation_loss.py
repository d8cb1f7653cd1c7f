"""Validation loss per token: transformers averages the means of batches, which depends on how rows are batched.

Example: batches with mean losses 2 and 4 on 30 and 10 tokens give (30 * 2 + 10 * 4) / 40 = 2.5 per token, not 3. The
training loss, packed rows and `ftlab eval` also average over tokens.
"""

from functools import cache
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

ACCURACY = "mean_token_accuracy"


@cache
def per_token(trainer_class: type[Trainer]) -> type[Trainer]:
    """Return a trainer class of TRL's SFT whose `eval_loss` and `eval_mean_token_accuracy` are means over tokens."""
    return type(trainer_class.__name__, (PerToken, trainer_class), {})


class PerToken(Trainer):
    """An evaluation that weights each batch by its number of labels."""

    # Per batch of an evaluation: the sum of its losses in nats, and its number of labels; (2,), over all processes.
    batches: list[torch.Tensor]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the parent class's result; record the loss and the number of labels of a validation batch."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        # Without the count over all processes the loss is the mean over this process's labels.
        computed = super().compute_loss(model, inputs, return_outputs, None)
        count = (labels[:, 1:] != -100).sum()
        loss = computed[0] if return_outputs else computed
        mine = torch.stack([loss.detach() * count, count.to(loss.dtype)]).double()
        self.batches.append(self.accelerator.gather(mine[None]).sum(0))
        return computed

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the output of an evaluation with the loss per token."""
        self.batches = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if not self.batches:
            return output
        losses, counts = torch.stack(self.batches).cpu().unbind(1)
        output.metrics[f"{metric_key_prefix}_loss"] = (losses.sum() / counts.sum()).item()
        # TRL averages these when it logs them; they already cover all processes.
        measured = self._metrics["eval"]
        if len(shares := measured.get(ACCURACY, [])) == len(self.batches):
            measured[ACCURACY] = [(torch.tensor(shares, dtype=counts.dtype) @ counts / counts.sum()).item()]
        return output
