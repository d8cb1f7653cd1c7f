"""axolotl's YAML. Source: the classes of axolotl.utils.schemas and the builders that read them, release 0.19."""

import contextlib
import os
from pathlib import Path
from typing import Any

from ftlab.data.dataset_info import described, detect
from ftlab.data.read import rows as lines
from ftlab.errors import LabError
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
# `type` of a data set -> a note on what differs: here the columns decide the format, and the chat template the text.
CHAT = "rendered with the model's own chat template"
TYPES = {
    "chat_template": "", "chat_template.default": "", "passthrough": "", "completion": "",
    "bradley_terry.chat_template": "",
    "alpaca": f"{CHAT}, where axolotl writes `### Instruction:`; template=alpaca sets that",
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
# Entries of a data set that differ in some examples only.
NOTED = {
    (name, "last"): f"{name}: last: here the end of every trained answer is trained, not of the last one alone"
    for name in ("train_on_eos", "train_on_eot")
}
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
        raise ValueError("`max_samples` is one number for all data sets")
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
    notes = [note for (name, entry), note in NOTED.items() if one.get(name) == entry]
    if isinstance(kind, dict):
        raise ValueError("`type` with fields of your own: describe the columns in dataset_info.json")
    kind = kind.partition(":")[0] if kind.startswith(("completion", "sharegpt")) else kind
    if kind not in TYPES:
        raise ValueError(f"`type: {kind}` has no equivalent: describe the columns in dataset_info.json")
    notes += [f"type: {kind}: {TYPES[kind]}"] if TYPES[kind] else []
    for name, entry in one.items():
        if name in ("path", "type", "data_files") or entry in (None, *USUAL.get(name, ())):
            continue
        if name == "split" and rows_taken(one) is not None:
            continue
        # Training on no role at all would be another run too.
        if name in ("shards", "preprocess_shards", "name", "revision", "roles_to_train") or name not in USUAL or entry:
            raise ValueError(f"`{name}: {entry}` of a data set: describe it in dataset_info.json")
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
            raise ValueError(f"`field_messages: {column}`: of {path} ftlab reads {described(entry)}")


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
        raise ValueError("a recipe has lora, qlora and full (no adapter)")
    return kinds[value]


def rl(value: Any, config: Values) -> Translation:
    """Return `rl` as the stage."""
    if value == "ipo":
        return {"stage": "dpo", "pref_loss": "ipo"}
    if value not in ("dpo", "kto", "orpo", "simpo", "grpo", False, ""):
        raise ValueError("a recipe has dpo, ipo, kto, orpo, simpo and grpo")
    if value == "simpo" and config.get("cpo_alpha") != 0:
        raise ValueError("TRL adds an SFT loss with weight `cpo_alpha`, 1 unless it is written: write `cpo_alpha: 0`")
    return {"stage": value} if value else {}


def one_loss(value: Any, config: Values) -> Translation:
    """Return `dpo_loss_type`, a list; a recipe takes one."""
    names = listed(value)
    if len(names) != 1:
        raise ValueError("a recipe has one loss of DPO's, and `pref_ftx` beside it")
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
            raise ValueError(f"`{name}: {entry}` has no equivalent")
    return values


def bits(number: int) -> Any:
    """Return the reader of `load_in_4bit` or `load_in_8bit`."""
    return lambda value, config: {"quantization_bit": number} if value else {}


NOT_HELD_OUT = "the file has no validation set"


def evaluates(config: Values) -> bool:
    """Return True if a file has a validation set: without one axolotl never evaluates, whatever other keys say."""
    return bool(config.get("val_set_size") or config.get("test_datasets"))


def per_epoch(name: str) -> Any:
    """Return the reader of `evals_per_epoch` or `saves_per_epoch`: a share of all steps, as axolotl computes it.

    A share of 1 would be one step; axolotl then saves every epoch, its default, and evaluates nothing, its default too.
    """

    def read(value: Any, config: Values) -> Translation:
        if name == "eval" and not evaluates(config):
            return {}, NOT_HELD_OUT
        if not value:
            return {}
        share = 1 / (value * config.get("num_epochs", 1))
        if share < 1:
            return {f"{name}_strategy": "steps", f"{name}_steps": share}
        if name == "save":
            return {"save_strategy": "epoch"}
        return {}, "one evaluation in all is none to axolotl; write `eval_strategy: epoch` for one at the end"

    return read


def steps(name: str) -> Any:
    """Return the reader of `eval_steps` or `save_steps`, which set the strategy too."""

    def read(value: Any, config: Values) -> Translation:
        if name == "eval" and not evaluates(config):
            return {}, NOT_HELD_OUT
        return {f"{name}_strategy": "steps", f"{name}_steps": value} if value else {}

    return read


def strategy(name: str) -> Any:
    """Return the reader of `eval_strategy` or `save_strategy`, which steps override."""

    def read(value: Any, config: Values) -> Translation:
        if name == "eval" and not evaluates(config):
            return {}, NOT_HELD_OUT
        by = next((key for key in (f"{name}_steps", f"{name}s_per_epoch") if config.get(key)), None)
        return ({}, f"{by} counts") if by else {f"{name}_strategy": value}

    return read


def warmed(value: Any, config: Values) -> Translation:
    """Return `warmup_steps`; axolotl turns 1 into 2."""
    return ({"warmup_steps": 2}, "axolotl warms up for two steps then") if value == 1 else {"warmup_steps": value}


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
            raise ValueError(f"the plug-in {name} has no equivalent")
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
        note = "trained weights stay float32, axolotl keeps them in bfloat16: pure_bf16=true for that" if whole else ""
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
        raise ValueError("examples are cut")
    return {}, "" if value == "truncate" else "examples above `sequence_len` are cut"


def least_rate(value: Any, config: Values) -> Translation:
    """Return `cosine_min_lr_ratio` as the cosine schedule that ends above zero."""
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": value}}


def special_tokens(value: Any, config: Values) -> Translation:
    """Return no keys for a pad token; other tokens would change what is trained."""
    others = {name: token for name, token in value.items() if name != "pad_token" and token}
    if others:
        return {}, f"{others}: the model's own are used; nothing is added"
    return {}, "padding is never trained on"


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
        "cpo_alpha": only(0, "SimPO is trained without an SFT loss: write 0"), "plugins": plugins,
        "bf16": precision("bf16"), "fp16": precision("fp16"),
        "cosine_min_lr_ratio": least_rate, "special_tokens": special_tokens, "gradient_checkpointing": recomputing,
        "attn_implementation": attention, "flash_attention": kernel("fa2"), "sdp_attention": kernel("sdpa"),
        "eager_attention": kernel("disabled"), "xformers_attention": kernel("sdpa"),
        "flex_attention": off("flex attention has no equivalent; use `flash_attn: sdpa`"),
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
        "lora_fan_in_fan_out": off("PEFT detects such layers (GPT-2) itself"),
        "dataset_exact_deduplication": off("remove duplicates from the file first: `ftlab data check` lists them"),
        "peft": only((None, {}), "LoftQ has no equivalent; use `pissa_init: true`"),
        "num_labels": only(1, "a reward model has one number"),
        "excess_length_strategy": too_long, "lr_scheduler": schedule, "optim_args": optimizer_arguments,
    },
    dropped={
        "strict": "every key is checked", "dataset_prepared_path": "examples are cached by ftlab itself",
        "dataset_processes": "examples are encoded in one process",
        "dataset_num_proc": "examples are encoded in one process",
        "dataset_keep_in_memory": "examples are read from disk", "pad_to_sequence_len": "padding is never trained on",
        "eval_sample_packing": "evaluation computes the same loss without packing",
        "sample_packing_group_size": "it is a setting of axolotl's packing",
        "shuffle_merged_datasets": "examples are always shuffled",
        "sample_packing_bin_size": "it is a setting of axolotl's packing",
        "sample_packing_eff_est": "it is a setting of axolotl's packing",
        "model_type": "the class is read from the model's own config",
        "tokenizer_legacy": "the tokenizer's own setting is kept",
        "tokenizer_type": "the class is read from the model's own config",
        "total_num_tokens": "it is computed from the data",
        "processor_type": "text models need no processor", "tokenizer_use_fast": "fast tokenizers are always used",
        "is_llama_derived_model": "the class is read from the model's own config",
        "debug": "it doesn't change the training",
        "is_mistral_derived_model": "the class is read from the model's own config",
        "logging_first_step": "the first step is always logged",
        "is_falcon_derived_model": "the class is read from the model's own config", "local_rank": "torchrun sets it",
        "is_qwen_derived_model": "the class is read from the model's own config",
        "use_auth_token": "the token is read from HF_TOKEN",
        "tf32": "torch's own default is kept", "bfloat16": "the dtype depends on the machine",
        "float16": "the dtype depends on the machine",
        "auto_resume_from_checkpoints": "an unfinished run is resumed anyway",
        "hf_use_auth_token": "the token is read from HF_TOKEN",
        "save_safetensors": "weights are always safetensors", "low_cpu_mem_usage": "transformers always does it",
        "lora_mlp_kernel": "it only affects the speed", "flash_attn_rms_norm": "it only affects the speed",
        "lora_qkv_kernel": "it only affects the speed", "flash_attn_cross_entropy": "it only affects the speed",
        "lora_o_kernel": "it only affects the speed", "flash_attn_fuse_qkv": "it only affects the speed",
        "flash_attn_fuse_mlp": "it only affects the speed",
        "chunked_cross_entropy": "it computes the same loss with less memory",
        "cut_cross_entropy": "it computes the same loss with less memory",
        "lora_on_cpu": "the device depends on the machine",
        "wandb_entity": "set WANDB_ENTITY in the environment", "wandb_watch": "set WANDB_WATCH in the environment",
        "wandb_log_model": "set WANDB_LOG_MODEL in the environment", "wandb_mode": "set WANDB_MODE in the environment",
        "wandb_run_id": "set WANDB_RUN_ID in the environment",
        "mlflow_experiment_name": "set MLFLOW_EXPERIMENT_NAME in the environment",
        "hf_mlflow_log_artifacts": "set HF_MLFLOW_LOG_ARTIFACTS in the environment",
        "load_in_16bit": "the dtype depends on the machine",
        "gc_steps": "it doesn't change the training", "flash_optimum": "it only affects the speed",
        "world_size": "torchrun sets it",
        "max_packed_sequence_len": "`sequence_len` is used instead",
        "save_first_step": "it doesn't change the training",
        "use_kernels": "it only affects the speed", "eval_table_size": "it doesn't change the training",
        "eval_max_new_tokens": "it only has an effect with `eval_table_size`",
        "tokenizer_save_jinja_files": "the chat template is saved with the tokenizer",
        "include_tokens_per_second": "tokens per second are always logged",
        "include_tkps": "tokens per second are always logged",
        "loss_watchdog_threshold": "a loss that is not finite stops the run",
        "gptq": "quantized weights are recognized by the model's own config",
        "loss_watchdog_patience": "a loss that is not finite stops the run",
    } | dict.fromkeys(LIGER, "`use_liger_kernel` turns Liger's kernels on"),
    refused={
        "gpu_memory_limit": "write `max_memory`",
        "skip_prepare_dataset": "examples are always encoded before training",
        "relora": "ReLoRA has no equivalent", "unfrozen_parameters": "write `finetuning_type: freeze`",
        "added_tokens_overrides": "a recipe cannot rename tokens",
        "resize_token_embeddings_to_32x": "the embedding keeps its size",
        "overrides_of_model_config": "set it in the model's config.json",
        "overrides_of_model_kwargs": "set it in the model's config.json", "qat": "QAT has no equivalent",
        "base_model_config": "a recipe cannot use another model's config",
        "tokenizer_config": "a recipe cannot use another model's tokenizer",
        "streaming": "examples are read from disk",
        "chat_template_jinja": "save it in the model's tokenizer_config.json",
        "vllm": "completions are generated by transformers, not by vLLM",
        "lora_target_parameters": "write the parameter names in `lora_target`",
        "use_eaft": "its loss weights are 3 ** `eaft_alpha` times those of `use_eaft_loss: true`",
        "process_reward_model": "a reward is for a whole answer, not for its steps",
        "sequence_parallel_degree": "sequence parallelism has no equivalent",
        "context_parallel_size": "sequence parallelism has no equivalent",
        "tensor_parallel_size": "tensor parallelism has no equivalent", "dion_lr": "Dion has no equivalent",
        "lr_groups": "a recipe has one learning rate for all weights",
        "embedding_lr": "a recipe has one learning rate for all weights",
        "do_bench_eval": "write `tasks` and run `ftlab eval`", "fp8": "FP8 needs accelerate's own setting; use bf16",
        "shuffle_before_merging_datasets": "data sets are concatenated first, then shuffled",
        "jagged_restart_steps": "ReLoRA has no equivalent",
        "merge_lora": "merge with `ftlab export`",
        "s2_attention": "no maintained library has LongLoRA's attention", "lisa_n_layers": "LISA has no equivalent",
        "peft_layers_to_transform": "write the layers' names in `lora_target`",
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
    unsaid={"excess_length_strategy": "axolotl drops examples above `sequence_len`, here they are cut"},
)  # fmt: skip
