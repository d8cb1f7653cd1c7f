"""Every write of a save fails in turn: one line is said, the checkpoint before verifies, and the run can go on."""

import contextlib
import errno
import os
import resource
import signal
import sys
from pathlib import Path

import peft.peft_model
import pytest
import torch

from ftlab import manifests, saved_weights
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import train


class Disk:
    """Counts the writes under `folder`, and fails the one with the number `fails_at`."""

    def __init__(self) -> None:
        self.folder, self.fails_at, self.number, self.count = "", None, errno.ENOSPC, 0

    def touch(self, path: object) -> None:
        """Take note of one write; `path` says where it goes."""
        if not self.folder or not os.fspath(path).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.fails_at:
            raise OSError(self.number, os.strerror(self.number), os.fspath(path))

    def hear(self, event: str, arguments: tuple) -> None:
        """Listen to Python's own writes: open for writing, rename, mkdir, remove."""
        if not self.folder:
            return
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str):
            if set(arguments[1]) & set("wax+"):
                self.touch(arguments[0])
        elif event == "os.mkdir" and os.path.isdir(arguments[0]):
            # makedirs(exist_ok=True) on a folder that is there: a failure would be ignored, rightly.
            return
        elif event == "os.rename":
            # What is written beside its place first appears there by its new name.
            paths = [os.fspath(path) for path in arguments[:2] if isinstance(path, str | os.PathLike)]
            self.touch(next((path for path in paths if path.startswith(self.folder)), ""))
        elif event in ("os.mkdir", "os.remove") and isinstance(arguments[0], str | os.PathLike):
            self.touch(arguments[0])


DISK = Disk()
sys.addaudithook(DISK.hear)


@pytest.fixture(autouse=True)
def unheard_writes(monkeypatch):
    """Count the writes that happen below Python too: safetensors, tokenizers, torch.save and fsync."""

    def counted(module, name, position):
        real = getattr(module, name)

        def call(*arguments, **options):
            found = arguments[position] if len(arguments) > position else next(iter(options.values()))
            DISK.touch(os.readlink(f"/proc/self/fd/{found}") if isinstance(found, int) else found)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(torch, "save", 1)
    counted(os, "fsync", 0)
    counted(peft.peft_model, "safe_save_file", 1)
    yield
    DISK.folder, DISK.fails_at, DISK.count = "", None, 0


@contextlib.contextmanager
def failing(folder: Path, at: int | None, number: int = errno.ENOSPC):
    """Fail write number `at` under `folder` inside the block."""
    DISK.folder, DISK.fails_at, DISK.number, DISK.count = str(folder), at, number, 0
    try:
        yield DISK
    finally:
        DISK.folder, DISK.fails_at = "", None


def good_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that verify."""
    run_id = (manifests.read_manifest(folder) or {}).get("run_id")
    return [
        saved_weights.step_of(path)
        for path in saved_weights.checkpoints(folder)
        if not manifests.problem(path, {"run_id": run_id})
    ]


def test_every_write_of_a_save_may_fail(tiny_recipe, tmp_path):
    values = tiny_recipe | {"max_steps": 4}
    whole = train.train(recipes.load(values | {"output_dir": str(tmp_path / "whole")}))
    weights = "adapter/adapter_model.safetensors"
    with failing(tmp_path / "counted" / "checkpoint-4", None) as disk:
        train.train(recipes.load(values | {"output_dir": str(tmp_path / "counted")}))
        total = disk.count
    assert total >= 20, f"only {total} writes were seen"
    for at in range(1, total + 1):
        folder = tmp_path / f"run{at}"
        own = recipes.load(values | {"output_dir": str(folder)})
        number = errno.ENOSPC if at % 2 else errno.EIO
        with failing(folder / "checkpoint-4", at, number), pytest.raises(LabError) as error:
            train.train(own)
        good = good_steps(folder)
        # The very last write comes after the manifest is in place: both are good then.
        assert good == ([4, 2] if at == total else [2]), f"after write {at}"
        assert error.value.exit_code == 1 and f"checkpoint-{good[0]}" in str(error.value)
        assert str(error.value).count("\n") == 1
        if at % 6 == 0:
            done = train.train(own)
            assert (done.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()
    print(f"R2 {total}/{total}")


@pytest.mark.parametrize(
    "name", ["partial-adapter", "adapter", "loss.png", "README.md", "metrics.json", "partial-manifest.json"]
)
def test_results_that_cannot_be_written_are_not_trusted(tiny_recipe, tmp_path, name):
    own = recipes.load(tiny_recipe | {"max_steps": 2, "plot_loss": True})
    folder = tmp_path / "run"
    at = 4 if name == "partial-manifest.json" else 1
    with failing(folder / name, at), pytest.raises(LabError):
        train.train(own)
    assert not (manifests.read_manifest(folder) or {}).get("finished")
    assert not train.train(own).reused and train.train(own).reused


def test_the_system_itself_refuses_to_write_more(tiny_recipe, tmp_path):
    """A limit on the size of files is a full disk for every library alike, Rust and C++ included."""
    values = tiny_recipe | {"finetuning_type": "full", "save_steps": 2, "max_steps": 4}
    own = recipes.load(values)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        code = 9
        with contextlib.suppress(BaseException):
            try:
                train.train(own)
            except LabError as error:
                code = 3 if error.exit_code == 1 and str(error).count("\n") == 1 else 4
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert good_steps(tmp_path / "run") == []
    assert train.train(own).stopped_at is None
