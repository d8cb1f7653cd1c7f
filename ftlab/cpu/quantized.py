"""Two repairs of quantized models: gradients that a CPU would lose, and adapters in a format that it cannot multiply.

Both are about right results, not speed: recipes apply them with `shortcuts: false` too, and `use_fast_paths`, which can
be deleted without changing a result, leaves them alone.
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
    no backward pass: if a model is evaluated and then trained, every gradient below a layer is lost, and one warning
    of torch's is all that tells. bitsandbytes has no setting for it, hence the flag of its layers.
    """
    for layer in model.modules():
        # PEFT has a class of the same name, which holds a layer of this one.
        if type(layer).__name__ == "Linear4bit" and type(layer).__module__.startswith("bitsandbytes"):
            replace(layer, "support_avx512bf16_for_cpu", False)


def lift_adapters(model: nn.Module, machine: Machine) -> None:
    """Put the adapters of a quantized model back into float32 on a machine that does not multiply bfloat16.

    TRL's trainers turn them into bfloat16 on every machine, and have no setting for it. A processor without the
    instructions emulates each product with them, at a hundredth of the speed, and the loss scaling that float16 needs
    takes no bfloat16 gradients.
    """
    if machine.dtype == "bfloat16":
        return
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
