"""Which fast paths apply, decided here only: from the machine, the model's family and the settings."""

from dataclasses import dataclass

from ftlab.device import Machine
from ftlab.memory import PLAIN_ATTENTION

# Rows of up to this many tokens are faster in plain attention on a CPU.
SHORT_ROW = 512
# Vocabulary entries that TRL's loss processes at once: as many as fit a CPU's cache, and TRL's own number.
CPU_LOSS_TILE, LOSS_TILE = 2048, 32768


@dataclass(frozen=True)
class Plan:
    """What is computed by ftlab's functions instead of the libraries' own.

    Attributes:
        loss: the output layer, in tiles that fit a CPU's cache and for labelled positions only.
        linear: the last position of many rows, without a copy of the weight per row.
        lora: adapters, as one step of autograd.
        attention: plain products for short rows; shared prefixes of a batch are computed once.
        rollout: completions for training; their prompt is computed once per group.
        kernel: the attention to load a model with, a setting of transformers; None leaves it to transformers.
        float32_adapters: whether adapters are kept in float32 with a 16-bit base, as in PEFT.
    """

    loss: bool = False
    linear: bool = False
    lora: bool = False
    attention: bool = False
    rollout: bool = False
    kernel: str | None = None
    float32_adapters: bool = True

    @property
    def loss_tile(self) -> int:
        """Return how many vocabulary entries the loss processes at once."""
        return CPU_LOSS_TILE if self.loss else LOSS_TILE


def decide(
    machine: Machine,
    *,
    wanted: bool = True,
    family: str | None = None,
    kernel: str | None = None,
    row_length: int = 0,
    packed: bool = False,
    adapter: bool = True,
    plain_adapter: bool = True,
    writes: bool = True,
) -> Plan:
    """Return the plan for training a model on a machine.

    Args:
        wanted: False leaves everything to the libraries.
        family: the model's `model_type`; None if unknown, which leaves attention and rollout unchanged.
        kernel: an attention implementation requested by name; it is used as it is.
        row_length: tokens of the longest row. packed: whether rows are packed; only fused kernels keep them separate.
        adapter: whether adapters are trained. plain_adapter: whether they are LoRA without DoRA and dropout.
        writes: whether the model generates text, which a reward model does not.
    """
    on_cpu = machine.accelerator == "cpu"
    fast = wanted and on_cpu
    # The backward pass of the fused kernel is slower than plain products while rows are short (`benchmarks levers`).
    short = on_cpu and row_length <= SHORT_ROW and not packed
    attention = fast and short and kernel is None and family in PLAIN_ATTENTION
    return Plan(
        loss=fast,
        linear=fast,
        lora=fast and adapter,
        attention=attention,
        rollout=attention and writes,
        kernel=kernel or ("eager" if short else None),
        # PEFT's own computation with float32 adapters makes a step slower on a CPU (`benchmarks levers`): where
        # ftlab's does not apply they are kept in the base's format.
        float32_adapters=not on_cpu or (fast and plain_adapter),
    )


def answering(machine: Machine, wanted: bool = True) -> Plan:
    """Return the plan for a model that only generates."""
    return Plan(linear=wanted and machine.accelerator == "cpu")
