"""What `ftlab launch` prints is what the launchers take; the Slurm script runs under stand-ins for Slurm's commands."""

import ast
import os
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import clusters

ROOT = Path(__file__).parents[2]
# Reads the numbers of a script's #SBATCH lines, and runs it as a job would.
SBATCH = """#!/bin/bash
export SLURM_JOB_ID=7 STUB_NODES=$(sed -n 's/^#SBATCH --nodes=//p' "$1")
export STUB_TASKS=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$1")
bash "$1"
"""
# Starts the tasks of a step as Slurm does, all on this machine.
SRUN = """#!/bin/bash
export SLURM_STEP_NUM_TASKS=$((STUB_NODES * STUB_TASKS)) SLURM_STEP_TASKS_PER_NODE="$STUB_TASKS(x$STUB_NODES)"
export SLURM_STEP_NUM_NODES=$STUB_NODES SLURM_STEP_NODELIST=here
for ((task = 1; task < SLURM_STEP_NUM_TASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % STUB_TASKS)) "$@" &
done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait
"""
SCONTROL = "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.1\n"


def started(tiny_recipe: dict, folder: Path, nodes: int = 2, gpus: int = 1, **keys: object) -> clusters.Start:
    """Return a recipe in a file, to be started on machines."""
    recipe, path = recipes.load(tiny_recipe | keys), folder / "one run.yaml"
    recipes.write(recipe, path)
    return clusters.Start(recipe, str(path), ["lora_rank=2"], nodes, gpus)


@pytest.fixture
def stand_ins(tmp_path, monkeypatch) -> Path:
    """Put stand-ins for Slurm's commands first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_slurm_step_starts_every_process(tiny_recipe, tmp_path, stand_ins, capfd, monkeypatch):
    # In the place of Python: print what each task is told.
    monkeypatch.setattr(sys, "executable", str(stand_ins / "python"))
    (stand_ins / "python").write_text('#!/bin/bash\necho "$SLURM_PROCID of $SLURM_STEP_NUM_TASKS: $*" >&2\n')
    (stand_ins / "python").chmod(0o755)
    start = started(tiny_recipe, tmp_path, 2, 2)
    assert clusters.submit("slurm", start) == 0
    told = sorted(capfd.readouterr().err.splitlines())
    assert told == [f"{task} of 4: -m ftlab train {start.path} lora_rank=2" for task in range(4)]
    script = clusters.text("slurm", start)
    assert "#SBATCH --gpus-per-node=2\n" in script
    assert "gpus" not in clusters.text("slurm", started(tiny_recipe, tmp_path, use_cpu=True))


@pytest.mark.slow
@pytest.mark.lengthy
def test_a_slurm_script_trains_in_two_processes(tiny_recipe, tmp_path, stand_ins, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start = started(tiny_recipe, tmp_path, use_cpu=True)
    assert cli.main(["launch", start.path, "--on", "slurm", "--nodes", "2", "--submit"]) == 0
    assert capfd.readouterr().out.count("training in 2 processes, DDP") == 1
    assert (Path(tiny_recipe["output_dir"]) / "adapter" / "adapter_model.safetensors").exists()


def test_accelerate_reads_its_configuration(tiny_recipe, tmp_path):
    for nodes in (1, 2):
        path = tmp_path / "accelerate.yaml"
        path.write_text(clusters.text("accelerate", started(tiny_recipe, tmp_path, nodes, 4)))
        config = load_config_from_file(str(path))
        assert (config.num_processes, config.num_machines, config.mixed_precision) == (4 * nodes, nodes, "no")
        # accelerate refuses MULTI_GPU for one process.
        alone = clusters.text("accelerate", started(tiny_recipe, tmp_path, 1, 1))
        assert "distributed_type: 'NO'" in alone and config.distributed_type == "MULTI_GPU"
        assert (config.main_process_port == 29500) == (nodes == 2)


def test_ray_runs_the_recipe_in_its_workers(tiny_recipe, tmp_path):
    program = clusters.text("ray", started(tiny_recipe, tmp_path, 2, 4))
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    names = {call.func.id: call for call in calls if isinstance(call.func, ast.Name)}
    scaling = {word.arg: word.value.value for word in names["ScalingConfig"].keywords}
    assert scaling == {"num_workers": 8, "use_gpu": True} and "TorchTrainer" in names
    assert program.startswith('"""ray job submit -- python ') and f"os.chdir({os.getcwd()!r})" in program


def test_a_skypilot_task_has_the_machines_and_the_command(tiny_recipe, tmp_path):
    task = yaml.safe_load(clusters.text("skypilot", started(tiny_recipe, tmp_path, 2, 8)))
    assert task["num_nodes"] == 2 and task["resources"] == {"accelerators": "A100-80GB:8"}
    assert task["name"] == "one-run" and "NPROC_PER_NODE=8" in task["run"]
    assert task["run"].strip().endswith("one run.yaml' lora_rank=2")


@pytest.mark.parametrize(
    ("tuning", "nodes", "gpus", "sizes"),
    [
        ("lora", 1, 8, (1, 1)),
        # Eight copies of the model divide the optimizer state, two divide too little of it.
        ("full", 1, 8, (1, 1)),
        ("full", 1, 2, (2, 1)),
        # Tensor parallel stays within a machine.
        ("full", 2, 1, (1, 2)),
    ],
)
def test_megatron_gets_the_smallest_sizes_that_fit(tiny_recipe, tmp_path, tuning, nodes, gpus, sizes):
    fits = {"gradient_checkpointing": True, "cutoff_len": 1024, "per_device_train_batch_size": 1}
    made = {"model_name_or_path": "qwen2.5-7b", "finetuning_type": tuning} | fits
    start = started(tiny_recipe, tmp_path, nodes, gpus, **made)
    assert clusters.parallel_sizes(start) == sizes
    command = clusters.text("megatron-bridge", start)
    tensor, pipeline = sizes
    assert f"model.tensor_model_parallel_size={tensor} model.pipeline_model_parallel_size={pipeline} " in command
    assert f"train.global_batch_size={nodes * gpus // tensor // pipeline} " in command
    assert f"--mode {'lora' if tuning == 'lora' else 'sft'} " in command


@pytest.mark.parametrize(
    ("engine", "nodes", "complaint"),
    [
        ("skypilot", 1, "sky: command not found"),
        ("accelerate", 2, "--submit: this command has to be run on every machine"),
        ("slurm", 1, r"one run\.sbatch: another file is in the way"),
    ],
)
def test_what_cannot_be_started_is_refused(tiny_recipe, tmp_path, stand_ins, monkeypatch, engine, nodes, complaint):
    monkeypatch.setattr(clusters.shutil, "which", lambda name: None if name == "sky" else name)
    (tmp_path / "one run.sbatch").write_text("somebody else's")
    with pytest.raises(LabError, match=complaint):
        clusters.submit(engine, started(tiny_recipe, tmp_path, nodes))


def test_what_megatron_cannot_train_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(LabError, match="stage: dpo: Megatron-Bridge fine-tunes with"):
        clusters.text("megatron-bridge", started(tiny_recipe, tmp_path, stage="dpo"))
    big = started(tiny_recipe, tmp_path, 1, 1, model_name_or_path="qwen2.5-7b", cutoff_len=10**6)
    with pytest.raises(LabError, match="no tensor and pipeline size fits on 1 x 80 GB"):
        clusters.text("megatron-bridge", big)


def test_ppo_is_refused_before_anything_is_printed(tiny_recipe, tmp_path, capsys):
    start = started(tiny_recipe, tmp_path, stage="ppo", reward_funcs="short_answer")
    assert cli.main(["launch", start.path, "--on", "slurm", "--nodes", "2"]) == 2
    found = capsys.readouterr()
    assert found.out == "" and "`stage: ppo` runs in one process" in found.err
