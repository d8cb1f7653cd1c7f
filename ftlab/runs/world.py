"""What several processes of one training have to agree on: how they share the model, where they begin and stop."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlab.errors import fail, say

# Base classes of a wrapped model -> what a user asked for.
WRAPPERS = {
    "DistributedDataParallel": "DDP", "FSDPModule": "FSDP", "FullyShardedDataParallel": "FSDP",
    "DeepSpeedEngine": "DeepSpeed", "DataParallel": "DataParallel",
}  # fmt: skip


def join(args: Any) -> None:
    """Connect the processes of a run on processors; on accelerators Trainer does it.

    On a processor accelerate ignores `ddp_timeout`, and never shards, though torch's `fully_shard` would. DeepSpeed
    partitions a model while it is built, among the processes that its own module knows.
    """
    several = "WORLD_SIZE" in os.environ and args.use_cpu
    if several and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=args.ddp_timeout))
    if args.deepspeed:
        import deepspeed

        args.device  # noqa: B018 - the property connects the processes
        deepspeed.init_distributed(auto_mpi_discovery=False)
    if several and args.world_size > 1 and wanted(args) == "FSDP":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    # DataParallel, with which Trainer uses several devices in one process, does not replace processes.
    args._n_gpu = min(args.n_gpu, 1)


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
        got = wrapper(self.trainer.model_wrapped)
        if got != wanted(args):
            raise fail("world_wrapper", exit_code=1, asked=wanted(args) or "-", got=got or "-")
        if args.world_size > 1:
            print(say("world_used", processes=args.world_size, wrapper=got))


def any_process(flag: bool, args: TrainingArguments) -> bool:
    """Return True in every process if the flag is set in one: a signal or a file reaches them at different steps."""
    if args.world_size == 1:
        return flag
    found = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


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
