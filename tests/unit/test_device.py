"""What follows from a machine."""

import pytest

from ftlab import device, memory
from ftlab.device import Machine


def machine(accelerator: str, dtype: str) -> Machine:
    return Machine(accelerator, "test", dtype, cores=2, memory_bytes=2**34, reason="test")


def test_a_cpu_keeps_activations_and_casts_nothing():
    settings = device.training_arguments(machine("cpu", "bfloat16"))
    assert settings["use_cpu"] and not settings["gradient_checkpointing"]
    assert not settings["bf16"] and not settings["fp16"]


@pytest.mark.parametrize(("dtype", "bf16", "fp16"), [("float16", False, True), ("bfloat16", True, False)])
def test_a_gpu_trains_in_its_own_format(dtype, bf16, fp16):
    settings = device.training_arguments(machine("cuda", dtype))
    assert (settings["bf16"], settings["fp16"], settings["use_cpu"]) == (bf16, fp16, False)


def test_this_machine_can_be_described():
    here = device.describe()
    assert here.cores >= 1 and here.memory_bytes > 2**28 and here.dtype in str(here)
    assert device.versions()["torch"].startswith("2.") and device.installed("no-such-package") == "-"


def test_rough_needs_order_the_methods():
    needs = memory.rough_needs_bytes(7_000_000_000)
    assert needs["qlora"] < needs["run"] < needs["lora"] < needs["full"]
    assert needs["run"] == 14_000_000_000
