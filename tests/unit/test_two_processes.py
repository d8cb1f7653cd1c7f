"""torchrun: two processes take the same steps as one with twice the accumulation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import train

ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[float]:
    """Return the logged losses of a run."""
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def torchrun(values: dict, folder: Path, processes: int) -> subprocess.CompletedProcess:
    """Run `ftlab train` in several processes on this machine."""
    path = folder / "r.yaml"
    recipes.write(recipes.load(values), path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, "-m", "ftlab", "train", str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(tiny_recipe, tmp_path):
    values = tiny_recipe | {"per_device_train_batch_size": 1, "max_steps": 4, "save_steps": 2, "logging_steps": 1}
    one = values | {"gradient_accumulation_steps": 4, "output_dir": str(tmp_path / "one")}
    two = values | {"gradient_accumulation_steps": 2, "output_dir": str(tmp_path / "two")}
    train.train(recipes.load(one))
    done = torchrun(two, tmp_path, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").is_file()
    # Sealed by the first process, and verified by the next start.
    again = torchrun(two, tmp_path, 2)
    assert again.returncode == 0 and "reused" in again.stdout


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = SimpleNamespace(args=SimpleNamespace(world_size=1))
    with pytest.raises(LabError, match="would use 1"):
        train.refuse_untrained(alone)
