"""Every method of PEFT that a recipe has: it trains, changes only what it names, comes back as saved, and merges."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import HRAConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, TrainerCallback

from ftlab import device, saved_weights
from ftlab.apps import cli
from ftlab.apps.serve import loading
from ftlab.errors import LabError
from ftlab.recipe import library_args, memory_needs, to_frameworks, to_script
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import LAYER_METHODS, PROMPT_METHODS
from ftlab.runs import adapters, build, chat, evaluation, export, train

METHODS = (*LAYER_METHODS, *PROMPT_METHODS)
# What is shorter than PEFT's defaults, for a model of 64 hidden units.
FIELDS = {
    "adalora": {"init_r": 4, "target_r": 2}, "fourierft": {"n_frequency": 50}, "loha": {"r": 2}, "lokr": {"r": 2},
    "oft": {"oft_block_size": 16}, "vera": {"r": 8}, "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix_tuning": {"num_virtual_tokens": 4}, "prompt_tuning": {"num_virtual_tokens": 4},
}  # fmt: skip
IDS = torch.arange(40, 60).reshape(2, 10)


def recipe_of(values: dict, method: str, **keys) -> recipes.Recipe:
    own = {name: value for name, value in values.items() if name != "lora_rank"}
    fields = {"peft_config": FIELDS[method]} if method in FIELDS else {}
    return recipes.load(own | {"finetuning_type": method} | fields | keys)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        # Virtual tokens have logits of their own, in front.
        return model.eval()(input_ids=IDS).logits[:, -IDS.shape[1] :].float()


def base_of(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# What is computed as for another method of the list, and only written by another config class.
ALIKE = ("fourierft", "loha", "lokr", "prefix_tuning")


@pytest.mark.parametrize(
    "method", [pytest.param(one, marks=[pytest.mark.lengthy] if one in ALIKE else []) for one in METHODS]
)
def test_a_method_trains_saves_comes_back_and_merges(method, tiny_recipe, tiny_model_dir):
    made = recipe_of(tiny_recipe, method, max_steps=2, learning_rate=3e-2)
    done = train.train(made)
    assert done.weights.name == saved_weights.ADAPTER
    untouched = logits(base_of(tiny_model_dir))
    model, _ = chat.load(str(tiny_model_dir), done.folder, dtype="float32")
    assert isinstance(model, PeftModel) and model.active_peft_config.peft_type.lower() == method
    said = logits(model)
    assert (said - untouched).abs().max() > 1e-4, "two steps changed nothing"
    again = PeftModel.from_pretrained(base_of(tiny_model_dir), done.weights)
    assert torch.equal(logits(again), said)
    with model.disable_adapter():
        assert torch.equal(logits(model), untouched), "a weight of the base has changed"
    if method not in PROMPT_METHODS:
        assert (logits(model.merge_and_unload()) - said).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["oft", "prompt_tuning"])
def test_export_merges_a_method_or_says_why_not(method, tiny_recipe, tiny_model_dir, tmp_path):
    done = train.train(recipe_of(tiny_recipe, method, max_steps=1, learning_rate=3e-2))
    values = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": str(done.folder)}
    wanted = recipes.load(values | {"export_dir": str(tmp_path / "merged")})
    if method == "prompt_tuning":
        place = str(done.folder)
        ways = {
            "export": lambda: export.export(wanted),
            "eval": lambda: evaluation.score(recipe_of(tiny_recipe, method, val_size=2)),
            "serve": lambda: loading.load(str(tiny_model_dir), [place]),
            "infer_backend: static": lambda: chat.load(str(tiny_model_dir), place, "static"),
        }
        for what, way in ways.items():
            with pytest.raises(LabError, match=f"PROMPT_TUNING puts virtual tokens.*{what}") as error:
                way()
            assert error.value.exit_code == 2
        assert not (tmp_path / "merged").exists()
    else:
        tuned, _ = chat.load(str(tiny_model_dir), done.folder, dtype="float32")
        export.export(wanted)
        assert (logits(base_of(tmp_path / "merged")) - logits(tuned)).abs().max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_counts_what_is_trained(method, tiny_recipe):
    made = recipe_of(tiny_recipe, method)
    model = base_of(made.model_name_or_path)
    trained = build.mark_trained(made, model, library_args.plan(made, device.describe()))
    decoder = memory_needs.sizes(made.model_name_or_path)
    counted = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    assert counted == memory_needs.training(made, decoder, device.describe()).trained


@pytest.mark.parametrize("method", METHODS)
def test_the_config_is_pefts_own_with_the_fields_of_the_recipe(method, tiny_recipe):
    made = recipe_of(tiny_recipe, method)
    config = adapters.config_of(made, build.skeleton(made, made.model_name_or_path))
    assert type(config).__name__ == library_args.PEFT_CONFIGS[method] and config.peft_type.lower() == method
    for name, value in FIELDS.get(method, {}).items():
        assert getattr(config, name) == value


WRONG = [
    ({"finetuning_type": "oft", "peft_config": {"oft_blocksize": 8}}, "oft_blocksize.*\n.*oft_block_size"),
    ({"finetuning_type": "oft", "peft_config": {"target_modules": ["q_proj"]}}, "lora_target"),
    ({"finetuning_type": "oft", "lora_target": "q_prj"}, "q_prj"),
    ({"finetuning_type": "oft", "peft_config": {"oft_block_size": 3}}, "oft_block_size: 3 does not divide the 64"),
    ({"finetuning_type": "oft", "peft_config": {"oft_block_size": 0, "r": 3}}, "r: 3 does not divide the 64 inputs of"),
    ({"finetuning_type": "oft", "oft_block_size": 3}, "oft_block_size: 3 does not divide the 64"),
    ({"finetuning_type": "oft", "peft_config": {"oft_block_size": 128}}, "128 does not divide the 64 inputs"),
    ({"finetuning_type": "oft", "peft_config": {"oft_block_size": 8, "r": 8}}, "peft_config: .*only specify"),
    ({"peft_config": {"r": 3}}, "lora_rank"),
    ({"finetuning_type": "prompt_tuning", "packing": True}, "packing: false"),
    ({"finetuning_type": "loha", "quantization_bit": 4}, "needs a `finetuning_type` of lora"),
    ({"finetuning_type": "adalora", "early_stopping_steps": 2, "val_size": 0.5, "eval_strategy": "steps"}, "go back"),
    ({"finetuning_type": "adalora", "stage": "dpo"}, "second adapter"),
    ({"finetuning_type": "adalora", "peft_config": {"init_r": 8}}, "`target_r` 8 must be smaller than `init_r` 8"),
    ({"finetuning_type": "adalora", "peft_config": {"target_r": 16}}, "`target_r` 16 must be smaller than `init_r` 12"),
    ({"finetuning_type": "adalora", "fsdp": "full_shard"}, "which `fsdp` shards"),
    ({"stage": "dpo", "ref_model": "other", "rope_scaling": "linear"}, "positions of its own"),
    ({"finetuning_type": "prompt_tuning", "stage": "orpo"}, "use `prefix_tuning`"),
    ({"finetuning_type": "p_tuning", "stage": "rm"}, "off the padding"),
    ({"finetuning_type": "prompt_tuning", "stage": "grpo", "reward_funcs": "exact_answer"}, "between virtual"),
    ({"finetuning_type": "prefix_tuning", "stage": "rloo", "reward_funcs": "exact_answer"}, "`stage: rloo` between"),
    ({"finetuning_type": "bitfit"}, "llama has no biases"),
    ({"finetuning_type": "oft", "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio"),
    ({"init_lora_weights": "olora", "pissa_init": True}, "two starts"),
    ({"init_lora_weights": "olora", "use_dora": True}, "olora.*use_dora"),
    ({"init_lora_weights": "olora", "stage": "dpo"}, "olora` changes the base, which is the reference of `stage: dpo"),
    (
        {"pissa_init": True, "stage": "grpo", "reward_funcs": "exact_answer", "ref_model": "other"},
        "pissa_init` changes the base, which is the reference of `stage: grpo",
    ),
    ({"init_lora_weights": "loftq"}, "loftq"),
    ({"finetuning_type": "freeze", "use_llama_pro": True, "freeze_trainable_layers": -1}, "spread evenly"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=lambda part: str(part)[:50])
def test_what_a_method_cannot_do_is_one_line_before_weights_are_read(
    keys, message, tiny_recipe, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(build, "load_model", lambda *_: pytest.fail("the weights were read"))
    own = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    for command in (train.check, train.train):
        with pytest.raises(LabError, match=message) as error:
            command(recipes.load(own | keys))
        assert error.value.exit_code == 2 and error.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "steps", "reason"),
    [
        ({}, 1, "1 step before `tfinal`, it needs 2"),
        ({"tfinal": 2}, 3, "1 step before `tfinal`, it needs 2"),
        ({"tinit": 2, "tfinal": 1}, 3, "leave none of 3 steps"),
    ],
)
def test_adalora_without_steps_to_score_ranks_in_is_one_line(fields, steps, reason, tiny_recipe, tmp_path):
    made = recipe_of(tiny_recipe, "adalora", max_steps=steps, peft_config=FIELDS["adalora"] | fields)
    with pytest.raises(LabError, match=reason) as error:
        train.train(made)
    assert error.value.exit_code == 2 and not Path(tiny_recipe["output_dir"]).exists()


def test_bitfit_trains_biases_alone(tiny_recipe, tiny_model_dir, tmp_path):
    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    tokenizer.save_pretrained(tmp_path / "neox")
    made = recipe_of(tiny_recipe, "bitfit", model_name_or_path=str(tmp_path / "neox"), max_steps=2)
    done = train.train(made)
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "neox", done.weights))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("bias") for name in changed)
    decoder = memory_needs.sizes(made.model_name_or_path)
    biases = sum(weight.numel() for name, weight in before.items() if name.endswith("bias"))
    assert memory_needs.training(made, decoder, device.describe()).trained == biases


def test_llama_pro_trains_layers_at_equal_distances():
    layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(12))
    made = SimpleNamespace(freeze_trainable_layers=4, use_llama_pro=True)
    chosen = build.chosen_layers(made, layers)
    assert [list(layers).index(layer) for layer in chosen] == [2, 5, 8, 11]
    for count in (5, -4):
        made.freeze_trainable_layers = count
        with pytest.raises(LabError, match="spread evenly"):
            build.chosen_layers(made, layers)


def test_olora_is_saved_as_an_adapter_of_the_unchanged_base(tiny_recipe, tiny_model_dir):
    done = train.train(recipes.load(tiny_recipe | {"init_lora_weights": "olora", "max_steps": 2}))
    model, _ = chat.load(str(tiny_model_dir), done.folder, dtype="float32")
    said = logits(model)
    with model.disable_adapter():
        untouched = logits(model)
    assert torch.equal(untouched, logits(base_of(tiny_model_dir))) and (said - untouched).abs().max() > 1e-4


def test_an_adapter_of_another_method_is_continued_as_one(tiny_recipe, tmp_path, capsys):
    first = train.train(recipe_of(tiny_recipe, "oft", max_steps=1))
    values = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    values |= {"adapter_name_or_path": str(first.folder), "output_dir": str(tmp_path / "second"), "max_steps": 1}
    made = recipes.load(values)
    assert made.finetuning_type == "oft"
    for keys in ({"finetuning_type": "lora"}, {"finetuning_type": "oft", "peft_config": {"r": 2}}):
        with pytest.raises(LabError, match="conflicts with the adapter"):
            recipes.load(values | keys)
    with pytest.raises(LabError, match="`loraplus_lr_ratio` needs"):
        recipes.load(values | {"loraplus_lr_ratio": 4.0})
    second = train.train(made)
    old, new = (load_file(run.weights / saved_weights.ADAPTER_WEIGHTS) for run in (first, second))
    assert old.keys() == new.keys() and any(not torch.equal(old[name], new[name]) for name in old)


class Stop(TrainerCallback):
    """Ask a run to stop after its first step, as `touch STOP` does."""

    def on_step_begin(self, args, state, control, **_):
        (Path(args.output_dir) / "STOP").touch()


@pytest.mark.parametrize("method", ["ia3", "p_tuning"])
def test_a_stopped_run_ends_as_if_it_had_not_stopped(method, tiny_recipe, tmp_path, capsys):
    """What PEFT saves whole is resumed; P-tuning, whose encoder it does not save, starts over, and that is said."""
    made = recipe_of(tiny_recipe, method, max_steps=2)
    whole = train.train(recipe_of(tiny_recipe, method, max_steps=2, output_dir=str(tmp_path / "whole")))
    assert train.train(made, callbacks=[Stop()]).stopped_at == 1
    capsys.readouterr()
    again = train.train(made)
    said = capsys.readouterr().out
    assert ("training starts over" in said) is (method == "p_tuning")
    assert again.metrics.get("resumed_from_step") == (None if method == "p_tuning" else 1)
    left, right = ((run.weights / saved_weights.ADAPTER_WEIGHTS).read_bytes() for run in (whole, again))
    assert left == right
    if method == "p_tuning":
        values = recipes.plain(made) | {"adapter_name_or_path": str(whole.folder), "output_dir": str(tmp_path / "more")}
        del values["peft_config"]
        with pytest.raises(LabError, match="cannot be trained further") as error:
            train.check(recipes.load(values))
        assert error.value.exit_code == 2


def test_other_frameworks_get_the_method_or_refuse_it(tiny_recipe, tmp_path):
    oft = recipe_of(tiny_recipe, "oft")
    assert "OFTConfig(" in to_script.script(oft) and "oft_block_size=16" in to_script.script(oft)
    shown = to_frameworks.show(oft, "llamafactory")
    assert "finetuning_type: oft" in shown and "oft_block_size: 16" in shown and "oft_target: all" in shown
    (tmp_path / "shown.yaml").write_text(shown)
    assert recipes.load(tmp_path / "shown.yaml").peft_config["oft_block_size"] == 16
    for framework in ("llamafactory", "swift", "axolotl", "alpaca-lora"):
        with pytest.raises(LabError, match="finetuning_type: ia3"):
            to_frameworks.show(recipe_of(tiny_recipe, "ia3"), framework)
    with pytest.raises(LabError, match="adalora"):
        to_script.script(recipe_of(tiny_recipe, "adalora"))


def test_memory_says_that_activations_are_lora_s(tiny_recipe, tmp_path, capsys):
    recipes.write(recipe_of(tiny_recipe, "ia3"), tmp_path / "ia3.yaml")
    assert cli.main(["memory", str(tmp_path / "ia3.yaml")]) == 0
    said = capsys.readouterr().out
    assert "ia3  <- this recipe" in said and "estimated as LoRA's" in said


def test_an_adapter_of_a_method_that_ftlab_has_not_is_chatted_with_and_not_trained_further(tiny_recipe, tmp_path):
    base = str(tiny_recipe["model_name_or_path"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), HRAConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "hra")
    own = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    asked = recipes.load(own | {"adapter_name_or_path": str(tmp_path / "hra")})
    with pytest.raises(LabError, match="was trained with hra, which ftlab does not train") as error:
        train.train(asked)
    assert error.value.exit_code == 2 and not (tmp_path / "run").exists()
    model, _ = chat.load(base, tmp_path / "hra")
    assert torch.allclose(logits(model), logits(adapted))
