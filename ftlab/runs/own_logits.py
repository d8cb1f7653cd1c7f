"""Refuse a model that TRL would train on other probabilities than its own: passes over a few tokens before training.

Most of TRL's trainers compute the logits themselves, from the hidden states and the output layer. Of what a family does
with its logits they know scales and Gemma's cap, but not RecurrentGemma's. Packing keeps examples apart by positions
that begin again, which families without rotary positions (BLOOM, MPT, OPT) and those with a state (Mamba, RWKV) ignore.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer

from ftlab.errors import fail, reason_of
from ftlab.memory import PLAIN_ATTENTION
from ftlab.recipe.keys import REWARDED, Recipe

# Objectives whose trainer computes the logits itself.
COMPUTED = ("sft", "pt", "dpo", "kto", "grpo", "rloo")
# Tokens of an example.
LENGTH = 16


@torch.no_grad()
def require(trainer: Trainer, recipe: Recipe) -> None:
    """Check the log-probabilities of a trainer, and those of a packed example, against the model's own.

    Families whose layers are Llama's are known to be right. Sharded weights cannot be used before training begins.

    Raises:
        LabError: they differ by more than rounding.
    """
    model: Any = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    if model.config.model_type in PLAIN_ATTENTION or trainer.args.fsdp or trainer.args.deepspeed:
        return
    family, training, rows = model.config.model_type, model.training, model.get_input_embeddings().weight.shape[0]
    model.eval()
    first, second = torch.arange(2 * LENGTH, device=model.device).remainder(rows).view(2, 1, LENGTH)
    alone = {"input_ids": second, "attention_mask": torch.ones_like(second)}
    own = model(**alone, use_cache=False).logits.float()
    if recipe.objective in COMPUTED and not recipe.own_loss:
        scores = own[:, :-1] / (recipe.temperature if recipe.objective in REWARDED else 1.0)
        wanted = scores.log_softmax(-1).gather(-1, second[:, 1:, None]).squeeze(-1)
        if differs(model(**alone, labels=second, fused_lm_head=True).log_probs, wanted, model.dtype):
            raise fail("train_other_logits", where="model_name_or_path", family=family)
    if getattr(trainer, "padding_free", False):
        row = torch.cat([first, second], 1)[0].tolist()
        batch = trainer.data_collator([{"input_ids": row, "labels": row, "seq_lengths": [LENGTH, LENGTH]}])
        inputs = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        try:
            packed = model(**inputs | {"use_cache": False, "labels": None}).logits[:, LENGTH:].float()
        except ValueError as error:
            raise fail("train_not_packed", where="packing", family=family, reason=reason_of(error)) from None
        if differs(packed, own, model.dtype):
            raise fail("train_not_apart", where="packing", family=family)
    model.train(training)


def differs(values: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Return True if the mean difference of two tensors, as a share of their spread, is beyond a format's rounding."""
    return bool((values - wanted).abs().mean() > torch.finfo(dtype).eps ** 0.5 * wanted.std())
