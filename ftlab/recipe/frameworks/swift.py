"""ms-swift's command and YAML. Source: the classes of swift.arguments and swift.trainers.arguments, release 4.6."""

from typing import Any

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
MODELSCOPE = "a hub id is asked of the hub that HF_ENDPOINT names, swift asks ModelScope's unless `use_hf: true`"
GALORE = {
    "galore_target_modules": "galore_target", "galore_update_proj_gap": "galore_update_interval",
    "galore_rank": "galore_rank", "galore_scale": "galore_scale", "galore_proj_type": "galore_proj_type",
}  # fmt: skip


GRPO_MEAN = (
    "TRL's loss is the mean over all tokens, swift's `grpo` the mean over each completion first (`dapo`: all tokens)"
)
DIVIDED = "swift divides logits by it in the divergence too, TRL only where answers are written"
WHOLE_WEIGHTS = (
    "swift keeps whole weights in the model's own dtype, mostly bfloat16; here they are float32, or bfloat16 "
    "with `pure_bf16: true`"
)
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
                raise ValueError(f"the subset of {path}: describe it in dataset_info.json")
            if rest and not rest.isdigit():
                raise ValueError(f"#{rest} is not a number of rows")
            paths.append(path)
            limits.add(int(rest) if rest else None)
        if len(limits) > 1:
            raise ValueError("`max_samples` is one number for all data sets")
        values = rows(paths, key)
        limit = limits.pop() if limits else None
        note = MODELSCOPE if "dataset_dir" in values and config.get("use_hf") is not True else ""
        return values | ({"max_samples": limit} if limit else {}), note

    return read


def tuner(value: Any, config: Values) -> Translation:
    """Return `tuner_type`."""
    if value not in ("lora", "full", *TUNERS):
        raise ValueError(f"a recipe has lora, full, {', '.join(TUNERS)}")
    values: Values = {"finetuning_type": value}
    if value == "full":
        return values, "" if "torch_dtype" in config else WHOLE_WEIGHTS
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
        return tuner(kind, config) if used else ({}, f"it counts beside tuner_type: {kind} alone")

    return read


def of_lora(name: str) -> Any:
    """Return the reader of a LoRA field, which swift has for every tuner."""
    return lambda value, config: {name: value} if tuned_by(config) == "lora" else ({}, "it is LoRA's")


def rlhf(value: Any, config: Values) -> Translation:
    """Return `rlhf_type` as the stage.

    Raises:
        ValueError: a type of run that a recipe lacks, or SimPO with the SFT loss that swift adds.
    """
    if value not in ("dpo", "kto", "orpo", "simpo", "rm", "ppo", "grpo", "gkd"):
        raise ValueError("a recipe has dpo, kto, orpo, simpo, rm, ppo, grpo and gkd")
    if value == "simpo" and config.get("cpo_alpha", 1.0) != 0:
        raise ValueError("swift adds an SFT loss with weight `cpo_alpha`, 1 unless it is written: write `cpo_alpha: 0`")
    return {"stage": value}, GRPO_MEAN if value == "grpo" and "loss_type" not in config else ""


def loss(value: Any, config: Values) -> Translation:
    """Return `loss_type`, one name or several."""
    names = [str(name) for name in listed(value)]
    if config.get("rlhf_type") == "grpo" and names in (["dapo"], ["grpo"]):
        return {}, "" if names == ["dapo"] else GRPO_MEAN
    own = {"kto": "kto", "simpo": "simpo"}.get(str(config.get("rlhf_type")))
    if names == [own]:
        return {}
    if config.get("rlhf_type", "dpo") != "dpo" or len(names) > 1:
        raise ValueError("a recipe has one loss of DPO's, and `pref_ftx` beside it")
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
        raise ValueError("a recipe has a teacher in `stage: gkd` alone")
    return {"teacher_model": value}


def sampled(value: Any, config: Values) -> Translation:
    """Return `temperature`."""
    return {"temperature": value}, DIVIDED if config.get("rlhf_type") == "gkd" and value != 1 else ""


def same_revision(value: Any, config: Values) -> Translation:
    """Return no keys for a teacher's revision, which must be the model's.

    Raises:
        ValueError: another one.
    """
    if value != config.get("model_revision", "main"):
        raise ValueError("`model_revision` is that of both models")
    return {}


def scale(value: Any, config: Values) -> Translation:
    """Return `loss_scale`: which answers are trained on."""
    kinds: dict[Any, Values] = {"default": {}, "all": {"train_on_prompt": True}, "last_round": {"mask_history": True}}
    if config.get("rlhf_type") not in (None, "sft"):
        kinds |= {"last_round": {}}
    if value not in kinds:
        raise ValueError("a recipe has default, all and last_round")
    return kinds[value]


def substitution(name: str) -> Any:
    """Return the reader of `model_name` and `model_author`, given in Chinese and English or once for both."""

    def read(value: Any, config: Values) -> Translation:
        texts = {str(part) for part in listed(value)}
        if len(texts) > 1:
            raise ValueError("write one text in `dataset_substitutions`: placeholders have one value here")
        return {"dataset_substitutions": {name: texts.pop()}}

    return read


def number_format(value: Any, config: Values) -> Translation:
    """Return `torch_dtype`: whole weights stay in bfloat16."""
    if value not in FORMATS:
        raise ValueError("a recipe has bfloat16, float16 and float32")
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
        raise ValueError("describe the columns in dataset_info.json")
    return {}


def plugins(value: Any, config: Values) -> Translation:
    """Return no keys for code that defines reward functions which a recipe has itself.

    Raises:
        ValueError: other code.
    """
    if not set(listed(config.get("reward_funcs") or ["none"])) <= set(REWARDS):
        raise ValueError("code of your own is not run")
    return {}, f"a recipe has {', '.join(REWARDS)} itself"


def too_long(value: Any, config: Values) -> Translation:
    """Return no keys, with a note if long examples are not cut at their end."""
    return {}, "" if value == "right" else "an example above `cutoff_len` is cut: prompt and answer in proportion"


def held_out(value: Any, config: Values) -> Translation:
    """Return `split_dataset_ratio`: without evaluation swift holds nothing out."""
    if value and config.get("eval_strategy") == "no":
        return {}, "nothing is held out with `eval_strategy: no`"
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
        "sft_alpha": only(0, "distillation is trained without an SFT loss: write 0"),
        "seq_kd": off("swift refuses it too; a recipe has `seq_kd: true`"),
        "cpo_alpha": only(0, "SimPO is trained without an SFT loss: write 0"),
        "lora_bias": only("none", "biases are not trained"),
        "tuner_backend": only("peft", "adapters are PEFT's"),
        "task_type": only(("causal_lm", "seq_cls"), "a recipe has language and reward models"),
        "num_labels": only(1, "a reward model has one number"),
        "num_iterations": only(1, "a batch of completions is used once"),
        "use_vllm": off("completions are generated by transformers"),
        "use_chat_template": only(True, "write `stage: pt` for text without turns"),
        "freeze_llm": off("text models only"),
        "lora_dtype": only(("float32", "auto"), "adapters are float32"),
        "group_by_length": lambda value, config: {"group_by_length": value} if value else {},
        "sequence_parallel_size": only(1, "sequence parallelism has no equivalent"),
        "resume_only_model": off("a run is resumed with its optimizer"),
    },
    dropped={
        "streaming": "examples are read from a file as they are needed",
        "offload_teacher_model": "it only affects the memory",
        "teacher_model_type": "the class is read from the model's own config",
        "model_type": "the class is read from the model's own config",
        "use_hf": "HF_ENDPOINT and USE_MODELSCOPE_HUB set the hub",
        "lazy_tokenize": "examples are always encoded before training",
        "dataset_num_proc": "examples are encoded in one process",
        "load_from_cache_file": "examples are cached by ftlab itself", "packing_length": "`cutoff_len` is used instead",
        "packing_num_proc": "examples are encoded in one process", "padding_free": "padding is never trained on",
        "padding_side": "padding is never trained on", "add_version": "`output_dir` is the run folder itself",
        "create_checkpoint_symlink": "no symbolic links are created",
        "check_model": "local weights are not compared with those of a hub",
        "logging_first_step": "the first step is always logged", "save_safetensors": "weights are always safetensors",
        "safe_serialization": "weights are always safetensors",
        "max_shard_size": "`export_size` limits the files of `ftlab export`",
        "freeze_vit": "text models only", "freeze_aligner": "text models only", "vit_lr": "text models only",
        "aligner_lr": "text models only", "max_pixels": "text models only", "strict": "`on_bad_rows` is used instead",
        "vit_gradient_checkpointing": "text models only", "agent_template": "the chat template renders tools",
        "ddp_backend": "torch's own default is kept", "load_args": "arguments that an earlier run saved are not read",
        "load_data_args": "arguments that an earlier run saved are not read",
        "val_dataset_shuffle": "the order of the validation examples doesn't change the result",
        "use_logits_to_keep": "it only affects the memory",
        "template_backend": "the model's own chat template is used",
        "acc_strategy": "it only changes a figure in the log",
        "remove_unused_columns": "ftlab prepares the columns",
        "deepspeed_autotp_size": "tensor parallelism has no equivalent",
        "use_flash_ckpt": "checkpoints are written synchronously",
        "lora_ga_batch_size": "it only has an effect with `init_weights: lora-ga`",
        "swanlab_project": "it only has an effect with `report_to: swanlab`",
        "log_completions": "completions are not written to the log",
        "packing_strategy": "examples are packed by length",
        "num_sample_generations": "completions are not written to the log",
        "download_mode": "the hub's own cache is used", "task": "the command determines the task",
        "logging_dir": "trackers write into the run folder",
        "ddp_find_unused_parameters_": "torch's own default is kept",
        "vllm_mode": "it only has an effect with `use_vllm`",
        "vllm_gpu_memory_utilization": "it only has an effect with `use_vllm`", "norm_bbox": "text models only",
        "vllm_max_model_len": "it only has an effect with `use_vllm`",
        "sleep_level": "it only has an effect with `use_vllm`",
        "vllm_tensor_parallel_size": "it only has an effect with `use_vllm`",
        "bnb_4bit_compute_dtype": "the dtype depends on the machine",
    },
    refused={
        "custom_register_path": "custom code is not run",
        "custom_dataset_info": "use dataset_info.json",
        "teacher_adapters": "merge them into the teacher with `ftlab export`",
        "teacher_model_server": "the teacher is loaded in the training process",
        "teacher_deepspeed": "the teacher is not sharded",
        "gkd_logits_topk": "the loss uses the logits of the whole vocabulary",
        "target_regex": "write layer names in `lora_target`",
        "target_parameters": "write the parameter names in `lora_target`",
        "freeze_parameters": "write `finetuning_type: freeze`",
        "trainable_parameters": "write `finetuning_type: freeze`",
        "freeze_parameters_ratio": "write `finetuning_type: freeze`",
        "max_epochs": "write `num_train_epochs`",
        "cached_dataset": "name the files in `dataset`",
        "response_prefix": "the chat template writes the beginning of an answer",
        "reward_weights": "rewards are added without weights",
        "enable_channel_loss": "the loss is not reported for each data set",
        "callbacks": "custom code is not run", "eval_metric": "evaluation during training computes the loss alone",
        "lisa_activated_layers": "LISA has no equivalent", "discopop_tau": "the DiscoPOP loss has no equivalent",
        "interleave_prob": "write `mix_strategy` and `interleave_probs`", "loss_weights": "write `pref_ftx`",
    },
    defaults=defaults,
    unsaid={
        "max_length": "swift cuts nothing without it, here `cutoff_len` is 2048",
        "truncation_strategy": "swift drops examples above `max_length`, here they are cut",
    },
)  # fmt: skip
