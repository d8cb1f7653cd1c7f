"""Prepare every trainer's model when its training begins, so that a lesson needs only one line."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from ftlab import device
from ftlab.cpu import attention, models
from ftlab.cpu.patches import current, replace
from ftlab.cpu.plan import Plan, decide


def install() -> None:
    """Make `Trainer.train`, which every trainer of TRL inherits, prepare its model first."""
    replace(Trainer, "train", preparing(current(Trainer, "train")))


def preparing(train: Callable[..., Any]) -> Callable[..., Any]:
    """Return `train` with the preparation before it."""

    @wraps(train)
    def prepared(trainer: Trainer, *args: Any, **options: Any) -> Any:
        models.prepare(trainer.model, plan_for(trainer.model, device.describe()))
        return train(trainer, *args, **options)

    return prepared


def plan_for(model: PreTrainedModel | PeftModel, machine: device.Machine) -> Plan:
    """Return the plan for a loaded model: plain attention means that it was loaded for short rows."""
    base = models.base_of(model)
    kernel = base.config._attn_implementation
    asked = None if kernel in ("eager", attention.NAME) else kernel
    return decide(machine, family=base.config.model_type, kernel=asked, writes=base.can_generate())
