"""An unsloth script. Source: FastLanguageModel of release 2026.10, TRL's SFTConfig."""

from typing import Any

from ftlab.errors import say
from ftlab.recipe.frameworks.table import (
    Framework,
    Translation,
    Values,
    initial,
    joined,
    listed,
    off,
    only,
    rows,
    stretched,
    target,
)
from ftlab.recipe.frameworks.trl import LEARNING_RATES, TRL

TEMPLATES = {
    "chatml": "chatml", "alpaca": "alpaca", "llama-3": "llama3", "llama3": "llama3", "llama-3.1": "llama3",
    "llama-3.2": "llama3", "llama-3.3": "llama3", "mistral": "mistral", "gemma": "gemma", "gemma2": "gemma2",
    "gemma-3": "gemma3", "gemma3": "gemma3", "phi-3": "phi", "phi-4": "phi4", "qwen-2.5": "qwen", "qwen2.5": "qwen",
    "qwen25": "qwen", "qwen-3": "qwen3", "qwen3": "qwen3", "qwen3-instruct": "qwen3_nothink", "zephyr": "zephyr",
    "vicuna": "vicuna",
}  # fmt: skip


def loaded(value: Any, config: Values) -> Translation:
    """Return the model's name."""
    return {"model_name_or_path": str(value)}


def template(value: Any, config: Values) -> Translation:
    """Return the name given to `get_chat_template`, which replaces the model's own template."""
    if value not in TEMPLATES:
        raise ValueError(say("why_leave_out_template"))
    return {"template": TEMPLATES[value]}


def defaults(config: Values) -> Values:
    """Return unsloth's and TRL's defaults for keys that are left out."""
    values: Values = {"load_in_4bit": not (config.get("load_in_8bit") or config.get("full_finetuning"))}
    values |= {
        "max_seq_length": 2048,
        "learning_rate": LEARNING_RATES.get(config.get("stage", "sft"), 1e-6),
        "logging_steps": 10,
    }
    if not config.get("full_finetuning"):
        values |= {"r": 16, "lora_alpha": 16, "target_modules": ["all-linear"]}
    # TRL's loss covers the whole text that a script writes into a column.
    whole = config.get("stage", "sft") == "sft" and "train_on_responses_only" not in config
    return values | ({"train_on_responses_only": False} if whole else {})


UNSLOTH = Framework(
    title="unsloth",
    names=TRL.names | {
        "model_name_or_path": "model_name", "lora_rank": "r", "lora_target": "target_modules",
        "additional_target": "modules_to_save", "cutoff_len": "max_seq_length", "pissa_init": "init_lora_weights",
        "template": "chat_template",
    },
    values={},
    stages={"sft": "SFT", "dpo": "DPO", "kto": "KTO", "orpo": "ORPO", "grpo": "GRPO", "rloo": "RLOO", "rm": "Reward"},
    tunings={"lora": "lora", "full": "full"},
    also={"max_length": "cutoff_len", "num_generations": "num_generations", "stage": "stage"},
    read=TRL.read | {
        "model_name": loaded, "chat_template": template, "init_lora_weights": initial,
        "target_modules": lambda value, config: {"lora_target": target(value)},
        "modules_to_save": lambda value, config: {"additional_target": joined(value)} if value else {},
        "full_finetuning": lambda value, config: {"finetuning_type": "full"} if value else {},
        "bias": only("none", "why_biases_untrained"),
        "dtype": lambda value, config: {},
        "path": lambda value, config: {} if config.get("data_files") else rows([str(value)]),
        "data_files": lambda value, config: rows([str(part) for part in listed(value)]),
        "split": only("train", "why_describe_split"),
        "use_gradient_checkpointing": lambda value, config: {"gradient_checkpointing": bool(value)},
        "train_on_responses_only": lambda value, config: {} if value else {"train_on_prompt": True},
        "layers_to_transform": off("why_all_layers_of_a_name"),
        "rope_scaling": stretched,
        "load_in_fp8": off("why_no_fp8"), "fast_inference": off("why_generated_by_transformers"),
        "revision": only("main", "why_download_revision"),
        "finetune_vision_layers": off("why_text_models_only"), "qat_scheme": off("why_no_qat"),
    },
    dropped=TRL.dropped | {
        "loftq_config": "why_only_with_loftq", "token": "why_token_from_hf_token",
        "max_lora_rank": "why_vllm_setting",
        "gpu_memory_utilization": "why_vllm_setting",
        "load_in_16bit": "why_dtype_by_machine",
        "random_state": "why_seed_instead",
        "instruction_part": "why_answer_begin_by_template",
        "response_part": "why_answer_begin_by_template",
        "finetune_language_layers": "why_text_models_only", "finetune_attention_modules": "why_lora_target_instead",
        "finetune_mlp_modules": "why_lora_target_instead", "mapping": "why_columns_by_name",
        "map_eos_token": "why_own_eos", "offload_embedding": "why_only_memory",
        "fix_tokenizer": "why_tokenizer_unchanged",
        "use_exact_model_name": "why_named_model_loaded",
    },
    refused={"system_message": "why_write_default_system"},
    defaults=defaults,
)  # fmt: skip
