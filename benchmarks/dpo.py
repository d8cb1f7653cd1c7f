"""DPO on preference_en: recipes/dpo.yaml against the defaults of DPOTrainer, with the same loss on the same pairs."""

import json
import sys
from typing import Any

from benchmarks import sides, train, turns
from benchmarks.sides import Side

VARIANTS = ("ftlab", "trl defaults")
BATCH = 8
LEARNING_RATE, BETA, FTX = 2e-4, 0.1, 0.5


def measure(repeats: int, steps: int) -> dict[str, Any]:
    """Print the table; return it with the ratio of trained tokens per second."""
    table = turns.medians(turns.in_turns("benchmarks.dpo", VARIANTS, repeats, str(steps)))
    print(f"\ndpo, {BATCH} pairs a step, {steps} steps, {repeats} turns")
    turns.show(table)
    turns.same(table, "samples")
    mine, other = (table[variant] for variant in VARIANTS)
    ratios = {
        "dpo_vs_trl_defaults": mine["trained_tokens_per_second"] / other["trained_tokens_per_second"],
        "dpo_vs_trl_defaults_loss_difference": abs(mine["final_loss"] / other["final_loss"] - 1),
        "dpo_vs_trl_defaults_peak_memory": mine["peak_gib"] / other["peak_gib"],
    }
    return {"dpo": table, "ratios": ratios}


def run_ftlab(steps: int, side: Side, folder: str) -> None:
    """Train the recipe."""
    from ftlab.recipe import read as recipes
    from ftlab.runs import train as runs

    overrides = {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": BATCH, "lora_rank": train.RANK,
        "learning_rate": LEARNING_RATE, "pref_beta": BETA, "pref_ftx": FTX, "seed": train.SEED,
        "save_strategy": '"no"', "plot_loss": "false",
    }  # fmt: skip
    loaded = recipes.load("recipes/dpo.yaml", [f"{key}={value}" for key, value in overrides.items()])
    runs.train(loaded, callbacks=[side], quiet=True)


def run_trl(steps: int, side: Side, folder: str) -> None:
    """Train with DPOTrainer: the recipe's loss, the dtype that suits the machine, defaults for the rest."""
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from ftlab import models
    from ftlab.recipe import read as recipes
    from ftlab.runs import dataset

    path = models.fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded, _ = dataset.splits(recipes.load("recipes/dpo.yaml"), tokenizer)
    # As text: from messages TRL would train on one more token, the line break after the end of an answer.
    pairs = encoded.map(
        lambda row: {part: tokenizer.decode(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")},
        remove_columns=encoded.column_names,
    )
    args = DPOConfig(
        output_dir=folder,
        use_cpu=sides.ON_CPU,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        beta=BETA,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, FTX],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=train.SEED,
        **sides.precision(),
    )
    trainer = DPOTrainer(
        path,
        args=args,
        train_dataset=pairs,
        peft_config=train.lora(),
        callbacks=[side],
    )
    trainer.train()


def main(variant: str, steps: int) -> None:
    """Run one variant and print its figures as JSON."""
    print(json.dumps(sides.figures_of(run_ftlab if variant == "ftlab" else run_trl, steps, Side())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
