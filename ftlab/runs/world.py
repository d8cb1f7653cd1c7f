"""Coordination of several processes in one training: how they share the model, where they start and stop."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from pydantic import ValidationError
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlab.errors import fail, reason_of, say
from ftlab.runs import launch

# Base classes of a wrapped model -> the requested parallelism.
WRAPPERS = {
    "DistributedDataParallel": "DDP", "FSDPModule": "FSDP", "FullyShardedDataParallel": "FSDP",
    "DeepSpeedEngine": "DeepSpeed", "DataParallel": "DataParallel",
}  # fmt: skip


def join(args: Any) -> None:
    """Connect the processes of a run, if a launcher started several."""
    if "WORLD_SIZE" in os.environ:
        connect(args)
    # DataParallel, with which Trainer uses several devices in one process, does not replace several processes.
    args._n_gpu = min(args.n_gpu, 1)


def connect(args: Any) -> None:
    """Connect this process to the others.

    On a processor accelerate ignores `ddp_timeout`, and never shards, though torch's `fully_shard` would. DeepSpeed
    partitions a model while it is built, among the processes that its own module knows.
    """
    if args.use_cpu and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=args.ddp_timeout))
    # Trainer connects the process when it first accesses its device.
    on_processor = args.device.type == "cpu"
    if args.deepspeed:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)
    if on_processor and parallelism(args) == "FSDP":
        # One of accelerate's names for accelerators: for sharding it checks the name, otherwise the device.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


def require_format(args: Any) -> None:
    """Refuse another mixed precision in accelerate's configuration, which would apply if the recipe has none.

    Raises:
        LabError: with both.
    """
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    got = next((name for name in ("bf16", "fp16") if getattr(args, name)), "no")
    if configured not in ("no", got):
        raise fail("world_precision", where="mixed_precision", asked=configured, got=got if got != "no" else "float32")


def require_deepspeed(config: Any) -> None:
    """Refuse a configuration that contradicts the recipe, or that DeepSpeed would refuse once the model is loaded.

    Args:
        config: transformers' HfTrainerDeepSpeedConfig, in which "auto" is filled in but for what depends on the model.
    Raises:
        LabError: with the entry.
    """
    if config.mismatches:
        lines = (line.removeprefix("- ds ").replace(" vs hf ", ", recipe: ") for line in config.mismatches)
        # As in a recipe, not as in Python.
        lines = (re.sub(r"=(True|False)\b", lambda value: value[0].lower(), line) for line in lines)
        raise fail("world_deepspeed", where="deepspeed", differences="; ".join(lines))
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    try:
        DeepSpeedConfig(decided(config.config))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise fail("world_deepspeed_config", where="deepspeed", reason=reason) from None
    except (DeepSpeedConfigError, AssertionError, TypeError, ValueError, KeyError) as error:
        raise fail("world_deepspeed_config", where="deepspeed", reason=reason_of(error)) from None


def decided(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that are still "auto"."""
    return {
        name: decided(value) if isinstance(value, dict) else value for name, value in config.items() if value != "auto"
    }


def parallelism(args: Any) -> str:
    """Return how processes should share the model, by the recipe's keys or accelerate's configuration."""
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "DeepSpeed"
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "FSDP"
    return "DDP" if args.world_size > 1 else ""


def wrapper(model: Any) -> str:
    """Return how a model is wrapped, "" if it is not."""
    kinds = [WRAPPERS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in WRAPPERS]
    return kinds[0] if kinds else ""


class Check(TrainerCallback):
    """Compare, before the first step, the processes and the wrapper of the model with the request.

    Attributes:
        trainer: set when it is built; its model is wrapped when the training begins.
    """

    trainer: Trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print the number of processes and how they share the model.

        Raises:
            LabError: the model is wrapped in another way than requested.
        """
        expected, got = parallelism(args), wrapper(self.trainer.model_wrapped)
        if expected and got != expected:
            raise fail("world_wrapper", exit_code=1, asked=expected, got=got or "-")
        if args.world_size > 1:
            print(say("world_used", processes=args.world_size, wrapper=got))
        if got == "FSDP" and hasattr(self.trainer.model, "generate"):
            share_generation(self.trainer.model)


def share_generation(model: Any) -> None:
    """Make generation work for a model under FSDP2 in all processes.

    Its shards are gathered around `forward` only, which `generate` of an adapter's base bypasses; and a
    process whose completions have ended must take part until all others have finished. TRL handles neither.
    With `fsdp: shard_grad_op` the weights are gathered once for all tokens of a batch.
    """
    register_fsdp_forward_method(model, "generate")
    # What transformers' own FSDP2 sets, and accelerate's doesn't: `generate` then waits for the other processes.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base._is_fsdp_managed_module = True


def any_process(flag: bool, args: TrainingArguments) -> bool:
    """Return True in every process if the flag is set in any: a signal or a file may reach them at different steps."""
    if args.world_size == 1:
        return flag
    count = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
    return bool(count)


def require_same(step: int, args: TrainingArguments) -> None:
    """Refuse processes that would start at different steps because they do not see the same run folder.

    Raises:
        LabError: in every process.
    """
    if args.world_size > 1:
        steps = torch.tensor([step, -step], device=args.device)
        torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
        if steps[0] != -steps[1]:
            raise fail("world_folder", where="output_dir", exit_code=1)


def wait(args: TrainingArguments) -> None:
    """Wait for all processes."""
    if args.world_size > 1:
        torch.distributed.barrier()


def own_extensions(folder: Path) -> None:
    """Let DeepSpeed compile into a folder of this run, unless TORCH_EXTENSIONS_DIR names another.

    A process that is killed while it compiles leaves a lock, on which every later one waits silently.
    """
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder.absolute())
        if launch.is_main():
            # The run folder is locked, so no other process compiles here.
            for lock in folder.rglob("lock"):
                lock.unlink()


def save_model(trainer: Trainer, folder: Path) -> None:
    """Save the whole model or adapter from the shards of all processes.

    Raises:
        LabError: DeepSpeed is configured not to gather the shards.
    """
    if trainer.is_fsdp_enabled:
        # Checkpoints may be written in shards, the result is one file.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if not trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder))
        return
    weights = trainer.accelerator.get_state_dict(trainer.deepspeed)
    if launch.is_main():
        # DeepSpeed lists a tied head in addition to the embedding, so it would be saved twice.
        tied = getattr(trainer.model, "all_tied_weights_keys", {})
        trainer._save(str(folder), state_dict={name: one for name, one in weights.items() if name not in tied})


def size(weight: torch.Tensor) -> int:
    """Return the number of elements of a weight, of which ZeRO-3 leaves each process only a shard."""
    return getattr(weight, "ds_numel", weight.numel())
