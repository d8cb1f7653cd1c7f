"""Memory: sizes against real models, estimates against what the allocator saw, what fits and what to turn."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MixtralConfig, Qwen2Config

from ftlab import catalogue, device, memory
from ftlab.device import Machine
from ftlab.errors import LabError
from ftlab.memory import Decoder, Training
from ftlab.runs import needs, recipe, stages

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 500}
LLAMA = Decoder(32, 4096, 32, 8, 128, 14336, 128256, False)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, intermediate_size=160, num_key_value_heads=2, tie_word_embeddings=False),
        LlamaConfig(**SMALL, intermediate_size=160, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True),
        Qwen2Config(**SMALL, intermediate_size=160, num_key_value_heads=2),
        GPTNeoXConfig(**SMALL, intermediate_size=256),
        MixtralConfig(**SMALL, intermediate_size=96, num_key_value_heads=2, num_local_experts=4),
    ],
    ids=lambda config: config.model_type,
)
def test_parameters_are_counted_from_the_config(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ours = Decoder.from_config(config.to_dict()).parameters
    assert ours == pytest.approx(model.num_parameters(), rel=0.02)  # biases and routers are left out


def test_the_catalogue_has_the_sizes_of_its_models():
    for model in catalogue.MODELS:
        assert model.sizes.parameters == pytest.approx(model.parameters, rel=1e-3), model.name


def test_a_config_without_sizes_is_refused():
    with pytest.raises(LabError, match="num_hidden_layers: no such size"):
        Decoder.from_config({"hidden_size": 8, "vocab_size": 8})


def test_lora_weights_are_counted_by_hand():
    assert LLAMA.lora_parameters(16, ("q_proj",)) == 32 * 16 * (4096 + 4096)
    assert LLAMA.lora_parameters(8, ("k_proj",)) == 32 * 8 * (4096 + 1024)


def test_weights_gradients_and_moments_by_hand():
    found = memory.estimate(LLAMA, Training(1, 1, LLAMA.parameters, linear_bytes=2, other_bytes=2, trained_bytes=2))
    assert found.weights == found.gradients == 2 * LLAMA.parameters
    assert found.optimizer == 4 * LLAMA.parameters


def test_nf4_takes_four_bits_and_a_scale_per_block():
    assert memory.NF4_BYTES == 0.5 + 4 / 64
    assert pytest.approx(0.5 + 0.127 / 8, abs=1e-4) == memory.NF4_DOUBLE_BYTES  # QLoRA paper: 0.127 bits per weight


@pytest.mark.parametrize(("shard", "divided"), [(1, {"optimizer"}), (2, {"optimizer", "gradients"})])
def test_shards_divide_what_zero_divides(shard, divided):
    whole = Training(1, 8, LLAMA.parameters, gpus=1)
    parts = memory.estimate(LLAMA, whole), memory.estimate(LLAMA, Training(1, 8, LLAMA.parameters, gpus=4, shard=shard))
    for name in ("weights", "optimizer", "gradients"):
        one, four = (getattr(found, name) for found in parts)
        assert four == pytest.approx(one / 4 if name in divided else one)


def test_the_cache_of_keys_and_values():
    assert memory.kv_cache_bytes(LLAMA, 2, 100) == 2 * 32 * 8 * 128 * 2 * 100 * 2


def test_the_allocator_sees_what_comes_and_goes():
    layer = nn.Linear(1000, 10, bias=False)
    with memory.measure_peak_bytes(layer) as peak:
        first = torch.zeros(2_000_000, dtype=torch.uint8)
        del first
        second = torch.zeros(3_000_000, dtype=torch.uint8)
    assert len(second) and peak.bytes == pytest.approx(40_000 + 3_000_000, abs=2_000)


KEYS = {"model_name_or_path": "smollm2-135m", "cutoff_len": 96, "per_device_train_batch_size": 2, "lora_rank": 4}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_predicted_is_measured(method, checkpointing, tiny_tokenizer, tmp_path):
    """Random Llama of a useful shape: within 10%, as on the real model (`python -m benchmarks.memory`)."""
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, vocab_size=8192,
        intermediate_size=384, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    keys = KEYS | needs.METHODS[method] | {"model_name_or_path": str(tmp_path / "model"), "max_steps": 2}
    run = recipe.load(keys | {"gradient_checkpointing": checkpointing, "save_strategy": "no"})
    machine = device.describe()
    device.fit_output_layer(machine)
    rows = torch.randint(0, 8192, (4, 96)).tolist()
    args, _ = stages.training_args(run, tmp_path, machine)
    model = stages.prepare_model(run, stages.load_model(run, str(tmp_path / "model"), machine))
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    trainer = stages.build_trainer(run, model, args, tiny_tokenizer, (data, None), [])
    with memory.measure_peak_bytes(model) as peak:
        trainer.train()
    assert needs.needs(run, machine).peak == pytest.approx(peak.bytes, rel=0.1)


def test_a_report_names_the_knob_that_makes_it_fit():
    card = Machine("cuda", "a card", "bfloat16", 8, 15 * needs.GIB, "")
    fits = needs.report(recipe.load(KEYS), card)
    assert "lora  <- this recipe" in fits and "fits: " in fits
    big = recipe.load(KEYS | {"model_name_or_path": "qwen2.5-7b"})
    assert "with quantization_bit: 4, finetuning_type: lora: " in needs.report(big, card)
    whole = needs.report(recipe.load(KEYS | {"model_name_or_path": "qwen2.5-7b", "cutoff_len": 100_000}), card)
    assert "no knob makes it fit here" in whole and "smallest card: 80 GB" in whole


@pytest.mark.parametrize("path", sorted(Path("recipes").rglob("*.yaml")), ids=str)
def test_every_template_gets_its_report(path):
    machine = device.describe()
    lines = needs.report(recipe.read(path)[0], machine).splitlines()
    assert sum("<- this recipe" in line for line in lines) == 1 and lines[-1].strip()


def test_more_of_anything_takes_more():
    machine = device.describe()
    peak = needs.needs(recipe.load(KEYS), machine).peak
    for keys in ({"cutoff_len": 200}, {"per_device_train_batch_size": 4}, {"lora_rank": 64}, {"stage": "dpo"}):
        assert needs.needs(recipe.load(KEYS | keys), machine).peak > peak
    assert needs.needs(recipe.load(KEYS | {"quantization_bit": 4}), machine).peak < peak


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(LabError, match=r"config\.json"):
        needs.sizes(str(tmp_path))
    with pytest.raises(LabError, match="smollm2-135"):
        needs.sizes("smollm-135m")
    assert not math.isnan(needs.sizes("HuggingFaceTB/SmolLM2-135M-Instruct").parameters)
