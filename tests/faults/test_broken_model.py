"""Models as people find them: settings that transformers does not write, weights that are NaN, no chat template."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.evaluate import generate_answers
from ftlab.recipe import read as recipes
from ftlab.runs import chat, evaluation, export, train


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


@pytest.fixture
def of_nan(base):
    """A model with a weight that is NaN."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(base)
    return base


@pytest.mark.parametrize("how", [[], ["temperature=0.7"], ["num_beams=2"], ["--backend", "loop"]])
def test_a_model_of_nan_is_named_by_chat(of_nan, capsys, monkeypatch, how):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert cli.main(["chat", str(of_nan), *how]) == 1
    said = capsys.readouterr()
    assert "NaN or infinity" in said.err and "Traceback" not in said.err and "!" not in said.out


def test_a_model_of_nan_has_no_batched_answers(of_nan):
    model, tokenizer = chat.load(str(of_nan))
    asked = [[{"role": "user", "content": text}] for text in ("hi", "hello")]
    for answers in (lambda: chat.replies(model, tokenizer, asked), lambda: generate_answers(model, tokenizer, asked)):
        with pytest.raises(LabError, match="NaN or infinity"):
            answers()


def test_a_reward_model_is_loaded_without_a_report(base, tiny_recipe, tiny_rows):
    done = subprocess.run(
        [sys.executable, "-m", "ftlab", "train", str(written(tiny_recipe, tiny_rows, base.parent))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "LOAD REPORT" not in done.stdout + done.stderr and "loss" in done.stdout


def written(recipe, rows, folder):
    pairs = {"stage": "rm", "dataset": str(rows / "preference.json"), "max_steps": 1}
    recipes.write(recipes.load(recipe | pairs), folder / "rm.yaml")
    return folder / "rm.yaml"


@pytest.mark.parametrize("part", ["", "adapter"])
def test_an_adapter_in_place_of_a_model_is_named_with_its_base(tiny_recipe, capsys, part):
    run = train.train(recipes.load(tiny_recipe | {"max_steps": 1}))
    assert cli.main(["chat", str(run.folder / part)]) == 2
    said = capsys.readouterr().err
    assert "an adapter, not a whole model" in said
    assert f"{tiny_recipe['model_name_or_path']} with `--adapter {run.weights}`" in said


def test_a_model_of_nan_is_named_by_eval_and_export(of_nan, tiny_recipe, tmp_path):
    base = of_nan
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
