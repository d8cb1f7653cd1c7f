"""LLaMA-Factory's other files: its format v1, and files saved by its Board. Source: release 0.9.5."""

import json
from pathlib import Path
from typing import Any

from ftlab.errors import say
from ftlab.recipe.frameworks.table import Framework, Translation, Values, accumulation, joined, only, rows


def peft(value: Any, config: Values) -> Translation:
    """Return the block `peft_config`."""
    kind = value.get("name")
    lora = {
        "r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_rslora": "use_rslora",
        "use_dora": "use_dora", "adapter_name_or_path": "adapter_name_or_path",
    }  # fmt: skip
    lists = {"target_modules": "lora_target", "modules_to_save": "additional_target"}
    freeze = {
        "freeze_trainable_layers": "freeze_trainable_layers", "freeze_trainable_modules": "freeze_trainable_modules",
        "freeze_extra_modules": "freeze_extra_modules",
    }  # fmt: skip
    if kind == "full":
        return {"finetuning_type": "full"}
    if kind not in ("lora", "freeze"):
        raise ValueError(say("why_known_v1_methods"))
    names = lora | lists if kind == "lora" else freeze
    usual = {"name": kind, "cast_trainable_params_to_fp32": True}
    values: Values = {"finetuning_type": kind}
    values |= {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05} if kind == "lora" else {}
    for name, entry in value.items():
        if name in names and entry is not None:
            values[names[name]] = joined(entry) if isinstance(entry, list) else entry
        elif usual.get(name, entry) != entry or (name not in usual and entry):
            raise ValueError(say("why_no_equivalent", key=name, value=entry))
    return values


def quantized(value: Any, config: Values) -> Translation:
    """Return the block `quant_config`."""
    names = ("quantization_bit", "double_quantization", "quantization_type")
    for name, entry in value.items():
        if name not in (*names, "compute_dtype") and not (name == "name" and entry in ("bnb", "auto")):
            raise ValueError(say("why_no_equivalent", key=name, value=entry))
    return {name: value[name] for name in names if name in value}


def batch(value: Any, config: Values) -> Translation:
    """Return `global_batch_size` as accumulation."""
    return accumulation(value, config.get("micro_batch_size", 1), config)


def every_epoch(value: Any, config: Values) -> Translation:
    """Return `save_epochs`."""
    if value != 1:
        raise ValueError(say("why_saves_by_step_or_epoch"))
    return {"save_strategy": "epoch"}


def training_set(key: str) -> Any:
    """Return the reader of `train_dataset`: a file of rows, or a YAML that describes data sets."""

    def read(value: Any, config: Values) -> Translation:
        if Path(str(value)).suffix in (".yaml", ".yml"):
            raise ValueError(say("why_describe_sets"))
        return rows([str(value)], key)

    return read


def schedule(value: Any, config: Values) -> Translation:
    """Return the block `lr_scheduler_config`."""
    others = {name: entry for name, entry in value.items() if name not in ("name", "warmup_ratio", "warmup_steps")}
    if others:
        raise ValueError(say("why_no_equivalents", entries=others))
    values = {name: value[name] for name in ("warmup_ratio", "warmup_steps") if name in value}
    return values | ({"lr_scheduler_type": value["name"]} if "name" in value else {})


LLAMA_FACTORY_V1 = Framework(
    title="LLaMA-Factory v1",
    names={
        "model_name_or_path": "model", "template": "template", "trust_remote_code": "trust_remote_code",
        "dataset": "train_dataset", "eval_dataset": "eval_dataset", "per_device_train_batch_size": "micro_batch_size",
        "cutoff_len": "cutoff_len", "gradient_checkpointing": "enable_activation_checkpointing",
        "max_new_tokens": "max_new_tokens", "output_dir": "output_dir",
    },
    values={},
    stages={"sft": ""},
    tunings={"lora": "lora", "full": "", "freeze": "freeze"},
    read={
        "train_dataset": training_set("dataset"), "eval_dataset": training_set("eval_dataset"), "peft_config": peft,
        "quant_config": quantized, "global_batch_size": batch, "lr_scheduler_config": schedule,
        "flash_attn": lambda value, config: {"flash_attn": {"eager": "disabled", "flash_attention_2": "fa2"}.get(
            value, value)},
        "model_class": only("llm", "why_language_models_only"),
        "init_config": only(({"name": "init_on_default"}, {"name": "init_on_rank0"},
                                            {"name": "init_on_meta"}), "why_only_how_weights_load"),
        "batching_strategy": only(("normal", "padding_free"), "why_no_such_batches"),
        "save_epochs": every_epoch,
        "optim_config": only(({"name": "adamw"}, {}), "why_write_optim"),
        "sample_backend": only("hf", "why_answers_by_transformers"),
        "dist_config": only(({"name": "fsdp2"}, {}), "why_write_fsdp_or_deepspeed"),
    },
    dropped={
        "kernel_config": "why_fast_paths_by_machine",
        "batching_workers": "why_read_in_one_process", "save_ckpt_as_hf": "why_checkpoints_of_transformers",
    },
    defaults=lambda config: {
        "micro_batch_size": 1, "learning_rate": 1e-4, "num_train_epochs": 3, "logging_steps": 1,
    } | ({} if config.get("peft_config") else {"peft_config": {"name": "full"}}),
)  # fmt: skip


STAGES = {
    "Supervised Fine-Tuning": "sft", "Reward Modeling": "rm", "PPO": "ppo", "DPO": "dpo", "KTO": "kto",
    "Pre-Training": "pt",
}  # fmt: skip
BOARD_NAMES = {
    "model_path": "model_name_or_path", "batch_size": "per_device_train_batch_size", "use_pissa": "pissa_init",
    "neftune_alpha": "neftune_noise_alpha",
}  # fmt: skip
# Fields that only the Board itself uses, or that are read with another one.
BOARD_ONLY = {
    "lang", "model_name", "hub_name", "current_time", "config_path", "device_count", "progress_bar", "resume_btn",
    "training_stage", "compute_type", "booster", "checkpoint_path", "extra_args", "ds_stage", "ds_offload",
    "dataset", "quantization_method", "output_dir", "project", "trackio_space_id", "hub_private_repo",
}  # fmt: skip
# Fields that the Board passes on only if the method or the stage uses them.
BOARD_METHODS = {
    "lora": ("lora", "use_rslora", "use_dora", "use_pissa", "additional_target", "create_new_adapter"),
    "freeze": ("freeze_trainable", "freeze_extra"),
}
BOARD_SWITCHES = ("galore", "apollo", "badam", "swanlab")
MEDIA = ("image_", "video_", "freeze_vision", "freeze_multi", "freeze_language")


def saved_by_board(values: Values) -> Values:
    """Return the saved fields of LLaMA-Factory's Board (`top.model_path`, `train.lora_rank`) as recipe keys.

    Raises:
        ValueError: extra arguments that are not JSON.
    """
    fields = {name.partition(".")[2]: value for name, value in values.items()}
    config = {name: value for name, value in fields.items() if value not in (None, "", [], "none")}
    method, stage = config.get("finetuning_type", "lora"), STAGES.get(str(config.get("training_stage")), "sft")
    keys: Values = {"stage": stage, "finetuning_type": method}
    for name, value in config.items():
        # Zero stands for "off" in two sliders.
        unset = name in ("neftune_alpha", "loraplus_lr_ratio") and not value
        if name not in BOARD_ONLY and not unset and passed_on(name, method, stage, config):
            keys[BOARD_NAMES.get(name, name)] = number(value)
    if config.get("compute_type") in ("bf16", "fp16", "pure_bf16"):
        keys[config["compute_type"]] = True
    boosters: dict[str, Values] = {"flashattn2": {"flash_attn": "fa2"}, "liger_kernel": {"use_liger_kernel": True}}
    boosters["unsloth"] = {"use_unsloth": True}
    keys |= boosters.get(str(config.get("booster")), {})
    keys |= {"dataset": joined(config["dataset"])} if config.get("dataset") else {}
    keys |= {"quantization_method": config.get("quantization_method", "bnb")} if "quantization_bit" in keys else {}
    keys |= {"adapter_name_or_path": joined(config["checkpoint_path"])} if config.get("checkpoint_path") else {}
    folder = [str(config.get(name, "")).replace(" ", "") for name in ("model_name", "finetuning_type", "output_dir")]
    keys |= {"output_dir": "/".join(["saves", *filter(None, folder)])} if config.get("output_dir") else {}
    keys |= {"deepspeed": f"zero{config['ds_stage']}"} if config.get("ds_stage") else {}
    if keys.get("val_size"):
        keys |= {"eval_strategy": "steps", "eval_steps": keys.get("save_steps", 100)}
    return keys | dict(json.loads(config.get("extra_args", "{}")))


def passed_on(name: str, method: str, stage: str, config: Values) -> bool:
    """Return True if the Board passes a field on to a run of this method and stage."""
    if name.startswith(MEDIA) or name.startswith("ppo_") or (name == "reward_model" and stage != "ppo"):
        return False
    if name.startswith("pref_"):
        return stage in ("dpo", "kto")
    if switch := next((one for one in BOARD_SWITCHES if name.startswith(f"{one}_")), None):
        return config.get(f"use_{switch}") is True
    owner = next((one for one, starts in BOARD_METHODS.items() if name.startswith(starts)), method)
    return owner == method


def number(value: Any) -> Any:
    """Return a value as a number if it is the text of one, as the Board saves some."""
    if not isinstance(value, str):
        return value
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        return value
