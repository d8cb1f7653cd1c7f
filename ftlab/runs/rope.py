"""RoPE scaling for rows longer than a model was trained for, by transformers' own configuration."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ftlab import models
from ftlab.errors import fail, say
from ftlab.recipe.keys import Recipe

# Entries of a RoPE configuration besides the scaling.
KEPT = ("rope_theta", "partial_rotary_factor")
# LLaMA-Factory's factors of Llama 3: frequencies below and above these shares of the length are scaled or kept.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaling_of(keys: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return (type, tokens) of the keys `rope_scaling` and `cutoff_len`, None without scaling."""
    way = keys.get("rope_scaling")
    return (way, keys.get("cutoff_len", Recipe.model_fields["cutoff_len"].default)) if way else None


def options(scaling: tuple[str, int] | None, folder: str | Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for RoPE scaling, {} if rows are short enough.

    The factor is LLaMA-Factory's: the length of rows over the trained length, rounded up. `dynamic` scales by
    the length of each batch, only beyond the trained length, which therefore stays in the configuration.

    Raises:
        LabError: the model has no rotary positions, or several kinds of them.
    """
    if scaling is None:
        return {}
    way, tokens = scaling
    with models.loading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    known = getattr(config, "max_position_embeddings", None)
    positions: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if not known or "rope_theta" not in positions:
        raise fail("train_rope", where="rope_scaling", family=config.model_type)
    if tokens <= known:
        return {}
    factor = math.ceil(tokens / known)
    scaled = {name: positions[name] for name in KEPT if name in positions} | {"rope_type": way, "factor": float(factor)}
    if way == "dynamic":
        return {"rope_parameters": scaled}
    if way != "linear":
        scaled |= {"original_max_position_embeddings": known} | (LLAMA3 if way == "llama3" else {})
    return {"rope_parameters": scaled, "max_position_embeddings": known * factor}


def note(recipe: Recipe, folder: str | Path) -> str:
    """Return a note on a recipe's `rope_scaling`, "" without one."""
    scaling = scaling_of(recipe.model_dump())
    if not scaling:
        return ""
    settings = options(scaling, folder, recipe.trust_remote_code)
    if not settings:
        return say("train_rope_short", way=scaling[0], tokens=scaling[1])
    return say("train_rope_used", way=scaling[0], factor=settings["rope_parameters"]["factor"])
