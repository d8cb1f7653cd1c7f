"""Damage to a checkpoint is always seen: the one before it is used, and the run ends as if nothing had happened."""

import shutil
from pathlib import Path

import pytest

from ftlab import manifests
from ftlab.recipe import read as recipes
from ftlab.runs import checkpoint, train

STATE_FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bit_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def swapped(path: Path) -> None:
    """Put the same file of another run there: right name, right kind, wrong run."""
    shutil.copy(path.parents[2] / "other" / path.parent.name / path.name, path)


@pytest.fixture(scope="module")
def two_runs(tiny_model_dir, tiny_rows, tmp_path_factory):
    """Return a folder with run/ and other/ (another seed), both whole."""
    import tiny

    place = tmp_path_factory.mktemp("two_runs")
    for name, seed in (("run", 42), ("other", 7)):
        values = tiny.make_recipe(tiny_model_dir, tiny_rows, place / name) | {"seed": seed, "save_total_limit": 9}
        train.train(recipes.load(values))
    return place


def cut_short(place: Path, target: Path) -> Path:
    """Return a copy of both runs in which run/ ended right after checkpoint-4, before it was finished."""
    shutil.copytree(place, target)
    folder = target / "run"
    for name in ("adapter", "checkpoint-6"):
        shutil.rmtree(folder / name)
    manifest = manifests.read_manifest(folder) | {"finished": False}
    manifests.write_json(folder / "manifest.json", manifest)
    return folder


@pytest.mark.parametrize("file", STATE_FILES)
@pytest.mark.parametrize("damage", [missing, empty, half, bit_flip, swapped], ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over(two_runs, tiny_model_dir, tiny_rows, tmp_path, capsys, file, damage):
    import tiny

    folder = cut_short(two_runs, tmp_path / "copy")
    before = (folder / "checkpoint-4" / file).read_bytes()
    damage(folder / "checkpoint-4" / file)
    if (folder / "checkpoint-4" / file).exists() and (folder / "checkpoint-4" / file).read_bytes() == before:
        # The schedule of two runs of equal length is the same, byte for byte: nothing is damaged then.
        assert damage is swapped and file == "scheduler.pt"
        bit_flip(folder / "checkpoint-4" / file)
    values = tiny.make_recipe(tiny_model_dir, tiny_rows, folder) | {"seed": 42, "save_total_limit": 9}
    done = train.train(recipes.load(values))
    said = capsys.readouterr().out
    assert f"checkpoint-4: skipped, {file}" in said and "going on from step 2" in said
    weights = "adapter/adapter_model.safetensors"
    assert (done.folder / weights).read_bytes() == (two_runs / "run" / weights).read_bytes()
    assert (done.folder / "set-aside-checkpoint-4-1").is_dir(), "the damaged one was deleted"


@pytest.mark.parametrize("damage", [missing, empty, half], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_is_a_save_that_was_cut_short(two_runs, tmp_path, damage):
    folder = cut_short(two_runs, tmp_path / "copy")
    damage(folder / "checkpoint-4" / "manifest.json")
    run_id = manifests.read_manifest(folder)["run_id"]
    found, skipped = checkpoint.find_resume(folder, {"run_id": run_id})
    assert found == folder / "checkpoint-2" and "no readable manifest" in skipped[0].reason


def test_a_whole_checkpoint_of_another_run_is_not_taken(two_runs, tiny_model_dir, tiny_rows, tmp_path, capsys):
    import tiny

    folder = cut_short(two_runs, tmp_path / "copy")
    shutil.copytree(two_runs / "other" / "checkpoint-6", folder / "checkpoint-6")
    values = tiny.make_recipe(tiny_model_dir, tiny_rows, folder) | {"seed": 42, "save_total_limit": 9}
    train.train(recipes.load(values))
    said = capsys.readouterr().out
    assert "checkpoint-6: skipped, its run_id is another one" in said and "going on from step 4" in said
