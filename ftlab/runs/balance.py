"""The balancing loss of a mixture of experts, layer by layer."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ftlab.errors import fail

# The function that transformers' language models call, in their own modules.
POOLED = "load_balancing_loss_func"
# What the block of a mixture has; JetMoe and Doge name their experts otherwise.
ROUTED = ("experts", "router", "router_gate")


def has_experts(model: PreTrainedModel) -> bool:
    """Return True for a mixture of experts.

    The configuration does not tell: Jamba with one expert, Nemotron-H and Qwen3-Next with dense layers alone, and
    GraniteMoeHybrid with none have a mixture's, but no router.
    """
    return hasattr(model.config, "output_router_logits") and any(
        hasattr(block, name) for block in model.modules() for name in ROUTED
    )


def prepare(model: PreTrainedModel) -> None:
    """Let TRL compute the balancing loss of a mixture, and skip it for a model without experts.

    TRL reads `num_experts`, to which Mixtral's configuration maps its `num_local_experts`, and GraniteMoe's does not.
    """
    config = model.config
    if not has_experts(model):
        if hasattr(config, "router_aux_loss_coef"):
            config.router_aux_loss_coef = 0.0
    elif not hasattr(config, "num_experts") and hasattr(config, "num_local_experts"):
        names = config.attribute_map
        type(config).attribute_map = names | {"num_experts": names.get("num_local_experts", "num_local_experts")}


@contextlib.contextmanager
def per_layer(model: PreTrainedModel | PeftModel, enabled: bool) -> Iterator[None]:
    """Compute a mixture's balancing loss as the mean over its layers while the body runs.

    transformers counts the tokens of an expert over all layers: one that is idle in the first layer and busy in the
    second looks balanced. Lesson 13 shows that experts then stay idle. If every layer is balanced both are equal.

    Raises:
        LabError: the model's code computes its balancing loss in another way.
    """
    language_model = model.get_base_model() if isinstance(model, PeftModel) else model
    module = sys.modules[type(language_model).__module__]
    if not enabled:
        yield
        return
    pooled = getattr(module, POOLED, None)
    if pooled is None:
        raise fail("train_dense", where="moe_aux_loss_per_layer", family=language_model.config.model_type)

    def mean(router_logits: tuple[torch.Tensor, ...] | None, *others: Any, **more: Any) -> torch.Tensor | int:
        losses = [pooled((layer,), *others, **more) for layer in router_logits or ()]
        return sum(losses) / len(losses) if losses else 0

    setattr(module, POOLED, mean)
    try:
        yield
    finally:
        setattr(module, POOLED, pooled)
