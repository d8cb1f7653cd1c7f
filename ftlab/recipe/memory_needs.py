"""Estimate of a recipe's memory before anything is loaded, and the keys that make it fit."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from ftlab import catalogue, embedded, memory, models
from ftlab.cpu.plan import Plan
from ftlab.device import Machine, cuda_dtype
from ftlab.errors import LabError, fail, say
from ftlab.memory import ADAM_MOMENTS, EXPERTS, Decoder, Needs, Training
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import COPIED, GROUPED, REWARDED, Recipe
from ftlab.recipe.trained_weights import matrices, trained_weights

GIB = 2**30
# Memory reserved on a machine: for the system, Python and its libraries; on a GPU also CUDA.
RESERVED_BYTES = 1.0 * GIB
# GPUs by memory, the smallest first.
GPUS = {"8 GB": 8, "12 GB": 12, "T4 16 GB": 15, "24 GB": 24, "48 GB": 48, "80 GB": 80, "141 GB": 141}
# Numbers of LARGE GPUs to try, with everything sharded, if a training fits on no single GPU.
LARGE, COUNTS = "80 GB", (2, 4, 8, 16, 32, 64)
PAIRED = ("rm", "dpo", "orpo", "simpo")
# Stages whose TRL trainers cast the adapter of a quantized model to bfloat16, where it stays if the machine
# multiplies that (cpu.lift_adapters).
ROUNDED = ("sft", "pt", "rm", *COPIED)
METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "freeze": {"finetuning_type": "freeze"},
    "lora": {"finetuning_type": "lora"},
    "qlora": {"finetuning_type": "lora", "quantization_bit": 4},
}
# The settings to change when a recipe does not fit, the cheapest first.
SAVINGS: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"per_device_train_batch_size": 1},
    {"gradient_checkpointing": True, "per_device_train_batch_size": 1},
    {"quantization_bit": 4, "finetuning_type": "lora"},
    {
        "quantization_bit": 4,
        "finetuning_type": "lora",
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
    },
)


@cache
def sizes(name: str, trust_remote_code: bool = False, revision: str = "main", cache_dir: str | None = None) -> Decoder:
    """Return the sizes of a model from the catalogue, or from its config.json; no weights are read.

    Raises:
        LabError: the model does not exist, it needs code that is not trusted, or it is not a decoder of text.
    """
    repository = catalogue.hub_id(name)
    for model in catalogue.MODELS:
        if repository == model.hub_id:
            return model.sizes
    folder = Path(models.fetch(name) if name == embedded.SHORT_NAME else name).expanduser()
    if folder.is_dir():
        models.refuse_code(folder, models.read_config(folder), trust_remote_code)
    elif folder.is_file():
        raise fail("model_is_file", where=name)
    elif models.looks_like_path(name):
        raise fail("model_no_folder", where=name)
    elif "/" not in name:
        raise models.unknown(name)
    from transformers import AutoConfig

    with models.loading(name):
        source = folder if folder.is_dir() else name
        place = {"trust_remote_code": trust_remote_code, "revision": revision, "cache_dir": cache_dir}
        config = AutoConfig.from_pretrained(source, **place)
    return Decoder.from_config(config.get_text_config().to_dict())


def training(recipe: Recipe, decoder: Decoder, machine: Machine, length: int | None = None) -> Training:
    """Return the numbers that determine a recipe's memory, for rows of `length` tokens (default: cutoff_len).

    Generated tokens (ppo, grpo, rloo, gkd) come on top of that length.
    """
    kind, whole = recipe.finetuning_type, not recipe.frozen_base
    plain = 4 if library_args.weights_dtype(recipe, machine) == "float32" else 2
    quantized = {None: plain, 8: memory.INT8_BYTES, 4: nf4_bytes(recipe)}[recipe.quantization_bit]
    settings, _ = library_args.training_settings(recipe, Path("."), machine)
    batch = settings.get("per_device_train_batch_size", 8)
    tokens = min(length or recipe.cutoff_len, recipe.cutoff_len)
    new_tokens = recipe.max_new_tokens if recipe.writes else 0
    plan = library_args.plan(recipe, machine, decoder.family)
    return Training(
        sequences=batch * (2 if recipe.objective in PAIRED else 1),
        length=tokens + new_tokens,
        trained=trained_weights(recipe, decoder),
        trained_layers=reached_layers(recipe, decoder) if kind == "freeze" else 0,
        adapter_rank=recipe.lora_rank if recipe.frozen_base else 0,
        linear_bytes=quantized,
        other_bytes=plain,
        trained_bytes=trained_bytes(recipe, machine, plain, plan),
        autocast=whole and (library_args.autocasts(recipe, machine) or bool(settings.get("fp16"))),
        eager=plan.kernel == "eager",
        grouped=plan.attention,
        checkpointing=bool(settings.get(library_args.CHECKPOINTING)),
        **loss(recipe, decoder, machine, plan),
        embedding_trained=kind == "full",
        reference_copy=recipe.objective in COPIED and not recipe.ref_model,
        reference_model=second_model(recipe, decoder),
        # The divergence from a teacher is computed at every position.
        new_tokens=new_tokens if recipe.objective in REWARDED else 0,
        rollout_rows=rollout_rows(recipe, batch, settings.get("gradient_accumulation_steps", 1)),
        repeated=repeated_rows(recipe, batch) * tokens if plan.attention else 0,
        hidden_kept=recipe.objective == "ppo",
        experts_adapted=kind == "lora" and adapts_experts(recipe),
        state_bytes=muon_state_bytes(recipe, decoder, trained_bytes(recipe, machine, plain, plan)),
    )


def muon_state_bytes(recipe: Recipe, decoder: Decoder, number: int) -> float:
    """Return the bytes of optimizer state per trained weight with Muon, 0 without it.

    Muon keeps one moment for the matrices, AdamW two for the rest.

    Args:
        number: bytes of a trained weight.
    """
    trained = trained_weights(recipe, decoder)
    if not (recipe.use_muon and trained):
        return 0
    return number * (ADAM_MOMENTS - matrices(recipe, decoder) / trained)


def reached_layers(recipe: Recipe, decoder: Decoder) -> int:
    """Return how many blocks the backward pass goes through: from the last to the first that is trained."""
    count = min(abs(recipe.freeze_trainable_layers), decoder.layers)
    return decoder.layers - decoder.layers // count + 1 if recipe.use_llama_pro and count else count


def adapts_experts(recipe: Recipe) -> bool:
    """Return True if `lora_target` names a mixture's experts, or all."""
    return bool({"all", "experts", *EXPERTS} & set(library_args.names(recipe.lora_target)))


def trained_bytes(recipe: Recipe, machine: Machine, plain: int, plan: Plan) -> int:
    """Return the bytes of one trained weight: the model's own, or an adapter's."""
    if not recipe.frozen_base:
        return plain
    if recipe.quantization_bit and machine.dtype == "bfloat16" and recipe.objective in ROUNDED:
        return 2
    return 4 if plan.float32_adapters else plain


def rollout_rows(recipe: Recipe, batch: int, accumulated: int) -> int:
    """Return how many completions are generated together: TRL's GRPO and RLOO generate those of an optimizer step."""
    return {"ppo": batch, "gkd": batch * recipe.writes, **dict.fromkeys(GROUPED, batch * accumulated)}.get(
        recipe.objective, 0
    )


def repeated_rows(recipe: Recipe, batch: int) -> int:
    """Return how many rows share their prompt with another row of their group (see `cpu/prefix_sharing.py`)."""
    return batch - math.ceil(batch / recipe.num_generations) if recipe.objective in GROUPED else 0


def nf4_bytes(recipe: Recipe) -> float:
    """Return the bytes of a 4-bit weight, including its share of the scales."""
    return memory.NF4_DOUBLE_BYTES if recipe.double_quantization else memory.NF4_BYTES


def loss(recipe: Recipe, decoder: Decoder, machine: Machine, plan: Plan) -> dict[str, Any]:
    """Return the fields of Training about the logits of the loss; a reward model has none."""
    if recipe.objective == "rm":
        return {"loss_tile": 0}
    reference = {"reference_tile": plan.loss_tile} if recipe.compares else {}
    if recipe.objective in ("orpo", "simpo", "ppo", "gkd") or recipe.own_loss:
        held = whole_logit_bytes(recipe, machine)
        return {"loss_tile": decoder.vocabulary, "tile_rows": memory.ALL_ROWS, "tile_bytes": held} | reference
    if machine.accelerator == "cuda":
        return {"loss_tile": plan.loss_tile, "tile_bytes": memory.FUSED_TILE_BYTES}
    capped = decoder.family in memory.CAPPED
    if plan.loss and recipe.adapts and not (recipe.additional_target or recipe.add_tokens or capped):
        rows = {"tile_rows": memory.FROZEN_ROWS, "tile_bytes": memory.FROZEN_BYTES}
        return {"loss_tile": decoder.vocabulary} | rows | reference
    held = memory.TORCH_TILE_BYTES + (memory.CAP_BYTES if capped else 0)
    return {"loss_tile": plan.loss_tile, "tile_bytes": held} | reference


def second_model(recipe: Recipe, decoder: Decoder) -> int:
    """Return the number of weights of a second whole model that the loss uses, 0 without one.

    Raises:
        LabError: that model is unknown.
    """
    if name := recipe.second_model:
        return sizes(getattr(recipe, name), **recipe.source).parameters
    return decoder.parameters if anchored_by_copy(recipe) else 0


def anchored_by_copy(recipe: Recipe) -> bool:
    """Return True if ASFT's reference is a copy of the model: without an adapter there is nothing to switch off."""
    return recipe.objective == "sft" and recipe.use_asft_loss and not recipe.adapts


def whole_logit_bytes(recipe: Recipe, machine: Machine) -> int:
    """Return the bytes per logit that a loss without tiles holds.

    PPO: the logits, and in float32 the log-probabilities, the probabilities and their product. ORPO and SimPO: the
    logits, their log-softmax, half of them in float32 for a logged mean; from float32 logits instead their gradients,
    row by row and put together; and in ORPO the log-softmax of the chosen half once more. EAFT: the
    logits and four float32 copies, ASFT three more for the reference (peaks of 18 and 20, 30 and 32 bytes measured).
    GKD: logits, the same over the temperature and log-softmax, of model and teacher, their mixture, both divergences
    and what autograd keeps of them: 17 copies measured; 10 where beta is 0 or 1, without a mixture.
    """
    # Under autocast accelerate returns them in float32.
    rounded = library_args.weights_dtype(recipe, machine) != "float32" and not library_args.autocasts(recipe, machine)
    number = 2 if rounded else 4
    if recipe.objective == "gkd":
        return number * (17 if 0 < recipe.beta < 1 else 10)
    if recipe.objective == "ppo":
        return number + 4 + 4 + 4
    if recipe.own_loss:
        return number + 4 * (7 if recipe.use_asft_loss else 4)
    return 3 * number + (number // 2 if recipe.objective == "orpo" else 0)


def needs(recipe: Recipe, machine: Machine, length: int | None = None) -> Needs:
    """Estimate the memory of a recipe on a machine, for rows of `length` tokens; without it, of `cutoff_len`.

    Raises:
        LabError: the model is unknown.
    """
    decoder = sizes(recipe.model_name_or_path, **recipe.source)
    return memory.estimate(decoder, training(recipe, decoder, machine, length))


def changed(recipe: Recipe, keys: dict[str, Any]) -> Recipe | None:
    """Return a recipe with some keys changed, None if they contradict the others."""
    try:
        return recipes.read(recipes.plain(recipe) | keys)[0]
    except LabError:
        return None


def report(recipe: Recipe, machine: Machine) -> str:
    """Return the needs of the recipe and of the other methods, whether it fits, and which keys to change if not."""
    own_method = method(recipe)
    batch = training(recipe, sizes(recipe.model_name_or_path, **recipe.source), machine)
    lines = [say("memory_rows", count=batch.sequences, length=batch.length)]
    lines.append(f"{'GiB':<24} " + say("memory_columns") + "  " + say("memory_gpu_column"))
    for name, keys in (METHODS | {own_method: {}}).items():
        if name == own_method:
            lines.append(row(f"{name}  " + say("memory_this"), needs(recipe, machine)))
        elif variant := changed(without(recipe, "quantization_bit", "peft_config"), keys):
            lines.append(row(name, needs(variant, machine)))
    own = memory.estimate(sizes(recipe.model_name_or_path, **recipe.source), batch)
    if recipe.adapts and recipe.finetuning_type != "lora":
        lines.append(say("memory_like_lora", method=recipe.finetuning_type))
    room = machine.memory_bytes - RESERVED_BYTES
    if own.peak <= room:
        lines.append(say("memory_fits", peak=gib(own.peak), room=gib(machine.memory_bytes)))
    else:
        lines.append(say("memory_too_big", peak=gib(own.peak), room=gib(machine.memory_bytes)))
        lines.append(advice(recipe, machine, room))
    return "\n".join(lines)


def grid(
    recipe: Recipe, machine: Machine, batches: Sequence[int], lengths: Sequence[int]
) -> dict[tuple[str, int, int], Needs]:
    """Return (method, rows at a time, tokens of a row) -> needs, for every method that the other keys allow."""
    plain, result = without(recipe, "quantization_bit", "peft_config"), {}
    for name, keys in METHODS.items():
        for batch in batches:
            for length in lengths:
                turned = changed(plain, keys | {"per_device_train_batch_size": batch, "cutoff_len": length})
                if turned:
                    result[name, batch, length] = needs(turned, machine)
    return result


def gpu_of(gigabytes: int) -> Machine:
    """Return the one of GPUS with this much memory, by the number in its name."""
    return gpu(next(name for name in GPUS if name.endswith(f"{gigabytes} GB")))


def gpu(name: str) -> Machine:
    """Return one of GPUS as a Machine; only the T4 is older than Ampere."""
    dtype, reason = cuda_dtype(7 if name.startswith("T4") else 8)
    return Machine("cuda", name, dtype, 1, GPUS[name] * GIB, reason)


def method(recipe: Recipe) -> str:
    """Return which of METHODS a recipe uses."""
    return "qlora" if recipe.quantization_bit and recipe.finetuning_type == "lora" else recipe.finetuning_type


def without(recipe: Recipe, *keys: str) -> Recipe:
    """Return a recipe with some keys back at their defaults."""
    left = {name: value for name, value in recipes.plain(recipe).items() if name not in keys}
    return recipes.read(left)[0]


def row(label: str, estimate: Needs) -> str:
    """Return one line of the table."""
    parts = (
        estimate.weights,
        estimate.optimizer,
        estimate.gradients,
        estimate.activations,
        estimate.logits,
        estimate.peak,
    )
    cells = [f"{gib(part):>{width}}" for part, width in zip(parts, (7, 8, 9, 11, 8, 8), strict=True)]
    return f"{padded(label, 24)} {' '.join(cells)}  {smallest_gpu(estimate)}"


def padded(text: str, columns: int) -> str:
    """Return a text filled with spaces to a width in a terminal, where a Chinese character takes two columns.

    >>> padded("lora", 6), padded("配方", 6)
    ('lora  ', '配方  ')
    """
    return text + " " * (columns - len(text) - sum(east_asian_width(letter) in "WF" for letter in text))


def smallest_gpu(estimate: Needs) -> str:
    """Return the smallest GPU that a training fits on, else how many of LARGE with ZeRO-3, or that none would do."""
    if name := one_gpu(estimate.peak):
        return name
    for count in COUNTS:
        part = memory.estimate(estimate.decoder, replace(estimate.training, gpus=count, shard=3))
        if part.peak + RESERVED_BYTES <= GPUS[LARGE] * GIB:
            return f"{count} x {LARGE}, ZeRO-3"
    if undivided(estimate.decoder, estimate.training) + RESERVED_BYTES > GPUS[LARGE] * GIB:
        return say("memory_no_number", gpu=LARGE)
    return f"> {COUNTS[-1]} x {LARGE}"


def one_gpu(peak: float) -> str:
    """Return the smallest of GPUS that holds a peak, "" if none does."""
    return next((name for name, size in GPUS.items() if peak + RESERVED_BYTES <= size * GIB), "")


def undivided(decoder: Decoder, training: Training) -> int:
    """Return the bytes that each GPU needs however many share weights, gradients and moments.

    These are the activations and logits of its own rows, and the weights that are gathered while in use.
    """
    return memory.estimate(decoder, replace(training, shard=3, offload=True)).peak


def advice(recipe: Recipe, machine: Machine, room: float) -> str:
    """Return the cheapest change of keys that fits, or the smallest need of any change."""
    possible = [(keys, changed(recipe, keys)) for keys in SAVINGS]
    tried = [(keys, needs(turned, machine)) for keys, turned in possible if turned]
    for keys, estimate in tried:
        if estimate.peak <= room:
            return say("memory_turn", keys=written(keys), peak=gib(estimate.peak))
    keys, estimate = min(tried, key=lambda pair: pair[1].peak)
    return say("memory_never", keys=written(keys), peak=gib(estimate.peak), gpu=smallest_gpu(estimate))


def written(keys: dict[str, Any]) -> str:
    """Return keys as written in YAML."""
    return ", ".join(
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in keys.items()
    )


def gib(count: float) -> str:
    """Return bytes as GiB."""
    return f"{count / GIB:.2f}"
