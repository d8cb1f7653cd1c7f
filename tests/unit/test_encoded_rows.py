"""`tokenized_path`: encoded once, saved, and trained on with the same loss as without it."""

import json

import pytest

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import train


def losses(folder):
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in log if "loss" in row]


@pytest.fixture
def keys(tiny_recipe, tmp_path):
    return tiny_recipe | {"tokenized_path": str(tmp_path / "encoded"), "val_size": 0.25, "max_steps": 2}


def test_examples_are_encoded_saved_and_then_trained_on(keys, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    recipes.write(recipes.load(keys), path)
    assert cli.main(["train", str(path)]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert not (tmp_path / "run").exists() and (tmp_path / "encoded" / "manifest.json").is_file()
    # The data set is not read any more.
    other = keys | {"dataset": str(tmp_path / "gone.json")}
    run = train.train(recipes.load(other))
    assert "read instead of the data sets" in capsys.readouterr().out
    plain = train.train(recipes.load(keys | {"tokenized_path": None, "output_dir": str(tmp_path / "plain")}))
    assert losses(run.folder) == losses(plain.folder) and len(losses(run.folder)) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cutoff_len": 64}, "its cutoff_len is another one"),
        ({"train_on_prompt": True}, "its train_on_prompt is another one"),
        ({"stage": "dpo"}, "its stage is another one"),
        ({"add_tokens": "plus"}, "its tokenizer is another one"),
    ],
)
def test_examples_that_were_encoded_in_another_way_are_refused(keys, changes, reason, tmp_path):
    train.encode(recipes.load(keys))
    with pytest.raises(LabError, match=reason):
        train.train(recipes.load(keys | changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_refused(keys, tmp_path):
    (tmp_path / "encoded").mkdir()
    assert not recipes.load(keys).encodes
    with pytest.raises(LabError, match="no readable manifest"):
        train.train(recipes.load(keys))


def test_streaming_changes_nothing(keys):
    plain, (made, notes) = recipes.load(keys), recipes.read(keys | {"streaming": True, "buffer_size": 128})
    assert made == plain and len(notes) == 2
