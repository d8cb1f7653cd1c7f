"""Files for other launchers to run a recipe on several machines: a script or a configuration, and its command."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ftlab import catalogue, memory
from ftlab.errors import fail
from ftlab.recipe import hub_token, library_args, memory_devices, memory_needs
from ftlab.recipe.keys import Recipe
from ftlab.runs.launch import STOPPED


class Start(NamedTuple):
    """A recipe to start: its file, `ftlab train`'s other arguments, the machines and the processes on each."""

    recipe: Recipe
    path: str
    overrides: Sequence[str]
    nodes: int
    gpus: int

    @property
    def arguments(self) -> list[str]:
        """The arguments of `ftlab` in every process."""
        return ["train", self.path, *hub_token.left_out(self.overrides)]

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.gpus

    @property
    def on_gpus(self) -> bool:
        """Whether each process needs a GPU."""
        return not self.recipe.training.get("use_cpu")


def slurm(start: Start) -> str:
    """Return a batch script with one task per process; a job saves a checkpoint before its time limit."""
    gpus = [f"#SBATCH --gpus-per-node={start.gpus}"] if start.on_gpus else []
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={Path(start.path).stem}",
        f"#SBATCH --nodes={start.nodes}",
        f"#SBATCH --ntasks-per-node={start.gpus}",
        *gpus,
        "# Five minutes before the time limit all processes save a checkpoint and stop; submit again to resume.",
        "#SBATCH --signal=TERM@300",
        f"srun {shlex.join([sys.executable, '-m', 'ftlab', *start.arguments])}",
    ]
    return "\n".join(lines) + "\n"


def ray(start: Start) -> str:
    """Return a Python program that runs the recipe in Ray's workers, in the current folder."""
    return f'''"""{shlex.join(command("ray", start))}"""

import os

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

# In the place of print its workers have a logger, which would log what datasets reads of printed code.
os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"
# Workers import torch and transformers while they start, for which Ray leaves them 60 seconds.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")


def train_in_a_worker() -> None:
    from ftlab.apps import cli

    # Ray starts its workers in a folder of its own; this one has to be on a disk that the machines share.
    os.chdir({str(Path.cwd())!r})
    if code := cli.main({start.arguments!r}):
        raise RuntimeError(f"ftlab train ended with exit code {{code}}")


scaling = ScalingConfig(num_workers={start.processes}, use_gpu={start.on_gpus})
TorchTrainer(train_in_a_worker, scaling_config=scaling).fit()
'''


def accelerate(start: Start) -> str:
    """Return a configuration of accelerate; FSDP, DeepSpeed and mixed precision come from the recipe."""
    # Not MULTI_CPU, even on CPUs: with that accelerate starts a single process.
    lines = [
        f"# {shlex.join(command('accelerate', start))}",
        "compute_environment: LOCAL_MACHINE",
        f"distributed_type: {'MULTI_GPU' if start.processes > 1 else repr('NO')}",
        f"num_machines: {start.nodes}",
        f"num_processes: {start.processes}",
        "mixed_precision: 'no'",
    ]
    if start.nodes > 1:
        lines += ["# on each machine: its number, and the address of number 0", "machine_rank: 0"]
        lines += ["main_process_ip: 10.0.0.1", "main_process_port: 29500", "rdzv_backend: static"]
    return "\n".join(lines) + "\n"


def skypilot(start: Start) -> str:
    """Return a SkyPilot task; the machines must share the folder of `output_dir`."""
    resources = f"resources:\n  accelerators: A100-80GB:{start.gpus}\n" if start.on_gpus else ""
    return f"""# {shlex.join(command("skypilot", start))}
name: {re.sub(r"[^a-z0-9-]", "-", Path(start.path).stem.lower())}
num_nodes: {start.nodes}
{resources}workdir: .
setup: pip install ftlab
run: |
  export NNODES=$SKYPILOT_NUM_NODES NODE_RANK=$SKYPILOT_NODE_RANK NPROC_PER_NODE={start.gpus}
  export MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1) MASTER_PORT=29500
  {shlex.join(["ftlab", *start.arguments])}
"""


def megatron_bridge(start: Start) -> str:
    """Return a Megatron-Bridge command for the same model, sizes and learning rate; it has its own data format.

    Raises:
        LabError: a stage that it lacks, or no tensor and pipeline parallel size that fits.
    """
    recipe = start.recipe
    mode = {"full": "sft", "lora": "lora"}.get(recipe.finetuning_type, "")
    if recipe.objective != "sft" or not mode:
        raise fail("launch_megatron", where=f"stage: {recipe.stage}")
    tensor, pipeline = parallel_sizes(start)
    batch = int(recipe.training.get("per_device_train_batch_size", 8))
    rows = batch * int(recipe.training.get("gradient_accumulation_steps", 1))
    repository = catalogue.hub_id(recipe.model_name_or_path)
    settings = {
        "dataset.dataset_root": f"{Path(start.path).stem}_jsonl",
        "dataset.seq_length": recipe.cutoff_len,
        "model.tensor_model_parallel_size": tensor,
        "model.pipeline_model_parallel_size": pipeline,
        "train.micro_batch_size": batch,
        "train.global_batch_size": rows * start.processes // (tensor * pipeline),
        "optimizer.lr": recipe.training.get("learning_rate", 5e-5),
        "checkpoint.pretrained_checkpoint": repository,
        "checkpoint.save": recipe.output_dir,
    }
    if (steps := int(recipe.training.get("max_steps", -1))) > 0:
        settings["train.train_iters"] = steps
    if mode == "lora":
        settings |= {"peft.dim": recipe.lora_rank, "peft.alpha": library_args.lora_alpha(recipe)}
    options = ["--model", stem(repository), "--mode", mode, "--dataset", "local-jsonl"]
    options += [f"{name}={value}" for name, value in settings.items()]
    where = f"--nnodes {start.nodes} --nproc-per-node {start.gpus} "
    where += '--node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}"' if start.nodes > 1 else ""
    return (
        "#!/bin/bash\n"
        "# In a checkout of Megatron-Bridge, whose recipes have names of their own: check --model. First write the\n"
        "# examples to dataset_root, as training.jsonl and validation.jsonl with the columns input and output, and\n"
        "# the model to a local folder, for pretrained_checkpoint.\n"
        f"torchrun {where.strip()} scripts/training/run_recipe.py \\\n  {shlex.join(options)}\n"
    )


def stem(repository: str) -> str:
    """Return the name of a model as Megatron-Bridge's recipes write it.

    >>> stem("Qwen/Qwen2.5-7B-Instruct"), stem("meta-llama/Llama-3.2-1B")
    ('qwen25_7b', 'llama32_1b')
    """
    family, *rest = Path(repository).name.lower().replace(".", "").removesuffix("-instruct").split("-")
    version = "" if re.search(r"\d", family) or not rest else rest.pop(0)
    return "_".join([family + version, *rest])


def parallel_sizes(start: Start) -> tuple[int, int]:
    """Return the smallest tensor and pipeline parallel sizes with which the recipe fits on GPUs with 80 GB.

    Tensor parallelism stays within a machine. As in Megatron: weights in 16 bits whatever the recipe says, and an
    optimizer state of 12 bytes, sharded over the data-parallel copies.

    Raises:
        LabError: none fits on these machines.
    """
    decoder = memory_needs.sizes(start.recipe.model_name_or_path, **start.recipe.source)
    machine = memory_needs.gpu(memory_needs.LARGE)
    divisors = [size for size in range(1, start.processes + 1) if start.processes % size == 0]
    sizes = [(t, p) for t in divisors for p in divisors if start.gpus % t == 0 and start.processes % (t * p) == 0]
    for tensor, pipeline in sorted(sizes, key=lambda pair: (pair[0] * pair[1], pair[1])):
        part = memory_devices.narrow(decoder, tensor)
        part = memory_devices.short(part, pipeline) if part else None
        if part:
            training = memory_needs.training(start.recipe, part, machine)
            copies = start.processes // (tensor * pipeline)
            needs = memory.estimate(part, replace(memory_devices.in_deepspeed(training), gpus=copies, shard=1))
            # Megatron's gradients are float32, two bytes more.
            if needs.peak + 2 * training.trained + memory_needs.RESERVED_BYTES <= machine.memory_bytes:
                return tensor, pipeline
    raise fail("launch_too_big", where="--gpus", processes=start.processes, gpu=memory_needs.LARGE)


# Engine -> function for its file, the file's suffix, and the command, in which {file} stands for the file.
ENGINES: dict[str, tuple[Callable[[Start], str], str, str]] = {
    "slurm": (slurm, ".sbatch", "sbatch {file}"),
    "ray": (ray, ".ray.py", "ray job submit -- python {file}"),
    "accelerate": (accelerate, ".accelerate.yaml", "accelerate launch --config_file {file} -m ftlab"),
    "skypilot": (skypilot, ".sky.yaml", "sky launch {file}"),
    "megatron-bridge": (megatron_bridge, ".megatron.sh", "bash {file}"),
}


def file(engine: str, start: Start) -> Path:
    """Return the path of the file that `--submit` writes, next to the recipe."""
    return Path(start.path).absolute().with_suffix(ENGINES[engine][1])


def command(engine: str, start: Start) -> list[str]:
    """Return the command that starts the file."""
    words = [word.format(file=file(engine, start)) for word in ENGINES[engine][2].split()]
    return words + (start.arguments if engine == "accelerate" else [])


def text(engine: str, start: Start) -> str:
    """Return the content of an engine's file."""
    return ENGINES[engine][0](start)


def submit(engine: str, start: Start) -> int:
    """Write an engine's file next to the recipe, start it, and return its exit code.

    Raises:
        LabError: its command is not installed, another file is in the way, or accelerate would need several machines.
    """
    words, path, content = command(engine, start), file(engine, start), text(engine, start)
    if not shutil.which(words[0]):
        raise fail("launch_missing", where=words[0])
    if engine in ("accelerate", "megatron-bridge") and start.nodes > 1:
        raise fail("launch_each", where="--submit", command=shlex.join(words))
    if path.exists() and path.read_text(encoding="utf-8") != content:
        raise fail("launch_file", where=str(path))
    path.write_text(content, encoding="utf-8")
    try:
        return subprocess.run(words, check=False).returncode
    except KeyboardInterrupt:
        return STOPPED
