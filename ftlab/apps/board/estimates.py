"""What a recipe will need, estimated before it starts: trained weights, tokens per step, minutes, memory."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ftlab import device, embedded, manifests, memory, models
from ftlab.apps.quick_imports import quick_imports
from ftlab.catalogue import MODELS, hub_id
from ftlab.data import registry
from ftlab.data.convert import converted
from ftlab.data.dataset_info import INFO, read_info
from ftlab.data.encoding import Encoding, shown
from ftlab.errors import LabError
from ftlab.memory import Decoder
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import Recipe
from ftlab.recipe.library_args import encoding_of
from ftlab.recipe.trained_weights import trained_weights
from ftlab.runs import folder as folders

# Rows whose lengths stand for all of them.
SAMPLE = 200
# Rows read of a set to know how many steps an epoch has.
MOST_ROWS = 50_000
# What has to be equal for one run's speed to predict another's.
ALIKE = ("model_name_or_path", "finetuning_type", "quantization_bit", "use_dora", "packing", "shortcuts")


class Pace(NamedTuple):
    """How fast a finished run was: its folder's name, and its tokens per second."""

    run: str
    tokens_per_second: float


class Readouts(NamedTuple):
    """Counts of weights, tokens and steps; seconds; bytes. None while the model or the rows are not on this machine.

    `weights` are all that the trained model has, those that LoRA adds included, as PEFT counts them. `seconds` are at
    the speed of an earlier run, None without one.
    """

    trained: int | None
    weights: int | None
    tokens_per_step: float | None
    steps: int | None
    seconds: float | None
    pace: Pace | None
    needed_bytes: int | None
    memory_bytes: int


def readouts(recipe: Recipe) -> Readouts:
    """Estimate what a recipe needs on this machine; fast once the rows' lengths are known.

    Any thread may be the first, which imports what counts tokens.
    """
    with quick_imports():
        return estimate(recipe)


def estimate(recipe: Recipe) -> Readouts:
    """Estimate what a recipe needs on this machine."""
    place = folder_of(recipe)
    decoder = decoder_of(recipe, place)
    trained = trained_weights(recipe, decoder) if decoder else None
    lengths = lengths_of(recipe, place) if place else []
    tokens = tokens_per_step(recipe, lengths) if lengths else None
    steps = total_steps(recipe, lengths)
    known = pace(recipe) if tokens and steps else None
    added = trained if trained and recipe.finetuning_type == "lora" else 0
    return Readouts(
        trained,
        decoder.parameters + added if decoder else None,
        tokens,
        steps,
        tokens * steps / known.tokens_per_second if known and tokens and steps else None,
        known,
        memory_bytes(recipe, decoder, lengths) if decoder else None,
        machine_bytes(),
    )


def decoder_of(recipe: Recipe, place: str | None) -> Decoder | None:
    """Return the sizes of a recipe's model, None for one that is neither on this machine nor in the catalogue."""
    listed = any(recipe.model_name_or_path in (model.name, model.hub_id) for model in MODELS)
    known = recipe.model_name_or_path if listed else place
    try:
        return memory_needs.sizes(known) if known else None
    except LabError:
        return None


def memory_bytes(recipe: Recipe, decoder: Decoder, lengths: list[tuple[int, ...]]) -> int:
    """Return the bytes that a recipe needs at its longest rows."""
    longest = max((one for row in lengths for one in row), default=None)
    return memory.estimate(decoder, memory_needs.training(recipe, decoder, device.describe(), longest)).peak


def pace(recipe: Recipe) -> Pace | None:
    """Return the speed of the newest finished run like this one on this machine, among those in the same folder."""
    root = Path(recipe.output_dir or "runs/new").expanduser().parent
    for path, changed in folders.newest_first(root.glob(f"*/{folders.METRICS}")).items():
        alike, rate = measured(path.parent, changed)
        if rate and alike == kind(recipe):
            return Pace(path.parent.name, rate)
    return None


@cache
def measured(folder: Path, changed: float) -> tuple[tuple, float | None]:
    """Return the kind of a finished run and its tokens per second; None if it ran elsewhere or took no step."""
    try:
        recipe, _ = recipes.read(folder / folders.RECIPE)
        metrics = folders.read_metrics(folder) or {}
        steps = folders.last_step(folders.read_log(folder)) - metrics.get("resumed_from_step", 0)
        seconds = float(metrics["train_seconds"])
    except (LabError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return (), None
    place = folder_of(recipe)
    lengths = lengths_of(recipe, place) if place else []
    here = (manifests.read_manifest(folder) or {}).get("machine") == device.describe().name
    return kind(recipe), tokens_per_step(recipe, lengths) * steps / seconds if here and lengths and steps > 0 else None


def kind(recipe: Recipe) -> tuple:
    """Return what has to be equal for one run's speed to predict another's."""
    return (recipe.objective, recipe.training.get("gradient_checkpointing"), *(getattr(recipe, name) for name in ALIKE))


@cache
def machine_bytes() -> int:
    """Return the memory for a model on this machine, in bytes."""
    return device.describe().memory_bytes


def folder_of(recipe: Recipe) -> str | None:
    """Return the folder of a recipe's model if it is on this machine; None otherwise, nothing is downloaded."""
    return local_folder(recipe.model_name_or_path, recipe.model_revision, recipe.cache_dir)


def local_folder(name: str, revision: str = "main", cache_dir: str | None = None) -> str | None:
    """Return the folder of a model if it is on this machine; None otherwise, nothing is downloaded."""
    if name in embedded.NAMES:
        kept = embedded.cache_dir() / name
        return str(kept) if (kept / "config.json").is_file() else None
    if Path(name).is_dir():
        return name
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(hub_id(name), "config.json", cache_dir=cache_dir, revision=revision)
    except HFValidationError:
        return None
    return str(Path(config).parent) if isinstance(config, str) else None


def lengths_of(recipe: Recipe, folder: str) -> list[tuple[int, ...]]:
    """Return the tokens of each training example: one number, of a pair two; [] where a set cannot be read."""
    lengths: list[tuple[int, ...]] = []
    for name in (part.strip() for part in (recipe.dataset or "").split(",")):
        path = Path(name) if Path(name).is_file() else Path(recipe.dataset_dir) / "dataset_info.json"
        changed = path.stat().st_mtime if path.is_file() else 0.0
        # Whole lengths: packing and cutting are applied to them later.
        how = encoding_of(recipe)._replace(cutoff_len=None)
        lengths += set_lengths(name, recipe.dataset_dir, folder, changed, recipe.max_samples, how)
    return lengths


@cache
def set_lengths(
    name: str, dataset_dir: str, folder: str, changed: float, max_samples: int | None, how: Encoding
) -> list[tuple[int, ...]]:
    """Return the tokens of each training example of one set: those of the first rows counted, the others by their mean.

    Nothing is fetched: a set on a hub has no rows yet. Only the first MOST_ROWS rows of a set count.
    """
    try:
        entry, path = registry.find(name, Path(dataset_dir))
        if path is None:
            return []
        source_rows = islice(converted(entry, path, None, None), min(MOST_ROWS, max_samples or MOST_ROWS))
        rows = [one.row for one in source_rows if not isinstance(one.row, LabError)]
        tokenizer = tokenizer_of(folder)
        counted = [lengths for row in rows[:SAMPLE] for lengths in sequences(tokenizer, row, how)]
    except (LabError, OSError, ValueError):
        return []
    if not counted:
        return []
    mean = tuple(round(sum(column) / len(counted)) for column in zip(*counted, strict=True))
    left = round(max(0, len(rows) - SAMPLE) * len(counted) / min(len(rows), SAMPLE))
    return counted + [mean] * left


@cache
def tokenizer_of(folder: str) -> Any:
    """Return the tokenizer of a model folder."""
    return models.load_tokenizer(folder)


def sequences(tokenizer: Any, row: dict[str, Any], how: Encoding) -> list[tuple[int, ...]]:
    """Return the tokens of every training example that a row becomes, of a pair those of both sides together."""
    lengths = [len(example["input_ids"]) for example in shown(tokenizer, row, how)]
    return [tuple(lengths)] if "chosen" in row else [(length,) for length in lengths]


def tokens_per_step(recipe: Recipe, lengths: list[tuple[int, ...]]) -> float:
    """Return the tokens of one optimizer step: packed rows are full, others as long as they are."""
    rows = passes(recipe)
    if recipe.packs:
        return float(rows * recipe.cutoff_len)
    return rows * sum(min(one, recipe.cutoff_len) for row in lengths for one in row) / len(lengths)


def passes(recipe: Recipe) -> int:
    """Return the rows of one optimizer step on one device."""
    batch = recipe.training.get("per_device_train_batch_size", 8)
    return batch * recipe.training.get("gradient_accumulation_steps", 1)


def total_steps(recipe: Recipe, lengths: list[tuple[int, ...]]) -> int | None:
    """Return the optimizer steps of a run: `max_steps`, else its epochs over the rows that are trained on."""
    if (max_steps := recipe.training.get("max_steps", -1)) > 0:
        return max_steps
    if not lengths:
        return None
    rows = float(len(lengths))
    if recipe.packs:
        # Texts of stage pt are joined and wrapped; everything else that is too long is cut.
        longest = math.inf if recipe.stage == "pt" else recipe.cutoff_len
        rows = sum(min(one, longest) for row in lengths for one in row) / recipe.cutoff_len
    rows -= rows * recipe.val_size if recipe.val_size < 1 else recipe.val_size
    batch = recipe.training.get("per_device_train_batch_size", 8)
    batches = -(-max(rows, 1) // batch)
    per_epoch = -(-batches // recipe.training.get("gradient_accumulation_steps", 1))
    return max(1, round(per_epoch * recipe.training.get("num_train_epochs", 3.0)))


def registered(dataset_dir: Path) -> Sequence[str]:
    """Return the names of a folder's dataset_info.json, () where there is none that can be read."""
    try:
        return tuple(read_info(dataset_dir)) if (dataset_dir / INFO).is_file() else ()
    except LabError:
        return ()
