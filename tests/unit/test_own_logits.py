"""Models that TRL would train on other probabilities than their own are refused; the others have the right loss."""

import json

import pytest
import tiny
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftlab.errors import LabError
from ftlab.memory import PLAIN_ATTENTION
from ftlab.recipe import read as recipes
from ftlab.runs import own_logits, train

SIZES = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "max_position_embeddings": 256},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "gpt_oss": {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gpt_neox": {},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "recurrent_gemma": {
        "num_key_value_heads": 1, "lru_width": 32, "block_types": ["recurrent", "attention"], "logits_soft_cap": 1.0,
    },
}  # fmt: skip
SHARED = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# Their configs have no such names, or other ones.
OWN_NAMES = ("bloom", "gpt2", "mpt", "mamba", "rwkv")


def make(family: str, folder) -> AutoModelForCausalLM:
    """Write a random model of a family, with weights large enough for its tokens to matter, and its tokenizer."""
    tokenizer = tiny.make_tokenizer()
    sizes = ({} if family in OWN_NAMES else SHARED) | SIZES.get(family, {"num_key_value_heads": 2})
    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, bos_token_id=None, **sizes, **ends)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def trained(folder, tmp_path, **keys: object) -> float:
    """Return the loss of one step on four rows."""
    rows = [{"instruction": f"q{i}" * (i + 1), "output": f"a{i}, yes" * (i + 1)} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    base = tiny.make_recipe(folder, tmp_path, tmp_path / f"run-{len(keys)}")
    one_step = {"dataset": str(tmp_path / "rows.json"), "max_steps": 1, "per_device_train_batch_size": 4}
    return train.train(recipes.load(base | one_step | {"finetuning_type": "full"} | keys)).metrics["train_loss"]


def by_hand(model, tmp_path) -> float:
    """Return the mean loss of the answers' tokens in the same rows, one row at a time."""
    tokenizer, losses = AutoTokenizer.from_pretrained(model.config._name_or_path), []
    for row in json.loads((tmp_path / "rows.json").read_text()):
        asked = f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n"
        prompt, answer = tokenizer.encode(asked), tokenizer.encode(f"{row['output']}<|im_end|>")
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        losses.append(functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("family", ["bloom", "mpt", "opt", "mamba", "rwkv", "gpt_oss"])
def test_packing_is_refused_where_examples_would_read_each_other(family, tmp_path):
    make(family, tmp_path / "model")
    with pytest.raises(LabError, match="are not kept apart in") as error:
        trained(tmp_path / "model", tmp_path, packing=True)
    assert error.value.where == "packing"
    assert "packing: false" in error.value.fix


def test_packing_is_refused_in_one_line_where_transformers_needs_a_kernel(tmp_path):
    make("lfm2", tmp_path / "model")
    with pytest.raises(LabError, match=r"cannot be trained on packed examples here: .*causal_conv1d"):
        trained(tmp_path / "model", tmp_path, packing=True)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text"])
def test_other_families_have_the_same_loss_packed_and_not(family, tmp_path):
    make(family, tmp_path / "model")
    losses = [trained(tmp_path / "model", tmp_path, packing=True), trained(tmp_path / "model", tmp_path)]
    wanted = by_hand(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval(), tmp_path)
    assert losses == pytest.approx([wanted, wanted], rel=1e-5)


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_without_packing_their_loss_is_right(family, tmp_path):
    make(family, tmp_path / "model")
    loss = trained(tmp_path / "model", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert loss == pytest.approx(by_hand(model, tmp_path), rel=1e-5)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_a_cap_on_the_logits_that_trl_leaves_out_is_refused(stage, tmp_path, tiny_rows):
    make("recurrent_gemma", tmp_path / "model")
    rows = {"sft": "sft", "dpo": "preference", "kto": "kto"}[stage]
    dataset = {} if stage == "sft" else {"dataset": str(tiny_rows / f"{rows}.json")}
    with pytest.raises(LabError, match="TRL computes other probabilities for recurrent_gemma"):
        trained(tmp_path / "model", tmp_path, stage=stage, **dataset)


@pytest.mark.parametrize("family", PLAIN_ATTENTION)
def test_families_that_are_not_checked_are_right(family, tmp_path, monkeypatch):
    make(family, tmp_path / "model")
    monkeypatch.setattr(own_logits, "PLAIN_ATTENTION", ())
    assert trained(tmp_path / "model", tmp_path, packing=True) > 0


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_rounding_and_a_temperature_are_not_a_difference(family, tmp_path):
    make(family, tmp_path / "model")
    assert trained(tmp_path / "model", tmp_path, packing=True, pure_bf16=True) > 0
    sampled = {"reward_funcs": "short_answer", "num_generations": 2, "temperature": 0.7, "max_new_tokens": 4}
    trained(tmp_path / "model", tmp_path, stage="grpo", **sampled)
