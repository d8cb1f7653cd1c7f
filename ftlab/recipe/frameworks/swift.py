"""ms-swift's command and YAML. Source: the classes of swift.arguments and swift.trainers.arguments, release 4.6."""

from typing import Any

from ftlab.errors import say
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
from ftlab.recipe.keys import REWARDS

TEMPLATES = {
    "qwen2_5": "qwen", "qwen": "qwen", "qwen3": "qwen3", "qwen3_nothinking": "qwen3_nothink", "chatml": "chatml",
    "llama3": "llama3", "llama3_2": "llama3", "gemma": "gemma", "gemma3_text": "gemma3", "phi4": "phi4",
    "default": "default",
}  # fmt: skip
FORMATS: dict[Any, Values] = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}, "float32": {"bf16": False}}
GALORE = {
    "galore_target_modules": "galore_target", "galore_update_proj_gap": "galore_update_interval",
    "galore_rank": "galore_rank", "galore_scale": "galore_scale", "galore_proj_type": "galore_proj_type",
}  # fmt: skip
# swift's other tuners that a recipe supports: its key -> PEFT's field, and swift's default.
TUNERS: dict[str, dict[str, tuple[str, Any]]] = {
    "vera": {
        "vera_rank": ("r", 256), "vera_dropout": ("vera_dropout", 0.0), "vera_d_initial": ("d_initial", 0.1),
    },
    "fourierft": {"fourier_n_frequency": ("n_frequency", 2000), "fourier_scaling": ("scaling", 300.0)},
}  # fmt: skip


def sets(key: str) -> Any:
    """Return the reader of data sets: `path#rows`, separated by blanks."""

    def read(value: Any, config: Values) -> Translation:
        paths, limits = [], set()
        for one in listed(value):
            path, _, rest = str(one).removeprefix("HF::").removeprefix("MS::").partition("#")
            if ":" in path:
                raise ValueError(say("why_describe_path", path=path))
            if rest and not rest.isdigit():
                raise ValueError(say("why_no_row_count", text=rest))
            paths.append(path)
            limits.add(int(rest) if rest else None)
        if len(limits) > 1:
            raise ValueError(say("why_one_max_samples"))
        values = rows(paths, key)
        limit = limits.pop() if limits else None
        note = say("why_swift_asks_modelscope") if "dataset_dir" in values and config.get("use_hf") is not True else ""
        return values | ({"max_samples": limit} if limit else {}), note

    return read


def tuner(value: Any, config: Values) -> Translation:
    """Return `tuner_type`."""
    if value not in ("lora", "full", *TUNERS):
        raise ValueError(say("why_known_tuners", names=", ".join(TUNERS)))
    values: Values = {"finetuning_type": value}
    if value == "full":
        return values, "" if "torch_dtype" in config else say("why_swift_whole_weights")
    if value in TUNERS:
        fields = {field: config.get(name, usual) for name, (field, usual) in TUNERS[value].items()}
        values["peft_config"] = fields
    return values


def tuned_by(config: Values) -> str:
    """Return the tuner of a run."""
    return str(config.get("tuner_type", config.get("train_type", config.get("sft_type", "lora"))))


def field_of(kind: str) -> Any:
    """Return the reader of a tuner's field: `tuner_type` reads all of them."""

    def read(value: Any, config: Values) -> Translation:
        used = tuned_by(config) == kind
        return tuner(kind, config) if used else ({}, say("why_beside_tuner", kind=kind))

    return read


def of_lora(name: str) -> Any:
    """Return the reader of a LoRA field, which swift has for every tuner."""
    return lambda value, config: {name: value} if tuned_by(config) == "lora" else ({}, say("why_lora_only"))


def rlhf(value: Any, config: Values) -> Translation:
    """Return `rlhf_type` as the stage.

    Raises:
        ValueError: a type of run that a recipe lacks, or SimPO with the SFT loss that swift adds.
    """
    if value not in ("dpo", "kto", "orpo", "simpo", "rm", "ppo", "grpo", "gkd"):
        raise ValueError(say("why_known_swift_stages"))
    if value == "simpo" and config.get("cpo_alpha", 1.0) != 0:
        raise ValueError(say("why_swift_cpo_alpha"))
    return {"stage": value}, say("why_swift_grpo_mean") if value == "grpo" and "loss_type" not in config else ""


def loss(value: Any, config: Values) -> Translation:
    """Return `loss_type`, one name or several."""
    names = [str(name) for name in listed(value)]
    if config.get("rlhf_type") == "grpo" and names in (["dapo"], ["grpo"]):
        return {}, "" if names == ["dapo"] else say("why_swift_grpo_mean")
    own = {"kto": "kto", "simpo": "simpo"}.get(str(config.get("rlhf_type")))
    if names == [own]:
        return {}
    if config.get("rlhf_type", "dpo") != "dpo" or len(names) != 1:
        raise ValueError(say("why_one_dpo_loss"))
    return {"pref_loss": names[0]}


def strength(value: Any, config: Values) -> Translation:
    """Return `beta`: in GKD the interpolation between two divergences, in other stages the weight of the reference."""
    return {"beta" if config.get("rlhf_type") == "gkd" else "pref_beta": value}


def teacher(value: Any, config: Values) -> Translation:
    """Return `teacher_model`.

    Raises:
        ValueError: a stage other than gkd.
    """
    if config.get("rlhf_type") != "gkd":
        raise ValueError(say("why_teacher_in_gkd"))
    return {"teacher_model": value}


def sampled(value: Any, config: Values) -> Translation:
    """Return `temperature`."""
    differs = config.get("rlhf_type") == "gkd" and value != 1
    return {"temperature": value}, say("why_swift_divides_logits") if differs else ""


def same_revision(value: Any, config: Values) -> Translation:
    """Return no keys for a teacher's revision, which must be the model's.

    Raises:
        ValueError: another one.
    """
    if value != config.get("model_revision", "main"):
        raise ValueError(say("why_one_revision"))
    return {}


def scale(value: Any, config: Values) -> Translation:
    """Return `loss_scale`: which answers are trained on."""
    kinds: dict[Any, Values] = {"default": {}, "all": {"train_on_prompt": True}, "last_round": {"mask_history": True}}
    if config.get("rlhf_type") not in (None, "sft"):
        kinds |= {"last_round": {}}
    if value not in kinds:
        raise ValueError(say("why_known_loss_scales"))
    return kinds[value]


def substitution(name: str) -> Any:
    """Return the reader of `model_name` and `model_author`, given in Chinese and English or once for both."""

    def read(value: Any, config: Values) -> Translation:
        texts = {str(part) for part in listed(value)}
        if len(texts) > 1:
            raise ValueError(say("why_one_text_per_placeholder"))
        return {"dataset_substitutions": {name: texts.pop()}}

    return read


def number_format(value: Any, config: Values) -> Translation:
    """Return `torch_dtype`: whole weights stay in bfloat16."""
    if value not in FORMATS:
        raise ValueError(say("why_known_dtypes"))
    whole = tuned_by(config) == "full"
    if value == "float32" and (config.get("bf16") or config.get("fp16")):
        return {}
    return {"pure_bf16": True} if whole and value == "bfloat16" else FORMATS[value]


def first(name: str) -> Any:
    """Return the reader of a list of which a recipe takes one item."""
    return lambda value, config: {name: joined(value)} if value else {}


def columns(value: Any, config: Values) -> Translation:
    """Return no keys for columns that ftlab reads under their own names.

    Raises:
        ValueError: columns with other names.
    """
    own = {"chosen": "output", "rejected": "rejected_response", "kto_tag": "label"}
    own |= {"output": "solution"} if config.get("rlhf_type") == "grpo" else {}
    if not isinstance(value, dict) or any(own.get(name) != theirs for name, theirs in value.items()):
        raise ValueError(say("why_describe_columns"))
    return {}


def plugins(value: Any, config: Values) -> Translation:
    """Return no keys for code that defines reward functions which a recipe has itself.

    Raises:
        ValueError: other code.
    """
    if not set(listed(config.get("reward_funcs") or ["none"])) <= set(REWARDS):
        raise ValueError(say("why_own_code_not_run"))
    return {}, say("why_own_rewards", names=", ".join(REWARDS))


def too_long(value: Any, config: Values) -> Translation:
    """Return no keys, with a note if long examples are not cut at their end."""
    return {}, "" if value == "right" else say("why_cut_in_proportion")


def held_out(value: Any, config: Values) -> Translation:
    """Return `split_dataset_ratio`: without evaluation swift holds nothing out."""
    if value and config.get("eval_strategy") == "no":
        return {}, say("why_nothing_held_out")
    return {"val_size": value}


def defaults(config: Values) -> Values:
    """Return swift's defaults for keys that are left out."""
    full = tuned_by(config) == "full"
    kind = config.get("rlhf_type")
    # 16 examples per step over all processes.
    batch = max(int(config.get("per_device_train_batch_size", 1)), 1) * max(int(config.get("nproc_per_node", 1)), 1)
    values: Values = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": max(1, -(-16 // batch)),
        "learning_rate": 1e-5 if full else 1e-4, "lr_scheduler_type": "cosine", "weight_decay": 0.1,
        "adam_beta2": 0.95, "logging_steps": 5,
    }  # fmt: skip
    if tuned_by(config) == "lora":
        values |= {"lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05}
    values |= {} if full else {"target_modules": ["all-linear"]}
    values |= {"packing": False} if config.get("stage") == "pt" else {}
    if config.get("val_dataset") or (config.get("split_dataset_ratio") and config.get("eval_strategy") != "no"):
        strategy = config.get("eval_strategy", config.get("save_strategy", "steps"))
        values["eval_strategy"] = strategy
        values |= {"eval_steps": config.get("save_steps", 500)} if strategy == "steps" else {}
    if kind in ("simpo", "grpo"):
        values["beta"] = 2.0 if kind == "simpo" else 0.04
    if kind == "simpo":
        values["simpo_gamma"] = 1.0
    if kind == "ppo":
        values["kl_coef"] = 0.05
    return values | ({"max_completion_length": 512, "temperature": 0.9} if kind in ("ppo", "grpo", "gkd") else {})


SWIFT = Framework(
    title="ms-swift",
    names={
        "model_name_or_path": "model", "stage": "rlhf_type", "finetuning_type": "tuner_type", "lora_rank": "lora_rank",
        "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_target": "target_modules",
        "additional_target": "modules_to_save", "use_rslora": "use_rslora", "use_dora": "use_dora",
        "pissa_init": "init_weights", "init_lora_weights": "init_weights", "use_muon": "optimizer",
        "loraplus_lr_ratio": "lorap_lr_ratio", "quantization_bit": "quant_bits",
        "quantization_type": "bnb_4bit_quant_type", "double_quantization": "bnb_4bit_use_double_quant",
        "adapter_name_or_path": "adapters", "enable_thinking": "enable_thinking", "use_dft_loss": "enable_dft_loss",
        "flash_attn": "attn_impl", "moe_aux_loss_coef": "router_aux_loss_coef",
        "dataset": "dataset", "eval_dataset": "val_dataset",
        "val_size": "split_dataset_ratio", "default_system": "system", "cutoff_len": "max_length", "packing": "packing",
        "model_revision": "model_revision", "ref_model": "ref_model", "ref_model_adapters": "ref_adapters",
        "beta": "beta", "lmbda": "lmbda", "teacher_model": "teacher_model",
        "pref_beta": "beta", "pref_loss": "loss_type", "pref_ftx": "rpo_alpha", "simpo_gamma": "simpo_gamma",
        "dpo_label_smoothing": "label_smoothing", "ld_alpha": "ld_alpha", "kto_chosen_weight": "desirable_weight",
        "kto_rejected_weight": "undesirable_weight", "output_dir": "output_dir",
        "early_stopping_steps": "early_stop_interval",
    },
    values={
        "use_muon": lambda on: "muon",
        "lora_target": lambda value: ["all-linear"] if value == "all" else comma_parts(value),
        "additional_target": comma_parts, "pissa_init": lambda on: "pissa", "adapter_name_or_path": comma_parts,
        "flash_attn": {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attn", "fa3": "flash_attention_3"}.get,
    },
    stages={
        "sft": "", "pt": "", "rm": "rm", "dpo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo",
        "gkd": "gkd",
    },
    tunings={"lora": "lora", "full": "full"},
    also={
        "quantization_bit": "quantization_bit", "quant_method": "quantization_method", "num_generations":
        "num_generations", "max_completion_length": "max_new_tokens", "response_length": "max_new_tokens",
        "num_ppo_epochs": "ppo_epochs", "kl_coef": "pref_beta",
        "model_id_or_path": "model_name_or_path", "use_galore": "use_galore", "device_map": "device_map",
        "max_memory": "max_memory", "lora_target_modules": "lora_target",
        "max_new_tokens": "max_new_tokens",
    } | GALORE,
    read={
        "dataset": sets("dataset"), "val_dataset": sets("eval_dataset"), "tuner_type": tuner, "train_type": tuner,
        "sft_type": tuner, **{name: field_of(kind) for kind, fields in TUNERS.items() for name in fields},
        **{name: of_lora(name) for name in ("lora_rank", "lora_alpha", "lora_dropout")},
        "optimizer": optimizer, "rope_scaling": stretched, "new_special_tokens": added, "rlhf_type": rlhf,
        "external_plugins": plugins, "loss_type": loss, "loss_scale": scale, "attn_impl": attention,
        "model_name": substitution("name"), "model_author": substitution("author"), "columns": columns,
        "torch_dtype": number_format,
        "target_modules": lambda value, config: {"lora_target": target(value)}, "init_weights": initial,
        "split_dataset_ratio": held_out,
        "modules_to_save": lambda value, config: {"additional_target": joined(value)} if value else {},
        "reward_funcs": first("reward_funcs"), "adapters": first("adapter_name_or_path"),
        "reward_model": first("reward_model"),
        "ref_adapters": first("ref_model_adapters"),
        "template": templated(TEMPLATES), "truncation_strategy": too_long,
        "dataset_shuffle": lambda value, config: {} if value else {"train_sampling_strategy": "sequential"},
        "train_dataloader_shuffle": lambda value, config: {} if value else {"train_sampling_strategy": "sequential"},
        "beta": strength, "teacher_model": teacher, "temperature": sampled, "teacher_model_revision": same_revision,
        "sft_alpha": only(0, "why_gkd_without_sft"),
        "seq_kd": off("why_swift_refuses_seq_kd"),
        "cpo_alpha": only(0, "why_simpo_without_sft"),
        "lora_bias": only("none", "why_biases_untrained"),
        "tuner_backend": only("peft", "why_adapters_of_peft"),
        "task_type": only(("causal_lm", "seq_cls"), "why_language_and_reward"),
        "num_labels": only(1, "why_one_reward"),
        "num_iterations": only(1, "why_batch_used_once"),
        "use_vllm": off("why_generated_by_transformers"),
        "use_chat_template": only(True, "why_write_stage_pt"),
        "freeze_llm": off("why_text_models_only"),
        "lora_dtype": only(("float32", "auto"), "why_adapters_float32"),
        "group_by_length": lambda value, config: {"group_by_length": value} if value else {},
        "sequence_parallel_size": only(1, "why_no_sequence_parallelism"),
        "resume_only_model": off("why_resumed_with_optimizer"),
    },
    dropped={
        "streaming": "why_read_from_a_file",
        "offload_teacher_model": "why_only_memory",
        "teacher_model_type": "why_class_from_config",
        "model_type": "why_class_from_config",
        "use_hf": "why_hub_by_environment",
        "lazy_tokenize": "why_always_encoded_first",
        "dataset_num_proc": "why_encoded_in_one_process",
        "load_from_cache_file": "why_cached_by_ftlab", "packing_length": "why_cutoff_len_instead",
        "packing_num_proc": "why_encoded_in_one_process", "padding_free": "why_padding_untrained",
        "padding_side": "why_padding_untrained", "add_version": "why_output_dir_is_the_run",
        "create_checkpoint_symlink": "why_no_symbolic_links",
        "check_model": "why_local_weights_unchecked",
        "logging_first_step": "why_first_step_always_logged", "save_safetensors": "why_always_safetensors",
        "safe_serialization": "why_always_safetensors",
        "max_shard_size": "why_export_size_limits",
        "freeze_vit": "why_text_models_only", "freeze_aligner": "why_text_models_only",
        "vit_lr": "why_text_models_only",
        "aligner_lr": "why_text_models_only", "max_pixels": "why_text_models_only", "strict": "why_on_bad_rows_instead",
        "vit_gradient_checkpointing": "why_text_models_only", "agent_template": "why_template_renders_tools",
        "ddp_backend": "why_torch_default_kept", "load_args": "why_saved_arguments_unread",
        "load_data_args": "why_saved_arguments_unread",
        "val_dataset_shuffle": "why_validation_order",
        "use_logits_to_keep": "why_only_memory",
        "template_backend": "why_own_template_used",
        "acc_strategy": "why_one_figure_in_log",
        "remove_unused_columns": "why_ftlab_prepares_columns",
        "deepspeed_autotp_size": "why_no_tensor_parallelism",
        "use_flash_ckpt": "why_written_synchronously",
        "lora_ga_batch_size": "why_only_with_lora_ga",
        "swanlab_project": "why_only_with_swanlab",
        "log_completions": "why_completions_unlogged",
        "packing_strategy": "why_packed_by_length",
        "num_sample_generations": "why_completions_unlogged",
        "download_mode": "why_hub_cache", "task": "why_command_is_the_task",
        "logging_dir": "why_trackers_in_run_folder",
        "ddp_find_unused_parameters_": "why_torch_default_kept",
        "vllm_mode": "why_only_with_vllm",
        "vllm_gpu_memory_utilization": "why_only_with_vllm", "norm_bbox": "why_text_models_only",
        "vllm_max_model_len": "why_only_with_vllm",
        "sleep_level": "why_only_with_vllm",
        "vllm_tensor_parallel_size": "why_only_with_vllm",
        "bnb_4bit_compute_dtype": "why_dtype_by_machine",
    },
    refused={
        "custom_register_path": "why_custom_code_not_run",
        "custom_dataset_info": "why_use_dataset_info",
        "teacher_adapters": "why_merge_into_teacher",
        "teacher_model_server": "why_teacher_in_process",
        "teacher_deepspeed": "why_teacher_not_sharded",
        "gkd_logits_topk": "why_whole_vocabulary",
        "target_regex": "why_write_layer_names",
        "target_parameters": "why_parameters_in_lora_target",
        "freeze_parameters": "why_write_freeze",
        "trainable_parameters": "why_write_freeze",
        "freeze_parameters_ratio": "why_write_freeze",
        "max_epochs": "why_write_epochs",
        "cached_dataset": "why_files_in_dataset",
        "response_prefix": "why_template_begins_answer",
        "reward_weights": "why_rewards_unweighted",
        "enable_channel_loss": "why_loss_of_all_sets",
        "callbacks": "why_custom_code_not_run", "eval_metric": "why_only_the_loss",
        "lisa_activated_layers": "why_no_lisa", "discopop_tau": "why_no_discopop",
        "interleave_prob": "why_write_mixture", "loss_weights": "why_write_pref_ftx",
    },
    defaults=defaults,
    unsaid={
        "max_length": "why_swift_cuts_nothing",
        "truncation_strategy": "why_swift_drops_long",
    },
)  # fmt: skip
