"""Refuse a model that would be trained on other probabilities than its own: passes over a few tokens before training.

Most of TRL's trainers compute the logits themselves, from the hidden states and the output layer. Of what a family does
with its logits they know scales and Gemma's cap, but not RecurrentGemma's. Packing keeps examples apart by positions
that begin again, which families without rotary positions (BLOOM, MPT, OPT) and those with a state (Mamba, RWKV) ignore.
What is known of a family is refused before its weights are loaded.
"""

from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer

from ftlab.errors import fail, reason_of, say
from ftlab.memory import PLAIN_ATTENTION
from ftlab.recipe.keys import REWARDED, Recipe

# Objectives whose trainer computes the logits itself.
COMPUTED = ("sft", "pt", "dpo", "kto", "grpo", "rloo")
# Tokens of an example.
LENGTH = 16
# Families that `require` refuses: all, those on packed examples, those on packed examples without flash attention.
OTHER_LOGITS = ("recurrent_gemma",)
NOT_APART = ("bloom", "mpt", "opt", "mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "minimax")
NOT_APART_WITHOUT_FLASH = ("gpt_oss", "falcon")
# Families whose convolutions keep packed examples apart with this package only.
CONVOLUTION = "causal_conv1d"
CONVOLVED = (
    "lfm2", "lfm2_moe", "falcon_h1", "bamba", "granitemoehybrid", "qwen3_next", "qwen3_5", "qwen3_5_text",
    "qwen3_5_moe", "qwen3_5_moe_text", "zamba2", "nemotron_h", "olmo_hybrid",
)  # fmt: skip


def refuse_family(recipe: Recipe, config: dict[str, Any]) -> None:
    """Refuse what a model's config.json tells: its loss would be wrong.

    Raises:
        LabError: as `require`; or attention that is wrong with Falcon's ALiBi.
    """
    family, flash = str(config.get("model_type")), recipe.flash_attn in ("fa2", "fa3")
    if family in OTHER_LOGITS and recipe.objective in COMPUTED and not recipe.own_loss:
        raise fail("train_other_logits", where="model_name_or_path", family=family)
    if family == "falcon" and config.get("alibi") and recipe.flash_attn not in ("auto", "sdpa"):
        raise fail("train_alibi", where="flash_attn")
    if not recipe.packs or recipe.objective != "sft":
        return
    if family in NOT_APART or (family in NOT_APART_WITHOUT_FLASH and not flash):
        raise fail("train_not_apart", where="packing", family=family)
    if family in CONVOLVED and not find_spec(CONVOLUTION):
        reason = say("train_needs_package", package=CONVOLUTION)
        raise fail("train_not_packed", where="packing", family=family, reason=reason)


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
    balanced = {"output_router_logits": True} if getattr(trainer, "aux_loss_enabled", False) else {}
    if recipe.objective in COMPUTED and not recipe.own_loss:
        scores = own[:, :-1] / (recipe.temperature if recipe.objective in REWARDED else 1.0)
        wanted = scores.log_softmax(-1).gather(-1, second[:, 1:, None]).squeeze(-1)
        try:
            computed = model(**alone | balanced, labels=second, fused_lm_head=True).log_probs
        # A family without what TRL expects, such as hidden states, or routers' logits for the balancing loss.
        except (AttributeError, IndexError, TypeError) as error:
            raise fail("train_no_loss", where="model_name_or_path", family=family, reason=reason_of(error)) from None
        if differs(computed, wanted, model.dtype):
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
