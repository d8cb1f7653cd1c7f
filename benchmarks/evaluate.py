"""Seconds of `ftlab eval` on 500 orders, against a forward pass for the loss and `generate` for all answers."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import turns

# Rows that are scored, from the start of the data set; those behind them are trained on.
ROWS, STEPS = 500, 40
# Variant -> the figures of ftlab's own way; None: loss and exact match by generating every answer to its end.
VARIANTS = {"generate": None, "drafted": ("loss", "exact_match"), "drafted, whole": ("loss", "exact_match", "contains")}


def measure(repeats: int, steps: int) -> dict:
    """Print and return the seconds of each variant, and its right answers (base and tuned). Always `STEPS` steps.

    In float32 all variants find the same answers right. In 16 bits, of two nearly equally likely tokens one may be
    chosen in a pass over the answer and the other during generation, as with another batch size.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        table = turns.medians(turns.in_turns("benchmarks.evaluate", list(VARIANTS), repeats, folder))
    turns.show(table)
    seconds = {name: row["seconds"] for name, row in table.items()}
    ratios = {f"generate / {name}": seconds["generate"] / seconds[name] for name in list(VARIANTS)[1:]}
    return {"evaluate": table, "ratios": ratios}


def prepare(folder: Path) -> None:
    """Write the two halves of the orders into a folder and train an adapter there."""
    from ftlab.recipe import read as recipes
    from ftlab.runs import train

    lines = (turns.ROOT / "data" / "orders_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "scored.jsonl").write_text("".join(lines[:ROWS]), encoding="utf-8")
    (folder / "trained.jsonl").write_text("".join(lines[ROWS:]), encoding="utf-8")
    train.train(recipes.load(keys(folder) | {"max_steps": STEPS, "learning_rate": 1e-3, "save_strategy": "no"}))


def keys(folder: Path) -> dict[str, Any]:
    """Return the keys of the recipe in a folder."""
    sets = {"dataset": str(folder / "trained.jsonl"), "eval_dataset": str(folder / "scored.jsonl")}
    size = {"lora_rank": 16, "per_device_train_batch_size": 8, "cutoff_len": 256}
    return {"model_name_or_path": "smollm2-135m", "output_dir": str(folder / "run"), **sets, **size}


def main(variant: str, folder: str) -> None:
    """Score base and tuned model in one way and print the seconds, and how many answers of each are right."""
    from ftlab.recipe import read as recipes
    from ftlab.runs import chat, evaluation, watch

    recipe, figures = recipes.load(keys(Path(folder))), VARIANTS[variant]
    model, tokenizer = chat.from_recipe(recipe)
    examples = evaluation.held_out(recipe, tokenizer, None, ROWS)
    right: list[int] = []
    started = time.perf_counter()
    for name, on in (("tuned", True), ("base", False)):
        with chat.adapters(model, on):
            if figures:
                one = evaluation.Model(name, model, tokenizer, watch.Watch(None))
                right.append(sum(evaluation.answer(one, examples, figures, None).hits or []))
            else:
                right.append(generated(model, tokenizer, examples))
    print(json.dumps({"seconds": time.perf_counter() - started, "right": " and ".join(map(str, right))}))


def generated(model: Any, tokenizer: Any, examples: list[dict[str, list[int]]]) -> int:
    """Return how many answers are right, with one pass for the loss and every answer generated."""
    from ftlab import evaluate, responses
    from ftlab.runs import evaluation

    evaluate.mean_token_loss(model, examples, tokenizer.pad_token_id)
    pairs, reader = [responses.split(example) for example in examples], responses.Reader(tokenizer)
    most = max(len(expected) for _, expected in pairs) + evaluation.SPARE
    answers = evaluate.generate_ids(model, tokenizer, [prompt for prompt, _ in pairs], most)
    return sum(
        reader.read(prompt, answer).equals(reader.read(prompt, expected))
        for (prompt, expected), answer in zip(pairs, answers, strict=True)
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
