"""Build a recipe's library objects: the config, the model with its trainable weights, and TRL's trainer."""

import contextlib
import copy
import importlib
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
from transformers.trainer_utils import SchedulerType

from ftlab import cpu, device, models
from ftlab.cpu.models import prepare
from ftlab.cpu.plan import Plan
from ftlab.device import Machine
from ftlab.errors import fail, reason_of
from ftlab.recipe import continued, library_args
from ftlab.recipe.keys import REWARDED, SAVED_IN_PART, Recipe
from ftlab.runs import (
    adapters,
    balance,
    chat,
    distillation,
    folder,
    losses,
    metric_names,
    muon,
    own_logits,
    reference,
    rewards,
    rope,
    targets,
    world,
)
from ftlab.runs.tokenized import takes_ids
from ftlab.runs.validation_loss import per_token
from ftlab.saved_weights import weights_of

# Schedules that follow the validation loss -> the class that takes their arguments.
FOLLOWING: dict[str, Any] = {SchedulerType.REDUCE_ON_PLATEAU: ReduceLROnPlateau, SchedulerType.GREEDY: GreedyLR}
# Arguments that Trainer itself passes to a schedule.
FROM_TRAINER = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")


def trainer_classes(objective: str) -> tuple[type, type]:
    """Return (config class, trainer class) of an objective; only these are imported."""
    module, *names = library_args.TRAINERS[objective]
    config, trainer = (getattr(importlib.import_module(module), name) for name in names)
    return config, trainer


def training_args(recipe: Recipe, folder: Path, machine: Machine) -> tuple[Any, list[str]]:
    """Return TRL's config object for a recipe on a machine, and notes on what the machine lacks.

    Raises:
        LabError: a value, or a combination, that transformers refuses.
    """
    config_class, _ = trainer_classes(recipe.objective)
    values, notes = library_args.training_settings(recipe, folder, machine)
    try:
        recipe.fits_best()
        args = config_class(**values)
        world.require_format(args)
        world.join(args)
        if args.deepspeed:
            world.require_deepspeed(args.hf_deepspeed_config)
        require_available(args)
        metric_names.require_metric(recipe.objective, args)
        return args, notes
    except (TypeError, ValueError, KeyError, AttributeError, ImportError, OSError, RuntimeError) as error:
        raise fail("recipe_training", reason=reason_of(error)) from None


def load_model(recipe: Recipe, path: str, machine: Machine) -> PreTrainedModel:
    """Return the base model of a recipe; a reward model has one output instead of a vocabulary.

    Raises:
        LabError: transformers cannot load it, its files lack weights, or `max_memory` leaves some of them on disk.
    """
    options = library_args.model_settings(recipe, machine)
    options |= rope.options(rope.scaling_of(recipe.model_dump()), path, recipe.trust_remote_code)
    if recipe.quantization_bit:
        options["quantization_config"] = BitsAndBytesConfig(**library_args.quantization_settings(recipe, machine))
    model = models.load_weights(model_class(recipe), path, **options)
    if any(weight.is_meta for weight in model.parameters()):
        raise fail("train_offloaded", where="device_map" if recipe.device_map else "max_memory")
    cpu.keep_gradients(model)
    return chat.merge_before(model, merged_before(recipe), Path(path), recipe.model_name_or_path)


def merged_before(recipe: Recipe) -> list[str]:
    """Return the adapters that are merged into the base before training: all but the one that is continued."""
    paths = folder.chain(recipe.adapter_name_or_path) if recipe.adapter_name_or_path else []
    return paths[:-1] if recipe.continues else paths


def require_available(args: TrainingArguments) -> None:
    """Build early what Trainer builds after loading the weights: trackers, optimizer class, schedule.

    Raises:
        LabError: arguments that the schedule cannot use.
        Exception: raised by them for a missing package or wrong arguments.
    """
    for tracker in get_reporting_integration_callbacks(args.report_to):
        tracker()
    if not args.optim_target_modules:
        Trainer.get_optimizer_cls_and_kwargs(args)
        require_optimizer_arguments(args)
    require_schedule(args)


def require_optimizer_arguments(args: TrainingArguments) -> None:
    """Refuse names in `optim_args` that the optimizer does not read: transformers drops them silently.

    A name is read if two values of it lead to different settings, or to an error.

    Raises:
        LabError: with these names.
    """
    names = [pair.partition("=")[0] for pair in str(args.optim_args or "").replace(" ", "").split(",") if pair]
    unread = [name for name in names if optimizer_settings(args, f"{name}=1") == optimizer_settings(args, f"{name}=2")]
    if unread:
        optimizer = getattr(args.optim, "value", args.optim)
        raise fail("train_optim_args", where="optim_args", optimizer=optimizer, names=", ".join(unread))


def optimizer_settings(args: TrainingArguments, optim_args: str) -> str:
    """Return the settings of an optimizer under other `optim_args`, or the error that they raise, as text."""
    changed = copy.copy(args)
    changed.optim_args = optim_args
    try:
        return repr(Trainer.get_optimizer_cls_and_kwargs(changed))
    except (TypeError, ValueError, AttributeError) as error:
        return f"{optim_args}: {error}"


def require_schedule(args: TrainingArguments) -> None:
    """Check a schedule's arguments by computing the learning rates of a short run.

    Raises:
        LabError: a missing, unknown or invalid argument.
    """
    schedule, steps = args.lr_scheduler_type, 10
    takes = schedule_arguments(schedule)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        options = dict(args.lr_scheduler_kwargs or {})
        # transformers silently drops arguments of the constant schedules.
        if unknown := options.keys() - takes:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        rates = get_scheduler(schedule, optimizer, args.get_warmup_steps(steps), steps, options)
        # The two that follow the validation loss do not depend on the step.
        for rate in getattr(rates, "lr_lambdas", []):
            [rate(step) for step in range(steps)]
    except (TypeError, ValueError) as error:
        names = {"schedule": SchedulerType(schedule).value, "takes": ", ".join(takes)}
        raise fail("recipe_schedule", where="lr_scheduler_kwargs", reason=reason_of(error), **names) from None


def schedule_arguments(schedule: SchedulerType) -> list[str]:
    """Return the names of the arguments that a schedule takes from `lr_scheduler_kwargs`."""
    takes = FOLLOWING.get(schedule, TYPE_TO_SCHEDULER_FUNCTION[schedule])
    return [name for name in inspect.signature(takes).parameters if name not in FROM_TRAINER]


def model_class(recipe: Recipe) -> Any:
    """Return the class that loads a recipe's base."""
    return AutoModelForSequenceClassification if recipe.stage == "rm" else AutoModelForCausalLM


def rehearse(recipe: Recipe, path: str) -> None:
    """Refuse layers that a recipe names and its model lacks, and a wrong loss, without loading any weights.

    Raises:
        LabError: as `prepare_model` and `own_logits.refuse_family`.
    """
    own_logits.refuse_family(recipe, models.read_config(Path(path)))
    default = recipe.lora_target == "all" and not recipe.additional_target
    usual = default if recipe.finetuning_type == "lora" else recipe.finetuning_type == "full"
    looked_at = ("adapter_name_or_path", "moe_aux_loss_coef", "moe_aux_loss_per_layer", *targets.LINEAR_ONLY)
    usual = usual and not isinstance(recipe.device_map, dict)
    if usual and "optim_target_modules" not in recipe.training and not any(getattr(recipe, key) for key in looked_at):
        return
    model = skeleton(recipe, path)
    targets.require(recipe, model)
    if not recipe.adapts:
        unfreeze(recipe, model)
    elif recipe.continues:
        if recipe.finetuning_type in SAVED_IN_PART:
            names: dict[str, Any] = {"method": recipe.finetuning_type, "adapter": recipe.adapter_name_or_path}
            raise fail("train_not_continued", where="adapter_name_or_path", **names)
        method = str((continued.config_of(str(recipe.adapter_name_or_path)) or {}).get("peft_type")).lower()
        if method != recipe.finetuning_type:
            names = {"method": method, "adapter": recipe.adapter_name_or_path}
            raise fail("train_other_method", where="adapter_name_or_path", **names)
        require_all_layers(recipe, model)
    else:
        # Weights without values have no singular vectors, so special initializations are left to the real model.
        plain = recipe.model_copy(update={"pissa_init": False, "init_lora_weights": None})
        with refusing(adapter_key(recipe)):
            adapted = get_peft_model(model, adapters.config_of(plain, model), low_cpu_mem_usage=True)
        adapters.require_block_size(adapted)
        require_weights(recipe, adapted)


def adapter_key(recipe: Recipe) -> str:
    """Return the key to blame if PEFT refuses an adapter."""
    return "peft_config" if recipe.peft_config else "lora_target"


def require_weights(recipe: Recipe, model: PreTrainedModel | PeftModel) -> None:
    """Refuse a model without weights to train.

    Raises:
        LabError: nothing in it is trainable, or all of that is empty.
    """
    if not any(weight.requires_grad and world.size(weight) for weight in model.parameters()):
        raise fail("train_no_weights", where="peft_config", method=recipe.finetuning_type)


def skeleton(recipe: Recipe, path: str) -> PreTrainedModel:
    """Return a recipe's base on the meta device: weights with shapes but without values."""
    options = {"num_labels": 1} if recipe.stage == "rm" else {}
    with models.loading(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=recipe.trust_remote_code, **options)
        return model_class(recipe).from_config(config, trust_remote_code=recipe.trust_remote_code)


def require_all_layers(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuse `lora_target: all` for a continued adapter with only some layers, which stay as they are.

    Raises:
        LabError: with the layers that it has.
    """
    config = continued.config_of(recipe.adapter_name_or_path or "") or {}
    has = config.get("target_modules")
    if "lora_target" in recipe.model_fields_set and recipe.lora_target == "all" and isinstance(has, list):
        lacking = targets.all_linear(model) - {targets.leaf(name) for name in has}
        if lacking:
            asked: dict[str, Any] = {"key": "lora_target", "value": "all", "adapter": recipe.adapter_name_or_path}
            raise fail("recipe_continued", where="lora_target", has=", ".join(sorted(has)), **asked)


@contextlib.contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn PEFT's errors about layers that it cannot adapt into one line.

    Raises:
        LabError: PEFT refused the layers or the adapter.
    """
    try:
        yield
    except (ValueError, OSError, TypeError, RuntimeError, ArithmeticError) as error:
        if where == "peft_config":
            raise fail("train_peft_config", where=where, reason=reason_of(error)) from None
        raise fail("train_adapter", where=where, reason=reason_of(error)) from None


def prepare_model(recipe: Recipe, model: PreTrainedModel, machine: Machine) -> PreTrainedModel | PeftModel:
    """Return the model with the trainable weights of this recipe marked, and with the fast paths of its plan.

    Raises:
        LabError: a layer that the recipe names and the model lacks.
    """
    plan = library_args.plan(recipe, machine, model.config.model_type)
    trained = mark_trained(recipe, model, plan)
    prepare(trained, plan)
    return trained


def mark_trained(recipe: Recipe, model: PreTrainedModel, plan: Plan) -> PreTrainedModel | PeftModel:
    """Return the model with the trainable weights of this recipe marked.

    Raises:
        LabError: a layer that the recipe names and the model lacks.
    """
    # Training has no use for a cache: keys and values of a pass are never used again.
    model.config.use_cache = False
    targets.require(recipe, model)
    balance.prepare(model)
    if not recipe.adapts:
        return unfreeze(recipe, model)
    with refusing("adapter_name_or_path" if recipe.continues else adapter_key(recipe)):
        own_dtype = {"autocast_adapter_dtype": plan.float32_adapters}
        if recipe.continues:
            start = weights_of(str(recipe.adapter_name_or_path)).folder
            adapted = PeftModel.from_pretrained(model, start, is_trainable=True, **own_dtype)
        else:
            adapted = get_peft_model(model, adapters.config_of(recipe, model), **own_dtype)
            require_weights(recipe, adapted)
        # Trainer loads a checkpoint's adapter by this call; a resumed run must keep the dtype it started with.
        adapted.load_adapter = partial(adapted.load_adapter, **own_dtype)
        if recipe.add_tokens:
            # `modules_to_save` has embedding and output layer; PEFT would save them again for the new vocabulary.
            adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
        return adapted


def unfreeze(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """Freeze all of a model's own weights except those that a recipe trains.

    Raises:
        LabError: the model has no such weights.
    """
    method: dict[str, Any] = {"freeze": freeze, "bitfit": biases}
    return method[recipe.finetuning_type](recipe, model) if recipe.finetuning_type in method else model


def biases(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """Leave only biases trainable, and the head of a reward model, which is new.

    Raises:
        LabError: the model has none.
    """
    model.requires_grad_(False)
    weights = [weight for name, weight in model.named_parameters() if name.endswith("bias")]
    if not weights:
        raise fail("train_no_bias", where="finetuning_type", family=model.config.model_type)
    head = [model.score.weight] if recipe.stage == "rm" else []
    for weight in weights + head:
        weight.requires_grad_(True)
    return model


def chosen_layers(recipe: Recipe, layers: torch.nn.ModuleList) -> torch.nn.ModuleList:
    """Return the layers that `finetuning_type: freeze` trains: the last n, the first -n, or n evenly spaced ones.

    Raises:
        LabError: more layers than the model has, or a number that LLaMA Pro cannot distribute evenly.
    """
    count = recipe.freeze_trainable_layers
    if not 1 <= abs(count) <= len(layers):
        raise fail("train_freeze", where="freeze_trainable_layers", count=count, layers=len(layers))
    if not recipe.use_llama_pro:
        return layers[-count:] if count > 0 else layers[:-count]
    distance, left = divmod(len(layers), count)
    if count < 0 or left:
        raise fail("train_llama_pro", where="freeze_trainable_layers", count=count, layers=len(layers))
    return layers[distance - 1 :: distance]


def freeze(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """Leave only some layers trainable.

    Raises:
        LabError: as `chosen_layers`.
    """
    layers = targets.blocks(model)
    chosen = chosen_layers(recipe, layers)
    model.requires_grad_(False)
    modules = None if recipe.freeze_trainable_modules == "all" else library_args.names(recipe.freeze_trainable_modules)
    for name, weight in chosen.named_parameters():
        weight.requires_grad_(modules is None or any(part in modules for part in targets.parts(name, True)))
    extra = library_args.names(recipe.freeze_extra_modules or "")
    # The head of a reward model is new: frozen, it would stay random.
    extra += ["score"] if recipe.stage == "rm" else []
    inside = {id(weight) for weight in layers.parameters()}
    # A tied head is the embedding under a second name.
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) not in inside and any(part in extra for part in targets.parts(name, False)):
            weight.requires_grad_(True)
    return model


def packed(examples: Dataset, args: Any) -> Dataset:
    """Return the examples as TRL's trainer packs them into rows of `max_length` tokens, if it does."""
    if not getattr(args, "packing", False):
        return examples
    # Imported here: it takes a second.
    from trl.data_utils import pack_dataset

    return pack_dataset(examples.select_columns("input_ids"), args.max_length, args.packing_strategy)


def build_trainer(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
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
    base = str(model.config._name_or_path)
    compared = reference.load(recipe, base, device.describe()) if recipe.second_model else None
    if recipe.loraplus_lr_ratio:
        optimizer_class, optimizer_args = Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = create_loraplus_optimizer(
            model, optimizer_class, loraplus_lr_ratio=recipe.loraplus_lr_ratio, **optimizer_args
        )
        options["optimizers"] = (optimizer, None)
    if recipe.use_muon:
        options["optimizers"] = (muon.optimizer(model, args), None)
    if recipe.own_loss:
        if recipe.use_asft_loss and compared is None and not recipe.adapts:
            compared = copy.deepcopy(model).eval().requires_grad_(False)
        trainer_class = losses.trainer_class(recipe, compared)
    elif compared is not None:
        options[str(recipe.second_model)] = compared
    if recipe.objective == "gkd":
        options["data_collator"] = distillation.Collator(tokenizer)
    if recipe.objective in REWARDED:
        options["reward_funcs"] = list(map(rewards.checked, rewards.functions(recipe, base, model.dtype)))
    if recipe.objective != "ppo":
        options["eval_dataset"] = datasets[1]
    if recipe.objective in ("sft", "pt"):
        trainer_class = per_token(trainer_class)
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
        raise fail("recipe_training", reason=reason_of(error)) from None
