"""A recipe as plain values: the fields of TRL's, transformers' and PEFT's config objects. Nothing is loaded here."""

from pathlib import Path
from typing import Any

from ftlab.cpu.plan import Plan, decide
from ftlab.data.encoding import Encoding
from ftlab.device import Machine, training_arguments
from ftlab.errors import fail, say
from ftlab.recipe import sharding
from ftlab.recipe.keys import BALANCED, PROMPT_METHODS, REWARDED, Recipe
from ftlab.recipe.training_fields import FIELDS

FORMATS = {"bf16": "bfloat16", "fp16": "float16"}
ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
# The name of activation checkpointing in the installed transformers: 5.23 renamed it, 5.17 has only the old name.
CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in FIELDS)
# The columns that each stage needs.
COLUMNS = {
    "sft": ("messages",),
    "pt": ("text",),
    "rm": ("prompt", "chosen", "rejected"),
    "dpo": ("prompt", "chosen", "rejected"),
    "orpo": ("prompt", "chosen", "rejected"),
    "simpo": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "ppo": ("messages",),
    "grpo": ("messages",),
    "rloo": ("messages",),
    "gkd": ("messages",),
}


# Objective -> module, config class, trainer class: TRL's, for PPO ftlab's own.
TRAINERS = {
    "sft": ("trl", "SFTConfig", "SFTTrainer"),
    "pt": ("trl", "SFTConfig", "SFTTrainer"),
    "rm": ("trl", "RewardConfig", "RewardTrainer"),
    "dpo": ("trl", "DPOConfig", "DPOTrainer"),
    "orpo": ("trl.experimental.orpo", "ORPOConfig", "ORPOTrainer"),
    "simpo": ("trl.experimental.cpo", "CPOConfig", "CPOTrainer"),
    "kto": ("trl", "KTOConfig", "KTOTrainer"),
    "grpo": ("trl", "GRPOConfig", "GRPOTrainer"),
    "rloo": ("trl", "RLOOConfig", "RLOOTrainer"),
    "gkd": ("trl.experimental.gkd", "GKDConfig", "GKDTrainer"),
    "ppo": ("ftlab.runs.ppo", "PPOConfig", "PPOTrainer"),
}


def objective_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the config fields of a recipe's stage."""
    match recipe.objective:
        case "pt":
            # Texts are joined and cut every cutoff_len tokens, as in pre-training, unless `packing: false`.
            return {"packing": recipe.packs, "packing_strategy": "wrapped"}
        case "sft":
            return {"packing": recipe.packs} | ({"loss_type": "dft"} if recipe.use_dft_loss else {})
        case "dpo":
            tail = {} if recipe.ld_alpha is None else {"ld_alpha": recipe.ld_alpha}
            return {"beta": recipe.pref_beta, "label_smoothing": recipe.dpo_label_smoothing} | dpo_losses(recipe) | tail
        case "kto":
            weights = (recipe.kto_chosen_weight, recipe.kto_rejected_weight)
            return {"beta": recipe.pref_beta, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
        case "orpo":
            return {"beta": recipe.pref_beta}
        case "simpo":
            simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": recipe.simpo_gamma}
            return simpo | {"beta": recipe.pref_beta}
        case "grpo" | "rloo":
            # Their trainers have a sampler of their own, which does not read `train_sampling_strategy`.
            ordered = recipe.training.get("train_sampling_strategy") == "sequential"
            order = {"shuffle_dataset": False} if ordered else {}
            return sampling(recipe) | order | {"beta": recipe.pref_beta, "num_generations": recipe.num_generations}
        case "gkd":
            written = {"max_new_tokens": recipe.max_new_tokens, "temperature": recipe.temperature}
            return written | {"lmbda": recipe.lmbda, "beta": recipe.beta, "seq_kd": recipe.seq_kd}
        case "ppo":
            return sampling(recipe) | {"kl_coef": recipe.pref_beta, "num_ppo_epochs": recipe.ppo_epochs}
    return {}


def dpo_losses(recipe: Recipe) -> dict[str, Any]:
    """Return the losses that DPO adds up, and their weights if there are several.

    TRL's sigmoid loss does not read `label_smoothing`, its robust one does. With S the loss of a pair, N that of the
    swapped pair and e the smoothing, robust is ((1 - e) S - e N) / (1 - 2 e). So LLaMA-Factory's loss of a smoothed
    pair (cDPO), (1 - e) S + e N, is 2 (1 - e) S - (1 - 2 e) robust.
    """
    smoothing, weights = recipe.dpo_label_smoothing, {str(recipe.pref_loss): 1.0}
    if smoothing and recipe.pref_loss == "sigmoid":
        weights = {"sigmoid": 2 * (1 - smoothing), "robust": 2 * smoothing - 1}
    weights |= {"sft": recipe.pref_ftx} if recipe.pref_ftx else {}
    return {"loss_type": list(weights)} | ({"loss_weights": list(weights.values())} if len(weights) > 1 else {})


def sampling(recipe: Recipe) -> dict[str, Any]:
    """Return the sampling settings for training: from the whole distribution, whatever `top_p` is."""
    return {"max_completion_length": recipe.max_new_tokens, "temperature": recipe.temperature}


def training_settings(recipe: Recipe, folder: Path, machine: Machine) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of TRL's config object for a recipe on a machine, and notes on what the machine lacks."""
    settings: dict[str, Any] = training_arguments(machine) | {"bf16": autocasts(recipe, machine)}
    # transformers' own defaults where TRL has others, so that a LLaMA-Factory YAML keeps its meaning.
    settings |= {"learning_rate": 5e-5, "logging_steps": 1, "report_to": "none", "logging_nan_inf_filter": False}
    fields, notes = dict(recipe.training), []
    if recipe.early_stopping_steps:
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    wished = {name for name in FORMATS if fields.get(name)}
    for name, dtype in FORMATS.items():
        possible = machine.mixed_precision and (name == "fp16" or machine.dtype == "bfloat16")
        if name in fields and not (fields[name] and possible):
            entry = fields.pop(name)
            if entry is not (machine.dtype == dtype) and not (wished - {name}):
                value = str(entry).lower()
                notes.append(say("train_format", key=name, value=value, dtype=machine.dtype, reason=machine.reason))
    for part in ("", "_kwargs"):
        for entry in (settings, fields):
            if f"gradient_checkpointing{part}" in entry:
                entry[f"{CHECKPOINTING}{part}"] = entry.pop(f"gradient_checkpointing{part}")
    if machine.dtype == "float16" and not machine.mixed_precision:
        raise fail("train_float16", where="FTLAB_DTYPE", accelerator=machine.accelerator)
    if fields.get("bf16"):
        settings["fp16"] = False
    if fields.get("fp16"):
        settings["bf16"] = False
    if recipe.objective == "kto" and fields.get("per_device_train_batch_size") == 1:
        # TRL estimates the KL term from other rows of the batch, so it needs at least two.
        accumulated = fields.get("gradient_accumulation_steps", 1)
        fields |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": max(1, accumulated // 2)}
        notes.append(say("train_kto_pairs", accumulated=max(1, accumulated // 2)))
    if recipe.objective == "orpo":
        notes.append(say("train_orpo_prompt"))
    # ftlab rotates checkpoints itself (checkpoint.py): Trainer would count and delete those of other runs.
    fields.pop("save_total_limit", None)
    fields.pop("resume_from_checkpoint", None)
    if fields.get("deepspeed"):
        fields["deepspeed"] = sharding.deepspeed(fields["deepspeed"])
    # Completions have their own limit, and prompts above cutoff_len were dropped.
    limit = {} if recipe.objective in REWARDED else {"max_length": recipe.cutoff_len}
    balanced = recipe.moe_aux_loss_coef is not None and recipe.objective in BALANCED
    balance = {"router_aux_loss_coef": recipe.moe_aux_loss_coef} if balanced else {}
    fixed = {"output_dir": str(folder)} | limit | balance | objective_settings(recipe)
    return settings | fields | fixed, notes


def autocasts(recipe: Recipe, machine: Machine) -> bool:
    """Return True if float32 weights are multiplied in bfloat16: always on GPUs, on a CPU for trained weights."""
    if machine.dtype != "bfloat16":
        return False
    return machine.mixed_precision or not (recipe.frozen_base or recipe.pure_bf16)


def weights_dtype(recipe: Recipe, machine: Machine) -> str:
    """Return the dtype to load the model in.

    Weights that are trained are kept in float32, because small updates vanish in 16 bits; `pure_bf16` keeps them
    in bfloat16 anyway. A frozen base under an adapter is loaded in the machine's own format.
    """
    if recipe.pure_bf16:
        return "bfloat16"
    return machine.dtype if recipe.frozen_base else "float32"


def model_settings(recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` other than the path and the quantization."""
    options: dict[str, Any] = {
        "dtype": weights_dtype(recipe, machine),
        "trust_remote_code": recipe.trust_remote_code,
        "use_safetensors": True,
    }
    if kernel := plan(recipe, machine).kernel:
        options["attn_implementation"] = kernel
    options |= placement(recipe)
    return options | ({"num_labels": 1} if recipe.stage == "rm" else {})


def placement(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that place the weights, {} if a recipe has none."""
    if recipe.device_map is None and recipe.max_memory is None:
        return {}
    # GPUs are numbers, and the key in `max_memory.0=10GiB` is text.
    limits = {int(name) if str(name).isdigit() else name: most for name, most in (recipe.max_memory or {}).items()}
    return {
        "device_map": recipe.device_map or "auto",
        "max_memory": limits or None,
        "offload_folder": recipe.offload_folder,
    }


def plan(recipe: Recipe, machine: Machine, family: str | None = None) -> Plan:
    """Return the fast paths of a recipe on a machine; without `family`, those that do not depend on it."""
    return decide(
        machine,
        wanted=recipe.shortcuts,
        family=family,
        kernel=None if recipe.flash_attn == "auto" else ATTENTION[recipe.flash_attn],
        row_length=recipe.cutoff_len,
        packed=recipe.packs and recipe.stage == "sft",
        adapter=recipe.finetuning_type == "lora",
        plain_adapter=not recipe.use_dora and not recipe.lora_dropout,
        writes=recipe.stage != "rm",
    )


def quantization_settings(recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """Return the fields of a recipe's BitsAndBytesConfig."""
    if recipe.quantization_bit == 8:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": recipe.quantization_type,
        "bnb_4bit_use_double_quant": recipe.double_quantization,
        "bnb_4bit_compute_dtype": machine.dtype,
    }


# `finetuning_type` -> its class in PEFT.
PEFT_CONFIGS = {
    "lora": "LoraConfig", "adalora": "AdaLoraConfig", "fourierft": "FourierFTConfig",
    "ia3": "IA3Config", "ln_tuning": "LNTuningConfig", "loha": "LoHaConfig", "lokr": "LoKrConfig", "oft": "OFTConfig",
    "vera": "VeraConfig", "p_tuning": "PromptEncoderConfig", "prefix_tuning": "PrefixTuningConfig",
    "prompt_tuning": "PromptTuningConfig",
}  # fmt: skip
# Required fields without a default in PEFT: AdaLoRA's steps are set when training starts (runs/adapters.py).
PEFT_DEFAULTS: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 2**31},
    **{method: {"num_virtual_tokens": 20} for method in PROMPT_METHODS},
}


def peft_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe's PEFT config; a mixture's and LN tuning's layers depend on the model."""
    task = {"task_type": "SEQ_CLS" if recipe.stage == "rm" else "CAUSAL_LM"}
    if recipe.finetuning_type == "lora":
        return lora_settings(recipe) | task
    layers = {} if recipe.finetuning_type in PROMPT_METHODS else targeted(recipe)
    return layers | PEFT_DEFAULTS.get(recipe.finetuning_type, {}) | recipe.peft_config | task


def targeted(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that name layers; IA3 uses PEFT's default: keys, values and the MLP's second matrix."""
    every = None if recipe.finetuning_type == "ia3" else "all-linear"
    return {
        "target_modules": every if recipe.lora_target == "all" else names(recipe.lora_target),
        "modules_to_save": names(recipe.additional_target) if recipe.additional_target else None,
    }


def lora_alpha(recipe: Recipe) -> int:
    """Return a recipe's lora_alpha; the default is 2 r."""
    return recipe.lora_alpha or 2 * recipe.lora_rank


def lora_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe's LoraConfig, except for its task."""
    pissa = "pissa" if recipe.pissa_iter == -1 else f"pissa_niter_{recipe.pissa_iter}"
    return {
        "r": recipe.lora_rank,
        "lora_alpha": lora_alpha(recipe),
        "lora_dropout": recipe.lora_dropout,
        **targeted(recipe),
        "use_rslora": recipe.use_rslora,
        "use_dora": recipe.use_dora,
        "init_lora_weights": pissa if recipe.pissa_init else recipe.init_lora_weights or True,
    }


def encoding_of(recipe: Recipe) -> Encoding:
    """Return how a recipe's examples are encoded."""
    joined, distilled = recipe.stage == "pt" and recipe.packs, recipe.stage == "gkd"
    return Encoding(
        cutoff_len=None if joined else recipe.cutoff_len,
        train_on_prompt=recipe.train_on_prompt and not distilled,
        # Everything before the last answer is the prompt for the model or the teacher.
        mask_history=recipe.mask_history or distilled,
        default_system=recipe.default_system,
        judged=recipe.stage == "rm",
    )


def names(text: str) -> list[str]:
    """Return the parts of a list written with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
