"""What this machine is, and the training settings that follow from it."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from ftlab.errors import fail, say

DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes")
# Device files of accelerators' drivers on Linux: NVIDIA's, NVIDIA's under gVisor or WSL, AMD's, Ascend's.
DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/davinci_manager")
# The bfloat16 instructions by torch's names; Linux has another name for one of them.
BFLOAT16 = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
LINUX_NAMES = {"svebf16": "sve_bf16"}


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that matter for training.

    Attributes:
        accelerator: "cpu", or torch's name of the accelerator: "cuda", "mps", "xpu" (Intel), "npu" (Ascend).
        name: the accelerator's or the processor's own name.
        dtype: the one that is fast and safe for training: "bfloat16", "float16" or "float32".
        cores: processor cores this process may use.
        memory_bytes: memory available to a model: the accelerator's, on a CPU the machine's.
        reason: why that dtype.
    """

    accelerator: str
    name: str
    dtype: str
    cores: int
    memory_bytes: int
    reason: str

    @property
    def mixed_precision(self) -> bool:
        """Return True if Trainer's mixed precision, and float16 with its loss scaling, run on this accelerator."""
        return self.accelerator not in ("cpu", "mps")

    def __str__(self) -> str:
        own = {name: getattr(self, name) for name in ("accelerator", "name", "cores", "dtype", "reason")}
        return say("device_line", memory=f"{self.memory_bytes / 2**30:.1f}", **own)


def describe() -> Machine:
    """Return the machine this process runs on; `FTLAB_DTYPE` overrides its dtype.

    Raises:
        LabError: `FTLAB_DTYPE` is not in DTYPES.
    """
    here, override = detected(), os.environ.get("FTLAB_DTYPE", "")
    if override and override not in DTYPES:
        raise fail("device_dtype", where="FTLAB_DTYPE", value=override, dtypes=", ".join(DTYPES))
    return replace(here, dtype=override, reason="FTLAB_DTYPE") if override else here


def detected() -> Machine:
    """Return the machine as torch reports it; torch is imported only where there may be an accelerator."""
    if "torch" not in sys.modules and not may_have_accelerator():
        return processor(linux_capabilities())
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return processor(torch.cpu.get_capabilities())
    if kind.type == "mps":
        memory_bytes = psutil.virtual_memory().total
        return Machine("mps", platform.processor(), "float32", cores(), memory_bytes, say("device_apple"))
    module = torch.get_device_module(kind)
    properties = module.get_device_properties(0)
    dtype, reason = cuda_dtype(properties.major) if kind.type == "cuda" else other_dtype(module)
    return Machine(kind.type, properties.name, dtype, cores(), properties.total_memory, reason)


def may_have_accelerator() -> bool:
    """Return False if this machine has no driver that torch could use; True where only torch can tell."""
    if platform.system() != "Linux" or installed("torch").endswith("+xpu"):
        return True
    return any(Path(driver).exists() for driver in DRIVERS)


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
    """Return (dtype, reason) for a CUDA GPU; 7 is Volta and Turing (T4), 8 is Ampere.

    >>> cuda_dtype(7)[0], cuda_dtype(8)[0]
    ('float16', 'bfloat16')
    """
    if compute_capability_major >= 8:
        return "bfloat16", say("device_ampere")
    return "float16", say("device_before_ampere")


def other_dtype(module: Any) -> tuple[str, str]:
    """Return (dtype, reason) for an accelerator other than CUDA's and Apple's, by its module (torch.xpu, torch.npu)."""
    if module.is_bf16_supported():
        return "bfloat16", say("device_bfloat16")
    return "float16", say("device_no_bfloat16")


def cpu_dtype(capabilities: Mapping[str, bool | str]) -> tuple[str, str]:
    """Return (dtype, reason) for a CPU with these `torch.cpu.get_capabilities()`.

    >>> cpu_dtype({"avx512_bf16": True})[0], cpu_dtype({"avx2": True})[0]
    ('bfloat16', 'float32')
    """
    for instruction in BFLOAT16:
        if capabilities.get(instruction):
            return "bfloat16", say("device_cpu_bfloat16", instruction=instruction)
    return "float32", say("device_cpu_float32")


def training_arguments(machine: Machine) -> dict[str, bool]:
    """Return the `transformers.TrainingArguments` fields that depend on the machine.

    On a CPU nothing is autocast: the model is loaded and trained in `machine.dtype`, and activations are
    kept instead of recomputed, because a CPU rarely lacks memory (TRL's default recomputes them).
    """
    on_cpu = machine.accelerator == "cpu"
    return {
        "use_cpu": on_cpu,
        "bf16": machine.mixed_precision and machine.dtype == "bfloat16",
        "fp16": machine.mixed_precision and machine.dtype == "float16",
        "gradient_checkpointing": not on_cpu,
        "dataloader_pin_memory": machine.accelerator == "cuda",
    }


def versions() -> dict[str, str]:
    """Return name -> installed version of the libraries this course is about; "-" if one is missing."""
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
    """Return the processor's marketing name if the system provides it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
