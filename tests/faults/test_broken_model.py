"""Models as people find them: settings that transformers does not write, weights that are NaN, no chat template."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import evaluation, export, train


@pytest.fixture
def base(tiny_model_dir, tmp_path):
    """A copy of the tiny model, to break."""
    return shutil.copytree(tiny_model_dir, tmp_path / "base")


@pytest.mark.parametrize("settings", [{"temperature": 0.6, "top_p": 0.9}, {"length_penalty": 0.5}])
def test_settings_that_greedy_decoding_does_not_read_are_left_out_of_what_is_saved(settings, base, tiny_recipe):
    (base / "generation_config.json").write_text(json.dumps(settings | {"do_sample": False, "max_new_tokens": 7}))
    keys = {"model_name_or_path": str(base), "finetuning_type": "full", "max_steps": 1}
    run = train.train(recipes.load(tiny_recipe | keys))
    done = export.export(recipes.load({"model_name_or_path": str(base), "export_dir": f"{base}-export"}))
    for folder in (run.weights, done.folder):
        kept = GenerationConfig.from_pretrained(folder)
        assert kept.max_new_tokens == 7 and not kept.do_sample
        assert all(getattr(kept, name) is None for name in settings)


def test_sampling_that_is_on_is_kept(base, tiny_recipe):
    (base / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    done = export.export(recipes.load({"model_name_or_path": str(base), "export_dir": f"{base}-export"}))
    assert GenerationConfig.from_pretrained(done.folder).temperature == 0.6


def test_settings_that_contradict_each_other_are_refused_before_training(base, tiny_recipe, tmp_path):
    (base / "generation_config.json").write_text('{"pad_token_id": -7}')
    with pytest.raises(LabError, match="generation settings contradict each other") as error:
        train.train(recipes.load(tiny_recipe | {"model_name_or_path": str(base), "finetuning_type": "full"}))
    assert error.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_a_model_of_nan_is_named_by_eval_and_export(base, tiny_recipe, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(base)
    asked = tiny_recipe | {"model_name_or_path": str(base), "eval_dataset": tiny_recipe["dataset"]}
    with pytest.raises(LabError, match="NaN or infinity") as error:
        evaluation.score(recipes.load(asked))
    assert error.value.exit_code == 1
    with pytest.raises(LabError, match="NaN or infinity"):
        export.export(recipes.load({"model_name_or_path": str(base), "export_dir": str(tmp_path / "out")}))
    assert not (tmp_path / "out").exists()


def test_a_chat_without_a_template_ends_before_a_question(base, capsys):
    (base / "chat_template.jinja").unlink()
    assert cli.main(["chat", str(base)]) == 2
    assert "has no chat template" in capsys.readouterr().err
