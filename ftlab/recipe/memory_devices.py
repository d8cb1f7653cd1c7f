"""The memory per device of a recipe on several devices: data, sharded, tensor and pipeline parallel."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ftlab import memory
from ftlab.device import Machine
from ftlab.errors import say
from ftlab.memory import Decoder, Needs, Training
from ftlab.recipe import memory_needs
from ftlab.recipe.keys import Recipe

# Label -> ZeRO stage, and whether the shards are offloaded to the machine's memory.
ZERO = {"ZeRO-1": (1, False), "ZeRO-2": (2, False), "ZeRO-3": (3, False), "ZeRO-3, offload": (3, True)}
FSDP = {"FSDP2": (3, False), "FSDP2, offload": (3, True)}
# DeepSpeed's optimizer state per trained weight, whatever its format: a float32 copy and two moments.
ZERO_STATE_BYTES = 4 + 2 * 4
# Elements of its two gradient buckets in stages 1 and 2 (recipes/deepspeed, overlap_comm).
ZERO_BUCKETS = 2 * 500_000_000
# Bytes of a gradient in its optimizer step, which is in float32; in stage 3 of so many weights at a time
# (sub_group_size), and of so many others it leaves whole what is soon needed again (stage3_max_live_parameters).
ZERO_STEP_BYTES, ZERO_AT_ONCE, ZERO_LIVE = 4, 1_000_000_000, 1_000_000_000


def shares(recipe: Recipe, machine: Machine, devices: int) -> Iterator[tuple[str, Needs | None, float]]:
    """Yield (label, needs on a device, bytes of its process in the machine's memory) for every kind of parallelism.

    The batch is `per_device_train_batch_size` in each: data parallelism divides the data set. The needs are None
    if a model cannot be divided that way.
    """
    decoder = memory_needs.sizes(recipe.model_name_or_path, **recipe.source)
    training = memory_needs.training(recipe, decoder, machine)
    alone = memory.estimate(decoder, training)
    # DDP copies every gradient into its buckets.
    yield "DDP", replace(alone, peak=alone.peak + alone.gradients), 0
    for label, (stage, offload) in ZERO.items():
        needs, host = sharded(decoder, in_deepspeed(training), devices, stage, offload)
        most = max(needs.peak + beside_zero(decoder, needs.training), 0 if offload else zero_step_bytes(needs))
        yield label, replace(needs, peak=most), host + (ZERO_STEP_BYTES * training.trained / devices if offload else 0)
    for label, (stage, offload) in FSDP.items():
        needs, host = sharded(decoder, training, devices, stage, offload)
        yield label, replace(needs, peak=needs.peak + beside_fsdp(decoder, needs.training)), host
    for label, part in (("tensor parallel", narrow(decoder, devices)), ("pipeline", short(decoder, devices))):
        yield label, memory.estimate(part, memory_needs.training(recipe, part, machine)) if part else None, 0


def sharded(
    decoder: Decoder, training: Training, devices: int, stage: int, offload: bool = False
) -> tuple[Needs, float]:
    """Return the needs on a device under ZeRO, and the bytes in its machine's memory."""
    part = memory.estimate(decoder, replace(training, gpus=devices, shard=stage))
    if not offload:
        return part, 0
    host = part.weights + part.gradients + part.optimizer
    return memory.estimate(decoder, replace(training, gpus=devices, shard=stage, offload=True)), host


def beside_zero(decoder: Decoder, training: Training) -> int:
    """Return the bytes that DeepSpeed holds in addition: two gradient buckets; in stage 3 also gathered weights."""
    if training.shard < 3:
        return int(ZERO_BUCKETS * training.trained_bytes)
    live = min(ZERO_LIVE, decoder.parameters) * training.other_bytes
    return int(max(0, live - memory.gathered_bytes(decoder, training)))


def zero_step_bytes(needs: Needs) -> int:
    """Return the peak of DeepSpeed's optimizer step: a float32 copy of the gradients of a device's share of weights.

    Source: `step` in deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, 0.19.8.
    """
    training = needs.training
    part = training.trained / training.gpus
    copied = min(part, ZERO_AT_ONCE) if training.shard == 3 else part
    return int(needs.weights + needs.optimizer + part * training.trained_bytes + copied * ZERO_STEP_BYTES)


def beside_fsdp(decoder: Decoder, training: Training) -> int:
    """Return the bytes of weights that FSDP2 gathers in addition to an estimate's matrix or block.

    Embedding and output layer are of its outermost group, which is whole from the first block to the last; with them
    the block that is computed, and the next one, which is gathered meanwhile.
    """
    # Under autocast they are gathered in two bytes.
    gathered = replace(training, linear_bytes=2, other_bytes=2) if training.autocast else training
    whole = 2 * memory.block_weight_bytes(decoder, gathered) + decoder.embedding_parameters * gathered.other_bytes
    return int(whole - memory.gathered_bytes(decoder, training))


def in_deepspeed(training: Training) -> Training:
    """Return a training as DeepSpeed runs it: weights in 16 bits if computed in 16 bits, and its optimizer state."""
    if not training.autocast and training.other_bytes == 4:
        return replace(training, state_bytes=ZERO_STATE_BYTES)
    linear_bytes = min(training.linear_bytes, 2)
    sixteen: dict[str, Any] = {"linear_bytes": linear_bytes, "other_bytes": 2, "trained_bytes": 2, "autocast": False}
    return replace(training, state_bytes=ZERO_STATE_BYTES, **sixteen)


def narrow(decoder: Decoder, devices: int) -> Decoder | None:
    """Return a device's part of every block: some heads, and as many columns of the MLP; None where they don't divide.

    Embedding, norms and output layer are on every device, as in transformers' `tp_plan`; Megatron divides the first
    and the last, too.
    """
    widths = {name: getattr(decoder, name) for name in ("heads", "kv_heads", "intermediate")}
    if any(width % devices for width in widths.values()):
        return None
    return replace(decoder, **{name: width // devices for name, width in widths.items()})


def short(decoder: Decoder, devices: int) -> Decoder | None:
    """Return the last stage of a pipeline, which holds most: its blocks, the output layer and the logits.

    None with fewer blocks than devices. All micro-batches of a batch are held, as in GPipe.
    """
    if decoder.layers < devices:
        return None
    return replace(decoder, layers=-(-decoder.layers // devices), tied=True)


def report(recipe: Recipe, machine: Machine, devices: int) -> str:
    """Return a table of the memory per device, and whether more devices could help."""
    lines = [
        say("memory_devices", devices=devices),
        f"{'GiB':<16} " + say("memory_columns") + " " + say("memory_host_column") + "  " + say("memory_gpu_column"),
    ]
    indivisible = say("memory_indivisible", devices=devices)
    rows = list(shares(recipe, machine, devices))
    for label, needs, host in rows:
        lines.append(row(label, needs, host) if needs else f"{label:<16} {indivisible}")
    left = min(needs.peak for label, needs, _ in rows if needs and label.endswith("offload"))
    lines.append(say("memory_undivided", peak=memory_needs.gib(left)))
    if left + memory_needs.RESERVED_BYTES > memory_needs.GPUS[memory_needs.LARGE] * memory_needs.GIB:
        lines.append(say("memory_no_share", gpu=memory_needs.LARGE))
    return "\n".join(lines)


def row(label: str, needs: Needs, host: float) -> str:
    """Return one line of the table."""
    parts = (needs.weights, needs.optimizer, needs.gradients, needs.activations, needs.logits, needs.peak, host)
    widths = (7, 8, 9, 11, 8, 8, 8)
    cells = [f"{memory_needs.gib(part):>{width}}" for part, width in zip(parts, widths, strict=True)]
    return f"{label:<16} {' '.join(cells)}  {memory_needs.one_gpu(needs.peak) or '-'}"
