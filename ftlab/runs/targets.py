"""Layers that a recipe names: every name must match a layer of the model."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import check_target_module_exists

from ftlab.errors import fail, near, say
from ftlab.recipe import library_args
from ftlab.recipe.keys import LAYER_METHODS, Recipe
from ftlab.runs import balance

ADAPTED = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.MultiheadAttention, Conv1D)
# Options that PEFT supports for linear layers only.
LINEAR_ONLY = ("lora_dropout", "use_dora", "pissa_init", "init_lora_weights")
# Fields of `peft_config` that name layers.
NAMING = ("exclude_modules", "feedforward_modules", "rank_pattern", "alpha_pattern")
# Families and the layer of theirs that PEFT refuses to adapt: their kernels multiply by its weight without calling it.
MAMBA, NOT_ADAPTED = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), "out_proj"
# Names shown in a message.
SHOWN = 12


def require(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuse names that match nothing in a model, and a balancing loss without a router; weights are not read.

    Raises:
        LabError: with all missing names of the first such key, and the names that the model has.
    """
    for name in ("moe_aux_loss_coef", "moe_aux_loss_per_layer"):
        if getattr(recipe, name) and not balance.has_experts(model):
            raise fail("train_dense", where=name, family=model.config.model_type)
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(recipe.device_map, dict):
        # A key is a prefix of module names; accelerate ignores one that matches no module.
        known = {*modules, *(name for name, _ in model.named_parameters(remove_duplicate=False))}
        refuse("device_map", [name for name in recipe.device_map if name not in known], known)
    if recipe.finetuning_type in ("lora", *LAYER_METHODS) and not recipe.continues:
        # Of PEFT's methods only LoRA adapts plain tensors.
        require_lora(recipe, modules, expert_weights(model) if recipe.finetuning_type == "lora" else [])
        if recipe.peft_config:
            require_peft_config(recipe, modules, len(blocks(model)))
    if recipe.finetuning_type == "freeze":
        require_freeze(recipe, model)
    patterns = recipe.training.get("optim_target_modules")
    if isinstance(patterns, list):
        linear = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
        missing = [name for name in patterns if not any(check_target_module_exists([name], path) for path in linear)]
        refuse("optim_target_modules", missing, map(leaf, linear))


def require_lora(recipe: Recipe, modules: dict[str, nn.Module], weights: list[str]) -> None:
    """Refuse names of `lora_target` and `additional_target` that match nothing, or the same layer twice.

    Args:
        weights: of experts and routers, which LoRA adapts too.
    """
    adapted = [path for path, module in modules.items() if is_adapted(module)]
    targets = [] if recipe.lora_target == "all" else library_args.names(recipe.lora_target)
    whole = library_args.names(recipe.additional_target or "")
    missing = [name for name in targets if not any(ends(path, name) for path in adapted)]
    missing = [name for name in missing if not any(name in called(weight) for weight in weights)]
    refuse("lora_target", missing, [*map(leaf, adapted), *(name for weight in weights for name in called(weight))])
    require_plain(recipe, [weight for weight in weights if not targets or called(weight) & set(targets)])
    owners = [path for path, module in modules.items() if any(True for _ in module.parameters())]
    refuse(
        "additional_target", [name for name in whole if not any(ends(path, name) for path in owners)], map(leaf, owners)
    )
    both = [name for name in targets if name in whole]
    if both:
        reason = f"`lora_target` and `additional_target` both name {', '.join(both)}"
        raise fail("recipe_together", where="additional_target", reason=reason)


def require_peft_config(recipe: Recipe, modules: dict[str, nn.Module], count: int) -> None:
    """Refuse names and numbers of layers in `peft_config` that match nothing: PEFT only warns.

    Args:
        count: how many blocks the model has.
    """
    adapted = [path for path, module in modules.items() if is_adapted(module)]
    for field, value in recipe.peft_config.items():
        if value is None:
            continue
        entries = value if isinstance(value, list | dict) else [value]
        if field in NAMING:
            # PEFT takes a text as a pattern for the whole path, and a key of a dictionary for the end of one.
            match = matches if isinstance(value, dict | str) else ends
            missing = [name for name in map(str, entries) if not any(match(path, name) for path in adapted)]
            refuse(f"peft_config.{field}", missing, map(leaf, adapted))
        if field == "layers_to_transform":
            wrong = [str(number) for number in entries if number not in range(count)]
            if wrong:
                names = f"0, ..., {count - 1}"
                raise fail("train_names", where=f"peft_config.{field}", missing=", ".join(wrong), names=names)


def matches(path: str, pattern: str) -> bool:
    """Return True if a layer's path ends with what a pattern describes."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", path) is not None
    except re.error:
        return False


def require_plain(recipe: Recipe, weights: list[str]) -> None:
    """Refuse options for linear layers only if experts or routers are adapted.

    Raises:
        LabError: the first such key.
    """
    for key in LINEAR_ONLY:
        if weights and getattr(recipe, key):
            reason = say("fits_linear_only", key=key, names=", ".join(weights))
            raise fail("recipe_together", where=key, reason=reason)


def require_freeze(recipe: Recipe, model: nn.Module) -> None:
    """Refuse names of `freeze_trainable_modules` and `freeze_extra_modules` that match nothing in their scope."""
    inside = {id(weight) for weight in blocks(model).parameters()}
    for key, wanted, there in (
        ("freeze_trainable_modules", recipe.freeze_trainable_modules, True),
        ("freeze_extra_modules", recipe.freeze_extra_modules or "", False),
    ):
        every = model.named_parameters(remove_duplicate=False)
        known = {part for name, weight in every if (id(weight) in inside) is there for part in parts(name, there)}
        asked = [] if wanted == "all" else library_args.names(wanted)
        refuse(key, [name for name in asked if name not in known], known)


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return a model's list of layers: the module list with the most weights, because experts are in lists too."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return max(lists, key=lambda module: sum(weight.numel() for weight in module.parameters()))


def parts(name: str, inside: bool) -> Iterator[str]:
    """Yield the names that match a weight's layer, without the number of its block.

    >>> list(parts("model.layers.3.mlp.up_proj.weight", inside=True)), list(parts("lm_head.weight", inside=False))
    (['mlp', 'up_proj'], ['lm_head'])
    """
    *path, _ = name.split(".")
    number = next((place for place, part in enumerate(path) if part.isdigit()), -1)
    # Outside the blocks only the layer itself counts: `model` would match all of them.
    yield from path[number + 1 :] if inside else path[-1:]


def all_linear(model: nn.Module) -> set[str]:
    """Return the names of the layers that `lora_target: all` selects in a model."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    names = {leaf(path) for path, module in model.named_modules() if is_linear(module) and module is not output}
    return names - {NOT_ADAPTED} if family(model) in MAMBA else names


def family(model: nn.Module) -> str:
    """Return a model's `model_type`."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def needs_names(model: nn.Module) -> bool:
    """Return True for a model in which PEFT's "all-linear" finds other layers than `all_linear`."""
    return has_packed_layers(model) or family(model) in MAMBA


def left_out(recipe: Recipe, family: str) -> str:
    """Return a note on the layer that `lora_target: all` leaves out in a family, "" if there is none."""
    every = recipe.finetuning_type == "lora" and recipe.lora_target == "all" and not recipe.continues
    return say("train_left_out", names=NOT_ADAPTED, family=family) if every and family in MAMBA else ""


def is_packed_layer(module: nn.Module) -> bool:
    """Return True for a linear layer of GPTQ, AWQ or AQLM, which is of a class of their packages."""
    return hasattr(module, "qweight") or hasattr(module, "codebooks")


def is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer."""
    return isinstance(module, nn.Linear | Conv1D) or is_packed_layer(module)


def is_adapted(module: nn.Module) -> bool:
    """Return True for a layer that PEFT can adapt."""
    return isinstance(module, ADAPTED) or is_linear(module)


def has_packed_layers(model: nn.Module) -> bool:
    """Return True for a model with layers of GPTQ, AWQ or AQLM, none of which PEFT's "all-linear" finds."""
    return any(map(is_packed_layer, model.modules()))


def expert_weights(model: nn.Module) -> list[str]:
    """Return the names of a mixture's matrices that are plain tensors, such as `experts.down_proj`, `gate.weight`."""
    return sorted(
        {
            f"{path}.{name}"
            for block in model.modules()
            if hasattr(block, "experts")
            for path, module in block.named_modules()
            if not is_adapted(module)
            for name, weight in module.named_parameters(recurse=False)
            if weight.ndim > 1 and not name.endswith("bias")
        }
    )


def adapted(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Return the fields of LoraConfig for `lora_target` in a model: layers, and a mixture's weights."""
    whole = set(library_args.names(recipe.additional_target or ""))
    weights = [weight for weight in expert_weights(model) if not called(weight) & whole]
    if not weights:
        return {}
    linear = all_linear(model)
    if recipe.lora_target == "all":
        # By name: PEFT's "all-linear" doubles the rank of a mixture's `gate_up_proj`.
        return {"target_modules": sorted(linear), "target_parameters": weights}
    names = set(library_args.names(recipe.lora_target))
    chosen = [weight for weight in weights if called(weight) & names]
    # PEFT refuses a module that holds plain tensors.
    plain = {name for weight in chosen for name in called(weight)} - linear
    return {"target_modules": sorted(names - plain), "target_parameters": chosen or None}


def called(weight: str) -> set[str]:
    """Return the names that match a plain tensor.

    >>> sorted(called("experts.down_proj")), called("gate.weight")
    (['down_proj', 'experts'], {'gate'})
    """
    return {part for part in weight.split(".") if part != "weight"}


def refuse(key: str, missing: list[str], known: Iterable[str]) -> None:
    """Refuse a key's missing names, and list the model's, the nearest first.

    Raises:
        LabError: a name is missing.
    """
    if not missing:
        return
    names = sorted({name for name in known if name and not name.isdigit()})
    first = [match for name in missing for match in near(name, names)]
    shown = list(dict.fromkeys([*first, *names]))
    more = f" ... ({len(shown)})" if len(shown) > SHOWN else ""
    raise fail("train_names", where=key, missing=", ".join(missing), names=", ".join(shown[:SHOWN]) + more)


def ends(path: str, name: str) -> bool:
    """Return True if a layer's path is a name, or ends with it after a dot: PEFT's rule for lists."""
    return path == name or path.endswith(f".{name}")


def leaf(path: str) -> str:
    """Return the last part of a layer's path."""
    return path.rpartition(".")[2]
