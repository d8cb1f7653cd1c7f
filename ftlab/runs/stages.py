"""A recipe's stage as library objects: the config, the model with what is trained on it, and TRL's trainer for it."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)

from ftlab import models, shortcuts
from ftlab.device import Machine, keep_gradients
from ftlab.errors import fail
from ftlab.runs import fields, rewards
from ftlab.runs.keys import Recipe
from ftlab.runs.tokenized import takes_ids
from ftlab.shortcuts import lean


def trainer_classes(objective: str) -> tuple[type, type]:
    """Return (config class, trainer class) for what a recipe trains; only these are imported."""
    module, *names = fields.TRAINERS[objective]
    config, trainer = (getattr(importlib.import_module(module), name) for name in names)
    return config, trainer


def training_args(recipe: Recipe, folder: Path, machine: Machine) -> tuple[Any, list[str]]:
    """Return TRL's config object for a recipe on a machine, and notes on what the machine could not do.

    Raises:
        LabError: a value, or a combination, that transformers refuses.
    """
    config_class, _ = trainer_classes(recipe.objective)
    values, notes = fields.training_settings(recipe, folder, machine)
    try:
        return config_class(**values), notes
    except (TypeError, ValueError, KeyError, AttributeError, ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise fail("recipe_training", reason=reason) from None


def load_model(recipe: Recipe, path: str, machine: Machine) -> PreTrainedModel:
    """Return the base model of a recipe; a reward model has one output instead of a vocabulary.

    Raises:
        LabError: transformers cannot load it.
    """
    options = fields.model_settings(recipe, machine)
    if recipe.quantization_bit:
        options["quantization_config"] = BitsAndBytesConfig(**fields.quantization_settings(recipe, machine))
    kind: Any = AutoModelForSequenceClassification if recipe.stage == "rm" else AutoModelForCausalLM
    try:
        model = kind.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise fail("train_model", where=path, reason=(str(error).splitlines() or ["?"])[0][:200]) from None
    keep_gradients(model)
    if fields.takes_shortcuts(recipe, machine):
        shortcuts.install(model)
    return model


def prepare_model(recipe: Recipe, model: PreTrainedModel) -> nn.Module:
    """Return the model with the weights marked that this recipe trains.

    Raises:
        LabError: a layer that the recipe names and the model lacks.
    """
    # What Trainer's own loop needs and generation does not: keys and values of a pass are never used again.
    model.config.use_cache = False
    if recipe.finetuning_type == "full":
        return model
    if recipe.finetuning_type == "freeze":
        return freeze(recipe, model)
    try:
        own_dtype = {"autocast_adapter_dtype": fields.adapts_in_float32(recipe, model.device.type)}
        if recipe.adapter_name_or_path:
            start = models.adapter(recipe.adapter_name_or_path)
            adapted = PeftModel.from_pretrained(model, start, is_trainable=True, **own_dtype)
        else:
            adapted = get_peft_model(model, LoraConfig(**fields.lora_settings(recipe)), **own_dtype)
        # Trainer loads a checkpoint's adapter by this call; a resumed run must go on in the format it began in.
        adapted.load_adapter = partial(adapted.load_adapter, **own_dtype)
        if model.device.type == "cpu" and recipe.shortcuts:
            lean.install(adapted)
        return adapted
    except (ValueError, OSError, TypeError) as error:
        raise fail("train_adapter", where="lora_target", reason=str(error).splitlines()[0][:200]) from None


def freeze(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """Leave only some layers trainable: the last n, or the first n where n is negative."""
    layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    count = recipe.freeze_trainable_layers
    if not 1 <= abs(count) <= len(layers):
        raise fail("train_freeze", where="freeze_trainable_layers", count=count, layers=len(layers))
    model.requires_grad_(False)
    chosen = layers[-count:] if count > 0 else layers[:-count]
    wanted = None if recipe.freeze_trainable_modules == "all" else fields.names(recipe.freeze_trainable_modules)
    for layer in chosen:
        for name, weight in layer.named_parameters():
            weight.requires_grad_(wanted is None or any(part in name.split(".") for part in wanted))
    extra = fields.names(recipe.freeze_extra_modules) if recipe.freeze_extra_modules else []
    # The head of a reward model is new: frozen, it would stay random.
    extra += ["score"] if recipe.stage == "rm" else []
    for name, weight in model.named_parameters():
        if any(part in name.split(".") for part in extra):
            weight.requires_grad_(True)
    if not any(weight.requires_grad for weight in model.parameters()):
        asked = recipe.freeze_trainable_modules
        raise fail("train_adapter", where="freeze_trainable_modules", reason=f"no layer has a part called {asked}")
    return model


def build_trainer(
    recipe: Recipe,
    model: nn.Module,
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    datasets: tuple[Dataset, Dataset | None],
    callbacks: list[TrainerCallback],
) -> Trainer:
    """Return TRL's trainer for a recipe.

    Raises:
        LabError: settings that the trainer refuses.
    """
    _, trainer_class = trainer_classes(recipe.objective)
    options: dict[str, Any] = {}
    if recipe.loraplus_lr_ratio:
        optimizer_class, optimizer_args = Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = create_loraplus_optimizer(
            model, optimizer_class, loraplus_lr_ratio=recipe.loraplus_lr_ratio, **optimizer_args
        )
        options["optimizers"] = (optimizer, None)
    if recipe.objective in ("ppo", "grpo"):
        base = str(model.config._name_or_path)
        options["reward_funcs"] = list(map(rewards.checked, rewards.functions(recipe, base, model.dtype)))
    if recipe.objective != "ppo":
        options["eval_dataset"] = datasets[1]
    try:
        return takes_ids(trainer_class)(
            model=model,
            args=args,
            train_dataset=datasets[0],
            processing_class=tokenizer,
            callbacks=callbacks,
            **options,
        )
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise fail("recipe_training", reason=(str(error).splitlines() or ["?"])[0][:200]) from None
