"""GRPO on facts_en: recipes/grpo.yaml against the defaults of GRPOTrainer, same questions, reward and sampling.

Each side trains on its own completions, so the tokens differ; completion tokens per second and seconds per step are
compared, from the question to the optimizer step.
"""

import json
import sys
from typing import Any

from benchmarks import sides, train, turns
from benchmarks.sides import LAST, Side

VARIANTS = ("ftlab", "trl defaults")
COMPLETIONS, GENERATIONS, LONGEST = 16, 8, 24
LEARNING_RATE, BETA, TEMPERATURE = 5e-4, 0.02, 0.8


def measure(repeats: int, steps: int) -> dict[str, Any]:
    """Print the table; return it with the ratios of completion tokens per second and of steps."""
    table = turns.medians(turns.in_turns("benchmarks.grpo", VARIANTS, repeats, str(steps)))
    print(f"\ngrpo, {COMPLETIONS} completions of {LONGEST} tokens a step, {steps} steps, {repeats} turns")
    turns.show(table)
    mine, other = (table[variant] for variant in VARIANTS)
    ratios = {
        "grpo_vs_trl_defaults": mine["trained_tokens_per_second"] / other["trained_tokens_per_second"],
        "grpo_vs_trl_defaults_steps": other["seconds_per_step"] / mine["seconds_per_step"],
        "grpo_vs_trl_defaults_peak_memory": mine["peak_gib"] / other["peak_gib"],
    }
    return {"grpo": table, "ratios": ratios}


class Rewarded(Side):
    """A side that also records the mean reward of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Record a step's loss and reward."""
        super().on_log(args, state, control, logs)
        if logs and "reward" in logs:
            self.rewards.append(float(logs["reward"]))


def run_ftlab(steps: int, side: Side, folder: str) -> None:
    """Train the recipe."""
    from ftlab.recipe import read as recipes
    from ftlab.runs import train as runs

    overrides = {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": COMPLETIONS,
        "num_generations": GENERATIONS, "max_new_tokens": LONGEST, "temperature": TEMPERATURE, "pref_beta": BETA,
        "learning_rate": LEARNING_RATE, "lora_rank": train.RANK, "seed": train.SEED, "save_strategy": '"no"',
        "plot_loss": "false",
    }  # fmt: skip
    loaded = recipes.load("recipes/grpo.yaml", [f"{key}={value}" for key, value in overrides.items()])
    runs.train(loaded, callbacks=[side], quiet=True)


def run_trl(steps: int, side: Side, folder: str) -> None:
    """Train with GRPOTrainer: the recipe's rows, reward and sampling, a suitable dtype; defaults for the rest."""
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from ftlab import models
    from ftlab.recipe import read as recipes
    from ftlab.runs import dataset, rewards

    path = models.fetch("smollm2-135m")
    keys = recipes.load("recipes/grpo.yaml")
    args = GRPOConfig(
        output_dir=folder,
        use_cpu=sides.ON_CPU,
        max_steps=steps,
        per_device_train_batch_size=COMPLETIONS,
        num_generations=GENERATIONS,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=train.SEED,
        **sides.precision(),
    )
    data, _ = dataset.splits(keys, AutoTokenizer.from_pretrained(path))
    trainer = GRPOTrainer(
        path,
        reward_funcs=rewards.BUILT_IN["short_answer"],
        args=args,
        train_dataset=data,
        peft_config=train.lora(),
        callbacks=[side],
    )
    trainer.train()


def main(variant: str, steps: int) -> None:
    """Run one variant and print its figures as JSON."""
    side = Rewarded()
    figures = sides.figures_of(run_ftlab if variant == "ftlab" else run_trl, steps, side)
    # It depends on the sampled completions, so it differs between sides.
    del figures["samples"]
    print(json.dumps(figures | {"final_reward": sum(side.rewards[-LAST:]) / LAST}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
