"""TRL's command line and its YAML. Source: trl.ModelConfig, ScriptArguments and the trainers' configs, release 1.16."""

from typing import Any

from ftlab.errors import say
from ftlab.recipe.frameworks.table import Framework, Translation, Values, attention, joined, off, only, rows, target
from ftlab.recipe.keys import GROUPED

VERBS = {"sft": "sft", "dpo": "dpo", "kto": "kto", "reward": "rm", "reward_modeling": "rm", "grpo": "grpo",
         "rloo": "rloo", "orpo": "orpo"}  # fmt: skip
LEARNING_RATES = {"sft": 2e-5, "rm": 1e-4}


def hub_set(value: Any, config: Values) -> Translation:
    """Return `dataset_name`."""
    return rows([str(value)])


def mixture(value: Any, config: Values) -> Translation:
    """Return `datasets`: paths, or files of them."""
    paths: list[str] = []
    for one in value:
        others = {name: entry for name, entry in one.items() if name not in ("path", "data_files") and entry}
        if others not in ({}, {"split": "train"}):
            raise ValueError(say("why_describe_entries", entries=others))
        files = one.get("data_files")
        paths += [str(file) for file in (files if isinstance(files, list) else [files] if files else [one["path"]])]
    return rows(paths)


def adapted(value: Any, config: Values) -> Translation:
    """Return `use_peft` as the tuning."""
    return {"finetuning_type": "lora" if value else "full"}


def number_format(value: Any, config: Values) -> Translation:
    """Return `dtype`, in which whole weights are kept."""
    if value not in ("float32", "bfloat16", "float16", "auto"):
        raise ValueError(say("why_known_dtypes"))
    return {"pure_bf16": True} if value == "bfloat16" and not config.get("use_peft") else {}


def loss(value: Any, config: Values) -> Translation:
    """Return `loss_type` of SFT and DPO."""
    names = [str(name) for name in (value if isinstance(value, list) else [value])]
    if config.get("stage") == "dpo":
        if len(names) == 2 and names[1] == "sft":
            weights = config.get("loss_weights") or [1.0, 1.0]
            return {"pref_loss": names[0], "pref_ftx": weights[1] / weights[0]}
        if len(names) > 1:
            raise ValueError(say("why_one_dpo_loss"))
        return {"pref_loss": names[0]}
    if names not in (["nll"], ["dft"], ["kto"], ["dapo"]):
        raise ValueError(say("why_known_trl_losses"))
    return {"use_dft_loss": True} if names == ["dft"] else {}


def smoothing(value: Any, config: Values) -> Translation:
    """Return `label_smoothing`, which of TRL's losses that a recipe has only the robust one reads."""
    if value and config.get("loss_type") not in ("robust", ["robust"]):
        return {}, say("why_trl_smooths_robust")
    return {"dpo_label_smoothing": value}


def answers_only(value: Any, config: Values) -> Translation:
    """Return `completion_only_loss` or `assistant_only_loss`."""
    return {"train_on_prompt": not value}


def penalty(value: Any, config: Values) -> Translation:
    """Return `beta`.

    Raises:
        ValueError: no penalty at all.
    """
    if not value:
        raise ValueError(say("why_pref_beta_positive"))
    return {"pref_beta": value}


def written(value: Any, config: Values) -> Translation:
    """Return `max_completion_length`.

    Raises:
        ValueError: a stage without generation, where it would cut the answers of the data set.
    """
    if config.get("stage") not in GROUPED:
        raise ValueError(say("why_cut_as_a_whole"))
    return {"max_new_tokens": value}


def defaults(config: Values) -> Values:
    """Return TRL's defaults for keys that are left out."""
    stage = config.get("stage", "sft")
    values: Values = {
        "learning_rate": LEARNING_RATES.get(stage, 1e-6), "logging_steps": 10, "max_length": 1024, "use_peft": False,
    }  # fmt: skip
    if stage in GROUPED:
        values |= {"max_completion_length": 512, "temperature": 1.0}
        values |= {"beta": 0.0} if stage == "grpo" else {"beta": 0.05, "num_generations": 2}
        del values["max_length"]
    if config.get("use_peft"):
        values |= {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": ["q_proj", "v_proj"]}
        values |= {"use_bnb_nested_quant": False} if config.get("load_in_4bit") else {}
    return values


TRL = Framework(
    title="TRL",
    names={
        "model_name_or_path": "model_name_or_path", "stage": "stage", "trust_remote_code": "trust_remote_code",
        "model_revision": "model_revision",
        "lora_rank": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout",
        "lora_target": "lora_target_modules", "additional_target": "lora_modules_to_save", "use_rslora": "use_rslora",
        "use_dora": "use_dora", "quantization_type": "bnb_4bit_quant_type",
        "double_quantization": "use_bnb_nested_quant", "flash_attn": "attn_implementation", "dataset": "dataset_name",
        "cutoff_len": "max_length", "packing": "packing", "pref_beta": "beta", "pref_loss": "loss_type",
        "dpo_label_smoothing": "label_smoothing", "ld_alpha": "ld_alpha", "kto_chosen_weight": "desirable_weight",
        "kto_rejected_weight": "undesirable_weight", "num_generations": "num_generations",
        "max_new_tokens": "max_completion_length", "temperature": "temperature", "reward_funcs": "reward_funcs",
        "moe_aux_loss_coef": "router_aux_loss_coef", "output_dir": "output_dir",
    },
    values={},
    stages={verb: verb for verb in ("sft", "dpo", "kto", *GROUPED)} | {"rm": "reward"},
    tunings={"lora": "lora", "full": "full"},
    also={"max_seq_length": "cutoff_len", "torch_dtype": "pure_bf16"},
    read={
        "dataset_name": hub_set, "datasets": mixture, "use_peft": adapted, "dtype": number_format,
        "torch_dtype": number_format, "loss_type": loss, "beta": penalty, "label_smoothing": smoothing,
        "attn_implementation": attention,
        "completion_only_loss": answers_only, "assistant_only_loss": answers_only,
        "max_completion_length": written,
        "load_in_4bit": lambda value, config: {"quantization_bit": 4} if value else {},
        "load_in_8bit": lambda value, config: {"quantization_bit": 8} if value else {},
        "lora_target_modules": lambda value, config: {"lora_target": target(value)},
        "lora_modules_to_save": lambda value, config: {"additional_target": joined(value)} if value else {},
        "reward_funcs": lambda value, config: {"reward_funcs": joined(value)},
        "loss_weights": lambda value, config: {},
        "dataset_train_split": only("train", "why_describe_split"),
        "dataset_config": off("why_describe_subset"),
        "dataset_text_field": only("text", "why_describe_column"),
        "packing_strategy": only("bfd", "why_packed_whole"),
        "truncation_mode": only("keep_start", "why_prompt_and_answer_cut"),
        "lora_task_type": only(("CAUSAL_LM", "SEQ_CLS"), "why_only_two_tasks"),
        "chat_template_path": off("why_write_template"),
        "eos_token": off("why_own_tokens"),
        "pad_token": off("why_own_tokens"), "use_vllm": off("why_generated_by_transformers"),
        "model_init_kwargs": off("why_entries_as_keys"), "lora_target_parameters": off("why_use_lora_target"),
        "precompute_ref_log_probs": off("why_log_probs_in_training"),
        "sync_ref_model": off("why_reference_fixed"),
        "center_rewards_coefficient": off("why_rewards_not_centred"),
        "reward_weights": off("why_rewards_unweighted"),
        "reward_model_name_or_path": lambda value, config: {"reward_model": value} if value else {},
        "num_iterations": only(1, "why_batch_used_once"),
        "normalize_advantages": off("why_advantages_not_normalized"),
        "reward_clip_range": off("why_rewards_not_clipped"),
        "test_split_size": lambda value, config: {"val_size": value} if value else {},
    },
    dropped={
        "dataset_streaming": "why_read_from_a_file",
        "streaming": "why_read_from_a_file",
        "dataset_num_proc": "why_encoded_in_one_process",
        "dataset_kwargs": "why_encoded_by_ftlab",
        "dataset_test_split": "why_name_eval_dataset",
        "shuffle_dataset": "why_always_shuffled",
        "padding_free": "why_padding_untrained", "pad_to_multiple_of": "why_padding_untrained",
        "eval_packing": "why_same_loss_unpacked",
        "activation_offloading": "why_only_memory",
        "disable_dropout": "why_dropout_by_config",
        "precompute_ref_batch_size": "why_only_speed",
        "bnb_4bit_quant_storage": "why_how_4bit_is_stored",
        "ignore_bias_buffers": "why_ddp_workaround", "config": "why_file_has_been_read",
        "log_completions": "why_completions_unlogged",
        "use_bias_correction_kl": "why_default_of_installed_trl",
    },
    defaults=defaults,
    nulls={"max_length": "why_trl_cuts_nothing"},
    unsaid={
        "stage": "why_trainer_not_named",
        "chat_template_path": "why_strings_become_turns",
    },
    unsaid_in_sft={
        "assistant_only_loss": "why_loss_on_answers",
    },
)  # fmt: skip
