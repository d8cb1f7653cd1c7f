"""Convert a recipe for verl: a shell script that writes its rows and rewards, then verl's command.

Source: verl's configuration and its guide to data and rewards, release 0.9.
"""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

from ftlab.catalogue import hub_id
from ftlab.errors import fail, say
from ftlab.recipe import text_rewards, to_script
from ftlab.recipe.frameworks.table import Values
from ftlab.recipe.frameworks.verl import ACTOR, MODEL, PROCESSES, ROLLOUT, VERL
from ftlab.recipe.keys import Recipe
from ftlab.recipe.library_args import names
from ftlab.recipe.to_frameworks import comment, comments, heredoc, lacks, relevant, renamed

# Text that hydra reads without its own quotes.
PLAIN = re.compile(r"[\w./~:@%-]+")
# Keys that the explicit options below, or the rows, depend on.
HANDLED = (
    *to_script.DATA, "gradient_accumulation_steps", "logging_steps", "save_steps", "save_strategy", "eval_steps",
    "eval_strategy", "report_to", "max_new_tokens", "temperature", "num_generations", "finetuning_type", "shortcuts",
    "per_device_eval_batch_size",
)  # fmt: skip
COMPUTE_SCORE = '''

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """Return the reward of one completion, as verl asks for it."""
    return sum(reward([solution_str], answer=[ground_truth])[0] for reward in ({functions},))
'''
ROWS = """for name, rows in (("train", train_dataset), ("validation", eval_dataset)):
    if rows is not None:
        rows.map(
            lambda row: {{
                "messages": [*row["prompt"], {{"role": "assistant", "content": row["answer"]}}],
                "data_source": "ftlab",
                "reward_model": {{"style": "rule", "ground_truth": row["answer"]}},
            }},
            remove_columns="answer",
        ).to_parquet(f"{folder}/{{name}}.parquet")
"""


def script(recipe: Recipe) -> str:
    """Return a shell script that trains the run with verl.

    Raises:
        LabError: a stage other than grpo and ppo, a `finetuning_type` that verl lacks, a reward model, or adapters that
            would have to be merged.
    """
    for name, value in (("dataset", recipe.dataset), ("output_dir", recipe.output_dir)):
        if not value:
            raise fail("recipe_missing_key", key=name)
    refuse(recipe)
    folder = f"{Path(recipe.output_dir or '').name}-verl"
    rewards = f"{folder}/{'+'.join(names(recipe.reward_funcs or ''))}.py"
    theirs, left = options(recipe, folder, rewards)
    lines = ["python3 -m verl.trainer.main_ppo", *(f"    {word(name, value)}" for name, value in theirs.items())]
    source = inspect.getsource(text_rewards) + COMPUTE_SCORE.format(
        functions=", ".join(names(recipe.reward_funcs or ""))
    )
    return (
        comment(say("show_verl_files"))
        + (comment(say("show_verl_values")) if recipe.stage == "ppo" else "")
        + comments(left)
        + f"mkdir -p {shlex.quote(folder)}\n\n"
        + heredoc(f"cat > {shlex.quote(rewards)}", source)
        + heredoc("python3 -", to_script.rows_written(recipe, ROWS.format(folder=folder)))
        + " \\\n".join(lines)
        + "\n"
    )


def refuse(recipe: Recipe) -> None:
    """Refuse features that verl lacks.

    Raises:
        LabError: naming the key.
    """
    for name, known in (("stage", VERL.stages), ("finetuning_type", VERL.tunings)):
        value = recipe.objective if name == "stage" else getattr(recipe, name)
        if value not in known:
            raise lacks("verl", name, value)
    for name, asked in (("adapter_name_or_path", recipe.merges), ("reward_model", recipe.reward_model)):
        if asked:
            raise lacks("verl", name, asked)


def options(recipe: Recipe, folder: str, rewards: str) -> tuple[Values, Values]:
    """Return (verl's options, keys without an option)."""
    grpo = recipe.objective == "grpo"
    values = relevant(recipe)
    values |= {"max_new_tokens": recipe.max_new_tokens, "temperature": recipe.temperature}
    theirs, left = renamed({name: value for name, value in values.items() if name != "pref_beta"}, VERL)
    for name in ("dataset", "eval_dataset"):
        theirs.pop(VERL.names[name], None)
    if recipe.finetuning_type == "full":
        theirs[VERL.names["lora_rank"]] = 0
        theirs = {name: value for name, value in theirs.items() if not name.endswith((".lora_alpha", "target_modules"))}
    validates = bool(recipe.eval_dataset or recipe.val_size)
    micro, processes = values["per_device_train_batch_size"], recipe.nproc_per_node or 1
    frequencies, unlike = steps_between(recipe.training, values["logging_steps"])
    theirs |= {
        "data.train_files": f"{folder}/train.parquet",
        # verl requires one even without validation.
        "data.val_files": f"{folder}/{'validation' if validates else 'train'}.parquet",
        "data.filter_overlong_prompts": True,
        **batch(recipe, micro * values["gradient_accumulation_steps"] * processes),
        f"{ROLLOUT}.name": "vllm",
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        # Adapters are sent to vLLM, which loads the base itself.
        f"{ROLLOUT}.load_format": "safetensors",
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": micro,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro,
        "reward.custom_reward_function.path": rewards,
        "reward.custom_reward_function.name": "compute_score",
        PROCESSES: processes,
        "trainer.nnodes": 1,
        **frequencies,
        "trainer.val_before_train": False,
        "trainer.logger": ["console"],
    }
    theirs |= in_loss(recipe) if grpo else in_reward(recipe, micro)
    if (steps := values.get("max_steps", -1)) > 0:
        # It still stops after the last epoch, and each epoch has at least one step.
        theirs["trainer.total_epochs"] = steps
    if recipe.trust_remote_code:
        theirs["data.trust_remote_code"] = True
    usual = {"lora_dropout": 0.0, "seed": 42}
    left = {name: value for name, value in left.items() if name not in HANDLED and usual.get(name, "") != value}
    return theirs, left | unlike


def batch(recipe: Recipe, completions: int) -> Values:
    """Return the options of the size of a step, in which verl counts prompts, a recipe completions.

    Raises:
        LabError: the completions of a step are not whole groups.
    """
    group = recipe.num_generations if recipe.objective == "grpo" else 1
    if completions % group:
        raise lacks("verl", "num_generations", say("lacks_groups", group=group, completions=completions))
    prompts = completions // group
    return {
        "data.train_batch_size": prompts,
        f"{ACTOR}.ppo_mini_batch_size": prompts,
        f"{ROLLOUT}.n": group,
    }


def steps_between(training: Values, logging_steps: float) -> tuple[Values, Values]:
    """Return the steps between checkpoints and between evaluations, and what verl lacks: epochs, shares of steps."""
    test = training.get("eval_steps") or logging_steps if training.get("eval_strategy") == "steps" else -1
    save = training.get("save_steps", 500) if training.get("save_strategy", "steps") == "steps" else 500
    unlike: Values = {name: "epoch" for name in ("save_strategy", "eval_strategy") if training.get(name) == "epoch"}
    unlike |= {name: share for name, share in (("save_steps", save), ("eval_steps", test)) if 0 < share < 1}
    never = training.get("save_strategy") == "no"
    return {"trainer.save_freq": -1 if never else int(save) or 500, "trainer.test_freq": int(test) or -1}, unlike


def in_loss(recipe: Recipe) -> Values:
    """Return the options of GRPO's loss as in TRL: a mean over all tokens, with the KL term in the loss."""
    return {
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_coef": recipe.pref_beta,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
        f"{ACTOR}.loss_agg_mode": "token-mean",
        "algorithm.use_kl_in_reward": False,
    }


def in_reward(recipe: Recipe, micro: int) -> Values:
    """Return the options of PPO's rewards: minus the KL penalty at each token."""
    own = recipe.training.get("learning_rate", 5e-5)
    return {
        f"{ACTOR}.ppo_epochs": recipe.ppo_epochs,
        f"{ACTOR}.use_kl_loss": False,
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_ctrl.kl_coef": recipe.pref_beta,
        "algorithm.lam": 0.9,
        "critic.model.path": hub_id(recipe.model_name_or_path),
        "critic.optim.lr": own,
        "critic.ppo_micro_batch_size_per_gpu": micro,
    }


def word(name: str, value: Any) -> str:
    """Return one option as a word of the shell that hydra reads as this value."""
    if isinstance(value, list):
        text = f"[{','.join(value)}]"
    elif isinstance(value, str) and not PLAIN.fullmatch(value) and name != f"{MODEL}.target_modules":
        text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    else:
        text = str(value)
    return shlex.quote(f"{name}={text}")
