"""The command of alpaca-lora's finetune.py. Source: the parameters and the code of its `train`."""

from typing import Any

from ftlab.recipe.frameworks.table import Framework, Translation, Values, accumulation, comma_parts, only, rows, target

# Settings that are fixed in the script.
FIXED: Values = {
    "quantization_bit": 8, "template": "alpaca", "allow_other_template": True, "warmup_steps": 100, "fp16": True,
    "logging_steps": 10, "optim": "adamw_torch", "save_steps": 200, "save_total_limit": 3,
}  # fmt: skip


def batch(value: Any, config: Values) -> Translation:
    """Return `batch_size`, the rows per step over all processes, as accumulation."""
    return accumulation(value, config.get("micro_batch_size", 4), config)


def held_out(value: Any, config: Values) -> Translation:
    """Return `val_set_size` with its consequences: evaluation, and the best checkpoint instead of the last."""
    best = {"eval_strategy": "steps", "eval_steps": 200, "load_best_model_at_end": True}
    return {"val_size": value} | (best if value else {})


def data(value: Any, config: Values) -> Translation:
    """Return the file, and the script's fixed settings."""
    return rows([str(value)]) | FIXED, "; ".join(f"{name}: {entry}" for name, entry in FIXED.items())


ALPACA_LORA = Framework(
    title="alpaca-lora",
    names={
        "model_name_or_path": "base_model", "dataset": "data_path", "output_dir": "output_dir",
        "per_device_train_batch_size": "micro_batch_size", "num_train_epochs": "num_epochs",
        "learning_rate": "learning_rate", "cutoff_len": "cutoff_len", "val_size": "val_set_size",
        "lora_rank": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout",
        "lora_target": "lora_target_modules", "train_on_prompt": "train_on_inputs",
    },
    values={"lora_target": lambda value: value if value == "all" else str(comma_parts(value)).replace(" ", "")},
    stages={"sft": ""},
    tunings={"lora": ""},
    also={"wandb_run_name": "run_name"},
    read={
        "data_path": data, "batch_size": batch, "val_set_size": held_out,
        "lora_target_modules": lambda value, config: {"lora_target": target(value)},
        "group_by_length": lambda value, config: {"group_by_length": True} if value else {},
        "add_eos_token": only(True, "why_answers_end_with_eos"),
        "prompt_template_name": only("alpaca", "why_alpaca_template"),
        "wandb_project": lambda value, config: {"report_to": ["wandb"], "project": str(value)} if value else {},
        "resume_from_checkpoint": lambda value, config: {"resume_from_checkpoint": value} if value else {},
    },
    dropped={
        "wandb_watch": "why_set_in_environment",
        "wandb_log_model": "why_set_in_environment",
    },
    defaults=lambda config: {
        "data_path": "yahma/alpaca-cleaned", "batch_size": 128, "micro_batch_size": 4, "num_epochs": 3,
        "learning_rate": 3e-4, "cutoff_len": 256, "val_set_size": 2000, "lora_r": 8, "lora_alpha": 16,
        "lora_dropout": 0.05, "lora_target_modules": ["q_proj", "v_proj"], "train_on_inputs": True,
        "output_dir": "./lora-alpaca",
    },
    trainer=False,
)  # fmt: skip
