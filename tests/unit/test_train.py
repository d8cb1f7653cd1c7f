"""A recipe to a run folder, on a tiny random model."""

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ftlab.errors import LabError
from ftlab.runs import recipe, train


@pytest.fixture
def settings(tiny_model_dir, tmp_path):
    rows = [{"instruction": f"say {n}", "output": f"it is {n}"} for n in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {
        "model_name_or_path": str(tiny_model_dir),
        "dataset": str(tmp_path / "rows.json"),
        "output_dir": str(tmp_path / "run"),
        "cutoff_len": 128,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def test_a_run_leaves_everything_it_promises(settings):
    run = train.train(recipe.load(settings))
    names = {path.name for path in run.folder.iterdir()}
    assert {
        "recipe.yaml",
        "manifest.json",
        "train_log.jsonl",
        "metrics.json",
        "loss.png",
        "README.md",
        "adapter",
    } <= names
    assert not list(run.folder.rglob("*.bin")), "pickles have no place in a run folder"
    steps = [row["step"] for row in map(json.loads, (run.folder / "train_log.jsonl").read_text().splitlines())]
    assert steps == [1, 2, 3, 3] and run.metrics["train_seconds"] > 0
    assert recipe.load(run.folder / "recipe.yaml") == recipe.load(settings)


def test_every_trainable_tensor_changes_and_no_frozen_one(settings, tiny_model_dir):
    run = train.train(recipe.load(settings))
    adapter = load_file(run.weights / "adapter_model.safetensors")
    assert adapter and all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert not any("base_layer" in name for name in adapter)

    run = train.train(
        recipe.load(settings | {"finetuning_type": "full", "output_dir": settings["output_dir"] + "-full"})
    )
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="auto").state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.weights, dtype="auto").state_dict()
    assert all(not after[name].equal(before[name].to(after[name].dtype)) for name in before)


def test_the_same_recipe_is_reused_and_another_is_not(settings, capsys):
    first = train.train(recipe.load(settings))
    again = train.train(recipe.load(settings))
    assert again.reused and again.metrics == first.metrics and "reused" in capsys.readouterr().out
    assert not train.train(recipe.load(settings), fresh=True).reused
    assert not train.train(recipe.load(settings | {"learning_rate": 1e-3})).reused


def test_the_same_seed_gives_the_same_weights(settings):
    made = recipe.load(settings)
    first = load_file(train.train(made).weights / "adapter_model.safetensors")
    second = load_file(train.train(made, fresh=True).weights / "adapter_model.safetensors")
    assert all(first[name].equal(second[name]) for name in first)


def test_an_interrupted_run_is_not_reused(settings):
    run = train.train(recipe.load(settings))
    (run.folder / "manifest.json").unlink()
    assert not train.train(recipe.load(settings)).reused


def test_a_folder_of_somebody_else_is_left_alone(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(LabError, match=r"thesis\.txt"):
        train.train(recipe.load(settings))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_a_loss_that_is_no_number_stops_the_run(settings):
    with pytest.raises(LabError, match="nan") as error:
        train.train(recipe.load(settings | {"learning_rate": 1e30, "max_grad_norm": 1e30, "max_steps": 6}))
    assert error.value.exit_code == 1
    assert not list((train.Path(settings["output_dir"])).rglob("*.safetensors"))


def test_rows_without_room_for_an_answer_are_counted(settings, capsys):
    with pytest.raises(LabError, match="cutoff_len 8"):
        train.train(recipe.load(settings | {"cutoff_len": 8}))
    assert "8 read, 8 cut to 8 tokens, 8 without an answer" in capsys.readouterr().out


def test_validation_rows_are_held_out(settings):
    extra = {"val_size": 0.25, "eval_strategy": "steps", "eval_steps": 1}
    run = train.train(recipe.load(settings | extra))
    log = [json.loads(line) for line in (run.folder / "train_log.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in row for row in log) == 3
