"""`ref_model`: DPO and KTO compare with a model of one's own choice, with an adapter on it or without."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftlab import device, memory
from ftlab.errors import LabError
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.runs import train
from tests.tiny import make_tokenizer


@pytest.fixture
def other(tiny_model_dir, tmp_path):
    """Return the folder of another model with the same tokens."""
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model_dir)).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def first_loss(values: dict, tiny_rows, stage: str, folder, **keys) -> float:
    rows = {"dpo": "preference", "kto": "kto"}[stage]
    values = values | {"stage": stage, "dataset": str(tiny_rows / f"{rows}.json"), "output_dir": str(folder)}
    done = train.train(recipes.load(values | {"max_steps": 1} | keys))
    return json.loads((done.folder / "train_log.jsonl").read_text().splitlines()[0])["loss"]


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_another_reference_gives_another_first_loss(stage, tiny_recipe, tiny_model_dir, tiny_rows, other, tmp_path):
    usual = {"dpo": 0.6931, "kto": 0.5}[stage]
    same = first_loss(tiny_recipe, tiny_rows, stage, tmp_path / "same", ref_model=str(tiny_model_dir))
    away = first_loss(tiny_recipe, tiny_rows, stage, tmp_path / "away", ref_model=str(other))
    assert abs(same - usual) < 1e-4 and abs(away - usual) > 3e-4


def test_an_adapter_on_the_reference_counts(tiny_recipe, tiny_model_dir, tiny_rows, tmp_path):
    tuned = train.train(recipes.load(tiny_recipe | {"output_dir": str(tmp_path / "tuned"), "learning_rate": 3e-2}))
    keys = {"ref_model": str(tiny_model_dir), "ref_model_adapters": str(tuned.folder)}
    loss = first_loss(tiny_recipe, tiny_rows, "dpo", tmp_path / "run2", **keys)
    assert abs(loss - 0.6931) > 1e-3


def test_a_reference_with_other_tokens_is_one_line(tiny_recipe, tiny_model_dir, tiny_rows, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_model_dir, vocab_size=300)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    make_tokenizer().save_pretrained(tmp_path / "small")
    keys = {"stage": "dpo", "dataset": str(tiny_rows / "preference.json"), "ref_model": str(tmp_path / "small")}
    with pytest.raises(LabError, match=r"ref_model: .*small has 300 tokens") as error:
        train.check(recipes.load(tiny_recipe | keys))
    assert error.value.exit_code == 2


def test_a_second_model_is_in_the_estimate(tiny_recipe, tiny_model_dir):
    found = []
    for keys in ({}, {"ref_model": str(tiny_model_dir)}):
        made = recipes.load(tiny_recipe | {"stage": "dpo"} | keys)
        decoder = memory_needs.sizes(made.model_name_or_path)
        trained = memory_needs.training(made, decoder, device.describe())
        found.append(memory.weight_bytes(decoder, trained))
    adapter = trained.trained * trained.trained_bytes
    assert found[1] - found[0] == decoder.parameters * trained.other_bytes - adapter


def test_a_reference_with_other_tokens_under_the_same_numbers_is_one_line(tiny_recipe, other, tiny_rows):
    inner = json.loads((other / "tokenizer.json").read_text())
    words = inner["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(inner))
    keys = {"stage": "dpo", "dataset": str(tiny_rows / "preference.json"), "ref_model": str(other)}
    with pytest.raises(LabError, match="has another tokenizer: 'a' is token") as error:
        train.check(recipes.load(tiny_recipe | keys))
    assert error.value.exit_code == 2


def test_an_adapter_is_not_merged_into_a_rounded_reference(tiny_recipe, tiny_model_dir):
    keys = {"stage": "dpo", "ref_model": str(tiny_model_dir), "ref_model_adapters": "runs/tuned"}
    with pytest.raises(LabError, match="`quantization_bit` rounds"):
        recipes.load(tiny_recipe | keys | {"quantization_bit": 4})
