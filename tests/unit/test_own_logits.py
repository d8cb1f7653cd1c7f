"""Models that TRL would train on other probabilities than their own are refused; the others have the right loss."""

import json

import families
import pytest
import tiny
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.errors import LabError
from ftlab.memory import PLAIN_ATTENTION
from ftlab.recipe import read as recipes
from ftlab.runs import own_logits, train


def make(family: str, folder) -> None:
    """Write a random model of a family and its tokenizer."""
    families.model_of(family).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)


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
