"""Memory predicted from sizes alone against memory measured, for what a recipe trains on this machine."""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import turns

METHODS = ("lora", "full", "freeze", "qlora")
BATCHES, LENGTHS, CHECKPOINTING = (1, 4), (128, 512), (False, True)
STEPS = 2  # the moments of the optimizer are there from the second step on


def measure(repeats: int, steps: int) -> dict:
    """Print the table of all 32 cells; return it with the largest and the mean error. One turn: bytes do not vary."""
    table = {}
    for method in METHODS:
        table |= turns.once("benchmarks.memory", method)
    turns.show(table)
    errors = [abs(row["error"]) for row in table.values()]
    ratios = {"memory_error_max": max(errors), "memory_error_mean": sum(errors) / len(errors)}
    return {"memory": table, "ratios": ratios}


def main(method: str) -> None:
    """Print the cells of one method as JSON."""
    cells = {}
    for length, batch, checkpointing in itertools.product(LENGTHS, BATCHES, CHECKPOINTING):
        label = f"{method} {batch} x {length}{' checkpointing' if checkpointing else ''}"
        cells[label] = cell(method, batch, length, checkpointing)
    print(json.dumps(cells))


def cell(method: str, batch: int, length: int, checkpointing: bool) -> dict[str, float]:
    """Train two steps as a recipe would, on full rows of random tokens; return bytes predicted and measured."""
    import torch
    from datasets import Dataset

    from ftlab import device, memory, models
    from ftlab.runs import needs, recipe, stages, train

    keys = {
        "model_name_or_path": "smollm2-135m", "cutoff_len": length, "per_device_train_batch_size": batch,
        "max_steps": STEPS, "gradient_checkpointing": checkpointing, "save_strategy": "no", "lora_rank": 16,
        "disable_tqdm": True,
    }  # fmt: skip
    run = recipe.load(keys | needs.METHODS[method])
    machine = device.describe()
    predicted = needs.needs(run, machine).peak
    device.fit_output_layer(machine)
    rows = torch.randint(0, 49000, (batch * STEPS, length)).tolist()
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    path = models.fetch(run.model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        args, _ = stages.training_args(run, Path(folder), machine)
        model = stages.prepare_model(run, stages.load_model(run, path, machine))
        trainer = stages.build_trainer(run, model, args, train.load_tokenizer(run, path), (data, None), [])
        with memory.measure_peak_bytes(model) as peak:
            trainer.train()
    mib = 2**20
    return {
        "error": predicted / peak.bytes - 1,
        "predicted_mib": predicted / mib,
        "measured_mib": peak.bytes / mib,
    }


if __name__ == "__main__":
    main(sys.argv[1])
