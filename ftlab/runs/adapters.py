"""A recipe's PEFT method: its config, its layers, and AdaLoRA's callback."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import peft
import torch
from peft import AdaLoraConfig, AdaLoraModel, OFTConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlab import saved_weights
from ftlab.errors import fail, say, suggest
from ftlab.recipe import library_args
from ftlab.recipe.keys import Recipe
from ftlab.runs import targets

# Fields of PEFT's configs -> the recipe key to use instead.
OWN_KEYS = {
    "target_modules": "lora_target", "modules_to_save": "additional_target", "task_type": "stage",
    "peft_type": "finetuning_type", "base_model_name_or_path": "model_name_or_path", "revision": "model_revision",
    "inference_mode": "adapter_name_or_path", "auto_mapping": "finetuning_type",
    "peft_version": "finetuning_type",
}  # fmt: skip


def config_of(recipe: Recipe, model: PreTrainedModel) -> PeftConfig:
    """Return PEFT's config object for a recipe and a model.

    Raises:
        LabError: a field that the method lacks, or that has its own recipe key.
        ValueError, TypeError: values that PEFT refuses.
    """
    kind = getattr(peft, library_args.PEFT_CONFIGS[recipe.finetuning_type])
    require_fields(recipe, kind)
    require_values(recipe, kind)
    config = kind(**library_args.peft_settings(recipe) | layers(recipe, model))
    if isinstance(config, AdaLoraConfig) and config.target_r >= config.init_r:
        reason = say("fits_target_r", target=config.target_r, initial=config.init_r)
        raise fail("recipe_together", where="peft_config", reason=reason)
    return config


def require_block_size(model: PeftModel) -> None:
    """Refuse blocks of OFT whose size or number does not divide a layer's inputs: PEFT warns, and takes another.

    Raises:
        LabError: with the layer, and what PEFT would take.
    """
    for name, config in model.peft_config.items():
        layers = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, OFTLayer))
        for path, layer in layers if isinstance(config, OFTConfig) else ():
            for field, taken in (("oft_block_size", layer.oft_block_size[name]), ("r", layer.r[name])):
                if getattr(config, field) not in (0, taken):
                    values = {"value": getattr(config, field), "layer": path.rpartition(".")[2], "taken": taken}
                    raise fail("train_oft_size", where=f"peft_config.{field}", inputs=layer.in_features, **values)


def save_plain(model: PeftModel, start: str | Path, folder: str | Path) -> None:
    """Save an adapter whose start was subtracted from the base as the difference from the original base.

    Any tool can then load it. The update B A - B0 A0 is one product of twice the rank: [B, -B0] [A; A0].

    Args:
        start: the folder of the adapter as it was before training.
    """
    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    initial = load_file(Path(start) / saved_weights.ADAPTER_WEIGHTS)
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))
    path = Path(folder) / saved_weights.ADAPTER_WEIGHTS
    saved = load_file(path)
    # PEFT converts the matrices of linear layers, and leaves out all other weights: layers that are trained whole
    # (`additional_target`, the head of a reward model), and LoRA on an embedding.
    others = {name: weight.detach().cpu() for name, weight in trained.items() if name not in saved}
    for name, weight in others.items():
        if "lora_embedding_A" in name:
            others[name] = torch.cat([weight, initial[name]])
        elif "lora_embedding_B" in name:
            others[name] = torch.cat([weight, -initial[name]], dim=1)
    save_file({name: weight.contiguous() for name, weight in (saved | others).items()}, path, {"format": "pt"})


def require_fields(recipe: Recipe, kind: type[PeftConfig]) -> None:
    """Refuse fields of `peft_config` that a method does not have.

    Raises:
        LabError: with the nearest field, or the key to use instead.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in OWN_KEYS]
    for name in recipe.peft_config:
        where = f"peft_config.{name}"
        if name in OWN_KEYS:
            raise fail("recipe_out_of_reach", where=where, key=name, instead=f"write `{OWN_KEYS[name]}`")
        if name not in known:
            raise fail("recipe_unknown_key", where=where, key=name, hint=suggest(name, known, ", ".join(known)))


def require_values(recipe: Recipe, kind: type[PeftConfig]) -> None:
    """Refuse values of `peft_config` that PEFT would find out about in training, or never.

    Raises:
        LabError: a number or true/false of another type, or a dropout that is not a probability.
    """
    hints = typing.get_type_hints(kind)
    for name, value in recipe.peft_config.items():
        types = set(typing.get_args(hints[name]) or [hints[name]])
        plain = types <= {int, float, bool, type(None)}
        fits = isinstance(value, tuple(types | {int} if float in types else types)) if plain else True
        fits = fits and (bool in types or not isinstance(value, bool))
        if not fits or ("dropout" in name and not 0 <= value < 1):
            reason = f"`{name}` cannot be {value!r}"
            raise fail("train_peft_config", where="peft_config", reason=reason)


def layers(recipe: Recipe, model: PreTrainedModel) -> dict[str, Any]:
    """Return the config fields that depend on a model: a mixture's weights, norms, embedding and output layer."""
    whole = library_args.names(recipe.additional_target or "")
    grown = {"modules_to_save": sorted({*whole, *vocabulary_layers(model)})} if recipe.add_tokens else {}
    every: dict[str, Any] = {}
    if recipe.finetuning_type == "ln_tuning" and recipe.lora_target == "all":
        every = {"target_modules": norms(model)}
    elif library_args.peft_settings(recipe).get("target_modules") == "all-linear" and targets.needs_names(model):
        every = {"target_modules": sorted(targets.all_linear(model))}
    return grown | every | (targets.adapted(recipe, model) if recipe.finetuning_type == "lora" else {})


def vocabulary_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of a model's embedding and output layer; a tied output layer is trained separately."""
    ends = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    modules = model.named_modules(remove_duplicate=False)
    return [targets.leaf(path) for path, module in modules if any(module is layer for layer in ends)]


def norms(model: nn.Module) -> list[str]:
    """Return the names of a model's norms."""
    return sorted({targets.leaf(path) for path, module in model.named_modules() if "Norm" in type(module).__name__})


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Return the base of a model with its adapter merged, which gives the same answers."""
    untie_if_trained_apart(model.get_base_model())
    return model.merge_and_unload()


def untie_if_trained_apart(model: PreTrainedModel) -> None:
    """Untie a tied model's head if an adapter changed only one of head and embedding.

    Otherwise the merge would change the head through the embedding, and a reload would tie them again.
    """
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in (inside, outside))
    if not (adapted and model.config.tie_word_embeddings):
        return
    model.config.tie_word_embeddings = False
    for layer in (inside, outside):
        for module in layer.modules():
            # A wrapper exposes its layer's weight as a property; only the layer itself owns it.
            if "weight" in dict(module.named_parameters(recurse=False)):
                module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)


class Allocate(TrainerCallback):
    """Let AdaLoRA reallocate ranks: PEFT needs the gradients, after each step and before they are cleared."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the number of steps over which ranks are allocated.

        Raises:
            LabError: `tinit` and `tfinal` leave no steps.
        """
        config = adalora(model).peft_config["default"]
        # The allocator shares this config object.
        config.total_step = min(config.total_step, state.max_steps)
        before = config.total_step - config.tfinal
        if before - config.tinit < 1:
            reason = say("fits_no_steps", first=config.tinit, last=config.tfinal, steps=config.total_step)
            raise fail("recipe_together", where="peft_config", reason=reason)
        if before < 2:
            # PEFT scores ranks in the steps before the one that masks them for good.
            reason = say("fits_few_steps", steps=before)
            raise fail("recipe_together", where="peft_config", reason=reason)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Update the importance of each rank, and mask the least important ones."""
        adalora(model).update_and_allocate(state.global_step + 1)


def adalora(model: Any) -> AdaLoraModel:
    """Return PEFT's model around the base, below Trainer's wrappers."""
    return getattr(model, "module", model).base_model
