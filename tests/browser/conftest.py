"""A working folder and a recipe for the panels."""

import os
from pathlib import Path

import psutil
import pytest

from ftlab.apps.board import training_job

ROOT = Path(__file__).parents[2]
STEPS = 600


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder; kernels started from here find this very ftlab, and keep to a private cache."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    # Tests that run lessons leave it behind.
    monkeypatch.delenv("FTLAB_HEADLESS", raising=False)
    yield folder
    if left := training_job.living_under(folder / "runs"):
        psutil.Process(left.pid).kill()


@pytest.fixture
def values(tiny_recipe):
    """A recipe that trains for some seconds."""
    changed = {"output_dir": "runs/tiny", "max_steps": STEPS, "save_steps": 10_000, "lr_scheduler_type": "constant"}
    return tiny_recipe | changed | {"learning_rate": 1e-3}
