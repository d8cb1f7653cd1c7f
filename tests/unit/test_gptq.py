"""Weights quantized by GPTQ, AWQ and AQLM: read, trained on, and written by GPTQ."""

import json
import shutil
from pathlib import Path

import packed
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftlab import models
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import adapters, export, gptq, targets, train

PACKAGE = {"gptq": "gptqmodel", "awq": "gptqmodel", "aqlm": "aqlm"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Return the folder of a tiny model whose rows 32 divides."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny.make_tokenizer()
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path) -> Path:
    """Return a file of texts to calibrate on."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"What is {i} plus two? " * 8}) + "\n" for i in range(8)))
    return path


def asked(base: Path, tmp_path: Path, texts: Path | None) -> recipes.Recipe:
    """Return the recipe of an export in 4 bits."""
    keys = {"model_name_or_path": str(base), "export_dir": str(tmp_path / "out"), "export_quantization_bit": 4}
    return recipes.load(keys | ({"export_quantization_dataset": str(texts)} if texts else {}))


def test_the_levels_of_a_weight_are_near_it():
    weight = torch.randn(16, 64)
    levels, scales, zeros = packed.rounded(weight)
    near = (levels - zeros.repeat_interleave(packed.GROUP, 0)) * scales.repeat_interleave(packed.GROUP, 0)
    assert (near.T - weight).abs().max() <= 0.51 * scales.max()


@pytest.mark.parametrize("name", ["qweight", "codebooks"])
def test_a_layer_of_another_package_is_selected_by_all(base, name):
    model = models.load_weights(AutoModelForCausalLM, base)
    assert not targets.has_packed_layers(model)
    layer = torch.nn.Module()
    layer.register_buffer(name, torch.zeros(1))
    model.model.layers[0].mlp.up_proj = layer
    assert targets.has_packed_layers(model) and "up_proj" in targets.all_linear(model)
    recipe = recipes.load({"model_name_or_path": "x", "stage": "sft", "dataset": "y", "output_dir": "z"})
    assert "up_proj" in adapters.config_of(recipe, model).target_modules


def test_an_export_in_4_bits_names_its_packages(base, tmp_path, texts, monkeypatch):
    monkeypatch.setattr(gptq.packages, "find_spec", lambda name: None)
    with pytest.raises(LabError, match="gptqmodel") as refused:
        export.export(asked(base, tmp_path, texts))
    assert refused.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_an_export_in_4_bits_needs_texts(base, tmp_path, texts, monkeypatch):
    monkeypatch.setattr(gptq.packages, "require", lambda *_: None)
    with pytest.raises(LabError, match="export_quantization_dataset"):
        export.export(asked(base, tmp_path, None))
    texts.write_text('{"text": "yes"}\n{"text": 3}\n')
    with pytest.raises(LabError) as refused:
        export.export(asked(base, tmp_path, texts))
    assert refused.value.where == f"{texts}:2"
    texts.write_text("[]")
    with pytest.raises(LabError, match="no examples"):
        export.export(asked(base, tmp_path, texts))
    assert not (tmp_path / "out").exists()


def test_the_divergence_of_the_quantized_weights_is_measured(base, tmp_path, texts, monkeypatch):
    def rough(recipe, folder, tokenizer, found):
        assert len(found) == 8
        model = models.load_weights(AutoModelForCausalLM, folder, dtype=torch.float32).eval()
        model.lm_head.weight.data *= 2
        return model

    monkeypatch.setattr(gptq.packages, "require", lambda *_: None)
    monkeypatch.setattr(gptq, "quantize", rough)
    done = export.export(asked(base, tmp_path, texts))
    assert done.gptq_divergence > 1e-4 and done.reload_difference < 1e-4
    assert f"in 4 bits, nats per token | {done.gptq_divergence:.4f} |" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize(("sizes", "group"), [((256, 512), 128), ((576, 1536), 64), ((64, 96), 32), ((48, 48), 16)])
def test_a_group_divides_every_row(tmp_path, sizes, group):
    hidden, intermediate = sizes
    config = {"hidden_size": hidden, "intermediate_size": intermediate}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert gptq.group_size(tmp_path) == group


def test_rows_that_no_group_divides_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 40}')
    with pytest.raises(LabError, match="40"):
        gptq.group_size(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm"])
@pytest.mark.parametrize("tuning", [{}, {"lora_target": "q_proj,up_proj"}, {"finetuning_type": "oft"}])
def test_a_packed_model_is_read_and_trained_on(base, tiny_recipe, tmp_path, method, tuning):
    pytest.importorskip(PACKAGE[method])
    if method == "aqlm" and "finetuning_type" in tuning:
        pytest.skip("PEFT has no OFT for AQLM")
    folder = shutil.copytree(base, tmp_path / method)
    packed.quantize(folder, method)
    ids = torch.arange(32)[None]
    whole, read = (models.load_weights(AutoModelForCausalLM, one, dtype=torch.float32)(ids) for one in (base, folder))
    error = (whole.logits - read.logits).abs().max() / whole.logits.abs().max()
    assert error < (0.01 if method == "aqlm" else 0.25)
    keys = tiny_recipe | tuning | {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "run")}
    keys |= {"peft_config": {"oft_block_size": 32}} if "finetuning_type" in tuning else {}
    done = train.train(recipes.load(keys | {"max_steps": 2}))
    assert (done.folder / "adapter" / "adapter_model.safetensors").is_file()


def test_weights_in_4_bits_are_written_and_read(base, tmp_path, texts):
    pytest.importorskip("gptqmodel")
    done = export.export(asked(base, tmp_path, texts))
    config = json.loads((done.folder / "config.json").read_text())
    assert config["quantization_config"]["bits"] == 4 and "plus two" not in json.dumps(config)
    assert 0 < done.gptq_divergence < 0.1
    assert not any("up_proj.weight" in name for name in export.load_file(done.folder / "model.safetensors"))
