"""The defaults of keys that depend on the machine, and the reasons."""

from pathlib import Path

from ftlab.cpu.plan import SHORT_ROW
from ftlab.device import Machine
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes

# Key -> kind of machine -> reason. `python -m benchmarks levers` measures the gain of each.
REASONS = {
    "use_cpu": {"cpu": "there is no accelerator"},
    "bf16": {
        "cpu": "nothing is autocast: a frozen base is loaded in the format that this processor multiplies fastest",
        "cuda": "this GPU supports bfloat16; where it does not, fp16 is on instead",
    },
    "fp16": {"cuda": "for GPUs before Ampere, which emulate bfloat16; Trainer scales the loss"},
    library_args.CHECKPOINTING: {
        "cpu": "memory is not what is short, and computing activations twice makes a step longer",
        "cuda": "memory is what is short",
    },
    "dataloader_pin_memory": {"cuda": "pinned batches are copied to the GPU asynchronously"},
    "flash_attn": {
        "cpu": f"plain products for rows up to {SHORT_ROW} tokens, else torch's fused kernel, "
        "which is slower on short rows",
        "cuda": "torch's fused kernel; fa2 where flash-attn is installed",
    },
    "shortcuts": {
        "cpu": "a shorter step, with the same losses to 1e-5 in float32",
        "cuda": "they are for CPUs; here nothing is changed",
    },
}
# A key of a recipe -> its name in the installed transformers.
ALIASES = dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"), library_args.CHECKPOINTING)


def here(name: str, machine: Machine) -> str:
    """Return one line on a key's default on this machine, "" if it does not depend on the machine."""
    name = ALIASES.get(name, name)
    reason = REASONS.get(name, {}).get(machine.accelerator)
    if not reason:
        return ""
    settings, _ = library_args.training_settings(
        recipes.read({"model_name_or_path": "smollm2-135m"})[0], Path(), machine
    )
    return f"  on this machine: {settings[name]}; {reason}" if name in settings else f"  on this machine: {reason}"
