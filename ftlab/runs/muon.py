"""Muon for matrices and AdamW for everything else as one optimizer: torch's Muon takes matrices only."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments


class MuonAndAdamW(Optimizer):
    """torch's Muon on the first parameter group, torch's AdamW on the others.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; updates are scaled to the size of AdamW's,
    so that a learning rate for AdamW fits (arXiv:2502.16982).
    """

    def __init__(self, matrices: list[Tensor], others: list[dict[str, Any]], args: TrainingArguments) -> None:
        """Create both optimizers.

        Args:
            matrices: the weights that Muon trains. others: AdamW's parameter groups.
            args: learning rate, weight decay, AdamW's betas and epsilon.
        """
        rate, betas = args.learning_rate, (args.adam_beta1, args.adam_beta2)
        decay = args.weight_decay
        muon = Muon([{"params": matrices}], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.parts: tuple[Optimizer, Optimizer] = (muon, AdamW(others, lr=rate, betas=betas, eps=args.adam_epsilon))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one step; a closure, which Trainer never passes, is not evaluated."""
        # Loading a state replaces groups and state, so both parts get them at every step.
        for part, groups in zip(self.parts, (self.param_groups[:1], self.param_groups[1:]), strict=True):
            part.param_groups, part.state = groups, self.state
            part.step()
        return None


def optimizer(model: PreTrainedModel | PeftModel, args: TrainingArguments) -> MuonAndAdamW:
    """Return the optimizer of a model's trainable weights: Muon for the matrices between embedding and output layer."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    ends = [layer for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer is not None]
    outside = {id(weight) for layer in ends for weight in layer.parameters()}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    inside = {name: weight for name, weight in trained.items() if weight.ndim == 2 and id(weight) not in outside}
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    left = {name: weight for name, weight in trained.items() if name not in inside}
    groups: list[dict[str, Any]] = [
        {"params": [weight for name, weight in left.items() if (name in decayed) is decays], "weight_decay": rate}
        for decays, rate in ((True, args.weight_decay), (False, 0.0))
    ]
    return MuonAndAdamW(list(inside.values()), groups, args)
