"""Models that TRL would train on other probabilities than their own are refused; the others have the right loss."""

import json

import families
import pytest
import tiny
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab import models
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.memory import PLAIN_ATTENTION
from ftlab.recipe import read as recipes
from ftlab.recipe import strict_yaml
from ftlab.runs import own_logits, train


def make(family: str, folder) -> None:
    """Write a random model of a family and its tokenizer."""
    families.model_of(family).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)


def trained(folder, tmp_path, **keys: object) -> float:
    """Return the loss of one step on four rows."""
    rows = [{"instruction": f"q{i}" * (i + 1), "output": f"a{i}, yes" * (i + 1)} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    base = tiny.make_recipe(folder, tmp_path, tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
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


@pytest.mark.parametrize("family", [*families.SIZES, *families.WITH_STATE])
def test_what_is_known_of_a_family_is_what_its_model_shows(family, tmp_path, monkeypatch):
    make(family, tmp_path / "model")
    recipe = recipes.load(tiny.make_recipe(tmp_path / "model", tmp_path, tmp_path / "run") | {"packing": True})
    known = shown = None
    try:
        own_logits.refuse_family(recipe, models.read_config(tmp_path / "model"))
    except LabError as error:
        known = error.where
    monkeypatch.setattr(own_logits, "refuse_family", lambda *_: None)
    try:
        trained(tmp_path / "model", tmp_path, packing=True)
    except LabError as error:
        shown = error.where
    assert known == shown


def test_recipe_check_says_what_train_would_refuse(tmp_path, tiny_rows, capsys):
    make("mamba", tmp_path / "model")
    keys = tiny.make_recipe(tmp_path / "model", tiny_rows, tmp_path / "run") | {"finetuning_type": "full"}
    strict_yaml.dump(keys | {"packing": True}, tmp_path / "r.yaml")
    assert cli.main(["recipe", "check", str(tmp_path / "r.yaml")]) == 2
    assert "packed examples are not kept apart in mamba models" in capsys.readouterr().err
    assert cli.main(["recipe", "check", str(tmp_path / "r.yaml"), "packing=false"]) == 0


def test_packing_is_refused_in_one_line_where_transformers_needs_a_kernel(tmp_path, monkeypatch):
    make("lfm2", tmp_path / "model")
    with pytest.raises(LabError, match=r"cannot be trained on packed examples here: .*causal_conv1d"):
        trained(tmp_path / "model", tmp_path, packing=True)
    monkeypatch.setattr(own_logits, "CONVOLVED", ())
    with pytest.raises(LabError, match=r"cannot be trained on packed examples here: .*causal_conv1d"):
        trained(tmp_path / "model", tmp_path, packing=True)


def test_falcon_adds_its_alibi_once(tmp_path):
    families.model_of("falcon", alibi=True).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="sdpa").eval()
    loss = trained(tmp_path / "model", tmp_path)
    assert loss == pytest.approx(by_hand(model, tmp_path), rel=1e-5)
    with pytest.raises(LabError, match="eager attention adds ALiBi twice"):
        trained(tmp_path / "model", tmp_path, flash_attn="disabled")


@pytest.mark.parametrize(
    ("family", "dense"),
    [
        ("granitemoehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0}),
        ("jamba", {"num_experts": 1}),
        ("qwen3_next", {"mlp_only_layers": [0, 1]}),
    ],
)
def test_a_family_of_mixtures_can_have_a_model_without_experts(family, dense, tmp_path):
    families.model_of(family, **dense).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    loss = trained(tmp_path / "model", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert loss == pytest.approx(by_hand(model, tmp_path), rel=1e-5)
    with pytest.raises(LabError, match=f"a {family} model has no router"):
        trained(tmp_path / "model", tmp_path, moe_aux_loss_coef=0.01)


@pytest.mark.parametrize("family", ["granitemoe", "granitemoehybrid", "phimoe", "jamba", "jetmoe"])
def test_the_balancing_loss_is_the_model_s_own(family, tmp_path):
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    model = families.model_of(family, **sizes)
    model.save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    row = {"text": "one row, four times"}
    (tmp_path / "text.json").write_text(json.dumps([row] * 4))
    text = {"dataset": str(tmp_path / "text.json"), "stage": "pt", "packing": False}
    with_loss, without = (trained(tmp_path / "model", tmp_path, moe_aux_loss_coef=c, **text) for c in (0.5, 0.0))
    ids = torch.tensor([[*tiny.make_tokenizer().encode(row["text"]), model.config.eos_token_id]] * 4)
    with torch.no_grad():
        own = model(ids, output_router_logits=True).aux_loss.item()
    assert with_loss - without == pytest.approx(0.5 * own, rel=1e-3)


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


@pytest.mark.parametrize("family", ["mamba", "falcon_h1"])
def test_lora_on_all_layers_leaves_out_the_one_that_peft_refuses(family, tmp_path, capsys):
    make(family, tmp_path / "model")
    assert trained(tmp_path / "model", tmp_path, finetuning_type="lora") > 0
    assert f"leaves out out_proj, which PEFT refuses to adapt in {family} models" in capsys.readouterr().out
    (run,) = tmp_path.glob("run-*")
    layers = json.loads((run / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert "in_proj" in layers and "out_proj" not in layers
