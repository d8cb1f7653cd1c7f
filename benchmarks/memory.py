"""Training memory predicted from config.json, compared with the memory that the allocator measures."""

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import turns

METHODS = ("lora", "full", "freeze", "qlora")
BATCHES, LENGTHS, CHECKPOINTING = (1, 4), (128, 512), (False, True)
# Stage -> (rows a step, tokens of each): two or four pairs, as many single answers, or eight completions.
PAIRS, SINGLE, COMPLETIONS = ((2, 128), (4, 256)), ((4, 128), (8, 256)), ((8, 128), (8, 256))
STAGES = {
    "rm": PAIRS, "dpo": PAIRS, "orpo": PAIRS, "simpo": PAIRS, "kto": SINGLE, "ppo": COMPLETIONS, "grpo": COMPLETIONS,
    "rloo": COMPLETIONS,
}  # fmt: skip
# Stages whose rows are prompts, which the model completes.
WRITTEN = ("ppo", "grpo", "rloo")
NEW_TOKENS = 32
STEPS = 2  # the optimizer's moments exist from the second step on
# One token each, with the space before it.
WORDS = " one", " two", " time", " people", " water", " house", " light", " world"


def measure(repeats: int, steps: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Print the table of all cells; return it with the largest and the mean error. Each runs once: bytes hardly vary.

    Args:
        only: which of METHODS and STAGES; all by default.
    """
    found: dict[str, Any] = {"memory": {}, "ratios": {}}
    for name, parts in {"memory": METHODS, "memory_stages": STAGES}.items():
        table: dict[str, dict[str, float]] = {}
        for part in (part for part in parts if not only or part in only):
            table |= turns.once("benchmarks.memory", part)
        if table:
            turns.show(table)
            errors = [abs(row["error"]) for row in table.values()]
            found["ratios"] |= {f"{name}_error_max": max(errors), f"{name}_error_mean": sum(errors) / len(errors)}
            found["memory"] |= table
    return found


def main(part: str) -> None:
    """Print the cells of one method or stage as JSON."""
    cells = stage_cells(part) if part in STAGES else method_cells(part)
    print(json.dumps({label: cell(keys, data) for label, keys, data in cells}))


def method_cells(method: str) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield (label, keys, rows) of one method: full rows of random tokens."""
    from ftlab.recipe import memory_needs

    for length, batch, checkpointing in itertools.product(LENGTHS, BATCHES, CHECKPOINTING):
        label = f"{method} {batch} x {length}{' checkpointing' if checkpointing else ''}"
        keys = {"cutoff_len": length, "per_device_train_batch_size": batch, "gradient_checkpointing": checkpointing}
        rows = [ids(length) for _ in range(batch * STEPS)]
        yield label, keys | memory_needs.METHODS[method], [{"input_ids": row, "labels": row} for row in rows]


def stage_cells(stage: str) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield (label, keys, rows) of one stage."""
    for batch, length in STAGES[stage]:
        keys = {"stage": stage, "cutoff_len": length, "per_device_train_batch_size": batch}
        if stage in WRITTEN:
            keys |= {"reward_funcs": "short_answer", "max_new_tokens": NEW_TOKENS}
            keys |= {"ppo_epochs": 1} if stage == "ppo" else {"num_generations": batch}
        yield f"{stage} {batch} x {length}", keys, stage_rows(stage, batch * STEPS, length)


def stage_rows(stage: str, count: int, length: int, known: Sequence[str] = WORDS) -> list[dict[str, Any]]:
    """Return rows of `length` tokens: full prompts, or prompts of one token and answers that fill the row.

    Args:
        known: words that are one token each, of which prompts are made.
    """
    if stage in WRITTEN:
        return [{"prompt": "".join(random.choices(known, k=length)), "answer": known[0]} for _ in range(count)]
    if stage == "rm":
        return [{"chosen_ids": ids(length), "rejected_ids": ids(length)} for _ in range(count)]
    if stage == "kto":
        answers = [{"completion_ids": ids(length - 1), "label": number % 2 == 0} for number in range(count)]
    else:
        answers = [{"chosen_ids": ids(length - 1), "rejected_ids": ids(length - 1)} for _ in range(count)]
    return [{"prompt_ids": ids(1)} | answer for answer in answers]


def ids(count: int) -> list[int]:
    """Return `count` random token ids that exist in the smallest vocabulary used."""
    return random.choices(range(100, 1000), k=count)


def cell(keys: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Train two steps as a recipe would; return bytes predicted and measured."""
    from datasets import Dataset

    from ftlab import cpu, device, memory, models
    from ftlab.recipe import library_args, memory_needs
    from ftlab.recipe import read as recipes
    from ftlab.runs import build, train

    common = {
        "model_name_or_path": "smollm2-135m", "max_steps": STEPS, "save_strategy": "no", "lora_rank": 16,
        "disable_tqdm": True,
    }  # fmt: skip
    run = recipes.load(common | keys)
    machine = device.describe()
    predicted = memory_needs.needs(run, machine).peak
    path = models.fetch(run.model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        args, _ = build.training_args(run, Path(folder), machine)
        model = build.prepare_model(run, build.load_model(run, path, machine), machine)
        data = (Dataset.from_list(rows), None)
        trainer = build.build_trainer(run, model, args, train.load_tokenizer(run, path), data, [])
        with cpu.fast_paths(library_args.plan(run, machine)), memory.measure_peak_bytes(model) as peak:
            trainer.train()
    mib = 2**20
    return {
        "error": predicted / peak.bytes - 1,
        "predicted_mib": predicted / mib,
        "measured_mib": peak.bytes / mib,
    }


if __name__ == "__main__":
    main(sys.argv[1])
