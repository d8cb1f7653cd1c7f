"""Checkpoints: what is trusted, what is resumed from, what rotation may touch, who may enter a run folder."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from ftlab import manifests, saved_weights, system_errors
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import checkpoint, train

STATE = {"trainer_state.json": "{}", "optimizer.pt": "o", "scheduler.pt": "s", "adapter_model.safetensors": "w"}


def make(run_folder: Path, step: int, run_id: str = "mine", sealed: bool = True) -> Path:
    folder = run_folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name, text in STATE.items():
        (folder / name).write_text(text + str(step))
    if sealed:
        manifests.write_manifest(folder, {"run_id": run_id, "step": step})
    return folder


class StopAfter(TrainerCallback):
    """Do something once, at the end of one step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


class Seen(TrainerCallback):
    """Count the steps of this very process."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def results(folder: Path) -> tuple[str, bytes]:
    return (folder / "train_log.jsonl").read_text(), (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_newest_that_verifies_is_taken_and_the_others_are_named_and_kept(tmp_path):
    for step in (2, 4, 10, 12):
        make(tmp_path, step)
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_text("other")
    make(tmp_path, 20, sealed=False)
    make(tmp_path, 30, run_id="theirs")
    found, skipped = checkpoint.find_resume(tmp_path, {"run_id": "mine"})
    assert found == tmp_path / "checkpoint-10"
    assert {(item.path.name, item.reason) for item in skipped} == {
        ("checkpoint-12", "optimizer.pt has another size"),
        ("checkpoint-20", "it has no readable manifest: the save was cut short"),
        ("checkpoint-30", "its run_id is another one"),
    }
    assert len(saved_weights.checkpoints(tmp_path)) == 6


def test_a_file_that_the_manifest_does_not_name_is_not_trusted(tmp_path):
    folder = make(tmp_path, 2)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin was not written by this run" in manifests.problem(folder, {"run_id": "mine"})


def test_a_checkpoint_under_another_number_is_not_trusted(tmp_path):
    make(tmp_path, 2).rename(tmp_path / "checkpoint-9")
    assert checkpoint.find_resume(tmp_path, {"run_id": "mine"})[0] is None


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text("w")
    manifests.write_manifest(folder, {"run_id": "mine", "step": 2})
    assert checkpoint.resume_problem(folder, {"run_id": "mine"}) == "it was saved without trainer_state.json"


def test_rotation_touches_only_its_own_and_never_the_last(tmp_path):
    for step in (2, 4, 6):
        make(tmp_path, step)
    make(tmp_path, 1000, run_id="theirs")
    make(tmp_path, 900, sealed=False)
    os.utime(tmp_path / "checkpoint-2", (time.time() + 1e6,) * 2)
    gone = checkpoint.rotate(tmp_path, "mine", 1, set())
    assert {path.name for path in gone} == {"checkpoint-2", "checkpoint-4"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-1000", "checkpoint-900"}
    assert checkpoint.rotate(tmp_path, "mine", 0, set()) == []


def test_rotation_keeps_the_best(tmp_path):
    for step in (2, 4, 6):
        make(tmp_path, step)
    gone = checkpoint.rotate(tmp_path, "mine", 1, {(tmp_path / "checkpoint-2").resolve()})
    assert [path.name for path in gone] == ["checkpoint-4"]


def test_what_is_set_aside_keeps_its_content_and_frees_its_name(tmp_path):
    first = checkpoint.set_aside(make(tmp_path, 2))
    second = checkpoint.set_aside(make(tmp_path, 2))
    assert first != second and (first / "optimizer.pt").read_text() == "o2"
    assert saved_weights.checkpoints(tmp_path) == []


def test_a_full_disk_is_said_before_the_save(tmp_path):
    with pytest.raises(LabError, match="a checkpoint needs about"):
        system_errors.require_space(tmp_path, 2**60, "checkpoint_space", exit_code=1)


def test_only_one_run_of_ten_enters_a_folder(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from ftlab.errors import LabError; from ftlab.runs import checkpoint\n"
        "try:\n"
        "    with checkpoint.lock(Path(sys.argv[1])):\n"
        "        print('in', flush=True); sys.stdin.read()\n"
        "except LabError as error: print(error, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    runs = [subprocess.Popen(command, **pipes, text=True) for _ in range(10)]
    # Who is in stays there until everybody has spoken.
    said = [run.stdout.readline() for run in runs]
    said = [first + run.communicate()[0] for run, first in zip(runs, said, strict=True)]
    assert sum(text.strip() == "in" for text in said) == 1, said
    holder = next(str(run.pid) for run, text in zip(runs, said, strict=True) if text.strip() == "in")
    refused = [text for text in said if "another run is using this folder" in text]
    assert len(refused) == 9 and any(f"process {holder}" in text for text in refused)


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    script = (
        "import sys; from pathlib import Path; from ftlab.runs import checkpoint\n"
        "with checkpoint.lock(Path(sys.argv[1])):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline().strip() == "in"
    with pytest.raises(LabError, match=f"process {run.pid}"), checkpoint.lock(tmp_path):
        pass
    run.kill()
    run.wait()
    with checkpoint.lock(tmp_path):
        assert checkpoint.owner(tmp_path) == str(os.getpid())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1},
        {"packing": True, "cutoff_len": 256, "per_device_train_batch_size": 1},
        {"finetuning_type": "full"},
        {"lora_dropout": 0.2},
        {"save_strategy": "epoch", "per_device_train_batch_size": 3, "max_steps": 12},
        {"logging_steps": 3},
        {"stage": "dpo", "dataset": "preference"},
        {"loraplus_lr_ratio": 4.0},
        {"pissa_init": True},
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_to_the_very_same_weights(tiny_recipe, tiny_rows, tmp_path, capsys, keys):
    keys = keys | ({"dataset": str(tiny_rows / f"{keys['dataset']}.json")} if "dataset" in keys else {})
    values = tiny_recipe | keys
    whole = train.train(recipes.load(values | {"output_dir": str(tmp_path / "whole")}))
    folder = tmp_path / "run"
    stop = StopAfter(4, lambda: (folder / "STOP").touch())
    part = train.train(recipes.load(values), callbacks=[stop])
    # A callback of the caller runs after ftlab's own, so the file is seen one step later.
    assert part.stopped_at in (4, 5) and not (folder / "STOP").exists()
    assert f"stopped at step {part.stopped_at}" in capsys.readouterr().out
    seen = Seen()
    again = train.train(recipes.load(values), callbacks=[seen])
    assert f"going on from step {part.stopped_at}" in capsys.readouterr().out
    assert seen.steps[0] == part.stopped_at + 1 and again.stopped_at is None
    name = "model.safetensors" if keys.get("finetuning_type") == "full" else "adapter_model.safetensors"
    assert (again.weights / name).read_bytes() == (whole.weights / name).read_bytes()
    if "logging_steps" not in keys:
        assert (folder / "train_log.jsonl").read_text() == (whole.folder / "train_log.jsonl").read_text()
    assert again.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"])


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_stops(tiny_recipe, number):
    import signal

    ask = StopAfter(3, lambda: os.kill(os.getpid(), getattr(signal, number)))
    before = signal.getsignal(signal.SIGTERM)
    part = train.train(recipes.load(tiny_recipe), callbacks=[ask])
    assert part.stopped_at == 4 and signal.getsignal(signal.SIGTERM) is before
    assert train.train(recipes.load(tiny_recipe)).stopped_at is None


def test_training_in_a_thread_sets_no_signal_handler(tiny_recipe):
    done = []
    thread = threading.Thread(target=lambda: done.append(train.train(recipes.load(tiny_recipe))))
    thread.start()
    thread.join()
    assert done and not done[0].reused


def test_a_run_whose_last_checkpoint_is_complete_only_writes_its_results(tiny_recipe):
    whole = train.train(recipes.load(tiny_recipe))
    expected = results(whole.folder)
    (whole.folder / "metrics.json").unlink()
    seen = Seen()
    again = train.train(recipes.load(tiny_recipe), callbacks=[seen])
    assert seen.steps == [] and results(again.folder) == expected and (whole.folder / "metrics.json").exists()


def test_old_checkpoints_rotate(tiny_recipe):
    done = train.train(recipes.load(tiny_recipe | {"save_total_limit": 2}))
    assert [path.name for path in saved_weights.checkpoints(done.folder)] == ["checkpoint-6", "checkpoint-4"]


def test_naming_a_checkpoint_allows_a_changed_recipe(tiny_recipe, tmp_path, capsys):
    done = train.train(recipes.load(tiny_recipe))
    longer = tiny_recipe | {"max_steps": 8, "resume_from_checkpoint": str(done.folder / "checkpoint-4")}
    seen = Seen()
    train.train(recipes.load(longer), callbacks=[seen])
    assert seen.steps == [5, 6, 7, 8] and "max_steps: 6 -> 8" in capsys.readouterr().out
    with pytest.raises(LabError, match="it is past max_steps: 3"):
        train.train(recipes.load(longer | {"max_steps": 3}))
    with pytest.raises(LabError, match="not in output_dir"):
        other = longer | {"output_dir": str(tmp_path / "other")}
        train.train(recipes.load(other | {"resume_from_checkpoint": None}))
        train.train(recipes.load(other | {"max_steps": 9}))


def test_a_finished_run_is_reused_only_for_a_checkpoint_that_it_can_have_had(tiny_recipe, tmp_path):
    done = train.train(recipes.load(tiny_recipe | {"save_total_limit": 1}))

    def asked(path):
        return recipes.load(tiny_recipe | {"save_total_limit": 1, "resume_from_checkpoint": str(path)})

    for name in ("checkpoint-6", "checkpoint-2"):
        train.check(asked(done.folder / name))
        assert train.train(asked(done.folder / name)).reused, name
    for path, reason in (
        (done.folder / "checkpoint-8", "it does not exist, and the run is finished at step 6"),
        (done.folder / "auto", "it does not exist, and the run is finished at step 6"),
        (done.folder / "checkpoint-0", "it does not exist"),
        (tmp_path / "other" / "checkpoint-2", "it is not in output_dir"),
    ):
        for work in (train.check, train.train):
            with pytest.raises(LabError, match=reason) as error:
                work(asked(path))
            assert (error.value.where, error.value.exit_code) == (str(path), 2)
    assert done.weights.is_dir()


def test_a_seal_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = make(tmp_path, 2, sealed=False)

    def torn(partial, target):
        partial.write_text('{"run_id":')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", torn)
    with pytest.raises(OSError, match="No space"):
        manifests.write_manifest(folder, {"run_id": "mine", "step": 2})
    assert manifests.read_manifest(folder) is None


def test_a_lock_that_the_system_refuses_is_told_in_one_line(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.FileLock, "acquire", refused)
    with pytest.raises(LabError, match="Permission denied"), checkpoint.lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_the_owner_of_a_run_folder_is_unknown_before_it_is_written(tmp_path):
    assert checkpoint.owner(tmp_path) == "?"
    (tmp_path / checkpoint.OWNER).write_text("")
    assert checkpoint.owner(tmp_path) == "?"
    (tmp_path / checkpoint.OWNER).write_text("42\n")
    assert checkpoint.owner(tmp_path) == "42"


def test_weights_of_several_processes_need_no_optimizer_file_of_their_own(tmp_path):
    folder = tmp_path / "checkpoint-2"
    (folder / "pytorch_model_fsdp_0").mkdir(parents=True)
    (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_text("w")
    (folder / "trainer_state.json").write_text("{}")
    manifests.write_manifest(folder, {"run_id": "mine", "step": 2})
    assert checkpoint.resume_problem(folder, {"run_id": "mine"}) == ""


def test_a_checkpoint_without_its_schedule_is_passed_over_for_an_older_one(tmp_path):
    make(tmp_path, 2)
    (make(tmp_path, 4, sealed=False) / "scheduler.pt").unlink()
    manifests.write_manifest(tmp_path / "checkpoint-4", {"run_id": "mine", "step": 4})
    skipped = [checkpoint.Skipped(tmp_path / "checkpoint-4", "it was saved without scheduler.pt")]
    assert checkpoint.find_resume(tmp_path, {"run_id": "mine"}) == (tmp_path / "checkpoint-2", skipped)


def test_checkpoints_that_are_set_aside_are_numbered(tmp_path):
    names = [checkpoint.set_aside(make(tmp_path, 2)).name for _ in range(3)]
    assert names == [f"set-aside-checkpoint-2-{number}" for number in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_deletion_that_is_cut_short_leaves_nothing_under_a_checkpoint_s_name(tmp_path, monkeypatch):
    for step in (2, 4):
        make(tmp_path, step)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path: (path / "optimizer.pt").unlink())
    assert checkpoint.rotate(tmp_path, "mine", 1, set()) == [tmp_path / "checkpoint-2"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "deleting-checkpoint-2"}


def test_rotation_keeps_as_many_as_it_is_told(tmp_path):
    for step in (2, 4, 6, 8):
        make(tmp_path, step)
    assert [path.name for path in checkpoint.rotate(tmp_path, "mine", 3, set())] == ["checkpoint-2"]


def test_the_size_of_a_checkpoint_counts_the_files_of_its_subfolders(tmp_path):
    assert checkpoint.size_bytes(tmp_path) == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "weights").write_bytes(bytes(100))
    (tmp_path / "state").write_bytes(bytes(23))
    assert checkpoint.size_bytes(tmp_path) == 123


def test_a_lock_leaves_its_file_only_where_a_run_began(tmp_path):
    with checkpoint.lock(tmp_path / "none" / "run"):
        assert (tmp_path / "none" / "run" / checkpoint.OWNER).read_text() == str(os.getpid())
        assert (tmp_path / "none" / "run" / checkpoint.LOCK).exists()
    assert not (tmp_path / "none").exists()
    with checkpoint.lock(tmp_path / "run"):
        manifests.write_manifest(tmp_path / "run", {"run_id": "mine"})
    assert {path.name for path in (tmp_path / "run").iterdir()} == {checkpoint.LOCK, manifests.MANIFEST}


def test_a_lock_is_given_back_when_a_run_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), checkpoint.lock(tmp_path):
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_told_where_and_by_whom_the_folder_is_held(tmp_path):
    with checkpoint.lock(tmp_path):
        (tmp_path / checkpoint.OWNER).write_text("42")
        with pytest.raises(LabError, match=r"another run is using this folder \(process 42\)") as error:
            checkpoint.lock(tmp_path).__enter__()
        assert error.value.where == str(tmp_path) and (tmp_path / checkpoint.OWNER).exists()
