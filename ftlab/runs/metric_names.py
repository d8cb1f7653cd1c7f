"""The names of the metrics that each stage's evaluation logs, for `metric_for_best_model`.

The trainers name them only while they evaluate, so they are listed here: a wrong name is refused before training, not
at the first evaluation. `test_validation_loss.py` trains every stage and compares.
"""

from transformers import TrainingArguments

from ftlab.errors import fail
from ftlab.recipe.keys import REWARDED

# Of every evaluation.
TIMED = ("loss", "runtime", "samples_per_second", "steps_per_second")
TOKENS = ("entropy", "mean_token_accuracy", "num_tokens", "aux_loss")
SIDES = tuple(f"{what}/{side}" for what in ("rewards", "logps", "logits") for side in ("chosen", "rejected"))
PAIRS = (*SIDES, "rewards/accuracies", "rewards/margins")
REWARDS = (
    "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "num_tokens", "aux_loss", "clip_ratio/low_mean",
    "clip_ratio/low_min", "clip_ratio/high_mean", "clip_ratio/high_max", "clip_ratio/region_mean",
    "completions/clipped_ratio", *(f"completions/{one}{end}_length" for one in ("mean", "min", "max")
    for end in ("", "_terminated")), *(f"sampling/sampling_logp_difference/{one}" for one in ("mean", "max")),
    *(f"sampling/importance_sampling_ratio/{one}" for one in ("min", "mean", "max")),
)  # fmt: skip
# Stage -> metrics besides TIMED. GRPO and RLOO also log a mean and a standard deviation for each reward function. Only
# a mixture of experts has `aux_loss`, and KTO logs nothing for a label without examples: `callbacks.Best` checks again.
MEASURED: dict[str, tuple[str, ...]] = {
    "pt": TOKENS, "sft": TOKENS, "gkd": (), "dpo": (*TOKENS, *PAIRS), "grpo": REWARDS, "rloo": REWARDS,
    "rm": ("accuracy", "margin", "max_reward", "mean_reward", "min_reward", "num_tokens"),
    "kto": (*SIDES, "rewards/margins", "kl", "entropy", "num_tokens", "aux_loss"), "simpo": (*PAIRS, "nll_loss"),
    "orpo": (*PAIRS, "nll_loss", "log_odds_ratio", "log_odds_chosen"),
}  # fmt: skip


def require_metric(objective: str, args: TrainingArguments) -> None:
    """Refuse to choose the best checkpoint by a metric that no evaluation of the stage logs.

    Raises:
        LabError: with the names of the metrics that it does log.
    """
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if args.eval_strategy == "no" or objective not in MEASURED or (objective in REWARDED and "rewards/" in name):
        return
    measured = {*TIMED, *MEASURED[objective]}
    if name not in measured:
        known = ", ".join(sorted(measured))
        raise fail("train_no_metric", where="metric_for_best_model", name=name, known=known)
