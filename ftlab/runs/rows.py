"""The rows of a recipe, rendered and counted: what is read, cut and dropped is said, never silent."""

import hashlib
import json
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ftlab import tokens
from ftlab.data import registry
from ftlab.errors import fail
from ftlab.runs.fields import COLUMNS, names
from ftlab.runs.keys import Recipe


def splits(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset | None]:
    """Return the training rows and the validation rows (None where the recipe asks for none).

    Raises:
        LabError: rows that cannot be read, that the stage cannot train on, or none left.
    """
    trained = prepared(recipe, recipe.dataset or "", tokenizer)
    if recipe.eval_dataset:
        return trained, prepared(recipe, recipe.eval_dataset, tokenizer)
    if not recipe.val_size:
        return trained, None
    size = recipe.val_size if recipe.val_size < 1 else int(recipe.val_size)
    if size >= len(trained):
        raise fail("train_val_size", where="val_size", size=size, rows=len(trained))
    split = trained.train_test_split(test_size=size, seed=recipe.training.get("seed", 42))
    print(f"validation: {len(split['test'])} of {len(trained)} rows are held out")
    return split["train"], split["test"]


def prepared(recipe: Recipe, dataset: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the rows of some data sets in the form their stage's trainer takes, and say what was cut or dropped."""
    chances = [float(part) for part in names(recipe.interleave_probs)] if recipe.interleave_probs else None
    rows = registry.load(
        dataset,
        recipe.dataset_dir,
        max_samples=recipe.max_samples,
        mix_strategy=recipe.mix_strategy,
        interleave_probs=chances,
        seed=recipe.training.get("seed", 42),
        substitutions=recipe.dataset_substitutions,
    )
    columns = COLUMNS[recipe.objective]
    if not set(columns) <= set(rows.column_names):
        found = ", ".join(rows.column_names)
        raise fail("train_columns", where=dataset, stage=recipe.objective, needed=", ".join(columns), found=found)
    if recipe.objective in ("ppo", "grpo"):
        return asked(recipe, rows, tokenizer)
    if "input_ids" in KEEPS[recipe.objective]:
        return encoded(recipe, rows, tokenizer)
    kept = fitting(recipe, rows, tokenizer)
    return rendered(kept, tokenizer) if recipe.objective in ("orpo", "simpo") else kept


def rendered(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return preference rows as text; the experimental trainers cannot write text into columns of messages."""
    from trl import apply_chat_template

    return Dataset.from_list([apply_chat_template(present(row), tokenizer) for row in rows])


# sft and pt rows reach the trainer as token ids: one renderer for training, chat and server. trl renders
# preferences itself, with the same chat template.
KEEPS = {"sft": ("input_ids", "labels"), "pt": ("input_ids", "labels")} | {
    name: COLUMNS[name] for name in ("rm", "dpo", "orpo", "simpo", "kto")
}


def encoded(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return `input_ids` and `labels` of every row, both of shape (seq_len,)."""
    options = {"train_on_prompt": recipe.train_on_prompt, "mask_history": recipe.mask_history}
    found = rows.map(lambda row: tokens.encode(tokenizer, present(row), **options), remove_columns=rows.column_names)
    if recipe.stage == "pt" and recipe.packs:
        print(f"rows: {len(rows)} read, joined and cut every {recipe.cutoff_len} tokens")
        return found
    lengths = [len(ids) for ids in found["input_ids"]]
    lost = sum(max(0, length - recipe.cutoff_len) for length in lengths)
    cut = sum(length > recipe.cutoff_len for length in lengths)
    found = found.map(lambda row: {name: value[: recipe.cutoff_len] for name, value in row.items()})
    kept = found.filter(lambda row: any(label != tokens.IGNORED for label in row["labels"]))
    say_count(recipe, len(rows), cut, lost, len(rows) - len(kept))
    return kept


def asked(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return `prompt` (messages) and `answer` (text) of the rows that end with an answer and whose prompt fits."""
    found = []
    for row in map(present, rows):
        *before, last = row["messages"]
        fits = len(tokens.prompt(tokenizer, before)) <= recipe.cutoff_len if before else False
        if fits and last["role"] == "assistant" and last.get("content"):
            found.append({"prompt": before, "answer": last["content"]})
    say_count(recipe, len(rows), 0, 0, len(rows) - len(found))
    return Dataset.from_list(found)


def fitting(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return preference rows whose prompt leaves room for an answer (rm: whose longer side fits whole)."""
    sides = ("completion",) if recipe.stage == "kto" else ("chosen", "rejected")

    def lengths(row: dict[str, Any]) -> tuple[int, int]:
        shown = present(row)
        prompt = len(tokens.prompt(tokenizer, shown["prompt"], shown.get("tools")))
        full = [tokens.template_ids(tokenizer, [*shown["prompt"], *shown[side]], shown.get("tools")) for side in sides]
        return prompt, max(map(len, full))

    measured = [lengths(row) for row in rows]
    limit = recipe.cutoff_len
    keep = [i for i, (prompt, full) in enumerate(measured) if (full if recipe.stage == "rm" else prompt + 1) <= limit]
    cut = sum(measured[i][1] > limit for i in keep)
    lost = sum(max(0, measured[i][1] - limit) for i in keep)
    say_count(recipe, len(rows), cut, lost, len(rows) - len(keep))
    return rows.select(keep)


def say_count(recipe: Recipe, read: int, cut: int, lost: int, dropped: int) -> None:
    """Print what became of the rows.

    Raises:
        LabError: none is left.
    """
    print(
        f"rows: {read} read, {read - dropped} kept; {cut} cut to {recipe.cutoff_len} tokens ({lost} tokens lost), "
        f"{dropped} dropped because no answer was left"
    )
    if dropped == read:
        raise fail("train_no_rows", where=recipe.dataset or "", cutoff_len=recipe.cutoff_len)


def present(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the keys that Arrow filled with None, its tools and tool arguments read back from text."""
    clean = without_none(row)
    if isinstance(clean.get("tools"), str):
        clean["tools"] = json.loads(clean["tools"])
    for turns in (value for value in clean.values() if isinstance(value, list)):
        for call in (call for turn in turns if isinstance(turn, dict) for call in turn.get("tool_calls", [])):
            if isinstance(call.get("function", {}).get("arguments"), str):
                call["function"]["arguments"] = read_arguments(call["function"]["arguments"])
    return clean


def without_none(value: Any) -> Any:
    """Return a nested value without its None entries."""
    if isinstance(value, dict):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def read_arguments(text: str) -> Any:
    """Return a tool call's arguments as templates want them, the text itself where it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def digests(datasets: tuple[Dataset, Dataset | None]) -> str:
    """Return a digest of the training rows and of the validation rows."""
    return "+".join(digest(part) for part in datasets if part is not None)


def digest(dataset: Dataset) -> str:
    """Return a digest of every row, in order."""
    found = hashlib.sha256()
    for row in dataset:
        found.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return found.hexdigest()[:16]
