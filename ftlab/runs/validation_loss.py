"""Validation loss per token: transformers averages the means of batches, so that it would depend on their size.

Example: batches with mean losses 2 and 4 on 30 and 10 tokens give (30 * 2 + 10 * 4) / 40 = 2.5 per token, not 3. The
training loss, packed rows and `ftlab eval` count tokens as well.
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
    """Evaluation in which each batch counts by its number of labels."""

    # Of each batch of an evaluation: the sum of its losses in nats, and its number of labels; (2,), of all processes.
    batches: list[torch.Tensor]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return what the class below returns; of a validation batch keep its loss and its number of labels."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        # Without the count of all processes the loss is the mean over the labels of this one.
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
        """Return the outcome of an evaluation, its loss per token."""
        self.batches = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if not self.batches:
            return output
        losses, counts = torch.stack(self.batches).cpu().unbind(1)
        output.metrics[f"{metric_key_prefix}_loss"] = (losses.sum() / counts.sum()).item()
        # TRL averages these where they are logged; they are of all processes already.
        measured = self._metrics["eval"]
        if len(shares := measured.get(ACCURACY, [])) == len(self.batches):
            measured[ACCURACY] = [(torch.tensor(shares, dtype=counts.dtype) @ counts / counts.sum()).item()]
        return output
