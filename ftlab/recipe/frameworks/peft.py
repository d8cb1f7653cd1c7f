"""PEFT's adapter_config.json. Source: peft.LoraConfig, release 0.21."""

from ftlab.recipe.frameworks.table import Framework, initial, joined, off, only, target

PEFT = Framework(
    title="PEFT",
    names={
        "model_name_or_path": "base_model_name_or_path", "lora_rank": "r", "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout", "lora_target": "target_modules", "additional_target": "modules_to_save",
        "use_rslora": "use_rslora", "use_dora": "use_dora", "pissa_init": "init_lora_weights",
    },
    values={},
    stages={"sft": "CAUSAL_LM", "rm": "SEQ_CLS"},
    tunings={"lora": "LORA"},
    read={
        "peft_type": only("LORA", "write the method as `finetuning_type`, its fields in `peft_config`"),
        "task_type": lambda value, config: {"stage": "rm"} if value == "SEQ_CLS" else {},
        "target_modules": lambda value, config: {"lora_target": target(value)},
        "modules_to_save": lambda value, config: {"additional_target": joined(value)} if value else {},
        "init_lora_weights": initial,
        "bias": only("none", "biases are not trained"),
        "layers_to_transform": off("all layers of a name are adapted"),
        "layers_pattern": off("all layers of a name are adapted"),
        "rank_pattern": off("one rank for all layers"),
        "alpha_pattern": off("one alpha for all layers"),
        "exclude_modules": off("write the layers that are meant in `lora_target`"),
        "layer_replication": off("layers are not repeated"),
        "use_qalora": off("QALoRA has no equivalent"),
        "lora_bias": off("biases are not trained"),
        "target_parameters": off("write their names in `lora_target`"),
        "trainable_token_indices": off("single tokens are not trained"),
        "alora_invocation_tokens": off("activated LoRA has no equivalent"),
        "use_bdlora": off("BD-LoRA has no equivalent"),
        "arrow_config": off("Arrow has no equivalent"),
        "revision": off("download that revision and name its folder"),
    },
    dropped={
        "inference_mode": "it is for loading", "auto_mapping": "the class is found by the model's own config",
        "peft_version": "it is for loading", "megatron_config": "Megatron's", "megatron_core": "Megatron's",
        "fan_in_fan_out": "such layers (GPT-2) are found by PEFT itself", "loftq_config": "it is for the start",
        "corda_config": "it is for the start", "eva_config": "it is for the start", "qalora_group_size": "QALoRA's",
        "lora_ga_config": "it is for the start", "runtime_config": "it is for loading",
        "ensure_weight_tying": "a tied head and embedding are handled by their names",
    },
    defaults=lambda config: {"r": 8, "lora_alpha": 8},
    unsaid={"dataset": "an adapter's config names no data: add dataset=NAME and output_dir=FOLDER"},
    trainer=False,
)  # fmt: skip
