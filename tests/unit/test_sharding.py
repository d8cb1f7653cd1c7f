"""FSDP and DeepSpeed in a recipe: every spelling becomes what transformers reads, and nothing is ignored."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model
from transformers import AutoModelForCausalLM
from transformers.integrations.fsdp import is_fsdp_managed_module

from ftlab import device
from ftlab.errors import LabError
from ftlab.recipe import library_args, sharding
from ftlab.recipe import read as recipes
from ftlab.runs import callbacks, chat, launch, train, world

CPU = device.Machine("cpu", "test", "float32", 2, 2**34, "test")


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ({"fsdp": True}, None),
        ({"fsdp": "full_shard auto_wrap"}, {"reshard_after_forward": True}),
        ({"fsdp": ["shard_grad_op", "offload"]}, {"reshard_after_forward": False, "cpu_offload": True}),
        (
            {"fsdp": "full_shard", "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
            {"reshard_after_forward": True, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
        ),
        (
            {"fsdp": True, "fsdp_config": {"fsdp_offload_params": True, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}},
            {"cpu_offload": True, "reshard_after_forward": False},
        ),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": 2, "min_num_params": 9}}, {"version": 2, "min_num_params": 9}),
    ],
)
def test_every_spelling_of_fsdp_is_one(tiny_recipe, given, config):
    made = recipes.load(tiny_recipe | given)
    assert made.training["fsdp"] is True and made.training.get("fsdp_config") == config
    settings, _ = library_args.training_settings(made, Path("run"), CPU)
    assert settings["fsdp"] is True and settings.get("fsdp_config") == config


@pytest.mark.parametrize("off", [False, "", []])
def test_fsdp_can_be_off(tiny_recipe, off):
    made = recipes.load(tiny_recipe | {"fsdp": off})
    assert not made.training.get("fsdp") and launch.to_start(made) == 0


def test_a_file_holds_the_configuration(tiny_recipe, tmp_path):
    path = tmp_path / "fsdp.json"
    path.write_text('{"fsdp_state_dict_type": "SHARDED_STATE_DICT"}')
    made = recipes.load(tiny_recipe | {"fsdp": True, "fsdp_config": str(path)})
    assert made.training["fsdp_config"] == {"state_dict_type": "SHARDED_STATE_DICT"}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"fsdp": "full_shrad"}, r"`fsdp` cannot be 'full_shrad'\n  fix: did you mean full_shard"),
        ({"fsdp": "hybrid_shard"}, r"`fsdp` cannot be 'hybrid_shard'"),
        ({"fsdp": True, "fsdp_config": {"fsdp_verison": 2}}, r"'verison'\n  fix: did you mean version"),
        (
            {"fsdp": True, "fsdp_config": {"sharding_strategy": "NO_SHARD"}},
            r"cannot be 'NO_SHARD'\n  fix: .*FULL_SHARD",
        ),
        ({"fsdp": True, "fsdp_config": "nowhere.json"}, r"fsdp_config: nowhere.json` names no JSON object"),
        ({"fsdp": 3}, r"`fsdp` cannot be 3"),
        ({"fsdp": True, "deepspeed": "zero2"}, r"`fsdp` and `deepspeed` both shard the model"),
        ({"pissa_init": True, "deepspeed": "zero2"}, r"`pissa_init` needs whole weights"),
    ],
)
def test_what_would_be_ignored_is_refused(tiny_recipe, given, complaint):
    with pytest.raises(LabError, match=complaint):
        recipes.load(tiny_recipe | given)


def test_a_configuration_without_fsdp_has_no_effect_and_that_is_said(tiny_recipe, capsys):
    recipes.load(tiny_recipe | {"fsdp_config": {"version": 2}})
    assert "fsdp_config: {'version': 2} has no effect in this run: it needs fsdp: true" in capsys.readouterr().out


@pytest.mark.parametrize("name", sharding.SHIPPED)
def test_the_shipped_files_are_what_their_names_say(tiny_recipe, name):
    settings, _ = library_args.training_settings(recipes.load(tiny_recipe | {"deepspeed": name}), Path("run"), CPU)
    zero = settings["deepspeed"]["zero_optimization"]
    assert zero["stage"] == int(name[4]) and ("offload_param" in zero) == name.endswith("offload")
    # Without it Trainer would save no whole model.
    assert zero["stage"] < 3 or zero["stage3_gather_16bit_weights_on_model_save"] is True
    # What a recipe says is not said twice: these follow its batch size and its dtype.
    assert {settings["deepspeed"][key] for key in ("train_batch_size", "gradient_clipping")} == {"auto"}


@pytest.mark.parametrize("content", [None, "not JSON", "[]", "{}"])
def test_a_file_without_a_configuration_is_refused(tmp_path, content):
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        LabError, match=r"ds.json` names no JSON object .*\n  fix: .* zero1, zero2, zero3, zero3_offload"
    ):
        sharding.deepspeed(str(path))
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    assert sharding.deepspeed(str(path)) == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("asked", "bf16", "refused"),
    [("bf16", False, True), ("fp16", False, True), ("fp16", True, True), ("bf16", True, False), ("no", True, False)],
)
def test_accelerate_sets_no_other_number_format(monkeypatch, asked, bf16, refused):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    args = SimpleNamespace(bf16=bf16, fp16=False)
    if refused:
        got = "bf16" if bf16 else "float32"
        line = (
            f"^mixed_precision: accelerate's configuration asks for mixed precision in {asked}, this run is in {got}\n"
        )
        with pytest.raises(LabError, match=line):
            world.require_format(args)
    else:
        world.require_format(args)


def test_a_deepspeed_file_does_not_contradict_the_recipe():
    lines = [
        "- ds bf16.enabled=True vs hf bf16|bf16_full_eval=False",
        "- ds gradient_clipping=3 vs hf max_grad_norm=1.0",
    ]
    with pytest.raises(LabError) as told:
        world.require_deepspeed(SimpleNamespace(mismatches=lines, config={}))
    assert str(told.value).splitlines() == [
        "deepspeed: its configuration and the recipe disagree: bf16.enabled=true, recipe: bf16|bf16_full_eval=false; "
        "gradient_clipping=3, recipe: max_grad_norm=1.0",
        "  fix: write `\"auto\"` there: it then takes the recipe's value, and the machine's dtype",
    ]
    assert told.value.exit_code == 2


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"zero_optimization": {"stage": 2, "offload_optimiser": {}}}, "offload_optimiser: Extra inputs are not perm"),
        ({"zero_optimization": {"stage": 7}}, "stage: Input should be"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "AssertionError: bfloat16 and fp16 modes"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": True}}, ""),
    ],
)
def test_what_deepspeed_would_refuse_is_refused_before_the_model_is_loaded(entries, reason):
    pytest.importorskip("deepspeed", reason="installed by hand: pip install 'ftlab[deepspeed]'")
    config = SimpleNamespace(mismatches=[], config={"train_micro_batch_size_per_gpu": 1} | entries)
    if reason:
        with pytest.raises(LabError, match=f"^deepspeed: DeepSpeed refuses its configuration: {reason}"):
            world.require_deepspeed(config)
    else:
        world.require_deepspeed(config)


class Refused(Exception):
    """An exception of a library's own, as DeepSpeed's ZeRORuntimeException."""


@pytest.mark.parametrize("error", [Refused("offload needs its own optimizer\nMore."), AssertionError("no such stage")])
def test_what_is_refused_before_the_first_step_is_one_line(error):
    begin = callbacks.Begin(lambda model: None)
    with pytest.raises(LabError, match=r"^the training settings are inconsistent: ") as told, begin.refusing():
        raise error
    assert str(told.value).splitlines()[0].endswith(("offload needs its own optimizer", "no such stage"))
    begin.begun = True
    with pytest.raises(type(error)), begin.refusing():
        raise error


def test_a_lock_of_a_compilation_that_was_killed_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    lock = tmp_path / "run.extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    world.own_extensions(tmp_path / "run.extensions")
    assert not lock.exists() and os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "run.extensions")
    # One that the user names may be in use.
    lock.touch()
    world.own_extensions(tmp_path)
    assert lock.exists()


def test_deepspeed_is_needed_where_it_is_asked_for(tiny_recipe, monkeypatch):
    monkeypatch.setattr(train.packages, "find_spec", lambda name: None if name == "deepspeed" else True)
    with pytest.raises(LabError, match=r"deepspeed: .*\n  fix: pip install 'ftlab\[deepspeed\]'"):
        train.train(recipes.load(tiny_recipe | {"deepspeed": "zero2"}))


def test_a_partitioned_embedding_is_not_grown(monkeypatch):
    """ZeRO-3 leaves an empty tensor in its place: read as no rows, it was cut to the tokenizer's tokens."""
    weight, tokenizer = torch.nn.Parameter(torch.empty(0)), SimpleNamespace()
    weight.ds_shape = torch.Size([300, 64])
    resized, model = [], SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))
    model.resize_token_embeddings = lambda rows: resized.append(rows)
    monkeypatch.setattr(chat.models, "unreachable", lambda tokenizer, rows: rows < 258)
    chat.grow(model, tokenizer)
    assert not resized


@pytest.mark.parametrize("adapted", [True, False])
def test_a_process_that_has_written_its_completions_waits_for_the_others(tmp_path, adapted):
    # `generate` asks this of the model whose method it is: of an adapter's base.
    make_model(tmp_path)
    base = model = AutoModelForCausalLM.from_pretrained(tmp_path)
    if adapted:
        model = get_peft_model(base, LoraConfig(target_modules="all-linear"))
    assert not is_fsdp_managed_module(base)
    world.share_generation(model)
    assert is_fsdp_managed_module(base)
