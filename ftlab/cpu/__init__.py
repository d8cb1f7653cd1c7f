"""What makes a step of training shorter on a CPU and computes the same; each is measured in benchmarks/README.md."""

from peft import PeftModel
from transformers import PreTrainedModel

from ftlab.cpu import attention, lora, prefix_sharing, rollout


def install(model: PreTrainedModel | PeftModel) -> bool:
    """Let a model that a CPU trains on short rows compute what it computes, sooner; say whether it is one that can.

    LoRA as one step of autograd, attention as plain products, what rows of a batch begin with read once, and
    completions for training written from one reading of their prompt. On an accelerator nothing is changed, and in
    families outside `attention.FAMILIES` only LoRA. Padded rows of several hundred tokens are better left alone.
    """
    if model.device.type != "cpu":
        return False
    lora.install(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not attention.use(base):
        return False
    prefix_sharing.install(base.base_model)
    rollout.install(base)
    return True
