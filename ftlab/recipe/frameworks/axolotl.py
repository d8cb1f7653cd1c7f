"""axolotl's YAML. Source: the classes of axolotl.utils.schemas and the builders that read them, release 0.19."""

import contextlib
import os
from pathlib import Path
from typing import Any

from ftlab.data.dataset_info import described, detect
from ftlab.data.read import rows as lines
from ftlab.errors import LabError, say
from ftlab.recipe.frameworks.table import (
    Framework,
    Translation,
    Values,
    added,
    attention,
    comma_parts,
    initial,
    joined,
    listed,
    off,
    only,
    optimizer,
    rows,
    stretched,
    target,
    templated,
)

# Chat templates that ftlab knows by another name; "" is the model's own.
TEMPLATES = {
    "tokenizer_default": "", "chatml": "chatml", "alpaca": "alpaca", "llama3": "llama3", "gemma": "gemma",
    "gemma3": "gemma3", "qwen_25": "qwen", "qwen3": "qwen3", "phi_3": "phi", "phi_35": "phi",
    "mistral_v1": "mistral", "mistral_v2v3": "mistral", "mistral_v3_tekken": "mistral", "deepseek_v3": "deepseek3",
}  # fmt: skip
# `type` of a data set -> the message of a note on what differs: here the columns decide the format, and the chat
# template the text.
CHAT = "why_rendered_by_own_template"
TYPES = {
    "chat_template": "", "chat_template.default": "", "passthrough": "", "completion": "",
    "bradley_terry.chat_template": "",
    "alpaca": "why_rendered_as_chat",
    "sharegpt": "", "chat_template.argilla": "", "llama3.argilla": CHAT, "chatml.argilla": CHAT,
    "chatml.intel": CHAT, "llama3.intel": CHAT, "chatml.ultra": CHAT, "llama3.ultra": CHAT,
    "alpaca_chat": CHAT, "alpaca_chat.load_qa": CHAT, "alpaca_w_system": CHAT, "context_qa": CHAT,
    "alpaca_w_system.load_open_orca": CHAT, "alpaca_w_system.load_open_orca_chatml": CHAT,
    "chatml.argilla_chat": CHAT, "llama3.argilla_chat": CHAT, "chatml.prompt_pairs": CHAT,
}  # fmt: skip
# Entries of a data set that match what ftlab does anyway.
USUAL: dict[str, tuple[Any, ...]] = {
    "split": ("train",), "ds_type": ("json", "csv", "parquet", "arrow", "text"), "roles_to_train": (["assistant"],),
    "train_on_eos": ("turn", "last"), "train_on_eot": ("turn", "last"),
    # axolotl reads a prompt that is a text as one user turn.
    "field_messages": ("messages", "conversations", "instruction", "prompt", "question", "query"),
    "field_human": ("human",), "field_model": ("gpt",), "conversation": ("chatml", "llama3", "vicuna_v1.1"),
    "field": ("text",), "text_column": ("text",), "trust_remote_code": (False,), "drop_system_message": (False,),
    "message_field_role": ("from", "role"), "message_field_content": ("value", "content"), "field_tools": ("tools",),
    "message_property_mappings": ({"role": "role", "content": "content"}, {"role": "from", "content": "value"}),
    "field_chosen": ("chosen",), "field_rejected": ("rejected",), "chat_template": ("tokenizer_default",),
    "roles": (
        {"user": ["user"], "assistant": ["assistant"], "system": ["system"]},
        {"user": ["user"], "assistant": ["assistant"]},
        {"user": ["human", "user"], "assistant": ["gpt", "assistant"], "system": ["system"]},
    ),
}  # fmt: skip
# The Python file of reward functions that `ftlab recipe show` writes.
REWARDS_MODULE = "axolotl_rewards"
LIGER = ("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_swiglu", "liger_layer_norm",
         "liger_fused_linear_cross_entropy", "liger_cross_entropy", "liger_rms_norm_gated")  # fmt: skip
PLUGINS = {
    "axolotl.integrations.liger.LigerPlugin": {"use_liger_kernel": True},
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": {},
}


def datasets(value: Any, config: Values) -> Translation:
    """Return a list of data sets as `dataset`, with `stage: pt` if all are plain text."""
    sets = [one if isinstance(one, dict) else {"path": one} for one in listed(value)]
    read = [one_set(one) for one in sets]
    remarks = dict.fromkeys(note for _, notes in read for note in notes)
    plain = texts(value)
    limits = {rows_taken(one) for one in sets} - {None}
    if len(limits) > 1:
        raise ValueError(say("why_one_max_samples"))
    values = rows([path for paths, _ in read for path in paths]) | ({"stage": "pt"} if plain else {})
    return values | ({"max_samples": limits.pop()} if limits else {}), "; ".join(remarks)


def texts(value: Any) -> bool:
    """Return True if all data sets are raw text."""
    return bool(value) and all(
        isinstance(one, dict) and str(one.get("type", "")).startswith("completion") for one in listed(value)
    )


def one_set(one: Values) -> tuple[list[str], list[str]]:
    """Return the paths of one data set, and the notes on it.

    Raises:
        ValueError: an entry that a recipe cannot follow.
    """
    kind = one.get("type") or "chat_template"
    ends = [name for name in ("train_on_eos", "train_on_eot") if one.get(name) == "last"]
    notes = [say("why_every_end_trained", key=name) for name in ends]
    if isinstance(kind, dict):
        raise ValueError(say("why_type_with_fields"))
    kind = kind.partition(":")[0] if kind.startswith(("completion", "sharegpt")) else kind
    if kind not in TYPES:
        raise ValueError(say("why_describe_type", kind=kind))
    notes += [f"type: {kind}: {say(TYPES[kind])}"] if TYPES[kind] else []
    for name, entry in one.items():
        if name in ("path", "type", "data_files") or entry in (None, *USUAL.get(name, ())):
            continue
        if name == "split" and rows_taken(one) is not None:
            continue
        # Training on no role at all would be another run too.
        if name in ("shards", "preprocess_shards", "name", "revision", "roles_to_train") or name not in USUAL or entry:
            raise ValueError(say("why_describe_entry", key=name, value=entry))
    files = one.get("data_files")
    paths = [str(file) for file in listed(files)] if files else [str(one["path"])]
    for path in filter(os.path.isfile, paths):
        require_column(one, Path(path))
    return paths, notes


def require_column(one: Values, path: Path) -> None:
    """Refuse a file with two columns of turns, of which ftlab would read another one than `field_messages` names.

    Raises:
        ValueError: naming the column that ftlab would read.
    """
    column = one.get("field_messages")
    with contextlib.suppress(LabError):
        entry, (_, first) = detect(path), next(lines(path))
        if isinstance(first, dict) and column in first and column not in entry.columns.values():
            raise ValueError(say("why_other_column", column=column, path=path, columns=described(entry)))


def rows_taken(one: Values) -> int | None:
    """Return how many rows `split: train[:N]` takes, None for all."""
    text = str(one.get("split", ""))
    inner = text.removeprefix("train[:").removesuffix("]")
    return int(inner) if text.startswith("train[:") and inner.isdigit() else None


def held_out(value: Any, config: Values) -> Translation:
    """Return the validation sets."""
    sets = [one if isinstance(one, dict) else {"path": one} for one in listed(value)]
    # axolotl's may be any split of a hub's set; a file has one.
    paths = [path for one in sets for path in one_set({k: v for k, v in one.items() if k != "split"})[0]]
    return rows(paths, "eval_dataset")


def pretraining(value: Any, config: Values) -> Translation:
    """Return `pretraining_dataset`, raw text for continued pre-training."""
    values = datasets([one | {"type": "completion"} if isinstance(one, dict) else {"path": one, "type": "completion"}
                      for one in listed(value)], config)  # fmt: skip
    return values[0] if isinstance(values, tuple) else values


def adapter(value: Any, config: Values) -> Translation:
    """Return `adapter` as the tuning and its quantization."""
    kinds: dict[Any, Values] = {"lora": {"finetuning_type": "lora"}, "": {"finetuning_type": "full"}}
    kinds["qlora"] = {"finetuning_type": "lora", "quantization_bit": 4}
    if value not in kinds:
        raise ValueError(say("why_known_adapters"))
    return kinds[value]


def rl(value: Any, config: Values) -> Translation:
    """Return `rl` as the stage."""
    if value == "ipo":
        return {"stage": "dpo", "pref_loss": "ipo"}
    if value not in ("dpo", "kto", "orpo", "simpo", "grpo", False, ""):
        raise ValueError(say("why_known_axolotl_stages"))
    if value == "simpo" and config.get("cpo_alpha") != 0:
        raise ValueError(say("why_axolotl_cpo_alpha"))
    return {"stage": value} if value else {}


def one_loss(value: Any, config: Values) -> Translation:
    """Return `dpo_loss_type`, a list; a recipe takes one."""
    names = listed(value)
    if len(names) != 1:
        raise ValueError(say("why_one_dpo_loss"))
    return {"pref_loss": names[0]}


def grpo(value: Any, config: Values) -> Translation:
    """Return the block `trl` of GRPO."""
    names = {
        "beta": "pref_beta", "max_completion_length": "max_new_tokens", "num_generations": "num_generations",
        "temperature": "temperature",
    }  # fmt: skip
    usual = {"use_vllm": False, "log_completions": False, "top_p": 1.0, "repetition_penalty": 1.0}
    values: Values = {}
    for name, entry in value.items():
        if name == "reward_funcs":
            # The module that `ftlab recipe show` writes next to it.
            values["reward_funcs"] = joined([str(one).removeprefix(f"{REWARDS_MODULE}.") for one in listed(entry)])
        elif name in names:
            values[names[name]] = entry
        elif entry is not None and usual.get(name, object()) != entry:
            raise ValueError(say("why_no_equivalent", key=name, value=entry))
    return values


def bits(number: int) -> Any:
    """Return the reader of `load_in_4bit` or `load_in_8bit`."""
    return lambda value, config: {"quantization_bit": number} if value else {}


def evaluates(config: Values) -> bool:
    """Return True if a file has a validation set: without one axolotl never evaluates, whatever other keys say."""
    return bool(config.get("val_set_size") or config.get("test_datasets"))


def per_epoch(name: str) -> Any:
    """Return the reader of `evals_per_epoch` or `saves_per_epoch`: a share of all steps, as axolotl computes it.

    A share of 1 would be one step; axolotl then saves every epoch, its default, and evaluates nothing, its default too.
    """

    def read(value: Any, config: Values) -> Translation:
        if name == "eval" and not evaluates(config):
            return {}, say("why_no_validation_set")
        if not value:
            return {}
        share = 1 / (value * config.get("num_epochs", 1))
        if share < 1:
            return {f"{name}_strategy": "steps", f"{name}_steps": share}
        if name == "save":
            return {"save_strategy": "epoch"}
        return {}, say("why_one_evaluation_is_none")

    return read


def steps(name: str) -> Any:
    """Return the reader of `eval_steps` or `save_steps`, which set the strategy too."""

    def read(value: Any, config: Values) -> Translation:
        if name == "eval" and not evaluates(config):
            return {}, say("why_no_validation_set")
        return {f"{name}_strategy": "steps", f"{name}_steps": value} if value else {}

    return read


def strategy(name: str) -> Any:
    """Return the reader of `eval_strategy` or `save_strategy`, which steps override."""

    def read(value: Any, config: Values) -> Translation:
        if name == "eval" and not evaluates(config):
            return {}, say("why_no_validation_set")
        by = next((key for key in (f"{name}_steps", f"{name}s_per_epoch") if config.get(key)), None)
        return ({}, say("why_key_counts", key=by)) if by else {f"{name}_strategy": value}

    return read


def warmed(value: Any, config: Values) -> Translation:
    """Return `warmup_steps`; axolotl turns 1 into 2."""
    return ({"warmup_steps": 2}, say("why_two_warmup_steps")) if value == 1 else {"warmup_steps": value}


def kernel(name: str) -> Any:
    """Return the reader of one of the old switches of the attention kernel."""
    return lambda value, config: {"flash_attn": name} if value else {}


def batch(value: Any, config: Values) -> Translation:
    """Return the old `batch_size` of all micro batches."""
    return {"gradient_accumulation_steps": max(1, int(value) // int(config.get("micro_batch_size", 1)))}


def plugins(value: Any, config: Values) -> Translation:
    """Return the plug-ins: kernels."""
    values: Values = {}
    for name in listed(value):
        if name not in PLUGINS:
            raise ValueError(say("why_no_plugin", name=name))
        values |= PLUGINS[name]
    return values


def tracker(name: str, entry: str) -> Any:
    """Return the reader of a tracker's key, which enables the tracker."""
    return lambda value, config: {"report_to": [name]} | ({entry: str(value)} if entry else {}) if value else {}


def precision(name: str) -> Any:
    """Return the reader of `bf16` or `fp16`; `auto` leaves it to the machine."""

    def read(value: Any, config: Values) -> Translation:
        whole = name == "bf16" and value and not config.get("adapter")
        if value == "full" and whole:
            return {"pure_bf16": True}
        note = say("why_weights_stay_float32") if whole else ""
        return {} if value in ("auto", "") else {name: bool(value)}, note

    return read


def schedule(value: Any, config: Values) -> Translation:
    """Return `lr_scheduler`; with `cosine_min_lr_ratio` it is a cosine."""
    return {} if value == "cosine" and config.get("cosine_min_lr_ratio") else {"lr_scheduler_type": value}


def optimizer_arguments(value: Any, config: Values) -> Translation:
    """Return `optim_args`, a mapping or transformers' own text."""
    words = [f"{name}={entry}" for name, entry in value.items()] if isinstance(value, dict) else [value]
    return {"optim_args": ",".join(words)} if value else {}


def too_long(value: Any, config: Values) -> Translation:
    """Return no keys, with a note: a recipe cuts the examples that axolotl drops.

    Raises:
        ValueError: examples that axolotl stops at.
    """
    if value not in ("truncate", "drop"):
        raise ValueError(say("why_examples_are_cut"))
    return {}, "" if value == "truncate" else say("why_cut_above_sequence_len")


def least_rate(value: Any, config: Values) -> Translation:
    """Return `cosine_min_lr_ratio` as the cosine schedule that ends above zero."""
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": value}}


def special_tokens(value: Any, config: Values) -> Translation:
    """Return no keys for a pad token; other tokens would change what is trained."""
    others = {name: token for name, token in value.items() if name != "pad_token" and token}
    if others:
        return {}, say("why_own_special_tokens", entries=others)
    return {}, say("why_padding_untrained")


def recomputing(value: Any, config: Values) -> Translation:
    """Return `gradient_checkpointing`, wherever axolotl puts the activations."""
    return {"gradient_checkpointing": value not in (False, "", "false")}


def defaults(config: Values) -> Values:
    """Return axolotl's defaults for keys that are left out."""
    values: Values = {
        "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1.0, "lr_scheduler": "cosine",
        "sequence_len": 512, "save_strategy": "epoch", "save_total_limit": 4,
    }  # fmt: skip
    if texts(config.get("datasets")):
        values["sample_packing"] = False
    if config.get("warmup_steps") is None and config.get("warmup_ratio") is None:
        steps = config.get("max_steps") or 0
        values |= {"warmup_steps": min(int(0.03 * steps), 100)} if steps > 0 else {"warmup_ratio": 0.03}
    if not config.get("adapter"):
        values["adapter"] = ""
    elif not (config.get("lora_target_linear") or config.get("lora_target_modules")):
        values["lora_target_modules"] = ["q_proj", "v_proj"]
    return values


AXOLOTL = Framework(
    title="axolotl",
    names={
        "model_name_or_path": "base_model", "stage": "rl", "finetuning_type": "adapter",
        "model_revision": "revision_of_model", "adapter_name_or_path": "lora_model_dir",
        "trust_remote_code": "trust_remote_code", "lora_rank": "lora_r",
        "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_target": "lora_target_modules",
        "additional_target": "lora_modules_to_save", "use_rslora": "peft_use_rslora", "use_dora": "peft_use_dora",
        "pissa_init": "peft_init_lora_weights", "init_lora_weights": "peft_init_lora_weights", "use_muon": "optimizer",
        "loraplus_lr_ratio": "loraplus_lr_ratio",
        "quantization_bit": "load_in_4bit", "flash_attn": "attn_implementation", "dataset": "datasets",
        "eval_dataset": "test_datasets", "val_size": "val_set_size", "cutoff_len": "sequence_len",
        "packing": "sample_packing", "train_on_prompt": "train_on_inputs", "pref_beta": "rl_beta",
        "simpo_gamma": "simpo_gamma", "kto_chosen_weight": "kto_desirable_weight",
        "dpo_label_smoothing": "dpo_label_smoothing",
        "kto_rejected_weight": "kto_undesirable_weight", "output_dir": "output_dir",
        "early_stopping_steps": "early_stopping_patience",
        "per_device_train_batch_size": "micro_batch_size", "num_train_epochs": "num_epochs", "optim": "optimizer",
        "lr_scheduler_type": "lr_scheduler", "per_device_eval_batch_size": "eval_batch_size",
    },
    values={
        "use_muon": lambda on: "muon",
        "additional_target": comma_parts, "pissa_init": lambda on: "pissa",
        "lora_target": lambda value: "all-linear" if value == "all" else comma_parts(value),
        "flash_attn": {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}.get,
    },
    stages={
        "sft": "", "pt": "", "rm": "", "dpo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo",
    },
    tunings={"lora": "lora", "full": ""},
    also={
        "dpo_beta": "pref_beta", "orpo_alpha": "pref_beta", "rpo_alpha": "pref_ftx", "use_dft_loss": "use_dft_loss",
        "noisy_embedding_alpha": "neftune_noise_alpha",
        "wandb_name": "run_name", "mlflow_run_name": "run_name", "trackio_run_name": "run_name",
        "wandb_run_name": "run_name",
    },
    read={
        "datasets": datasets, "test_datasets": held_out, "pretraining_dataset": pretraining, "adapter": adapter,
        "rl": rl, "trl": grpo, "dpo_loss_type": one_loss, "load_in_4bit": bits(4), "load_in_8bit": bits(8),
        "batch_size": batch,
        "warmup_steps": warmed, "evals_per_epoch": per_epoch("eval"), "saves_per_epoch": per_epoch("save"),
        "eval_steps": steps("eval"),
        "eval_strategy": strategy("eval"), "evaluation_strategy": strategy("eval"),
        "save_strategy": strategy("save"), "save_steps": steps("save"),
        "cpo_alpha": only(0, "why_simpo_without_sft"), "plugins": plugins,
        "bf16": precision("bf16"), "fp16": precision("fp16"),
        "cosine_min_lr_ratio": least_rate, "special_tokens": special_tokens, "gradient_checkpointing": recomputing,
        "attn_implementation": attention, "flash_attention": kernel("fa2"), "sdp_attention": kernel("sdpa"),
        "eager_attention": kernel("disabled"), "xformers_attention": kernel("sdpa"),
        "flex_attention": off("why_no_flex_attention"),
        "chat_template": templated(TEMPLATES), "peft_init_lora_weights": initial,
        "optimizer": optimizer, "rope_scaling": stretched, "tokens": added,
        "reward_model": lambda value, config: {"stage": "rm"} if value else {},
        "lora_target_linear": lambda value, config: {"lora_target": "all"} if value else {},
        "lora_target_modules": lambda value, config: (
            {} if config.get("lora_target_linear") else {"lora_target": target(value)}),
        "lora_modules_to_save": lambda value, config: {"additional_target": joined(value)} if value else {},
        "group_by_length": lambda value, config: {"group_by_length": bool(value)} if value else {},
        "hub_model_id": lambda value, config: {"hub_model_id": value, "push_to_hub": True} if value else {},
        "wandb_project": tracker("wandb", "project"), "use_wandb": tracker("wandb", ""),
        "mlflow_tracking_uri": tracker("mlflow", ""), "use_mlflow": tracker("mlflow", ""),
        "use_tensorboard": tracker("tensorboard", ""), "trackio_project_name": tracker("trackio", "project"),
        "use_trackio": tracker("trackio", ""),
        "fsdp": lambda value, config: {"fsdp": " ".join(listed(value)) if value else None},
        "resume_from_checkpoint": lambda value, config: {"resume_from_checkpoint": value} if value else {},
        "deepspeed": lambda value, config: {"deepspeed": value} if value else {},
        "pretraining_sample_concatenation": lambda value, config: {"packing": bool(value)},
        "lora_fan_in_fan_out": off("why_peft_detects_conv1d"),
        "dataset_exact_deduplication": off("why_remove_duplicates"),
        "peft": only((None, {}), "why_no_loftq"),
        "num_labels": only(1, "why_one_reward"),
        "excess_length_strategy": too_long, "lr_scheduler": schedule, "optim_args": optimizer_arguments,
    },
    dropped={
        "strict": "why_keys_are_checked", "dataset_prepared_path": "why_cached_by_ftlab",
        "dataset_processes": "why_encoded_in_one_process",
        "dataset_num_proc": "why_encoded_in_one_process",
        "dataset_keep_in_memory": "why_read_from_disk", "pad_to_sequence_len": "why_padding_untrained",
        "eval_sample_packing": "why_same_loss_unpacked",
        "sample_packing_group_size": "why_axolotl_packing",
        "shuffle_merged_datasets": "why_always_shuffled",
        "sample_packing_bin_size": "why_axolotl_packing",
        "sample_packing_eff_est": "why_axolotl_packing",
        "model_type": "why_class_from_config",
        "tokenizer_legacy": "why_tokenizer_setting_kept",
        "tokenizer_type": "why_class_from_config",
        "total_num_tokens": "why_computed_from_data",
        "processor_type": "why_text_needs_no_processor", "tokenizer_use_fast": "why_fast_tokenizers",
        "is_llama_derived_model": "why_class_from_config",
        "debug": "why_training_unchanged",
        "is_mistral_derived_model": "why_class_from_config",
        "logging_first_step": "why_first_step_always_logged",
        "is_falcon_derived_model": "why_class_from_config", "local_rank": "why_torchrun_sets_it",
        "is_qwen_derived_model": "why_class_from_config",
        "use_auth_token": "why_token_from_hf_token",
        "tf32": "why_torch_default_kept", "bfloat16": "why_dtype_by_machine",
        "float16": "why_dtype_by_machine",
        "auto_resume_from_checkpoints": "why_unfinished_resumed",
        "hf_use_auth_token": "why_token_from_hf_token",
        "save_safetensors": "why_always_safetensors", "low_cpu_mem_usage": "why_transformers_always",
        "lora_mlp_kernel": "why_only_speed", "flash_attn_rms_norm": "why_only_speed",
        "lora_qkv_kernel": "why_only_speed", "flash_attn_cross_entropy": "why_only_speed",
        "lora_o_kernel": "why_only_speed", "flash_attn_fuse_qkv": "why_only_speed",
        "flash_attn_fuse_mlp": "why_only_speed",
        "chunked_cross_entropy": "why_same_loss_less_memory",
        "cut_cross_entropy": "why_same_loss_less_memory",
        "lora_on_cpu": "why_device_by_machine",
        "wandb_entity": "why_set_in_environment", "wandb_watch": "why_set_in_environment",
        "wandb_log_model": "why_set_in_environment", "wandb_mode": "why_set_in_environment",
        "wandb_run_id": "why_set_in_environment",
        "mlflow_experiment_name": "why_set_in_environment",
        "hf_mlflow_log_artifacts": "why_set_in_environment",
        "load_in_16bit": "why_dtype_by_machine",
        "gc_steps": "why_training_unchanged", "flash_optimum": "why_only_speed",
        "world_size": "why_torchrun_sets_it",
        "max_packed_sequence_len": "why_sequence_len_instead",
        "save_first_step": "why_training_unchanged",
        "use_kernels": "why_only_speed", "eval_table_size": "why_training_unchanged",
        "eval_max_new_tokens": "why_only_with_eval_table",
        "tokenizer_save_jinja_files": "why_template_saved",
        "include_tokens_per_second": "why_tokens_per_second_logged",
        "include_tkps": "why_tokens_per_second_logged",
        "loss_watchdog_threshold": "why_bad_loss_stops",
        "gptq": "why_quantized_by_config",
        "loss_watchdog_patience": "why_bad_loss_stops",
    } | dict.fromkeys(LIGER, "why_liger_by_key"),
    refused={
        "gpu_memory_limit": "why_write_max_memory",
        "skip_prepare_dataset": "why_always_encoded_first",
        "relora": "why_no_relora", "unfrozen_parameters": "why_write_freeze",
        "added_tokens_overrides": "why_no_renamed_tokens",
        "resize_token_embeddings_to_32x": "why_embedding_keeps_size",
        "overrides_of_model_config": "why_set_in_config_json",
        "overrides_of_model_kwargs": "why_set_in_config_json", "qat": "why_no_qat",
        "base_model_config": "why_no_other_config",
        "tokenizer_config": "why_no_other_tokenizer",
        "streaming": "why_read_from_disk",
        "chat_template_jinja": "why_template_in_tokenizer_config",
        "vllm": "why_generated_without_vllm",
        "lora_target_parameters": "why_parameters_in_lora_target",
        "use_eaft": "why_eaft_weights",
        "process_reward_model": "why_reward_for_whole_answer",
        "sequence_parallel_degree": "why_no_sequence_parallelism",
        "context_parallel_size": "why_no_sequence_parallelism",
        "tensor_parallel_size": "why_no_tensor_parallelism", "dion_lr": "why_no_dion",
        "lr_groups": "why_one_learning_rate",
        "embedding_lr": "why_one_learning_rate",
        "do_bench_eval": "why_write_tasks_and_eval", "fp8": "why_fp8_needs_accelerate",
        "shuffle_before_merging_datasets": "why_concatenated_then_shuffled",
        "jagged_restart_steps": "why_no_relora",
        "merge_lora": "why_merge_with_export",
        "s2_attention": "why_no_longlora", "lisa_n_layers": "why_no_lisa",
        "peft_layers_to_transform": "why_layer_names_in_lora_target",
    },
    defaults=defaults,
    fields=(
        "adam_beta1", "adam_beta2", "adam_epsilon", "auto_find_batch_size", "bf16", "dataloader_drop_last",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_timeout", "deepspeed", "eval_steps",
        "eval_strategy", "fp16", "fsdp", "fsdp_config", "gradient_accumulation_steps", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "greater_is_better", "hub_model_id", "hub_revision", "hub_strategy",
        "learning_rate", "load_best_model_at_end", "logging_steps", "lr_scheduler_kwargs", "max_grad_norm", "max_steps",
        "metric_for_best_model", "neftune_noise_alpha", "optim_args", "optim_target_modules",
        "resume_from_checkpoint", "save_only_model", "save_steps", "save_strategy", "save_total_limit", "seed",
        "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "warmup_steps",
        "weight_decay",
    ),
    unsaid={"excess_length_strategy": "why_axolotl_drops_long"},
)  # fmt: skip
