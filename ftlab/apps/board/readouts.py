"""What a recipe will take, worked out before it is started: trained weights, tokens per step, minutes, memory."""

import time
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftlab import device, embedded, memory
from ftlab.catalogue import MODELS, hub_id
from ftlab.data import registry
from ftlab.data.convert import converted
from ftlab.data.lengths import token_lengths
from ftlab.errors import LabError
from ftlab.runs import fields, needs
from ftlab.runs.keys import Recipe

# Rows whose lengths stand for all of them.
SAMPLE = 200
# Rows read of a set to know how many steps an epoch has.
MOST_ROWS = 50_000
# Share of a machine's matrix rate that a training step reaches, and its floating-point operations per token and weight:
# two forward, two back through the activations, two more for the weights that are trained (`benchmarks train`).
REACHED = 0.4
OPERATIONS = {"lora": 4, "freeze": 4, "full": 6}


class Readouts(NamedTuple):
    """Counts of weights, tokens and steps; seconds; bytes. None where the model or the rows are not here yet.

    `weights` are all that the trained model has, those that LoRA adds included, as PEFT counts them.
    """

    trained: int | None
    weights: int | None
    tokens_per_step: float | None
    steps: int | None
    seconds: float | None
    needed_bytes: int | None
    memory_bytes: int


class Shape(NamedTuple):
    """A model without its weights: their number, and (in, out, module name) of every linear layer but the head."""

    weights: int
    linear: list[tuple[int, int, str]]
    layers: list[list[tuple[str, int]]]
    others: list[tuple[str, int]]
    hidden: int


def readouts(made: Recipe) -> Readouts:
    """Work out what a recipe takes on this machine; fast once the model's shape and the rows' lengths are known."""
    place = local_folder(made.model_name_or_path)
    shape = shape_of(place) if place else None
    weights = shape.weights if shape else catalogued(made.model_name_or_path)
    trained = trained_weights(made, shape) if shape else None
    lengths = lengths_of(made, place) if place else []
    tokens = tokens_per_step(made, lengths) if lengths else None
    steps = total_steps(made, lengths)
    seconds = None
    if weights and tokens and steps:
        operations = OPERATIONS[made.finetuning_type] * weights * tokens * steps
        seconds = operations / (REACHED * operations_per_second(device.describe().dtype))
    added = trained if trained and made.finetuning_type == "lora" else 0
    return Readouts(
        trained,
        weights + added if weights else None,
        tokens,
        steps,
        seconds,
        memory_bytes(made, place, lengths),
        machine_bytes(),
    )


def memory_bytes(made: Recipe, place: str | None, lengths: list[tuple[int, ...]]) -> int | None:
    """Return the bytes that a recipe needs at its longest rows; None for a model that is neither here nor known."""
    known = made.model_name_or_path if catalogued(made.model_name_or_path) else place
    if known is None:
        return None
    try:
        decoder = needs.sizes(known)
    except LabError:
        return None
    longest = max((one for row in lengths for one in row), default=None)
    return memory.estimate(decoder, needs.training(made, decoder, device.describe(), longest)).peak


@cache
def machine_bytes() -> int:
    """Return the memory that a model can live in here."""
    return device.describe().memory_bytes


def catalogued(name: str) -> int | None:
    """Return the number of weights that the catalogue has for a model."""
    return next((model.parameters for model in MODELS if name in (model.name, model.hub_id)), None)


def local_folder(name: str) -> str | None:
    """Return the folder of a model that is already here; None rather than fetching one."""
    if name == embedded.NAME:
        kept = embedded.cache_dir() / embedded.NAME
        return str(kept) if (kept / "config.json").is_file() else None
    if Path(name).is_dir():
        return name
    from huggingface_hub import try_to_load_from_cache

    known = hub_id(name)
    found = try_to_load_from_cache(known, "config.json") if known.count("/") == 1 else None
    return str(Path(found).parent) if isinstance(found, str) else None


@cache
def shape_of(folder: str) -> Shape | None:
    """Return a model's shape from its config.json alone; None where transformers cannot build it."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, ImportError, KeyError):
        return None
    head = model.get_output_embeddings()
    linear = [
        (module.in_features, module.out_features, name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    stack = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    layers = [[(name, weight.numel()) for name, weight in layer.named_parameters()] for layer in stack]
    inside = {id(weight) for layer in stack for weight in layer.parameters()}
    others = [(name, weight.numel()) for name, weight in model.named_parameters() if id(weight) not in inside]
    weights = sum(weight.numel() for weight in model.parameters())
    return Shape(weights, linear, layers, others, model.config.get_text_config().hidden_size)


def trained_weights(made: Recipe, shape: Shape) -> int:
    """Return how many weights a recipe trains.

    LoRA adds A (r, in) and B (out, r) to each linear layer of shape (out, in), and DoRA one magnitude per output; a
    reward model's head has one weight per hidden unit and is always trained.
    """
    head = shape.hidden if made.stage == "rm" else 0
    if made.finetuning_type == "full":
        return shape.weights + head
    if made.finetuning_type == "freeze":
        return frozen_rest(made, shape) + head
    wanted = None if made.lora_target == "all" else fields.names(made.lora_target)
    chosen = [one for one in shape.linear if wanted is None or one[2].split(".")[-1] in wanted]
    added = sum(made.lora_rank * (inputs + outputs) + made.use_dora * outputs for inputs, outputs, _ in chosen)
    whole = fields.names(made.additional_target) if made.additional_target else []
    return added + head + sum(count for name, count in shape.others if any(part in name.split(".") for part in whole))


def frozen_rest(made: Recipe, shape: Shape) -> int:
    """Return the weights of the layers that `finetuning_type: freeze` leaves trainable."""
    count = made.freeze_trainable_layers
    layers = shape.layers[-count:] if count > 0 else shape.layers[:-count]
    parts = None if made.freeze_trainable_modules == "all" else fields.names(made.freeze_trainable_modules)
    named = [one for layer in layers for one in layer if parts is None or any(p in one[0].split(".") for p in parts)]
    extra = fields.names(made.freeze_extra_modules) if made.freeze_extra_modules else []
    named += [one for one in shape.others if any(part in one[0].split(".") for part in extra)]
    return sum(count for _, count in named)


def lengths_of(made: Recipe, folder: str) -> list[tuple[int, ...]]:
    """Return the tokens of each row, one number per sequence that a step sees; [] where a set cannot be read."""
    found: list[tuple[int, ...]] = []
    for name in (part.strip() for part in (made.dataset or "").split(",")):
        path = Path(name) if Path(name).is_file() else Path(made.dataset_dir) / "dataset_info.json"
        changed = path.stat().st_mtime if path.is_file() else 0.0
        rows = set_lengths(name, made.dataset_dir, folder, changed)
        found += rows[: made.max_samples]
    return found


@cache
def set_lengths(name: str, dataset_dir: str, folder: str, changed: float) -> list[tuple[int, ...]]:
    """Return the tokens of each row of one set: the first rows counted, the others given their mean.

    Nothing is fetched: a set on a hub has no rows yet. Of a set above MOST_ROWS only so many count.
    """
    try:
        entry, path = registry.find(name, Path(dataset_dir))
        if path is None:
            return []
        made = islice(converted(entry, path, None, None), MOST_ROWS)
        rows = [one.row for one in made if not isinstance(one.row, LabError)]
        tokenizer = tokenizer_of(folder)
        counted = [sequences(tokenizer, row) for row in rows[:SAMPLE]]
    except (LabError, OSError, ValueError):
        return []
    if not counted:
        return []
    mean = tuple(round(sum(column) / len(counted)) for column in zip(*counted, strict=False))
    return counted + [mean] * (len(rows) - len(counted))


@cache
def tokenizer_of(folder: str) -> Any:
    """Return the tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(folder)


def sequences(tokenizer: Any, row: dict[str, Any]) -> tuple[int, ...]:
    """Return the tokens of every sequence that a row becomes: one, or two for a pair."""
    if "chosen" in row:
        sides = [{"messages": [*row["prompt"], *row[side]]} for side in ("chosen", "rejected")]
        return tuple(sum(token_lengths(tokenizer, side)) for side in sides)
    return (sum(token_lengths(tokenizer, row)),)


def tokens_per_step(made: Recipe, lengths: list[tuple[int, ...]]) -> float:
    """Return the tokens of one optimizer step: packed rows are full, others as long as they are."""
    rows = passes(made)
    if made.packing or made.stage == "pt":
        return float(rows * made.cutoff_len)
    return rows * sum(min(one, made.cutoff_len) for row in lengths for one in row) / len(lengths)


def passes(made: Recipe) -> int:
    """Return the rows of one optimizer step on one device."""
    batch = made.training.get("per_device_train_batch_size", 8)
    return batch * made.training.get("gradient_accumulation_steps", 1)


def total_steps(made: Recipe, lengths: list[tuple[int, ...]]) -> int | None:
    """Return the optimizer steps of a run: `max_steps`, else its epochs over the rows that are trained on."""
    if (given := made.training.get("max_steps", -1)) > 0:
        return given
    if not lengths:
        return None
    rows = float(len(lengths))
    if made.packing or made.stage == "pt":
        rows = sum(min(one, made.cutoff_len) for row in lengths for one in row) / made.cutoff_len
    rows -= rows * made.val_size if made.val_size < 1 else made.val_size
    batch = made.training.get("per_device_train_batch_size", 8)
    batches = -(-max(rows, 1) // batch)
    per_epoch = -(-batches // made.training.get("gradient_accumulation_steps", 1))
    return max(1, round(per_epoch * made.training.get("num_train_epochs", 3.0)))


@cache
def operations_per_second(dtype: str) -> float:
    """Measure this machine's matrix rate in a number format: the best of a few products, floating-point operations."""
    on = device.describe().accelerator
    size = 512 if on == "cpu" else 4096
    matrix = torch.randn(size, size, device=on).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
