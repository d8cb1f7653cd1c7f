"""A mixture of experts in a recipe: what `lora_target` trains, the balancing loss, and how many weights are counted."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, OlmoeConfig, Qwen3MoeConfig
from transformers.models.mixtral import modeling_mixtral

from ftlab import catalogue, device
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.recipe.trained_weights import trained_weights
from ftlab.runs import balance, build, targets, train

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PART = {"attention": ".self_attn.", "experts": ".experts.", "router": ".gate."}
TARGETS = [
    ({}, ["attention", "experts", "router"]),
    ({"lora_target": "q_proj,v_proj"}, ["attention"]),
    ({"lora_target": "gate,q_proj"}, ["attention", "router"]),
    ({"lora_target": "experts"}, ["experts"]),
    ({"lora_target": "gate_up_proj,down_proj,gate"}, ["experts", "router"]),
    ({"lora_target": "down_proj,o_proj"}, ["attention", "experts"]),
    ({"additional_target": "gate"}, ["attention", "experts", "router"]),
]


@pytest.fixture
def mixture_recipe(tiny_recipe, tiny_mixture_dir):
    """The keys of a recipe that trains the mixture for two steps."""
    return tiny_recipe | {"model_name_or_path": str(tiny_mixture_dir), "max_steps": 2, "save_steps": 2}


def kinds(names) -> set[str]:
    return {kind for name in names for kind, part in PART.items() if part in name}


@pytest.mark.parametrize(("keys", "expected"), TARGETS, ids=str)
def test_what_a_target_names_is_trained_and_counted(keys, expected, mixture_recipe, tiny_mixture_dir):
    made = recipes.load(mixture_recipe | keys)
    machine = device.describe()
    model = build.prepare_model(made, build.load_model(made, made.model_name_or_path, machine), machine)
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert sorted(kinds(trained)) == expected
    if "additional_target" not in keys:
        assert trained_weights(made, memory_needs.sizes(str(tiny_mixture_dir))) == sum(trained.values())


@pytest.mark.parametrize("config", [OlmoeConfig, Qwen3MoeConfig], ids=lambda config: config.model_type)
def test_all_reaches_the_experts_and_router_of_other_families(config, mixture_recipe):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config(**SIZES, num_experts=4, moe_intermediate_size=16, vocab_size=99)
        )
    made = recipes.load(mixture_recipe)
    adapted = build.mark_trained(made, model, build.library_args.plan(made, device.describe(), config.model_type))
    assert kinds(name for name, weight in adapted.named_parameters() if weight.requires_grad) == set(PART)


def test_a_run_changes_experts_and_router_and_its_adapter_reloads(mixture_recipe, tiny_mixture_dir):
    run = train.train(recipes.load(mixture_recipe))
    base = AutoModelForCausalLM.from_pretrained(tiny_mixture_dir, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_mixture_dir), run.weights).eval()
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        before, expected = base(tokens).logits, adapted(tokens).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(before, expected)
    pairs = zip(merged.named_parameters(), base.parameters(), strict=True)
    changed = {name for (name, weight), other in pairs if not torch.equal(weight, other)}
    wanted = {name for name, _ in base.named_parameters() if kinds([name]) and "norm" not in name}
    assert changed == wanted


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora_target": "gate_proj,q_proj"}, "lora_target: .*called gate_proj\n.*gate"),
        ({"lora_target": "w1,q_proj"}, "called w1"),
        ({"lora_dropout": 0.1}, "lora_dropout.*linear layers only.*experts.down_proj"),
        ({"use_dora": True, "lora_target": "gate"}, "use_dora.*gate.weight"),
        ({"pissa_init": True}, "pissa_init.*linear layers only"),
    ],
    ids=str,
)
def test_a_target_that_cannot_be_trained_is_one_line(keys, message, mixture_recipe):
    for refusing in (train.train, train.check):
        with pytest.raises(LabError, match=message) as error:
            refusing(recipes.load(mixture_recipe | keys))
        assert error.value.exit_code == 2 and error.value.fix


def test_dropout_stays_possible_where_only_layers_are_adapted(mixture_recipe, tiny_mixture_dir):
    made = recipes.load(mixture_recipe | {"lora_dropout": 0.1, "lora_target": "q_proj"})
    targets.require(made, AutoModelForCausalLM.from_pretrained(tiny_mixture_dir))


def test_the_balancing_loss_joins_with_its_weight(mixture_recipe, tmp_path):
    losses = {}
    for weight in (0.0, 0.5, None):
        keys = {"output_dir": str(tmp_path / str(weight)), "max_steps": 1, "save_steps": 1}
        made = recipes.load(mixture_recipe | keys | {"moe_aux_loss_coef": weight})
        losses[weight] = json.loads((train.train(made).folder / "train_log.jsonl").read_text().splitlines()[0])
    assert "aux_loss" not in losses[0.0]
    assert losses[0.5]["loss"] - losses[0.0]["loss"] == pytest.approx(0.5 * losses[0.5]["aux_loss"], rel=0.02)
    # The model's own weight, 0.001.
    assert losses[None]["loss"] - losses[0.0]["loss"] == pytest.approx(0.001 * losses[None]["aux_loss"], abs=2e-3)


def test_experts_that_are_idle_in_one_layer_count_per_layer(tiny_mixture_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_mixture_dir)
    # Half of the experts gets every token in the first layer, the other half in the second.
    first = torch.tensor([[9.0, 9.0, 0.0, 0.0]]).repeat(8, 1)
    layers = (first, first.flip(1))
    with balance.per_layer(model, False):
        assert modeling_mixtral.load_balancing_loss_func(layers, 4, 2) == pytest.approx(2, abs=1e-3)
    with balance.per_layer(model, True):
        one = float(modeling_mixtral.load_balancing_loss_func((first,), 4, 2))
        assert modeling_mixtral.load_balancing_loss_func(layers, 4, 2) == pytest.approx(one) and one > 3.9
        assert modeling_mixtral.load_balancing_loss_func(None, 4, 2) == 0
    assert modeling_mixtral.load_balancing_loss_func(layers, 4, 2) == pytest.approx(2, abs=1e-3)


def test_a_recipe_balances_every_layer(mixture_recipe, tmp_path):
    found = {}
    for wanted in (False, True):
        keys = {"output_dir": str(tmp_path / str(wanted)), "max_steps": 1, "save_steps": 1, "moe_aux_loss_coef": 0.5}
        made = recipes.load(mixture_recipe | keys | {"moe_aux_loss_per_layer": wanted})
        found[wanted] = json.loads((train.train(made).folder / "train_log.jsonl").read_text().splitlines()[0])
    more = found[True]["aux_loss"] - found[False]["aux_loss"]
    assert more > 0 and found[True]["loss"] - found[False]["loss"] == pytest.approx(0.5 * more, rel=0.02, abs=1e-4)


def test_a_dense_model_has_no_balancing_loss(tiny_recipe):
    for refusing in (train.train, train.check):
        for keys in ({"moe_aux_loss_coef": 0.1}, {"moe_aux_loss_per_layer": True}):
            with pytest.raises(LabError, match=rf"{next(iter(keys))}: .*llama.* no router"):
                refusing(recipes.load(tiny_recipe | keys))


def test_memory_shows_all_and_active_weights(tiny_mixture_dir, capsys):
    assert cli.main(["memory", str(tiny_mixture_dir)]) == 0
    sizes = memory_needs.sizes(str(tiny_mixture_dir))
    model = AutoModelForCausalLM.from_pretrained(tiny_mixture_dir)
    unused = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name) // 2
    assert sizes.parameters == model.num_parameters() and sizes.active_parameters == sizes.parameters - unused
    assert "B of them used for a token" in capsys.readouterr().out


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_leaves_the_experts_as_they_are(bits):
    sizes = catalogue_sizes("mixtral-8x7b")
    made = recipes.load({"model_name_or_path": "mixtral-8x7b", "quantization_bit": bits})
    assert memory_needs.needs(made, device.describe()).weights > 2 * sizes.layers * sizes.expert_parameters


def catalogue_sizes(name: str):
    return next(model.sizes for model in catalogue.MODELS if model.name == name)


def test_adapted_experts_are_copied_once_per_layer_or_once():
    keys = {"model_name_or_path": "olmoe-1b-7b", "cutoff_len": 64, "per_device_train_batch_size": 1}
    sizes = catalogue_sizes("olmoe-1b-7b")
    peaks = {
        (target, checkpointing): memory_needs.needs(
            recipes.load(keys | {"lora_target": target, "gradient_checkpointing": checkpointing}), device.describe()
        ).peak
        for target in ("experts", "q_proj")
        for checkpointing in (False, True)
    }
    copies = 2 * sizes.layers * sizes.expert_parameters
    assert peaks["experts", False] - peaks["q_proj", False] > copies
    assert peaks["experts", True] - peaks["q_proj", True] < copies / 2
