"""The fast paths of one model, applied to its objects as its plan says."""

from peft import PeftModel
from transformers import PreTrainedModel

from ftlab.cpu import attention, lora, prefix_sharing, rollout
from ftlab.cpu.plan import Plan


def prepare(model: PreTrainedModel | PeftModel, plan: Plan) -> None:
    """Apply the fast paths of a plan to a model; a second call changes nothing.

    Raises:
        LabError: a library lacks a name that is replaced.
    """
    base = base_of(model)
    if plan.lora:
        lora.install(model)
    if plan.attention:
        attention.use(base)
        prefix_sharing.install(base.base_model)
    if plan.rollout:
        rollout.install(base)


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model below an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
