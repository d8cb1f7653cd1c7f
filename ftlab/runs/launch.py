"""Multi-process runs: the number of processes, starting them with torchrun, and reporting a failed one."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

from ftlab import device
from ftlab.errors import LabError, fail, reason_of, say
from ftlab.recipe.keys import Recipe

# The exit code of a run that was stopped before its end.
STOPPED = 130
# The names in torch, Slurm's srun and Open MPI's mpirun.
TORCH = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")),
)
# torchrun passes its --role to its processes, which by this one know that ftlab waits for them.
ROLE = "ftlab"
# Variable with the process id of the ftlab that started the others.
LAUNCHER = "FTLAB_LAUNCHER"
# torchrun's variable with the file in which a process reports an error.
REPORT = "TORCHELASTIC_ERROR_FILE"
# Seconds that torchrun gives a stopped run to save a checkpoint; its default of 30 is too short for big models.
TIME_TO_SAVE = "600"
# Variables that torch, transformers, tqdm and datasets read when imported.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def is_main() -> bool:
    """Return True in the process that prints and writes files."""
    return os.environ.get("RANK", "0") == "0"


def enter() -> None:
    """Set the variables of this process's rank, as its launcher gives it; only the first process prints."""
    for names in LAUNCHERS:
        # Slurm writes the tasks per machine as `8(x2)`; a run has the same number on each.
        values = [os.environ.get(name, "").partition("(")[0] for name in names]
        if "WORLD_SIZE" not in os.environ and values[0] not in ("", "1"):
            os.environ |= dict(zip(TORCH, values, strict=True))
            # Jobs that share a machine need different ports.
            port = 20000 + number("SLURM_JOB_ID", 9500) % 20000
            os.environ |= {"MASTER_ADDR": first_host(), "MASTER_PORT": str(port)} | dict(os.environ)
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torchrun ends its processes itself, unless it is killed. Slurm and MPI always do.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=end_with, args=(number(LAUNCHER, os.getppid()),), daemon=True).start()
    if not is_main():
        os.environ |= QUIET
        warnings.simplefilter("ignore")
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def end_with(launcher: int) -> None:
    """Kill this process within a second after its parent process `launcher` has ended."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def first_host() -> str:
    """Return the machine of the first process from Slurm's list of machines, such as `node[3-6]`."""
    if number("SLURM_STEP_NUM_NODES", 1) == 1:
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def number(name: str, default: int) -> int:
    """Return the integer in an environment variable.

    Raises:
        LabError: it holds something else.
    """
    value = os.environ.get(name, "")
    if not value.isdecimal() and value:
        raise fail("world_number", where=name, value=value)
    return int(value or default)


def to_start(recipe: Recipe) -> int:
    """Return how many processes must be started on this machine, 0 if this process itself trains.

    Raises:
        LabError: more processes than accelerators; `accelerate launch` started one instead of several;
            invalid environment variables about machines.
    """
    if "WORLD_SIZE" in os.environ:
        return 0
    refuse_lost()
    refuse_machines()
    visible = accelerators(recipe)
    count = recipe.nproc_per_node or number("NPROC_PER_NODE", 0)
    if 0 < visible < count:
        raise fail("world_devices", where="nproc_per_node", asked=count, visible=visible)
    # One process for a model that is placed on several accelerators, and for PPO.
    alone = recipe.device_map is not None or recipe.max_memory is not None or recipe.stage == "ppo"
    processes = count or (1 if alone else max(1, visible))
    sharded = recipe.training.get("fsdp") or recipe.training.get("deepspeed")
    forced = os.environ.get("FORCE_TORCHRUN", "").lower() in ("1", "true", "y")
    return processes if processes > 1 or number("NNODES", 1) > 1 or sharded or forced else 0


def accelerators(recipe: Recipe) -> int:
    """Return how many CUDA devices a recipe may use; CUDA_VISIBLE_DEVICES limits them."""
    if recipe.training.get("use_cpu") or not device.may_have_accelerator():
        return 0
    # Imported here: a machine without an accelerator need not wait for it.
    import torch

    return torch.cuda.device_count()


def refuse_machines() -> None:
    """Refuse numbers of machines and processes with which torchrun would fail or wait forever.

    Raises:
        LabError: naming the variable.
    """
    nodes = number("NNODES", 1)
    ranges = {
        "NNODES": (1, None),
        "NPROC_PER_NODE": (1, None),
        "NODE_RANK": (0, nodes - 1),
        "MASTER_PORT": (1, 65535),
    }
    for name, (least, most) in ranges.items():
        value = number(name, least)
        if most is None and value < least:
            raise fail("world_least", where=name, value=value, least=least)
        if most is not None and not least <= value <= most:
            raise fail("world_range", where=name, value=value, least=least, most=most)
    if number("NODE_RANK", 0) > 0 and not os.environ.get("MASTER_ADDR"):
        raise fail("world_address", where="MASTER_ADDR")


def refuse_lost() -> None:
    """Refuse the one process that `accelerate launch --cpu --num_processes 2` starts.

    Its CPU launcher sets an address for several processes, and starts one without WORLD_SIZE.

    Raises:
        LabError: with the command that starts all of them.
    """
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise fail("world_accelerate", where="accelerate launch", exit_code=1)


def start(processes: int, arguments: Sequence[str]) -> int:
    """Run `ftlab ARGUMENTS` in several processes by torchrun, and return the exit code of the run.

    NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT name the other machines, as for LLaMA-Factory.

    Raises:
        LabError: what the first process that failed reported, or how it ended.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    # torchrun logs how it ends the other processes; below one line reports it.
    logging.disable(logging.ERROR)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", TIME_TO_SAVE)
    os.environ[LAUNCHER] = str(os.getpid())
    command = [*machines(), f"--nproc-per-node={processes}", f"--role={ROLE}", "-m", "ftlab", *arguments]
    try:
        run.run(run.parse_args(command))
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        return exit_code_of(error.failures)
    except (RendezvousError, RuntimeError, OSError) as error:
        # Failures before the first process, such as a port in use or a missing machine, have various types.
        raise fail("world_meeting", where="torchrun", exit_code=1, reason=reason_of(error)) from None
    return 0


def machines() -> list[str]:
    """Return torchrun's options about the machines of a run."""
    nodes = number("NNODES", 1)
    if nodes == 1:
        return ["--standalone"]
    address, port = os.environ.get("MASTER_ADDR") or "127.0.0.1", number("MASTER_PORT", 29500)
    print(say("world_machines", nodes=nodes, address=address, port=port), flush=True)
    where = [f"--master-addr={address}", f"--master-port={port}"]
    return [f"--nnodes={nodes}", f"--node-rank={number('NODE_RANK', 0)}", *where]


def exit_code_of(failures: dict[int, Any]) -> int:
    """Return the exit code of a stopped run.

    Args:
        failures: rank -> torchrun's ProcessFailure.
    Raises:
        LabError: what the first process that failed reported, or how it ended.
    """
    order = {rank: blame(failure) for rank, failure in failures.items()}
    rank = min(order, key=order.__getitem__)
    failure = failures[rank]
    if failure.exitcode == STOPPED:
        return STOPPED
    if problem := reported(failure):
        raise LabError(problem, exit_code=failure.exitcode)
    reason = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    raise fail("world_lost", exit_code=1, rank=rank, reason=reason)


def blame(failure: Any) -> tuple[bool, bool, bool, int]:
    """Return the sort key of a ProcessFailure: killed processes first, then those with a report, earliest first.

    A process whose peer died reports lost contact, and SIGTERM is how torchrun ends the others: both are consequences.
    """
    ended_by_torchrun = failure.exitcode == -signal.SIGTERM
    killed = failure.exitcode < 0 and not ended_by_torchrun
    problem = reported(failure)
    consequence = ended_by_torchrun or say("world_contact") in problem
    return not killed, consequence, not problem, failure.timestamp


def reported(failure: Any) -> str:
    """Return what a process reported before it ended, "" if it did not."""
    message = failure.error_file_data["message"]
    return message["message"].removeprefix("LabError: ") if isinstance(message, dict) else ""


def report(error: LabError) -> bool:
    """Report an error to the ftlab that started this process, which prints it; return False if there is none."""
    if os.environ.get("ROLE_NAME") != ROLE:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    # torchrun ends this process, even while it writes, once another has failed, and cannot read half a file.
    path = os.environ[REPORT]
    os.environ[REPORT] = f"{path}.part"
    get_error_handler().record_exception(error)
    os.replace(f"{path}.part", path)
    return True
