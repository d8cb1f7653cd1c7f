"""Losses of supervised fine-tuning that TRL lacks: EAFT weights tokens by entropy, ASFT anchors DFT at a reference.

Sources: EAFT arXiv:2601.02151, ASFT arXiv:2509.23753, DFT arXiv:2508.05629.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from trl import SFTTrainer

from ftlab.recipe.keys import Recipe

# The entropy is over this many likeliest tokens; its maximum is about this: ln 20 = 3.0.
LIKELIEST, LARGEST_ENTROPY = 20, 3.0


def eaft(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Return the loss of each label times (entropy / 3) ** alpha, which has no gradient.

    A token that the model is confidently wrong about conflicts with its knowledge; its weight is small. Example: an
    equal choice among 20 tokens has weight (ln 20 / 3) ** alpha = 1.0, a certain one 0.

    Args:
        logits: (N, V). labels: (N,), without -100.
    Returns:
        (N,), in nats.
    """
    with torch.no_grad():
        logs = logits.topk(min(LIKELIEST, logits.shape[-1])).values.log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        weight = (entropy / LARGEST_ENTROPY) ** alpha
    return functional.cross_entropy(logits, labels, reduction="none") * weight


def asft(logits: Tensor, labels: Tensor, reference: Tensor, alpha: float) -> Tensor:
    """Return DFT's loss of each label, -p log p with p fixed, plus alpha * KL(reference || model).

    Args:
        logits: (N, V). labels: (N,), without -100. reference: (N, V), logits of the model before training.
    Returns:
        (N,), in nats.
    """
    logs = logits.log_softmax(-1)
    label = logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    divergence = functional.kl_div(logs, reference.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return -label * label.detach().exp() + alpha * divergence


def per_token(recipe: Recipe, logits: Tensor, labels: Tensor, reference: Callable[[], Tensor]) -> Tensor:
    """Return the recipe's loss of each label.

    Args:
        logits: (N, V). labels: (N,), without -100. reference: returns the logits of ASFT's reference, (N, V).
    Returns:
        (N,), in nats.
    """
    if recipe.use_eaft_loss:
        return eaft(logits, labels, recipe.eaft_alpha)
    return asft(logits, labels, reference(), recipe.asft_alpha)


class LossTrainer(SFTTrainer):
    """SFTTrainer with one of these losses; TRL has no setting for a custom loss per token.

    Attributes:
        recipe: gives the loss and its alpha.
        reference: the model that ASFT stays close to; None: the trained one without its adapter.
    """

    recipe: Recipe
    reference: PreTrainedModel | None = None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean over the labelled tokens of an optimizer step, and the model's outputs if requested."""
        labels = inputs["labels"][:, 1:]
        trained = labels != -100
        model_inputs = {name: value for name, value in inputs.items() if name != "labels"} | {"use_cache": False}
        model_inputs |= {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**model_inputs)
        logits = outputs.logits[:, :-1][trained].float()
        losses = per_token(self.recipe, logits, labels[trained], lambda: self.anchor(model, model_inputs, trained))
        count = trained.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / torch.as_tensor(count, device=losses.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The count is over all processes, whose gradients are averaged.
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        self._metrics["train" if self.model.training else "eval"]["mean_token_accuracy"].append(
            (logits.argmax(-1) == labels[trained]).float().mean().item()
        )
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def anchor(self, model: Any, asked: dict[str, Any], trained: Tensor) -> Tensor:
        """Return the reference's logits for the labelled positions, (N, V)."""
        own = self.accelerator.unwrap_model(model)
        anchored = self.reference or model
        without = own.disable_adapter() if self.reference is None and isinstance(own, PeftModel) else nullcontext()
        # With dropout the reference would differ at each step.
        trains = anchored.training
        anchored.eval()
        with without:
            logits = anchored(**asked).logits[:, :-1][trained].float()
        anchored.train(trains)
        return logits


def trainer_class(recipe: Recipe, reference: PreTrainedModel | None) -> type[SFTTrainer]:
    """Return the trainer class for a recipe's loss."""
    return type("LossTrainer", (LossTrainer,), {"recipe": recipe, "reference": reference})
