"""What several processes of one training have to agree on: how they share the model, where they begin and stop."""

import os
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

# Base classes of a wrapped model -> what a user asked for.
WRAPPERS = {
    "DistributedDataParallel": "DDP", "FSDPModule": "FSDP", "FullyShardedDataParallel": "FSDP",
    "DeepSpeedEngine": "DeepSpeed", "DataParallel": "DataParallel",
}  # fmt: skip


def join(args: Any) -> None:
    """Connect the processes of a run, where a launcher started several."""
    if "WORLD_SIZE" in os.environ:
        connect(args)
    # DataParallel, with which Trainer uses several devices in one process, does not replace processes.
    args._n_gpu = min(args.n_gpu, 1)


def connect(args: Any) -> None:
    """Connect this process to the others.

    On a processor accelerate ignores `ddp_timeout`, and never shards, though torch's `fully_shard` would. DeepSpeed
    partitions a model while it is built, among the processes that its own module knows.
    """
    if args.use_cpu and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=args.ddp_timeout))
    # Trainer connects what is not connected yet when it is asked for its device.
    on_processor = args.device.type == "cpu"
    if args.deepspeed:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)
    if on_processor and wanted(args) == "FSDP":
        # One of accelerate's names for accelerators: it looks at the name when it shards, and at the device otherwise.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


def require_format(args: Any) -> None:
    """Refuse another number format from accelerate's configuration, which transformers would take where ours has none.

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


def wanted(args: Any) -> str:
    """Return how several processes are to share the model: by a recipe's keys, or by accelerate's configuration."""
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "DeepSpeed"
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "FSDP"
    return "DDP" if args.world_size > 1 else ""


def wrapper(model: Any) -> str:
    """Return how a model is wrapped, "" for a model of one process."""
    kinds = [WRAPPERS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in WRAPPERS]
    return kinds[0] if kinds else ""


class Check(TrainerCallback):
    """Compare, before the first step, the processes and the wrapper of the model with what was asked for.

    Attributes:
        trainer: set when it is built; its model is wrapped when the training begins.
    """

    trainer: Trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print the number of processes and how they share the model.

        Raises:
            LabError: the model is wrapped in another way than asked.
        """
        expected, got = wanted(args), wrapper(self.trainer.model_wrapped)
        if expected and got != expected:
            raise fail("world_wrapper", exit_code=1, asked=expected, got=got or "-")
        if args.world_size > 1:
            print(say("world_used", processes=args.world_size, wrapper=got))
        if got == "FSDP" and hasattr(self.trainer.model, "generate"):
            share_generation(self.trainer.model)


def share_generation(model: Any) -> None:
    """Let a model of FSDP2 write completions in all processes.

    Its shares are put together around `forward` alone, which `generate` of an adapter's base does not pass; and a
    process whose completions have ended has to take part until those of all others have. TRL provides for neither.
    With `fsdp: shard_grad_op` the weights are put together once for all tokens of a batch.
    """
    register_fsdp_forward_method(model, "generate")
    # What transformers' own FSDP2 sets, and accelerate's doesn't: `generate` then waits for the other processes.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base._is_fsdp_managed_module = True


def any_process(flag: bool, args: TrainingArguments) -> bool:
    """Return True in every process if the flag is set in one: a signal or a file reaches them at different steps."""
    if args.world_size == 1:
        return flag
    count = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
    return bool(count)


def require_same(step: int, args: TrainingArguments) -> None:
    """Refuse processes that would begin at different steps: they do not see the same run folder.

    Raises:
        LabError: in every process.
    """
    if args.world_size > 1:
        steps = torch.tensor([step, -step], device=args.device)
        torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
        if steps[0] != -steps[1]:
            raise fail("world_folder", where="output_dir", exit_code=1)


def wait(args: TrainingArguments) -> None:
    """Wait until every process is here."""
    if args.world_size > 1:
        torch.distributed.barrier()


def own_extensions(folder: Path) -> None:
    """Let DeepSpeed compile into a folder of this run, unless TORCH_EXTENSIONS_DIR names another.

    A process that is killed while it compiles leaves a lock, at which every later one waits without a word.
    """
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder.absolute())
        if launch.is_main():
            # The run folder is held: nobody else compiles here.
            for lock in folder.rglob("lock"):
                lock.unlink()


def save_model(trainer: Trainer, folder: Path) -> None:
    """Save the whole model or adapter from the shares of all processes.

    Raises:
        LabError: DeepSpeed was told not to put the shares together.
    """
    if trainer.is_fsdp_enabled:
        # Checkpoints may be written in shards, the result is one file.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if not trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder))
        return
    weights = trainer.accelerator.get_state_dict(trainer.deepspeed)
    if launch.is_main():
        # DeepSpeed names a tied head beside the embedding, which would be saved twice.
        tied = getattr(trainer.model, "all_tied_weights_keys", {})
        trainer._save(str(folder), state_dict={name: one for name, one in weights.items() if name not in tied})


def size(weight: torch.Tensor) -> int:
    """Return the numbers in a weight, of which ZeRO-3 leaves a process its share."""
    return getattr(weight, "ds_numel", weight.numel())
