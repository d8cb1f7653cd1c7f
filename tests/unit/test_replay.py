"""`ftlab data replay` lets a model write its own rows: seeded, filtered, registered."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from ftlab import evaluate
from ftlab.apps import cli
from ftlab.data import registry
from ftlab.errors import LabError
from ftlab.runs import replay

INFO = (
    '{\n  "sft": {"file_name": "sft.json"},\n  "text": {"file_name": "text.json", "columns": {"prompt": "text"}}\n}\n'
)


@pytest.fixture
def folder(tiny_rows, tmp_path):
    """A data folder of its own."""
    shutil.copytree(tiny_rows, tmp_path / "data")
    (tmp_path / "data" / "dataset_info.json").write_text(INFO)
    return tmp_path / "data"


@pytest.fixture
def answering(monkeypatch):
    """Let the model give an answer per prompt that a test wrote: text, ended."""
    answers = {}

    def generate_ids(model, tokenizer, prompts, max_new_tokens):
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
        chosen = [next((value for key, value in answers.items() if key in text), ("Fine.", True)) for text in texts]
        return [tokenizer(text).input_ids + [tokenizer.eos_token_id] * ended for text, ended in chosen]

    monkeypatch.setattr(evaluate, "generate_ids", generate_ids)
    return answers


def written(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_it_answers_registers_and_can_be_mixed(folder, tiny_model_dir, answering):
    made = replay.write("mine", "sft", folder, model=str(tiny_model_dir))
    assert (made.asked, made.kept, made.dropped) == (12, 12, {}) and made.path == folder / "mine.jsonl"
    assert {row["messages"][-1]["content"] for row in written(folder, "mine")} == {"Fine."}
    text = (folder / "dataset_info.json").read_text()
    assert text.startswith(INFO.rstrip().removesuffix("}").rstrip())
    assert json.loads(text)["mine"]["file_name"] == "mine.jsonl"
    mixed = registry.load("sft,mine", folder, mix_strategy="interleave_over", interleave_probs=[0.6, 0.4])
    share = sum(row[-1]["content"] == "Fine." for row in mixed["messages"]) / len(mixed)
    assert 0.2 < share < 0.6


def test_answers_that_teach_nothing_are_left_out_and_counted(folder, tiny_model_dir, answering):
    answering |= {
        "0 plus 0": ("", True),
        "0 plus 1": ("It goes on and", False),
        "0 plus 2": ("one two one two one two one two one two", True),
        "1 plus 0": ("I am an AI assistant.", True),
    }
    made = replay.write("mine", "sft", folder, model=str(tiny_model_dir))
    assert made.dropped == dict.fromkeys(
        ("replay_empty", "replay_unfinished", "replay_repetitive", "replay_of_itself"), 1
    )
    assert made.kept == 8 and "8 answers to 12 prompts" in str(made) and "unfinished: 1" in str(made)
    assert not any("0 plus" in row["messages"][0]["content"] for row in written(folder, "mine"))


def test_the_seed_decides_which_prompts(folder, tiny_model_dir, answering):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        replay.write(name, "sft", folder, model=str(tiny_model_dir), max_samples=4, seed=seed)
    assert written(folder, "a") == written(folder, "b") != written(folder, "c")
    assert len(written(folder, "a")) == 4


def test_only_what_stands_before_the_first_answer_is_asked():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a", "weight": None}]
    later = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert replay.opening(turns + later) == [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert replay.opening(turns) == replay.opening(turns + later)


def test_equal_prompts_are_asked_once(monkeypatch, tmp_path):
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "x"}] for text in "aab"]
    monkeypatch.setattr(registry, "load", lambda *args, **options: Dataset.from_dict({"messages": rows}))
    assert sorted(one[0]["content"] for one in replay.drawn("any", tmp_path, 9, 0)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sft", {}, "already exists"),
        ("a/b", {}, "invalid data set name"),
        (".hidden", {}, "invalid data set name"),
        ("mine", {"prompts": "text"}, "no prompts"),
        ("mine", {"prompts": "nowhere"}, "nowhere"),
        ("mine", {"model": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(folder, tiny_model_dir, name, options, message):
    with pytest.raises(LabError, match=message) as error:
        replay.write(name, **({"prompts": "sft", "model": str(tiny_model_dir), "dataset_dir": folder} | options))
    assert error.value.exit_code == 2 and not (folder / "mine.jsonl").exists()
    assert (folder / "dataset_info.json").read_text() == INFO


def test_the_first_data_set_of_a_folder_begins_its_dataset_info(folder, tiny_model_dir, answering, tmp_path):
    new = tmp_path / "new"
    with pytest.raises(LabError, match="folder not found"):
        replay.write("mine", str(folder / "sft.json"), new, model=str(tiny_model_dir))
    new.mkdir()
    replay.write("mine", str(folder / "sft.json"), new, model=str(tiny_model_dir))
    assert len(registry.load("mine", new)) == 12


def test_no_usable_answer_writes_nothing(folder, tiny_model_dir, answering):
    answering["plus"] = ("", True)
    with pytest.raises(LabError, match=r"none of the 12 answers.*empty: 12"):
        replay.write("mine", "sft", folder, model=str(tiny_model_dir))
    assert (folder / "dataset_info.json").read_text() == INFO


def test_the_verb(folder, tiny_model_dir, answering, capsys):
    words = ["data", "replay", "mine", "--prompts", "sft", "--dataset-dir", str(folder), "--model", str(tiny_model_dir)]
    assert cli.main([*words, "--max-samples", "3"]) == 0
    assert "3 answers to 3 prompts written and registered as mine" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "already exists" in capsys.readouterr().err
    for option in ("--max-samples", "--max-new-tokens"):
        assert cli.main([*words, option, "0"]) == 2
        assert option in capsys.readouterr().err
