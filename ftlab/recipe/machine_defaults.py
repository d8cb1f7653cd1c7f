"""The defaults of keys that depend on the machine, and the reasons."""

from pathlib import Path

from ftlab.cpu.plan import SHORT_ROW
from ftlab.device import Machine
from ftlab.errors import say
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes

# Key -> kind of machine -> the message of the reason. `python -m benchmarks levers` measures the gain of each.
REASONS = {
    "use_cpu": {"cpu": "machine_use_cpu"},
    "bf16": {"cpu": "machine_bf16_cpu", "cuda": "machine_bf16_cuda"},
    "fp16": {"cuda": "machine_fp16_cuda"},
    library_args.CHECKPOINTING: {"cpu": "machine_checkpointing_cpu", "cuda": "machine_checkpointing_cuda"},
    "dataloader_pin_memory": {"cuda": "machine_pin_memory_cuda"},
    "flash_attn": {"cpu": "machine_flash_attn_cpu", "cuda": "machine_flash_attn_cuda"},
    "shortcuts": {"cpu": "machine_shortcuts_cpu", "cuda": "machine_shortcuts_cuda"},
}
# A key of a recipe -> its name in the installed transformers.
ALIASES = dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"), library_args.CHECKPOINTING)


def here(name: str, machine: Machine) -> str:
    """Return one line on a key's default on this machine, "" if it does not depend on the machine."""
    name = ALIASES.get(name, name)
    message = REASONS.get(name, {}).get(machine.accelerator)
    if not message:
        return ""
    settings, _ = library_args.training_settings(
        recipes.read({"model_name_or_path": "smollm2-135m"})[0], Path(), machine
    )
    value = f"{settings[name]}; " if name in settings else ""
    return "  " + say("machine_here", reason=value + say(message, tokens=SHORT_ROW))
