"""A recipe in, a run folder out."""

import hashlib
import json
import math
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import SFTTrainer

from ftlab import device, models, plots, tokens
from ftlab.data import registry
from ftlab.errors import fail
from ftlab.runs import recipe as recipes
from ftlab.runs.recipe import Recipe

LOG, METRICS, MANIFEST = "train_log.jsonl", "metrics.json", "manifest.json"
OWN_FILES = ("recipe.yaml", LOG, METRICS, MANIFEST, "loss.png", "README.md", "adapter", "model")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its metrics, and whether an earlier run was reused."""

    folder: Path
    metrics: dict[str, float]
    reused: bool

    @property
    def weights(self) -> Path:
        """The adapter's folder, or the whole model's."""
        return next(self.folder / name for name in ("adapter", "model") if (self.folder / name).is_dir())


class Log(TrainerCallback):
    """Write every logged row to train_log.jsonl as it comes, and stop at the first number that is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text("")

    def on_log(self, args, state, control, logs=None, **kwargs):
        row = {"step": state.global_step} | {
            key: value for key, value in logs.items() if isinstance(value, int | float)
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        broken = next((key for key in ("loss", "grad_norm", "eval_loss") if not math.isfinite(row.get(key, 0.0))), None)
        if broken:
            raise fail(
                "train_not_finite", where=f"step {state.global_step}", exit_code=1, name=broken, value=row[broken]
            )


def train(recipe: Recipe, *, callbacks: tuple[TrainerCallback, ...] = (), fresh: bool = False) -> Run:
    """Run a recipe with TRL's SFTTrainer and leave its run folder.

    The same recipe on the same data is not trained twice: the finished run is returned, and said.

    Args:
        callbacks: added to the trainer.
        fresh: train again even so, and replace what an earlier run left in the folder.
    Raises:
        LabError: bad data, a folder that holds another run, a loss that is no number.
    """
    model_path = models.fetch(recipe.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    train_dataset, eval_dataset = encoded_splits(recipe, tokenizer)
    fingerprints = {"recipe": fingerprint(recipe.model_dump(exclude={"output_dir"})), "data": digest(train_dataset)}
    folder = Path(recipe.output_dir)
    if not fresh and finished(folder, fingerprints):
        print(f"{folder}: this recipe was trained before on the same data; reused (fresh=true trains again)")
        return Run(folder, json.loads((folder / METRICS).read_text()), reused=True)
    clear(folder)
    recipes.write(recipe, folder / "recipe.yaml")

    machine = device.describe()
    training_args = recipe.training_args(machine)
    set_seed(training_args.seed)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=machine.dtype)
    peft_config = recipe.peft_config()
    if peft_config is not None:
        model = get_peft_model(model, peft_config)
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=[Log(folder / LOG), *callbacks],
    )
    started = time.monotonic()
    output = trainer.train()
    metrics = output.metrics | {"train_seconds": time.monotonic() - started}
    return finish(recipe, trainer, metrics, fingerprints)


def encoded_splits(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset | None]:
    """Return the training and validation rows as `input_ids` and `labels`, and say what was cut or dropped."""
    rows = registry.load(
        recipe.dataset,
        recipe.dataset_dir,
        max_samples=recipe.max_samples,
        substitutions=recipe.dataset_substitutions,
    )
    options = {"train_on_prompt": recipe.train_on_prompt, "mask_history": recipe.mask_history}
    encoded = rows.map(lambda row: tokens.encode(tokenizer, present(row), **options), remove_columns=rows.column_names)
    cut = sum(len(ids) > recipe.cutoff_len for ids in encoded["input_ids"])
    encoded = encoded.map(lambda row: {key: value[: recipe.cutoff_len] for key, value in row.items()})
    kept = encoded.filter(lambda row: any(label != tokens.IGNORED for label in row["labels"]))
    print(f"rows: {len(rows)} read, {cut} cut to {recipe.cutoff_len} tokens, {len(rows) - len(kept)} without an answer")
    if not len(kept):
        raise fail("train_no_rows", where=recipe.dataset, cutoff_len=recipe.cutoff_len)
    if not recipe.val_size:
        return kept, None
    size = recipe.val_size if recipe.val_size < 1 else int(recipe.val_size)
    split = kept.train_test_split(test_size=size, seed=recipe.training.get("seed", 42))
    return split["train"], split["test"]


def present(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the keys that Arrow filled with None."""
    messages = {key: [{k: v for k, v in m.items() if v is not None} for m in row[key]] for key in row if key != "text"}
    return row if "text" in row else messages


def clear(folder: Path) -> None:
    """Make the run folder, free of what an earlier run of ours left there.

    Raises:
        LabError: the folder holds files that are not a run's; they are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [path.name for path in folder.iterdir() if path.name not in OWN_FILES and "checkpoint-" not in path.name]
    if foreign:
        raise fail("train_folder_used", where=str(folder), files=", ".join(foreign[:3]))
    for name in OWN_FILES:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def finish(recipe: Recipe, trainer: SFTTrainer, metrics: dict[str, float], fingerprints: dict[str, str]) -> Run:
    """Write what a finished run leaves; the manifest comes last, so that it means complete."""
    folder = Path(recipe.output_dir)
    weights = folder / ("adapter" if recipe.finetuning_type == "lora" else "model")
    trainer.save_model(str(weights))
    # TRL leaves its own card and arguments beside the weights; the run folder has both in readable form.
    for leftover in ("README.md", "training_args.bin"):
        (weights / leftover).unlink(missing_ok=True)
    (folder / METRICS).write_text(json.dumps(metrics, indent=1))
    if recipe.plot_loss:
        plots.save_loss(trainer.state.log_history, folder / "loss.png")
    (folder / "README.md").write_text(card(recipe, metrics), encoding="utf-8")
    manifest = {"run_id": uuid.uuid4().hex, "finished": True, "versions": device.versions()} | fingerprints
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return Run(folder, metrics, reused=False)


def finished(folder: Path, fingerprints: dict[str, str]) -> bool:
    """Say whether `folder` holds a finished run with these fingerprints."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return manifest.get("finished") is True and all(manifest.get(key) == value for key, value in fingerprints.items())


def card(recipe: Recipe, metrics: dict[str, float]) -> str:
    """Return the model card: base, data, settings, what was measured."""
    settings = "\n".join(f"| `{key}` | {value} |" for key, value in recipe.model_dump(exclude_defaults=True).items())
    measured = "\n".join(f"| {key} | {value:.4g} |" for key, value in metrics.items())
    return (
        f"# {Path(recipe.output_dir).name}\n\n"
        f"{recipe.finetuning_type} fine-tune of `{recipe.model_name_or_path}` on `{recipe.dataset}`, made with ftlab.\n"
        "\n"
        f"| setting | value |\n|---|---|\n{settings}\n\n| measured | value |\n|---|---|\n{measured}\n"
    )


def fingerprint(values: dict[str, Any]) -> str:
    """Return a digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest(dataset: Dataset) -> str:
    """Return a digest of every encoded row, in order."""
    found = hashlib.sha256()
    for row in dataset:
        found.update(json.dumps([row["input_ids"], row["labels"]]).encode())
    return found.hexdigest()[:16]
