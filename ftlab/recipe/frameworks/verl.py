"""verl's command line. Source: trainer/config/_generated_ppo_trainer.yaml, release 0.9."""

from typing import Any

from ftlab.errors import say
from ftlab.recipe.frameworks.table import Framework, Translation, Values, off, only, rows, target

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
MICRO = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
PROCESSES = "trainer.n_gpus_per_node"


def estimator(value: Any, config: Values) -> Translation:
    """Return `algorithm.adv_estimator` as the stage.

    Raises:
        ValueError: an estimator that a recipe lacks.
    """
    if value not in ("grpo", "gae"):
        raise ValueError(say("why_known_verl_stages"))
    return {"stage": "grpo" if value == "grpo" else "ppo"}


def prompts(value: Any, config: Values) -> Translation:
    """Return `data.train_batch_size`, prompts per step, as accumulation: a recipe counts completions."""
    micro = int(config.get(MICRO, 1))
    completions = int(value) * int(config.get(f"{ROLLOUT}.n", 1))
    processes = int(config.get(PROCESSES, 8))
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": max(1, completions // (micro * processes)),
    }


def mini(value: Any, config: Values) -> Translation:
    """Return no keys if each batch of completions is one step.

    Raises:
        ValueError: a batch of several steps.
    """
    if value != config.get("data.train_batch_size", 1024):
        raise ValueError(say("why_one_step_per_batch"))
    return {}


def group(value: Any, config: Values) -> Translation:
    """Return `rollout.n`, completions per prompt.

    Raises:
        ValueError: several in ppo, which does not compare them.
    """
    if stage_of(config) == "grpo":
        return {"num_generations": value}
    if value != 1:
        raise ValueError(say("why_ppo_one_completion"))
    return {}


def epochs(value: Any, config: Values) -> Translation:
    """Return `trainer.total_epochs`, unless the number of steps is given."""
    return {} if config.get("trainer.total_training_steps") else {"num_train_epochs": value}


def adapter(value: Any, config: Values) -> Translation:
    """Return `lora_rank`, which is 0 without an adapter."""
    return {"finetuning_type": "lora", "lora_rank": value} if value else {"finetuning_type": "full"}


def stage_of(config: Values) -> str:
    """Return the stage of the options' advantage estimator."""
    return "grpo" if config.get("algorithm.adv_estimator") == "grpo" else "ppo"


def beside(stage: str, key: str) -> Any:
    """Return the reader of a key that matters for one estimator only."""

    def read(value: Any, config: Values) -> Translation:
        return {key: value} if stage_of(config) == stage else ({}, say("why_counts_for", stage=stage))

    return read


def penalty(stage: str) -> Any:
    """Return the reader of a switch of the KL penalty, which a recipe always has.

    Raises (when called):
        ValueError: it is off in this stage, or on in the other.
    """

    def read(value: Any, config: Values) -> Translation:
        if value is not (stage_of(config) == stage):
            raise ValueError(say("why_kl_penalty_always"))
        return {}

    return read


def frequency(key: str) -> Any:
    """Return the reader of `trainer.save_freq` and `test_freq`: -1 stands for never."""

    def read(value: Any, config: Values) -> Translation:
        return {f"{key}_strategy": "no"} if value == -1 else {f"{key}_strategy": "steps", f"{key}_steps": value}

    return read


def validated(value: Any, config: Values) -> Translation:
    """Return `data.val_files`, which verl requires even without validation."""
    return rows([str(value)], "eval_dataset") if config.get("trainer.test_freq", -1) != -1 else {}


def scored(value: Any, config: Values) -> Translation:
    """Return the reward functions named by a file that `ftlab recipe show` printed.

    Raises:
        ValueError: a custom function.
    """
    names = str(value).rpartition("/")[2].removesuffix(".py").split("+")
    if not set(names) <= {"exact_answer", "short_answer"}:
        raise ValueError(say("why_write_reward_funcs"))
    return {"reward_funcs": ",".join(names)}


def defaults(config: Values) -> Values:
    """Return verl's defaults for keys that are left out."""
    return {
        f"{ACTOR}.use_kl_loss": False, "algorithm.use_kl_in_reward": False, f"{ACTOR}.kl_loss_coef": 0.001,
        "algorithm.kl_ctrl.kl_coef": 0.001, f"{ACTOR}.ppo_epochs": 1, f"{ROLLOUT}.n": 1,
        "algorithm.adv_estimator": "gae", f"{MODEL}.lora_rank": 0, "data.max_prompt_length": 512,
        "data.max_response_length": 512, "data.train_batch_size": 1024, f"{ROLLOUT}.temperature": 1.0,
        f"{ACTOR}.optim.lr": 1e-6, f"{ACTOR}.optim.lr_scheduler_type": "constant",
        f"{ACTOR}.optim.weight_decay": 0.01, "trainer.total_epochs": 30, PROCESSES: 8,
    }  # fmt: skip


VERL = Framework(
    title="verl",
    names={
        "model_name_or_path": f"{MODEL}.path", "stage": "algorithm.adv_estimator",
        "finetuning_type": f"{MODEL}.lora_rank", "lora_rank": f"{MODEL}.lora_rank",
        "lora_alpha": f"{MODEL}.lora_alpha", "lora_target": f"{MODEL}.target_modules",
        "adapter_name_or_path": f"{MODEL}.lora_adapter_path", "trust_remote_code": f"{MODEL}.trust_remote_code",
        "dataset": "data.train_files", "eval_dataset": "data.val_files", "cutoff_len": "data.max_prompt_length",
        "max_new_tokens": "data.max_response_length", "temperature": f"{ROLLOUT}.temperature",
        "num_generations": f"{ROLLOUT}.n", "ppo_epochs": f"{ACTOR}.ppo_epochs",
        "pref_beta": f"{ACTOR}.kl_loss_coef", "output_dir": "trainer.default_local_dir",
        "enable_thinking": "+data.apply_chat_template_kwargs.enable_thinking",
        "learning_rate": f"{ACTOR}.optim.lr", "weight_decay": f"{ACTOR}.optim.weight_decay",
        "lr_scheduler_type": f"{ACTOR}.optim.lr_scheduler_type", "warmup_steps": f"{ACTOR}.optim.lr_warmup_steps",
        "warmup_ratio": f"{ACTOR}.optim.lr_warmup_steps_ratio", "max_grad_norm": f"{ACTOR}.grad_clip",
        "num_train_epochs": "trainer.total_epochs", "max_steps": "trainer.total_training_steps",
        "seed": "data.seed", "per_device_train_batch_size": MICRO, "nproc_per_node": PROCESSES,
        "gradient_checkpointing": f"{MODEL}.enable_gradient_checkpointing", "run_name": "trainer.experiment_name",
    },
    values={
        "stage": {"grpo": "grpo", "ppo": "gae"}.get,
        "lora_target": lambda value: "all-linear" if value == "all" else f"[{value.replace(' ', '')}]",
        "lr_scheduler_type": {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}.get,
        "num_train_epochs": lambda value: int(value) if value == int(value) else None,
        "warmup_steps": lambda value: int(value) if value >= 1 else None,
        # ftlab writes its own option next to each of these.
        "finetuning_type": lambda value: 0 if value == "full" else None,
    },
    stages={"grpo": "grpo", "ppo": "gae"},
    tunings={"lora": "lora", "full": "full"},
    read={
        "algorithm.adv_estimator": estimator, "data.train_batch_size": prompts, f"{ACTOR}.ppo_mini_batch_size": mini,
        MICRO: lambda value, config: {}, f"{MODEL}.lora_rank": adapter,
        f"{MODEL}.target_modules": lambda value, config: {"lora_target": target(value)},
        f"{ROLLOUT}.n": group, "trainer.total_epochs": epochs, "data.val_files": validated,
        "data.train_files": lambda value, config: rows([str(value)]),
        f"{ACTOR}.kl_loss_coef": beside("grpo", "pref_beta"),
        "algorithm.kl_ctrl.kl_coef": beside("ppo", "pref_beta"),
        f"{ACTOR}.ppo_epochs": beside("ppo", "ppo_epochs"), "trainer.save_freq": frequency("save"),
        "trainer.test_freq": frequency("eval"), "reward.custom_reward_function.path": scored,
        "data.apply_chat_template_kwargs.enable_thinking": lambda value, config: {"enable_thinking": value},
        f"{ACTOR}.use_kl_loss": penalty("grpo"), "algorithm.use_kl_in_reward": penalty("ppo"),
        f"{ACTOR}.kl_loss_type": only(("low_var_kl", "k3"), "why_grpo_has_this_kl"),
        f"{ACTOR}.loss_agg_mode": only("token-mean", "why_token_mean"),
        f"{ACTOR}.clip_ratio": only(0.2, "why_trl_clips"),
        f"{ACTOR}.entropy_coeff": only(0, "why_no_entropy_bonus"),
        f"{ROLLOUT}.top_p": only(1, "why_whole_distribution"),
        f"{ROLLOUT}.top_k": only(-1, "why_whole_distribution"),
        "algorithm.norm_adv_by_std_in_grpo": only(True, "why_divided_by_deviation"),
        "algorithm.gamma": only(1, "why_rewards_undiscounted"),
        "algorithm.lam": only(0.9, "why_ppo_lambda"),
        "critic.optim.lr": lambda value, config: ({}, say("why_value_head_rate")),
        "reward.custom_reward_function.name": only("compute_score", "why_custom_code_not_run"),
        "reward.reward_model.enable": off("why_write_reward_run"),
        "data.shuffle": lambda value, config: {} if value else {"train_sampling_strategy": "sequential"},
        "trainer.nnodes": only(1, "why_launch_everywhere"),
    },
    dropped={
        f"{ROLLOUT}.name": "why_generated_by_transformers",
        f"{ROLLOUT}.load_format": "why_generated_by_transformers",
        f"{ROLLOUT}.gpu_memory_utilization": "why_generated_by_transformers",
        f"{ROLLOUT}.tensor_model_parallel_size": "why_generated_by_transformers",
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": "why_batch_size_instead",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": "why_batch_size_instead",
        "critic.ppo_micro_batch_size_per_gpu": "why_batch_size_instead",
        "critic.model.path": "why_value_head_shares",
        "data.filter_overlong_prompts": "why_long_prompts_dropped",
        "data.truncation": "why_long_prompts_dropped",
        "data.trust_remote_code": "why_model_trust_instead",
        "trainer.val_before_train": "why_write_eval_on_start",
        "trainer.critic_warmup": "why_value_head_no_warmup",
        "trainer.logger": "why_write_report_to", "trainer.project_name": "why_write_project",
        f"{MODEL}.use_remove_padding": "why_only_speed",
        f"{ACTOR}.fsdp_config.param_offload": "why_only_memory",
        f"{ACTOR}.fsdp_config.optimizer_offload": "why_only_memory",
        "actor_rollout_ref.ref.fsdp_config.param_offload": "why_only_memory",
    },
    defaults=defaults,
    trainer=False,
)  # fmt: skip
