"""What this machine is, and the training settings that follow from it."""

from __future__ import annotations

import os
import platform
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ftlab.errors import fail

if TYPE_CHECKING:
    import torch

# Vocabulary entries that trl's loss goes through at once: what stays in a CPU's cache, and trl's own number.
CPU_LOSS_TILE, LOSS_TILE = 2048, 32768
DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes")
# What the drivers of accelerators put into a Linux system: NVIDIA's, NVIDIA's under gVisor or WSL, AMD's.
DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
# The instructions that multiply bfloat16, by torch's names; Linux calls one of them otherwise.
BFLOAT16 = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
LINUX_NAMES = {"svebf16": "sve_bf16"}


@dataclass(frozen=True)
class Machine:
    """One machine, as far as training cares.

    Attributes:
        accelerator: "cuda", "mps" or "cpu".
        name: the accelerator's or the processor's own name.
        dtype: the number format that is fast and safe to train in: "bfloat16", "float16" or "float32".
        cores: processor cores this process may use.
        memory_bytes: memory a model can live in: the accelerator's, on a CPU the machine's.
        reason: why that dtype.
    """

    accelerator: str
    name: str
    dtype: str
    cores: int
    memory_bytes: int
    reason: str

    def __str__(self) -> str:
        gib = self.memory_bytes / 2**30
        return (
            f"{self.accelerator}: {self.name}, {self.cores} cores, {gib:.1f} GiB\ntrain in {self.dtype}: {self.reason}"
        )


def describe() -> Machine:
    """Return the machine this process runs on; `FTLAB_DTYPE` overrides the number format that it would choose.

    Raises:
        LabError: `FTLAB_DTYPE` is not in DTYPES.
    """
    here, asked = detected(), os.environ.get("FTLAB_DTYPE", "")
    if asked and asked not in DTYPES:
        raise fail("device_dtype", where="FTLAB_DTYPE", value=asked, dtypes=", ".join(DTYPES))
    return replace(here, dtype=asked, reason="FTLAB_DTYPE") if asked else here


def detected() -> Machine:
    """Return the machine as torch reports it; torch is imported only where there may be an accelerator."""
    if "torch" not in sys.modules and not may_have_accelerator():
        return processor(linux_capabilities())
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        dtype, reason = cuda_dtype(properties.major)
        return Machine("cuda", properties.name, dtype, cores(), properties.total_memory, reason)
    if torch.backends.mps.is_available():
        memory_bytes = psutil.virtual_memory().total
        return Machine("mps", platform.processor(), "float32", cores(), memory_bytes, "the safe choice on Apple GPUs")
    return processor(torch.cpu.get_capabilities())


def may_have_accelerator() -> bool:
    """Return False if this machine has no driver that torch could use; True where only torch can tell."""
    return platform.system() != "Linux" or any(Path(driver).exists() for driver in DRIVERS)


def linux_capabilities() -> dict[str, bool | str]:
    """Return the bfloat16 entries of `torch.cpu.get_capabilities()`, read from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    # x86 has "flags", Arm "Features"; every core repeats the line.
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return {LINUX_NAMES.get(flag, flag): True for flag in flags if LINUX_NAMES.get(flag, flag) in BFLOAT16}


def processor(capabilities: Mapping[str, bool | str]) -> Machine:
    """Return a machine without an accelerator, whose processor has these `torch.cpu.get_capabilities()`."""
    dtype, reason = cpu_dtype(capabilities)
    return Machine("cpu", processor_name(), dtype, cores(), psutil.virtual_memory().total, reason)


def cuda_dtype(compute_capability_major: int) -> tuple[str, str]:
    """Return (dtype, reason) for a CUDA card; 7 is Volta and Turing (T4), 8 is Ampere.

    >>> cuda_dtype(7)[0], cuda_dtype(8)[0]
    ('float16', 'bfloat16')
    """
    if compute_capability_major >= 8:
        return "bfloat16", "Ampere or newer multiplies bfloat16 natively"
    return "float16", "before Ampere bfloat16 is emulated; float16 needs loss scaling, which Trainer does"


def cpu_dtype(capabilities: Mapping[str, bool | str]) -> tuple[str, str]:
    """Return (dtype, reason) for a CPU with these `torch.cpu.get_capabilities()`.

    >>> cpu_dtype({"avx512_bf16": True})[0], cpu_dtype({"avx2": True})[0]
    ('bfloat16', 'float32')
    """
    for instruction in BFLOAT16:
        if capabilities.get(instruction):
            return "bfloat16", f"this processor multiplies bfloat16 natively ({instruction})"
    return "float32", "this processor has no bfloat16 instructions"


def training_arguments(machine: Machine) -> dict[str, bool]:
    """Return the `transformers.TrainingArguments` fields that this machine decides.

    On a CPU nothing is autocast: the model is loaded in `machine.dtype` and trained as it is, and activations are
    kept instead of recomputed, because memory is not what a CPU lacks (trl's own default recomputes them).
    """
    on_cpu = machine.accelerator == "cpu"
    return {
        "use_cpu": on_cpu,
        "bf16": machine.accelerator == "cuda" and machine.dtype == "bfloat16",
        "fp16": machine.accelerator == "cuda" and machine.dtype == "float16",
        "gradient_checkpointing": not on_cpu,
        "dataloader_pin_memory": machine.accelerator == "cuda",
    }


def fit_output_layer(machine: Machine, shortcuts: bool = True) -> int:
    """Make trl and torch compute the output layer as suits this machine; return how many entries a tile of it covers.

    trl's trainers never hold the logits of a whole batch; they go through the vocabulary in tiles of 32,768 entries,
    and without Triton they score every position, also those that have no label. Both suit accelerators. On a CPU tiles
    of 2,048 stay in its cache, only the labelled positions are scored, and where the output layer is not trained its
    products are taken once (`cpu/output_layer.py`): the same numbers, a third of the step saved (`python -m
    benchmarks levers`). trl has no settings for them, hence the private names. Without `shortcuts` it is as trl has it.
    """
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    fold_rows(machine)
    own = machine.accelerator == "cpu" and shortcuts
    utils._CHUNKED_LOGPROB_CHUNK_SIZE = CPU_LOSS_TILE if own else LOSS_TILE
    # What this name decides in that module is whether positions without a label are left out.
    utils._use_triton = (lambda device: True) if own else chunked_logprob._use_triton
    utils._ChunkedLogProbFunction = log_prob_function() if own else chunked_logprob.ChunkedLogProbFunction
    return utils._CHUNKED_LOGPROB_CHUNK_SIZE


def log_prob_function() -> types.SimpleNamespace:
    """Return what stands in for trl's autograd function: something with an `apply`."""
    # Imported here: it needs trl, and describing a machine does not.
    from ftlab.cpu import output_layer

    return types.SimpleNamespace(apply=output_layer.log_probs)


def fold_rows(machine: Machine) -> None:
    """Make torch multiply the rows of a batch as one matrix on a CPU.

    Asked for the last position of many rows, as `generate` does with every batch of prompts, torch copies the output
    layer's whole weight once per row (pytorch/pytorch issue 151934): 5.6 GB for a hundred prompts and a vocabulary of
    50,000. Positions that lie side by side in memory avoid it.
    """
    import torch

    if machine.accelerator == "cpu":
        torch.nn.Linear.forward = multiply_side_by_side


def multiply_side_by_side(layer: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Return what `Linear.forward` returns, for inputs (..., in_features) copied side by side where they are not."""
    import torch

    return torch.nn.functional.linear(inputs.contiguous(), layer.weight, layer.bias)


def keep_gradients(model: torch.nn.Module) -> None:
    """Keep a 4-bit model's weights in the form that passes gradients back.

    On a CPU with bfloat16 instructions bitsandbytes repacks each layer the first time it answers. The packed form
    multiplies without a backward pass: whoever evaluates and then trains loses every gradient below a layer, and is
    told so in one warning of torch's. bitsandbytes has no setting for it, hence the attribute of its layers.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def lift_adapters(model: torch.nn.Module, machine: Machine) -> None:
    """Put the adapters of a quantized model back into float32 on a machine that does not multiply bfloat16.

    trl's trainers turn them into bfloat16 on every machine, and have no setting for it. A processor without the
    instructions emulates each product with them, at a hundredth of the speed, and the loss scaling that float16 needs
    takes no bfloat16 gradients.
    """
    if machine.dtype == "bfloat16":
        return
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def versions() -> dict[str, str]:
    """Return name -> installed version of the libraries this course is about; "-" where one is missing."""
    return {name: installed(name) for name in PACKAGES}


def installed(package: str) -> str:
    """Return the installed version of `package`, or "-"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def cores() -> int:
    """Return how many processor cores this process may use."""
    # os.process_cpu_count arrives with Python 3.13; affinity does not exist on macOS and Windows.
    return len(psutil.Process().cpu_affinity()) if platform.system() == "Linux" else os.cpu_count() or 1


def processor_name() -> str:
    """Return the processor's marketing name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
