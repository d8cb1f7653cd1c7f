"""How much does a recipe forget? Free answers to general questions before and after training, and its own task.

Each recipe is trained as shipped into a temporary folder, with the seeds 42, 1 and 2 (as many as --repeats says).
Before and after, the model answers general_freeform_en, afterwards also the recipe's own `eval_dataset`; an answer is
right if it contains the expected one. "Before" is the base in full precision, also for QLoRA. The exit code is 1 if a
recipe loses more than MAY_LOSE general answers. --only names other recipes: dpo, grpo, pretrain, ...
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftlab import evaluate
from ftlab.recipe import read as recipes
from ftlab.runs import chat, train

RECIPES = ("sft_lora", "sft_qlora", "sft_full")
SEEDS = (42, 1, 2)
GENERAL = "general_freeform_en"
MAY_LOSE = 2
DATA = Path(__file__).parents[1] / "data"
Row = dict[str, Any]


def measure(repeats: int, steps: int, only: Sequence[str] = RECIPES) -> dict[str, Any]:
    """Print a line per recipe and seed, followed by the answers that were won or lost; `steps` has no effect.

    Raises:
        SystemExit: a recipe loses more than MAY_LOSE answers.
    """
    asked = rows_of(GENERAL)
    before = answers(*chat.load("smollm2-135m"), asked)
    print(f"before: {share(graded(before, asked))}", flush=True)
    table = {f"{name}, seed {seed}": one(name, seed, asked, before) for name in only for seed in SEEDS[:repeats]}
    worst = [name for name, row in table.items() if row["general_before"] - row["general_after"] > MAY_LOSE]
    if worst:
        raise SystemExit(f"more than {MAY_LOSE} general answers lost: {'; '.join(worst)}")
    return {"harm": table, "ratios": {}}


def one(name: str, seed: int, asked: list[Row], before: list[str]) -> dict[str, float]:
    """Train a recipe with a seed; print and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        values = [f"output_dir={folder}/run", f"seed={seed}", "save_strategy=no", "plot_loss=false"]
        loaded = recipes.load(f"recipes/{name}.yaml", values)
        run = train.train(loaded, quiet=True)
        model, tokenizer = chat.load(loaded.model_name_or_path, run.folder, **chat.options_of(loaded))
    # In the same batch as before: in another one bfloat16 rounds differently.
    after = answers(model, tokenizer, asked)
    own = rows_of(loaded.eval_dataset, loaded.dataset_substitutions)
    own_right = graded(answers(model, tokenizer, own), own)
    old, new = graded(before, asked), graded(after, asked)
    seconds = run.metrics["train_seconds"]
    print(
        f"{name}, seed {seed}: general {share(new)}, {loaded.eval_dataset} {share(own_right)}, {seconds:.0f} s",
        flush=True,
    )
    for row, was, now, text in zip(asked, old, new, after, strict=True):
        if was != now:
            print(f"    {'lost' if was else 'won'}: {row['instruction']} -> {text!r}", flush=True)
    return {
        "general_before": sum(old),
        "general_after": sum(new),
        "own_share": sum(own_right) / max(1, len(own)),
        "train_seconds": seconds,
    }


def answers(model: Any, tokenizer: Any, rows: list[Row]) -> list[str]:
    """Return a model's greedy answers to the instructions of `rows`."""
    asked = ["\n".join(filter(None, [row["instruction"], row.get("input")])) for row in rows]
    chats = [[{"role": "user", "content": text}] for text in asked]
    return evaluate.generate_answers(model, tokenizer, chats, max_new_tokens=80)


def graded(replies: list[str], rows: list[Row]) -> list[bool]:
    """Return for each reply whether it contains what its row expects."""
    return [evaluate.has_answer(text, row["expect"]) for text, row in zip(replies, rows, strict=True)]


def share(right: list[bool]) -> str:
    """Return the number of right answers as text, with its 95% interval."""
    if not right:
        return "-"
    low, high = evaluate.interval(sum(right) / len(right), len(right))
    return f"{sum(right)} of {len(right)} ({low:.0%}-{high:.0%})"


def rows_of(name: str | None, substitutions: dict[str, str] | None = None) -> list[Row]:
    """Return the rows of a registered set as they stand in its file, with `expect`; none of sets without one answer."""
    if not name:
        return []
    file = DATA / json.loads((DATA / "dataset_info.json").read_text(encoding="utf-8"))[name]["file_name"]
    text = file.read_text(encoding="utf-8")
    for gap, value in (substitutions or {}).items():
        text = text.replace(f"{{{{{gap}}}}}", value)
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [row | {"expect": row.get("expect") or row["output"]} for row in rows if "output" in row]
