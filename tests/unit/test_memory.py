"""Memory: sizes against real models, estimates against what the allocator saw, what fits and what to turn."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from benchmarks.memory import stage_rows
from ftlab import catalogue, cpu, device, memory
from ftlab.apps import cli
from ftlab.cpu import attention
from ftlab.device import Machine
from ftlab.errors import LabError
from ftlab.memory import Decoder, Training
from ftlab.recipe import library_args, memory_devices, memory_needs
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import REWARDED
from ftlab.runs import build

pytestmark = pytest.mark.usefixtures("no_frame_kept")

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
    with pytest.raises(LabError, match="num_hidden_layers: a size is missing"):
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


def test_sharded_weights_are_whole_while_they_are_used():
    whole = memory.estimate(LLAMA, Training(1, 8, trained=0))
    part = memory.estimate(LLAMA, Training(1, 8, trained=0, gpus=4, shard=3))
    embedding = LLAMA.vocabulary * LLAMA.hidden * 2  # larger than a block
    assert part.weights == pytest.approx(whole.weights / 4)
    assert part.peak == pytest.approx(whole.peak - whole.weights * 3 / 4 + embedding)


def test_a_reference_is_a_copy_of_what_is_trained():
    adapter = Training(1, 8, trained=1000, adapter_rank=8, trained_bytes=4)
    assert memory.weight_bytes(LLAMA, adapter) == 2 * LLAMA.parameters + 4000
    assert memory.weight_bytes(LLAMA, replace(adapter, reference_copy=True)) == 2 * LLAMA.parameters + 8000
    full = Training(1, 8, trained=LLAMA.parameters, reference_copy=True)
    assert memory.weight_bytes(LLAMA, full) == 4 * LLAMA.parameters


def test_a_rollout_holds_the_keys_and_values_of_whole_rows():
    written = Training(8, 1024 + 256, trained=0, new_tokens=256, rollout_rows=16)
    cache = memory.kv_cache_bytes(LLAMA, 16, 1024 + 256)
    gate_up = 16 * 1024 * 14336 * 2 * 4  # of the prompts: gate, its activation, the other half, their product
    assert memory.rollout_bytes(LLAMA, written) == cache + gate_up
    assert memory.rollout_bytes(LLAMA, Training(8, 1280, trained=0)) == 0


def test_only_what_a_model_wrote_is_scored():
    whole = {"loss_tile": LLAMA.vocabulary, "tile_rows": memory.ALL_ROWS, "tile_bytes": 14}
    found = memory.logit_bytes(LLAMA, Training(2, 100, trained=0, new_tokens=10, **whole))
    assert found == 20 * LLAMA.vocabulary * 14 + (200 * 8 + 20 * 6) * LLAMA.hidden


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


SHAPE = {
    "hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 8192, "intermediate_size": 384,
    "tie_word_embeddings": True,
}  # fmt: skip


def two_steps(config, keys, rows, tokenizer, folder, **different):
    """Return the bytes predicted and measured of two steps on a random model; `different` changes the machine."""
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    common = {"model_name_or_path": str(folder / "model"), "max_steps": 2, "save_strategy": "no"}
    run = recipes.load(KEYS | keys | common)
    machine = replace(device.describe(), **different)
    args, _ = build.training_args(run, folder, machine)
    model = build.prepare_model(run, build.load_model(run, str(folder / "model"), machine), machine)
    trainer = build.build_trainer(run, model, args, tokenizer, (Dataset.from_list(rows), None), [])
    if run.quantization_bit:
        cpu.lift_adapters(model, machine)
    with cpu.fast_paths(library_args.plan(run, machine)), memory.measure_peak_bytes(model) as peak:
        trainer.train()
    return memory_needs.needs(run, machine).peak, peak.bytes


LLAMA_SMALL = LlamaConfig(**SHAPE, num_key_value_heads=2)
NEOX_SMALL = GPTNeoXConfig(**SHAPE)
GEMMA_SMALL = GemmaConfig(**SHAPE, num_key_value_heads=2, head_dim=32)
GEMMA2_SMALL = Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=32)


def token_rows():
    """Return the rows of two steps, every token trained on."""
    return [{"input_ids": row, "labels": row} for row in torch.randint(0, 8192, (4, 96)).tolist()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_predicted_is_measured(method, checkpointing, tiny_tokenizer, tmp_path):
    """Random Llama of a useful shape: within 10%, as on the real model (`python -m benchmarks memory`)."""
    keys = memory_needs.METHODS[method] | {"gradient_checkpointing": checkpointing}
    predicted, measured = two_steps(LLAMA_SMALL, keys, token_rows(), tiny_tokenizer, tmp_path)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("config", [NEOX_SMALL, GEMMA_SMALL, GEMMA2_SMALL], ids=lambda config: config.model_type)
def test_predicted_is_measured_in_other_families(config, tiny_tokenizer, tmp_path):
    predicted, measured = two_steps(config, {}, token_rows(), tiny_tokenizer, tmp_path)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_predicted_is_measured_in_float32(method, tiny_tokenizer, tmp_path):
    """As on a processor without bfloat16."""
    keys = memory_needs.METHODS[method]
    predicted, measured = two_steps(LLAMA_SMALL, keys, token_rows(), tiny_tokenizer, tmp_path, dtype="float32")
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("stage", ["rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo", "rloo"])
def test_predicted_is_measured_in_every_stage(stage, tiny_tokenizer, tmp_path):
    keys = {"stage": stage, "per_device_train_batch_size": 4}
    if stage in REWARDED:
        keys |= {"reward_funcs": "short_answer", "max_new_tokens": 16, "num_generations": 4, "ppo_epochs": 1}
    # A letter is one token of the tiny tokenizer.
    rows = stage_rows(stage, 8, 96, "abcdefgh")
    predicted, measured = two_steps(LLAMA_SMALL, keys, rows, tiny_tokenizer, tmp_path)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("config", "shared"),
    [(LLAMA_SMALL, True), (NEOX_SMALL, False), (GEMMA_SMALL, False)],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_keys_are_shared_where_ftlabs_attention_is_used(config, shared, tmp_path):
    """Elsewhere every head gets its own copy, which autograd keeps: the prediction says so too."""
    config.save_pretrained(tmp_path)
    run = recipes.load(KEYS | {"model_name_or_path": str(tmp_path)})
    decoder = memory_needs.sizes(str(tmp_path))
    assert memory_needs.training(run, decoder, device.describe()).grouped == shared
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    build.prepare_model(run, model, device.describe())
    assert attention.used(model) == shared


def test_what_a_group_is_asked_is_counted_once():
    decoder, laptop = (
        memory_needs.sizes("smollm2-135m"),
        Machine("cpu", "a laptop", "bfloat16", 2, 16 * memory_needs.GIB, ""),
    )
    keys = KEYS | {"stage": "grpo", "reward_funcs": "short_answer", "max_new_tokens": 10, "num_generations": 4}
    eight = recipes.load(keys | {"per_device_train_batch_size": 8})
    assert memory_needs.training(eight, decoder, laptop).tokens == 2 * 96 + 8 * 10
    plain = recipes.load(keys | {"per_device_train_batch_size": 8, "shortcuts": False})
    assert memory_needs.training(plain, decoder, laptop).tokens == 8 * (96 + 10)


def test_trl_rounds_the_adapter_of_a_quantized_model():
    decoder, machine = (
        memory_needs.sizes("smollm2-135m"),
        Machine("cuda", "a card", "bfloat16", 8, 15 * memory_needs.GIB, ""),
    )
    found = {
        keys: memory_needs.training(recipes.load(KEYS | dict(keys)), decoder, machine).trained_bytes
        for keys in [(), (("quantization_bit", 4),), (("quantization_bit", 4), ("stage", "orpo"))]
    }
    assert list(found.values()) == [4, 2, 4]
    run = recipes.load(KEYS | {"quantization_bit": 4})
    assert memory_needs.training(run, decoder, replace(machine, dtype="float16")).trained_bytes == 4


def test_a_report_names_the_setting_that_makes_it_fit():
    card = Machine("cuda", "a card", "bfloat16", 8, 15 * memory_needs.GIB, "")
    fits = memory_needs.report(recipes.load(KEYS), card)
    assert "lora  <- this recipe" in fits and "fits: " in fits
    big = recipes.load(KEYS | {"model_name_or_path": "qwen2.5-7b"})
    assert "with quantization_bit: 4, finetuning_type: lora: " in memory_needs.report(big, card)
    whole = memory_needs.report(recipes.load(KEYS | {"model_name_or_path": "qwen2.5-7b", "cutoff_len": 100_000}), card)
    assert "no setting makes it fit on this machine" in whole and "smallest GPU: 80 GB" in whole


@pytest.mark.parametrize(
    ("weights", "gpu"),
    [(1e9, "12 GB"), (7e9, "80 GB"), (20e9, "2 x 80 GB, ZeRO-3"), (70e9, "8 x 80 GB, ZeRO-3"), (2e12, "> 64 x 80 GB")],
)
def test_the_smallest_gpu_or_how_many(weights, gpu):
    """Eight bytes of each weight in bfloat16: itself, its gradient, two moments."""
    layers = round(weights / LLAMA.block_parameters)
    decoder = replace(LLAMA, layers=layers, vocabulary=1)
    found = memory.estimate(decoder, Training(1, 1, decoder.parameters, checkpointing=True))
    assert memory_needs.smallest_gpu(found) == gpu


def test_a_report_says_how_many_cards():
    card = Machine("cuda", "a card", "bfloat16", 8, 24 * memory_needs.GIB, "")
    rows = memory_needs.report(
        recipes.load(KEYS | {"model_name_or_path": "glm4-9b", "cutoff_len": 2048}), card
    ).splitlines()
    (full,) = (line for line in rows if line.startswith("full "))
    assert full.endswith("x 80 GB, ZeRO-3")


def test_more_cards_do_not_help_where_activations_are_too_large():
    found = memory.estimate(LLAMA, Training(64, 8192, LLAMA.parameters))
    assert memory_needs.smallest_gpu(found) == "no number of 80 GB: activations are not divided"
    assert memory_needs.undivided(LLAMA, found.training) >= found.activations + found.logits


def test_each_of_several_devices_holds_its_share():
    card = Machine("cuda", "a card", "bfloat16", 8, 80 * memory_needs.GIB, "")
    keys = {"model_name_or_path": "qwen2.5-7b", "finetuning_type": "full", "gradient_checkpointing": False}
    run = recipes.load(KEYS | keys | {"cutoff_len": 512})
    found = {label: (needs, host) for label, needs, host in memory_devices.shares(run, card, 4)}
    whole, sizes = memory_needs.needs(run, card), memory_needs.sizes("qwen2.5-7b")
    weights, host = {label: needs.weights for label, (needs, _) in found.items()}, found["ZeRO-3, offload"][1]
    assert weights["DDP"] == whole.weights == 4 * sizes.parameters and weights["FSDP2"] == whole.weights // 4
    # DeepSpeed: two bytes of weights and gradients, twelve of state; offloaded, the step's float32 gradients, too.
    assert weights["ZeRO-1"] == 2 * sizes.parameters and host == pytest.approx(20 * sizes.parameters / 4)
    assert found["ZeRO-1"][0].optimizer == 12 * sizes.parameters / 4
    assert found["FSDP2, offload"][0].weights == found["FSDP2, offload"][0].optimizer == 0
    assert {found[label][0].activations for label in ("DDP", "FSDP2", "FSDP2, offload")} == {whole.activations}
    assert found["pipeline"][0].activations == pytest.approx(whole.activations / 4, rel=0.01)
    outside = 4 * sizes.embedding_parameters
    assert weights["tensor parallel"] == pytest.approx((whole.weights - outside) / 4 + outside, rel=0.001)


def test_a_model_that_does_not_divide_is_said():
    run = recipes.load(KEYS | {"model_name_or_path": "smollm2-135m"})
    lines = memory_devices.report(run, device.describe(), 64).splitlines()
    assert sum("do not divide by 64" in line for line in lines) == 2 and "GiB stay on each device" in lines[-1]
    far = memory_devices.report(
        recipes.load(KEYS | {"model_name_or_path": "qwen2.5-7b", "cutoff_len": 10**6}), device.describe(), 8
    )
    assert far.endswith("they do not divide activations; tensor parallel and a pipeline do")


def peaks(devices: int, card: str, keys: dict) -> dict[str, float]:
    """Return label -> GiB at the peak on each device, for qwen2.5-7b, recomputed, one row of 2,048 tokens."""
    keys = {"model_name_or_path": "qwen2.5-7b", "gradient_checkpointing": True, "cutoff_len": 2048} | keys
    run = recipes.load(KEYS | {"per_device_train_batch_size": 1} | keys)
    shares = memory_devices.shares(run, memory_needs.gpu(card), devices)
    return {label: found.peak / memory_needs.GIB for label, found, _ in shares if found}


def test_deepspeed_steps_with_float32_gradients():
    weights = memory_needs.sizes("qwen2.5-7b").parameters
    two = peaks(2, "80 GB", {"finetuning_type": "full"})
    # Of each weight: itself and, of a half, 12 bytes of state, its gradient, and that in float32. Two cards of 80 GB
    # hold the backward pass of ZeRO-2, and have 1 GiB left for CUDA and all else in the step.
    assert two["ZeRO-2"] * memory_needs.GIB == pytest.approx((2 + (12 + 2 + 4) / 2) * weights, rel=1e-6)
    # ZeRO-3 makes that copy of a billion of them at a time.
    assert two["ZeRO-3"] * memory_needs.GIB == pytest.approx((2 + 12 + 2) / 2 * weights + 4e9, rel=1e-6)
    # An adapter's step is small: what counts are the two buckets of half a billion numbers, here of two bytes.
    lora = peaks(2, "24 GB", {})
    assert lora["ZeRO-2"] - lora["DDP"] == pytest.approx(2e9 / memory_needs.GIB, abs=0.2)


def test_what_is_gathered_is_whole_beside_the_shares():
    sizes, lora = memory_needs.sizes("qwen2.5-7b"), peaks(8, "24 GB", {})
    # FSDP2: embedding, output layer and two blocks. ZeRO-3: up to a billion weights that are needed again soon.
    whole = 2 * (sizes.embedding_parameters + 2 * sizes.linear_parameters)
    assert lora["FSDP2"] - lora["ZeRO-3"] == pytest.approx((whole - 2e9) / memory_needs.GIB, abs=0.05)


def test_a_pipeline_is_not_said_to_be_in_vain():
    # 32 blocks hold 64 GiB of inputs at a quarter of a million tokens; an eighth of them fits where all do not.
    run = recipes.load(
        KEYS | {"model_name_or_path": "llama3.1-8b", "cutoff_len": 250_000, "per_device_train_batch_size": 1}
    )
    lines = memory_devices.report(run, memory_needs.gpu("80 GB"), 8).splitlines()
    (pipeline,) = (line for line in lines if line.startswith("pipeline"))
    assert pipeline.endswith("80 GB") and lines[-1].startswith("no number of 80 GB with DDP, ZeRO or FSDP")


def test_the_memory_of_a_gpu_is_asked_on_a_laptop(capsys, monkeypatch):
    monkeypatch.setattr(device, "describe", lambda: 1 / 0)
    assert cli.main(["memory", "qwen2.5-7b", "--gpu", "24", "quantization_bit=4", "per_device_train_batch_size=1"]) == 0
    printed = capsys.readouterr().out
    assert "cuda: 24 GB" in printed and "train in bfloat16" in printed and "fits: " in printed
    assert cli.main(["memory", "qwen2.5-7b", "--gpu", "25"]) == 2
    assert "8, 12, 16, 24, 48, 80, 141" in capsys.readouterr().err
    assert tuple(memory_needs.gpu_of(size).memory_bytes for size in cli.GPU_SIZES) == tuple(
        size * memory_needs.GIB for size in memory_needs.GPUS.values()
    )


@pytest.mark.parametrize("path", sorted(Path("recipes").rglob("*.yaml")), ids=str)
def test_every_template_gets_its_report(path):
    machine = device.describe()
    lines = memory_needs.report(recipes.read(path)[0], machine).splitlines()
    assert sum("<- this recipe" in line for line in lines) == 1 and lines[-1].strip()


def test_more_of_anything_takes_more():
    machine = device.describe()
    peak = memory_needs.needs(recipes.load(KEYS), machine).peak
    for keys in ({"cutoff_len": 200}, {"per_device_train_batch_size": 4}, {"lora_rank": 64}, {"stage": "dpo"}):
        assert memory_needs.needs(recipes.load(KEYS | keys), machine).peak > peak
    assert memory_needs.needs(recipes.load(KEYS | {"quantization_bit": 4}), machine).peak < peak


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(LabError, match=r"config\.json"):
        memory_needs.sizes(str(tmp_path))
    with pytest.raises(LabError, match="smollm2-135"):
        memory_needs.sizes("smollm-135m")
    assert not math.isnan(memory_needs.sizes("HuggingFaceTB/SmolLM2-135M-Instruct").parameters)
