"""Exact JSON for unseen orders: the recommended settings against rank 1, and against a tenth of the learning rate."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks import turns

STEPS = 90
SETTINGS = {"recommended": [], "rank 1": ["lora_rank=1"], "learning rate / 10": ["learning_rate=2e-4"]}


def measure(repeats: int, steps: int) -> dict:
    """Print and return the share of exact answers and the training seconds of each setting; always `STEPS` steps."""
    table = turns.medians(turns.in_turns("benchmarks.extraction", list(SETTINGS), repeats))
    turns.show(table)
    return {"extraction": table, "ratios": {}}


def main(setting: str) -> None:
    """Train one setting on `orders`, score it on `orders_eval`, print both figures."""
    from ftlab import evaluate
    from ftlab.data import registry
    from ftlab.recipe import read as recipes
    from ftlab.runs import chat, train

    keys = {
        "dataset": "orders", "eval_dataset": "orders_eval", "max_steps": STEPS, "learning_rate": 2e-3,
        "warmup_steps": 0.1, "save_strategy": "no", "train_sampling_strategy": "group_by_length", "cutoff_len": 256,
        "seed": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"{key}={value}" for key, value in keys.items()] + [f"output_dir={folder}/run"]
        run = train.train(recipes.load("recipes/sft_lora.yaml", overrides + SETTINGS[setting]))
        model, tokenizer = chat.load("smollm2-135m", Path(folder) / "run" / "adapter")
        rows = registry.rows_of("orders_eval")
        answers = evaluate.generate_answers(model, tokenizer, [row["messages"][:-1] for row in rows], max_new_tokens=80)
    exact = evaluate.exact_match(answers, [row["messages"][-1]["content"] for row in rows])
    print(json.dumps({"exact_match": exact, "train_seconds": run.metrics["train_seconds"]}))


if __name__ == "__main__":
    main(sys.argv[1])
