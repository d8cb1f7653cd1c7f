"""Fast paths on a CPU: numerically equivalent to the libraries' own (tested to 1e-5 in float32), and faster.

`plan` decides what applies, `patches` lists every library name that is replaced and undoes it. What each path is worth
is measured in benchmarks/README.md.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ftlab import device
from ftlab.cpu.patches import own_process, undo
from ftlab.cpu.plan import Plan, answering, decide
from ftlab.cpu.quantized import keep_gradients, lift_adapters

__all__ = [
    "Plan", "answering", "decide", "fast_paths", "install", "keep_gradients", "lift_adapters", "undo", "use_fast_paths"
]  # fmt: skip


def use_fast_paths() -> None:
    """Use the fast paths on a CPU from here on, for the models of all trainers, until `undo`.

    On an accelerator this does nothing. That older objects are left out of garbage collection is not undone.

    Raises:
        LabError: a library lacks a name that is replaced.
    """
    plan = decide(device.describe())
    if not plan.loss:
        return
    # Imported here: it needs PEFT.
    from ftlab.cpu import trainers

    install(plan)
    trainers.install()
    # The half a million objects that the imports created are excluded from later garbage collections.
    gc.freeze()


@contextmanager
def fast_paths(plan: Plan) -> Iterator[None]:
    """Replace exactly what a plan says in the process, and restore the earlier replacements afterwards.

    Raises:
        LabError: a library lacks a name that is replaced.
    """
    with own_process():
        install(plan)
        yield


def install(plan: Plan) -> None:
    """Replace what a plan says in the whole process; the rest of it is up to each model (`models.prepare`)."""
    if plan.loss:
        # Imported here: reading a recipe needs its plan, but neither torch nor TRL.
        from ftlab.cpu import output_layer

        output_layer.install(plan.loss_tile)
    if plan.linear:
        from ftlab.cpu import linear

        linear.install()
