"""Trained weights, counted from sizes, are those of the model itself; panel and `ftlab memory` show the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from ftlab import device
from ftlab.apps.board import estimates
from ftlab.memory import Decoder
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.recipe.trained_weights import trained_weights
from ftlab.runs import build

CHANGES = [
    {},
    {"use_dora": True, "lora_rank": 2},
    {"lora_target": "q_proj,v_proj"},
    {"lora_target": "q_proj,v_proj", "use_dora": True},
    {"lora_target": "self_attn.q_proj,model.layers.1.mlp.up_proj"},
    {"finetuning_type": "loha", "lora_target": "model.layers.0.self_attn.q_proj,down_proj"},
    {"stage": "rm"},
    {"stage": "rm", "finetuning_type": "full"},
    {"stage": "rm", "finetuning_type": "freeze", "freeze_trainable_layers": 1},
    {"finetuning_type": "full"},
    {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    {"finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp"},
    {"finetuning_type": "freeze", "freeze_trainable_modules": "q_proj,input_layernorm"},
    {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "embed_tokens,norm,lm_head"},
    {"additional_target": "lm_head"},
    {"additional_target": "embed_tokens"},
    {"additional_target": "embed_tokens,lm_head"},
]


@pytest.fixture(scope="session", params=[False, True], ids=["untied", "tied"])
def model_dir(request, tmp_path_factory, tiny_tokenizer):
    """A random two-layer Llama with a head of its own, and one whose head is the embedding."""
    folder = tmp_path_factory.mktemp("sized")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=request.param, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_trained_weights_are_those_of_the_model_itself(tiny_recipe, model_dir, change):
    made = recipes.load(tiny_recipe | {"model_name_or_path": str(model_dir)} | change)
    model = build.prepare_model(
        made, build.load_model(made, made.model_name_or_path, device.describe()), device.describe()
    )
    real = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained_weights(made, memory_needs.sizes(str(model_dir))) == real


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_panel_and_the_memory_report_count_the_same(tiny_recipe, change):
    made = recipes.load(tiny_recipe | change)
    decoder, machine = memory_needs.sizes(made.model_name_or_path), device.describe()
    assert estimates.readouts(made).trained == memory_needs.training(made, decoder, machine).trained
    assert estimates.memory_bytes(made, decoder, []) == memory_needs.needs(made, machine).peak


def test_layers_that_a_family_calls_otherwise_are_counted():
    config = GPTNeoXConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=500, intermediate_size=256
    )
    made = recipes.load({"model_name_or_path": "pythia-160m", "lora_target": "query_key_value,dense", "lora_rank": 4})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    adapted = build.prepare_model(made, model, device.describe())
    real = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained_weights(made, Decoder.from_config(config.to_dict())) == real
