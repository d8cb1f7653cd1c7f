"""Two processes take the same steps as one with twice the accumulation, and end like one."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import processes
import psutil
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from ftlab import device, manifests
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import memory_devices
from ftlab.recipe import read as recipes
from ftlab.runs import clusters, launch, rewards, train, world
from ftlab.saved_weights import RESULTS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PIPES: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
SFT = {"per_device_train_batch_size": 1, "max_steps": 6, "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-3}
FULL, DPO = {"finetuning_type": "full", "bf16": False}, {"stage": "dpo", "dataset": "preference.json"}
SHARDED = {"fsdp": "full_shard auto_wrap"}
SHARDS = {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
# Without the fast paths of a CPU, which draw other random numbers than `generate`, and do not serve FSDP.
GRPO = {"stage": "grpo", "reward_funcs": "short_answer", "num_generations": 2, "max_new_tokens": 12, "max_steps": 12}
GRPO |= {"shortcuts": False}
KINDS = {"lora": SFT, "full": SFT | FULL, "dpo": SFT | DPO, "grpo": SFT | GRPO}
# ZeRO-3 rounds in other places than one process. A gradient of 1e-8 is rounding alone, and AdamW's m / (sqrt(v) + 1e-8)
# makes half a step of it: final weights then differ by 1.7e-6. With 1e-6 in its place, in both, by less than 3e-7.
CALM = {"adam_epsilon": 1e-6}
ZERO = {
    f"{kind}_{zero}": values | {"deepspeed": zero} | (CALM if zero == "zero3" else {})
    for zero in ("zero1", "zero2", "zero3")
    for kind, values in KINDS.items()
}
LONG = SFT | {"max_steps": 24, "save_steps": 6}
# Sharded runs come last: transformers leaves ACCELERATE_USE_FSDP in the environment of the process.
JOBS = KINDS | {
    "long": LONG, "stopped": SFT | {"max_steps": 1000, "stop_by": "1"},
    "parts_fsdp": SFT | SHARDED | {"stop_by": "0"}, "lora_fsdp": SFT | SHARDED, "full_fsdp": SFT | FULL | SHARDED,
    "dpo_fsdp": SFT | DPO | SHARDED | SHARDS, "grpo_fsdp": SFT | GRPO | SHARDED,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the tiny model, its rows, and the dtype that all these runs use."""
    folder = tmp_path_factory.mktemp("world")
    tiny.make_model(folder / "tiny")
    tiny.make_rows(folder)
    return folder


def recipe(place: Path, name: str, values: dict) -> dict:
    """Return the keys of a run in `place`."""
    made = tiny.make_recipe(place / "tiny", place, place / name) | values
    return made | {"dataset": str(place / values.get("dataset", "sft.json"))}


def environment(more: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that trains in float32."""
    return os.environ | ENVIRONMENT | {"FTLAB_DTYPE": "float32"} | more


def output_of(process: subprocess.Popen) -> tuple[str, str]:
    """Return what a process printed; end it, and what it started, where it doesn't end."""
    try:
        return process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            [one.kill() for one in psutil.Process(process.pid).children(recursive=True)]
            process.kill()


def together(place: Path, made: dict[str, dict]) -> list[dict]:
    """Train recipes one after the other in one start of two processes, and return what each process saw."""
    jobs = place / f"{next(iter(made))}.json"
    jobs.write_text(json.dumps(made))
    command = [*TORCHRUN, str(ROOT / "tests" / "processes.py"), str(jobs)]
    running = subprocess.Popen(command, env=environment({}), **PIPES)
    _, said = output_of(running)
    assert running.returncode == 0, said[-3000:]
    return [json.loads(jobs.with_name(f"{jobs.name}.{rank}").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def seen(place) -> list[dict]:
    """Train all JOBS in two processes, and return what each process saw."""
    made = {name: recipe(place, name, values) for name, values in JOBS.items()}
    rest = made["lora_fsdp"] | {"output_dir": made["parts_fsdp"]["output_dir"]}
    return together(place, made | {"rest": rest, "again": made["lora_fsdp"]})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights of a finished run."""
    (path,) = (found for name in RESULTS for found in (folder / name).glob("*model.safetensors"))
    return load_file(path)


def distance(first: Path, second: Path) -> float:
    """Return the largest difference between the trained weights of two runs."""
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys() and one
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.fixture
def alone(place, monkeypatch) -> Callable[..., Path]:
    """Return a function that trains one of KINDS, with other keys if given, in this process, with two rows a step.

    It returns the run folder.
    """
    monkeypatch.setenv("FTLAB_DTYPE", "float32")
    monkeypatch.setitem(rewards.BUILT_IN, "short_answer", processes.letters)

    def trained(kind: str, **keys: float) -> Path:
        folder = place / "_".join([kind, *keys, "alone"])
        made = recipe(place, folder.name, KINDS[kind] | keys | {"gradient_accumulation_steps": 2})
        # A run that another test has finished is reused.
        train.train(recipes.load(made), callbacks=[processes.Seeded()])
        return folder

    return trained


def learned(folder: Path) -> float:
    """Return the largest entry of the matrices B of a LoRA adapter, which begin as zeros."""
    return max(float(weight.abs().max()) for name, weight in weights(folder).items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_the_weights_of_one(seen, place, alone, kind):
    folder = alone(kind)
    assert distance(folder, place / kind) < 1e-6
    assert distance(folder, place / f"{kind}_fsdp") < 1e-6
    assert kind == "full" or learned(folder) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "grpo_fsdp"])
def test_each_prompt_is_answered_once_in_an_epoch(seen, name):
    first, second = (process[name] for process in seen)
    # A prompt's two completions are written by one process each.
    assert first["prompts"] == second["prompts"] and len(set(first["prompts"])) == 12
    pairs = list(zip(first["completions"], second["completions"], strict=True))
    assert all(one != other for one, other in pairs)
    # Where one has ended, its process has to wait for the other: with FSDP both are needed for every token.
    assert any(len(one) != len(other) for one, other in pairs)


# DeepSpeed compiles for minutes.
@pytest.mark.slow
@pytest.mark.lengthy
def test_deepspeed_trains_the_weights_of_one_process(place, alone, monkeypatch):
    pytest.importorskip("deepspeed", reason="installed by hand: pip install 'ftlab[deepspeed]'")
    # Once for all these runs, which else have a folder each.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(place / "extensions"))
    jobs = {"zero2_parts": ZERO["full_zero2"] | {"stop_by": "1"}} | ZERO
    made = {name: recipe(place, name, values) for name, values in jobs.items()}
    rest = made["full_zero2"] | {"output_dir": made["zero2_parts"]["output_dir"]}
    ended = together(place, made | {"rest": rest})
    assert {name: process[name]["error"] for process in ended for name in process if "error" in process[name]} == {}
    assert ended[0]["zero2_parts"]["stopped_at"] in (2, 3)
    runs = {name: alone(name.partition("_")[0], **(CALM if name.endswith("zero3") else {})) for name in ZERO}
    far = {name: distance(folder, place / name) for name, folder in runs.items()}
    assert all(difference < 1e-6 for difference in far.values()), far
    assert distance(place / "zero2_parts", place / "full_zero2") == 0
    for name, kind, zero in ((name, *name.split("_")) for name in ZERO if name[:4] in ("lora", "full")):
        shares = memory_devices.shares(recipes.load(recipe(place, name, KINDS[kind])), device.describe(), 2)
        predicted = next(found for label, found, _ in shares if label == f"ZeRO-{zero[-1]}")
        for part in ("weights", "optimizer"):
            most = max(process[name]["bytes"][part] for process in ended)
            assert getattr(predicted, part) == pytest.approx(most, rel=0.1), (name, part)


@pytest.mark.slow
@pytest.mark.lengthy
@pytest.mark.parametrize("way", ["key", "program"])
def test_ray_trains_the_weights_of_one_process(place, alone, tmp_path, way):
    pytest.importorskip("ray", reason="installed by hand: pip install 'ftlab[ray]'")
    path, name = written(place, f"ray_{way}", SFT), f"ray_{way}"
    command = [sys.executable, "-m", "ftlab", "train", str(path), "use_ray=true", "ray_num_workers=2"]
    command.append(f"ray_storage_path={tmp_path}")
    if way == "program":
        program = tmp_path / "run.ray.py"
        start = clusters.Start(recipes.load(path, ["use_cpu=true"]), str(path), [], 2, 1)
        program.write_text(clusters.text("ray", start))
        command = [sys.executable, str(program)]
    running = subprocess.Popen(command, env=environment({"HOME": str(tmp_path)}), **PIPES)
    printed, said = output_of(running)
    assert running.returncode == 0, said[-3000:]
    assert "training in 2 processes, DDP" in printed
    assert distance(alone("lora"), place / name) < 1e-6
    if way == "key":
        assert "Failed to query" not in printed + said
        # The folder holds another recipe's run, which the workers see.
        running = subprocess.Popen([*command, "lora_rank=3"], env=environment({"HOME": str(tmp_path)}), **PIPES)
        _, said = output_of(running)
        assert running.returncode == 2 and said.count("ftlab: ") == 1 and "Traceback" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "lora_fsdp", "full", "full_fsdp"])
def test_every_example_is_seen_once_in_an_epoch(seen, name):
    ids = [process[name]["ids"] for process in seen]
    assert len(set(ids[0] + ids[1])) == 12 and len(ids[0]) == len(ids[1]) == 6


@pytest.mark.slow
def test_memory_is_what_each_process_holds(seen, place, monkeypatch):
    monkeypatch.setenv("FTLAB_DTYPE", "float32")
    counted = {("full", way): [process[way] for process in seen] for way in ("tensor", "pipeline")}
    for job, name in itertools.product(("lora", "full"), ("", "_fsdp")):
        counted[job, "FSDP2" if name else "DDP"] = [process[job + name]["bytes"] for process in seen]
    for (job, way), both in counted.items():
        made = recipes.load(recipe(place, job, JOBS[job]))
        shares = {label: found for label, found, _ in memory_devices.shares(made, device.describe(), 2)}
        predicted = next(found for label, found in shares.items() if label.startswith(way))
        for part in ("weights", "gradients", "optimizer"):
            most = max(process[part] for process in both)
            assert getattr(predicted, part) == pytest.approx(most, rel=0.1), (job, way, part)


@pytest.mark.slow
def test_a_stop_seen_by_one_process_stops_both_at_one_step(seen, place, monkeypatch):
    first, second = (process["stopped"]["stopped_at"] for process in seen)
    assert first == second in (2, 3) and not (place / "stopped" / "STOP").exists()
    assert manifests.problem(place / "stopped" / f"checkpoint-{first}", {"step": first}) == ""
    # One process would go on with other batches.
    monkeypatch.setenv("FTLAB_DTYPE", "float32")
    with pytest.raises(LabError, match="was started in 2 processes, now there are 1"):
        train.train(recipes.load(recipe(place, "stopped", SFT | {"max_steps": 1000})))


@pytest.mark.slow
def test_a_sharded_run_that_was_stopped_resumes_to_the_same_weights(seen, place):
    assert seen[0]["parts_fsdp"]["stopped_at"] in (2, 3) and seen[0]["rest"]["stopped_at"] is None
    assert distance(place / "parts_fsdp", place / "lora_fsdp") == 0


@pytest.mark.slow
def test_a_finished_run_is_reused_by_both(seen, place):
    assert all(process["again"]["reused"] for process in seen)
    manifest = manifests.read_manifest(place / "lora_fsdp") or {}
    assert manifest["finished"] and manifest["processes"] == 2


def start(path: Path, more: dict[str, str]) -> subprocess.Popen:
    """Start `ftlab train` on a recipe that asks for two processes."""
    command = [sys.executable, "-m", "ftlab", "train", str(path), "nproc_per_node=2"]
    return subprocess.Popen(command, env=environment(more), **PIPES)


def written(place: Path, name: str, values: dict) -> Path:
    """Write a recipe to a file and return its path."""
    path = place / f"{name}.yaml"
    recipes.write(recipes.load(recipe(place, name, values)), path)
    return path


# Every Python process imports it at its start: process 1 kills itself in the second step after checkpoint-6.
DIES = """
import os, signal
if os.environ.get("RANK") == "1":
    from ftlab.runs.callbacks import Guard
    check = Guard.on_pre_optimizer_step
    def dies(guard, args, state, control, **more):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        check(guard, args, state, control, **more)
    Guard.on_pre_optimizer_step = dies
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_to_the_same_weights(seen, place):
    (place / "dies").mkdir()
    (place / "dies" / "sitecustomize.py").write_text(DIES)
    path, folder = written(place, "killed", LONG), place / "killed"
    paths = f"{place / 'dies'}:{ENVIRONMENT['PYTHONPATH']}"
    killed = start(path, {"PYTHONPATH": paths})
    _, said = output_of(killed)
    assert killed.returncode == 1 and said.count("ftlab: ") == 1
    assert "ftlab: process 1 ended (SIGKILL)" in said and "the same command resumes" in said
    assert not (folder / "adapter").exists()
    resumed = start(path, {})
    printed, said = output_of(resumed)
    assert resumed.returncode == 0, said
    assert "going on from step 6" in printed and printed.count("training in 2 processes, DDP") == 1
    assert distance(folder, place / "long") == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_no_process(place):
    folder = place / "interrupted"
    running = start(written(place, "interrupted", SFT | {"max_steps": 10**6}), {})
    workers = []
    while running.poll() is None and not (folder / "train_log.jsonl").exists():
        time.sleep(0.1)
    workers = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    printed, said = output_of(running)
    assert running.returncode == 130 and printed.count("stopped at step") == 1 and "Traceback" not in said
    assert len(workers) >= 2 and not any(worker.is_running() for worker in workers)
    assert next(folder.glob("checkpoint-*/manifest.json"))


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch, tiny_recipe):
    alone = SimpleNamespace(args=SimpleNamespace(world_size=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LabError, match="would use 1"):
        train.refuse_untrained(alone, recipes.load(tiny_recipe))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(LabError, match=r"2 processes .* would use 1"):
        train.refuse_untrained(alone, recipes.load(tiny_recipe | {"nproc_per_node": 2}))


def test_one_process_where_two_were_asked_is_refused(monkeypatch, tiny_recipe, tmp_path, capsys):
    # What `accelerate launch --cpu --num_processes 2` sets for the one process that it starts.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    path = tmp_path / "r.yaml"
    recipes.write(recipes.load(tiny_recipe), path)
    assert cli.main(["train", str(path)]) == 1
    assert "accelerate launch: several processes were asked for, but one was started" in capsys.readouterr().err
    with pytest.raises(LabError, match="several processes"):
        train.train(recipes.load(tiny_recipe))
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.refuse_lost()


class FSDPModule(nn.Linear):
    """A model that is sharded, by name."""


@pytest.mark.parametrize(
    ("model", "fsdp", "complaint"),
    [
        (nn.Linear(1, 1), True, "FSDP was asked for, but the model would be trained with -"),
        (nn.DataParallel(nn.Linear(1, 1)), False, "DDP was asked for, but the model would be trained with DataP"),
        (FSDPModule(1, 1), False, "DDP was asked for"),
        (FSDPModule(1, 1), True, ""),
    ],
)
def test_another_wrapper_than_asked_is_refused(model, fsdp, complaint, capsys):
    check, args = world.Check(), SimpleNamespace(deepspeed=None, fsdp=fsdp, world_size=2)
    check.trainer = SimpleNamespace(model=model, model_wrapped=model)
    if complaint:
        with pytest.raises(LabError, match=complaint):
            check.on_train_begin(args, None, None)
    else:
        check.on_train_begin(args, None, None)
        assert capsys.readouterr().out == "training in 2 processes, FSDP\n"


@pytest.mark.parametrize(
    ("variables", "changed", "processes"),
    [
        ({}, {}, 0),
        ({}, {"nproc_per_node": 2}, 2),
        ({}, {"fsdp": "full_shard"}, 1),
        ({"NPROC_PER_NODE": "4"}, {}, 4),
        ({"NPROC_PER_NODE": "4"}, {"nproc_per_node": 2}, 2),
        ({"FORCE_TORCHRUN": "1"}, {}, 1),
        ({"FORCE_TORCHRUN": "Y"}, {}, 1),
        ({"FORCE_TORCHRUN": "0"}, {}, 0),
        ({"NNODES": "1", "NODE_RANK": "0", "MASTER_PORT": "29500"}, {}, 0),
        ({"NNODES": "2"}, {}, 1),
        ({"WORLD_SIZE": "2"}, {"nproc_per_node": 2}, 0),
    ],
)
def test_the_number_of_processes_is_asked_for(monkeypatch, tiny_recipe, variables, changed, processes):
    monkeypatch.setattr(launch.device, "may_have_accelerator", lambda: False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.to_start(recipes.load(tiny_recipe | changed)) == processes


@pytest.mark.parametrize(
    ("changed", "processes"),
    [
        ({}, 4),
        ({"use_cpu": True}, 0),
        ({"device_map": "auto"}, 0),
        ({"nproc_per_node": 2}, 2),
        ({"nproc_per_node": 1}, 0),
    ],
)
def test_each_visible_accelerator_gets_a_process(monkeypatch, tiny_recipe, changed, processes):
    monkeypatch.setattr(launch.device, "may_have_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launch.to_start(recipes.load(tiny_recipe | changed)) == processes


def test_more_processes_than_accelerators_are_refused(monkeypatch, tiny_recipe):
    monkeypatch.setattr(launch, "accelerators", lambda recipe: 4)
    with pytest.raises(LabError, match="5 processes were asked for, but 4 accelerators"):
        launch.to_start(recipes.load(tiny_recipe | {"nproc_per_node": 5}))


def test_ppo_takes_one_of_several_accelerators(monkeypatch, tiny_recipe):
    monkeypatch.setattr(launch, "accelerators", lambda recipe: 4)
    made = tiny_recipe | {"stage": "ppo", "reward_funcs": "short_answer"}
    assert launch.to_start(recipes.load(made)) == 0
    with pytest.raises(LabError, match="`stage: ppo` runs in one process"):
        recipes.load(made | {"nproc_per_node": 2})


def test_other_machines_are_named_to_torchrun(monkeypatch):
    assert launch.machines() == ["--standalone"]
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "7"}.items():
        monkeypatch.setenv(name, value)
    assert launch.machines() == ["--nnodes=2", "--node-rank=1", "--master-addr=one", "--master-port=7"]
    monkeypatch.setenv("NNODES", "two")
    with pytest.raises(LabError, match="NNODES: must be a whole number, not `two`"):
        launch.machines()


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"NNODES": "0"}, "NNODES: must be at least 1, not 0"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE: must be at least 1, not 0"),
        ({"NPROC_PER_NODE": "gpu"}, "NPROC_PER_NODE: must be a whole number, not `gpu`"),
        ({"NNODES": "1:2"}, "NNODES: must be a whole number, not `1:2`"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "one"}, "NODE_RANK: must be 0 to 1, not 2"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "one"}, "NODE_RANK: must be 0 to 0, not 1"),
        ({"NNODES": "2", "MASTER_PORT": "65536"}, "MASTER_PORT: must be 1 to 65535, not 65536"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR: not set, and this is not the first machine"),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": ""}, "MASTER_ADDR: not set"),
    ],
)
def test_numbers_of_no_machines_are_refused(monkeypatch, tiny_recipe, variables, line):
    monkeypatch.setattr(launch.device, "may_have_accelerator", lambda: False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LabError) as told:
        launch.to_start(recipes.load(tiny_recipe))
    assert str(told.value).startswith(line) and told.value.exit_code == 2


def test_processes_that_torchrun_cannot_start_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"NNODES": "2", "MASTER_ADDR": "here", "MASTER_PORT": "7"})
    monkeypatch.setattr(launch.logging, "disable", lambda level: None)
    busy = RuntimeError("The server socket has failed to listen on any local network address. EADDRINUSE\nMore.")
    monkeypatch.setattr("torch.distributed.run.run", lambda options: (_ for _ in ()).throw(busy))
    with pytest.raises(LabError, match=r"^torchrun: .*could not be started: .*EADDRINUSE\n  fix: .*MASTER_PORT"):
        launch.start(1, ["train", "r.yaml"])
    # Who waits for another machine is told for which.
    assert capsys.readouterr().out == "waiting for 2 machines at here:7\n"


SLURM = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "20007",
}  # fmt: skip


@pytest.fixture
def own_streams(monkeypatch):
    """Give back the output and the warnings that `enter` takes from all but the first process."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(launch.warnings, "simplefilter", lambda action: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_srun_numbers_the_processes(monkeypatch, own_streams):
    answers = SimpleNamespace(stdout="n1\nn2\n")
    monkeypatch.setattr(launch.subprocess, "run", lambda command, **_: answers if command[-1] == "n[1-2]" else None)
    os.environ |= SLURM
    launch.enter()
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["4", "3", "1", "2", "n1", "20007"]
    assert sys.stdout.name == os.devnull and not launch.is_main()


def test_a_batch_script_is_no_step_of_srun(own_streams):
    os.environ |= {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    launch.enter()
    assert "WORLD_SIZE" not in os.environ and launch.is_main()


def failure(folder: Path, code: int, message: str = "") -> ProcessFailure:
    """Return what torchrun knows of a process that ended, after that process reported a message."""
    file = folder / f"{message[:5]}.json"
    if message:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROLE_NAME", launch.ROLE)
            patch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
            assert launch.report(LabError(message))
    return ProcessFailure(0, 1, code, str(file))


def test_the_process_that_failed_first_is_named(tmp_path):
    lost, ended = failure(tmp_path, 1, launch.say("world_contact")), failure(tmp_path, -signal.SIGTERM)
    with pytest.raises(LabError, match=r"process 1 ended \(SIGKILL\)"):
        launch.exit_code_of({0: lost, 1: failure(tmp_path, -9)})
    with pytest.raises(LabError, match=r"^no memory$") as told:
        launch.exit_code_of({0: lost, 1: failure(tmp_path, 2, "no memory"), 2: ended})
    assert told.value.exit_code == 2
    with pytest.raises(LabError, match=r"process 1 ended \(exit code 3\)"):
        launch.exit_code_of({0: ended, 1: failure(tmp_path, 3)})
    with pytest.raises(LabError, match=r"^lost contact with another process"):
        launch.exit_code_of({0: lost, 1: ended})
    assert launch.exit_code_of({0: failure(tmp_path, 130), 1: ended}) == 130


def test_a_process_ended_while_it_reports_leaves_no_half_report(tmp_path, monkeypatch):
    def ended_here(data, file):
        file.write("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", ended_here)
    with pytest.raises(KeyboardInterrupt):
        failure(tmp_path, -signal.SIGTERM, "no memory")
    with pytest.raises(LabError, match=r"process 0 ended \(SIGTERM\)"):
        launch.exit_code_of({0: ProcessFailure(0, 1, -signal.SIGTERM, str(tmp_path / "no me.json"))})


def test_a_process_that_nobody_waits_for_prints_its_error_itself(monkeypatch):
    monkeypatch.delenv("ROLE_NAME", raising=False)
    assert not launch.report(LabError("broken"))


def test_lost_contact_is_one_line(capsys, monkeypatch):
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2779.")
    monkeypatch.setattr(cli, "command", lambda arguments: (_ for _ in ()).throw(gone))
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err.startswith("ftlab: lost contact with another process of this run\n  fix: ")


# A launcher that starts one process, which says that it is there and waits.
STARTS = """
import subprocess, sys
waits = "import time; from ftlab.runs import launch; launch.enter(); print('here', flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", waits])
"""


def test_a_process_ends_with_its_killed_launcher():
    started = os.environ | ENVIRONMENT | {"TORCHELASTIC_RUN_ID": "one"}
    launcher = subprocess.Popen([sys.executable, "-c", STARTS], env=started, **PIPES)
    assert launcher.stdout.readline() == "here\n"
    (worker,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + 300
    # A process whose parent is gone may stay a zombie: some containers have nothing that asks how it ended.
    with contextlib.suppress(psutil.NoSuchProcess):
        while worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, worker.kill()
            time.sleep(0.1)
