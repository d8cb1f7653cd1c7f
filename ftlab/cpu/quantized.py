"""Two fixes for quantized models: gradients that a CPU would lose, and adapters in a format that it cannot multiply.

Both are about correct results, not speed: recipes apply them with `shortcuts: false` too, and `use_fast_paths`, which
can be deleted without changing a result, does not include them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.cpu.patches import replace
from ftlab.device import Machine

if TYPE_CHECKING:
    from torch import nn


def keep_gradients(model: nn.Module) -> None:
    """Keep the weights of a 4-bit model in the form that passes gradients back.

    On a CPU with bfloat16 instructions bitsandbytes repacks each layer the first time it answers. The packed form has
    no backward pass: if a model is evaluated and then trained, every gradient below a layer is lost, and one of torch's
    warnings is the only sign. bitsandbytes has no setting for it, hence the flag of its layers.
    """
    for layer in model.modules():
        # PEFT has a class of the same name, which wraps a layer of this one.
        if type(layer).__name__ == "Linear4bit" and type(layer).__module__.startswith("bitsandbytes"):
            replace(layer, "support_avx512bf16_for_cpu", False)


def lift_adapters(model: nn.Module, machine: Machine) -> None:
    """Cast the adapters of a quantized model back to float32 on a machine without bfloat16 instructions.

    TRL's trainers cast them to bfloat16 on every machine, and have no setting for it. A processor without the
    instructions emulates each product, at a hundredth of the speed, and the loss scaling that float16 needs does not
    accept bfloat16 gradients.
    """
    if machine.dtype == "bfloat16":
        return
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
