"""Memory: what `ftlab memory` predicts against what the allocator saw, two steps of full rows."""

from typing import Any

from benchmarks import memory
from benchmarks.gpu.parts import Place
from benchmarks.gpu.works import require_memory
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.runs import train

DRY_LENGTH = 64


def cell(name: str, place: Place) -> dict[str, Any]:
    """Return predicted and measured MiB of a setting, such as "lora 4 x 512 checkpointing 1B"."""
    method, batch, _, length, *_, size = name.split()
    count, tokens = int(batch), DRY_LENGTH if place.dry else int(length)
    keys = {
        "model_name_or_path": str(place.model(size)), "per_device_train_batch_size": count, "cutoff_len": tokens,
        "gradient_checkpointing": "checkpointing" in name,
    }  # fmt: skip
    if method in memory_needs.METHODS:
        keys |= memory_needs.METHODS[method]
        # Every token is trained on.
        drawn = [memory.ids(tokens) for _ in range(count * memory.STEPS)]
        rows: list[dict[str, Any]] = [{"input_ids": row, "labels": row} for row in drawn]
    else:
        rows = memory.stage_rows(method, count * memory.STEPS, tokens, words(recipes.load(keys)))
        keys |= {"stage": method} | (grpo_keys(count) if method == "grpo" else {})
    require_memory(recipes.load(keys))
    return memory.cell(keys, rows)


def grpo_keys(count: int) -> dict[str, Any]:
    """Return GRPO's keys: all completions answer one prompt."""
    return {"reward_funcs": "short_answer", "max_new_tokens": memory.NEW_TOKENS, "num_generations": count}


def words(run: recipes.Recipe) -> list[str]:
    """Return words that are one token each, with the space before it."""
    tokenizer = train.load_tokenizer(run, run.model_name_or_path)
    found = [token.replace("Ġ", " ") for token in tokenizer.get_vocab() if token[:1] == "Ġ" and token[1:].isalpha()]
    return [word for word in sorted(found) if len(tokenizer(word)["input_ids"]) == 1][:64]
