"""Layers that a recipe names: every name must match, on models that call them differently and with tied heads."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from ftlab import device
from ftlab.apps import cli
from ftlab.errors import LabError, near
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes
from ftlab.runs import build, targets, train
from tests.tiny import make_tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def other_models(tmp_path_factory):
    """Return a function that gives the folder of a tiny Phi-3, GPT-NeoX or tied Llama."""
    tokenizer = make_tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    kinds = {
        "phi3": (
            Phi3ForCausalLM,
            Phi3Config(**SIZES, **ids, num_key_value_heads=4, original_max_position_embeddings=64),
        ),
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES, **ids)),
        "tied": (LlamaForCausalLM, LlamaConfig(**SIZES, **ids, num_key_value_heads=2, tie_word_embeddings=True)),
    }

    def folder(name: str) -> str:
        path = tmp_path_factory.getbasetemp() / f"other-{name}"
        if not path.is_dir():
            kind, config = kinds[name]
            kind(config).save_pretrained(path)
            tokenizer.save_pretrained(path)
        return str(path)

    return folder


NOT_THERE = [
    ("tied", {"lora_target": "q_proj,W_pack"}, "lora_target: .*called W_pack\n.*q_proj"),
    ("tied", {"lora_target": "q_prj,v_prj"}, "called q_prj, v_prj\n.*: q_proj, v_proj"),
    ("tied", {"lora_target": "mlp"}, "called mlp"),
    ("tied", {"lora_target": "all,q_proj"}, "called all"),
    ("tied", {"lora_target": ".*_proj"}, r"called \.\*_proj"),
    ("phi3", {"lora_target": "q_proj,o_proj"}, "called q_proj\n.*qkv_proj"),
    ("neox", {"lora_target": "query_key_value,o_proj"}, "called o_proj\n.*dense"),
    ("tied", {"additional_target": "embed_tokens,lm_heads"}, "additional_target: .*called lm_heads\n.*lm_head"),
    ("tied", {"additional_target": "head"}, "called head"),
    ("tied", {"stage": "rm", "dataset": "preference", "additional_target": "lm_head"}, "called lm_head"),
    ("tied", {"finetuning_type": "freeze", "freeze_trainable_modules": "mlp,typo"}, "called typo"),
    ("tied", {"finetuning_type": "freeze", "freeze_trainable_modules": "lm_head"}, "called lm_head"),
    ("tied", {"finetuning_type": "freeze", "freeze_extra_modules": "lm_heads"}, "freeze_extra.*called lm_heads"),
    ("tied", {"finetuning_type": "freeze", "freeze_extra_modules": "mlp"}, "called mlp"),
    ("tied", {"finetuning_type": "freeze", "freeze_extra_modules": "model"}, "called model"),
    ("tied", {"finetuning_type": "freeze", "freeze_trainable_layers": 3}, "cannot choose 3 of 2"),
    ("tied", {"optim_target_modules": ["q_proj", "W_pack"]}, "optim_target_modules: .*called W_pack"),
    ("tied", {"lora_target": "q_proj,lm_head", "additional_target": "lm_head"}, "both name lm_head"),
    *(
        ("tied", {"finetuning_type": method, "peft_config": fields}, message)
        for method, fields, message in (
            ("loha", {"layers_to_transform": [0, 99]}, "peft_config.layers_to_transform: .*called 99\n.*: 0, ..., 1"),
            ("lokr", {"rank_pattern": {"q_proj": 4, "nobody": 4}}, "peft_config.rank_pattern: .*called nobody\n"),
            ("loha", {"alpha_pattern": {"^q": 4}}, r"alpha_pattern: .*called \^q"),
            ("loha", {"alpha_pattern": {"(": 4}}, r"alpha_pattern: .*called \("),
            ("vera", {"exclude_modules": None} | {"layers_to_transform": -1}, "called -1"),
            ("oft", {"exclude_modules": ["q_proj", "W_pack"]}, "exclude_modules: .*called W_pack\n.*q_proj"),
            ("ia3", {"feedforward_modules": ["down_prj"]}, "feedforward_modules: .*called down_prj\n.*: down_proj"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "keys", "message"), NOT_THERE, ids=lambda part: str(part)[:60])
def test_a_name_that_matches_nothing_is_refused_before_weights_are_read(
    model, keys, message, other_models, tiny_recipe, tiny_rows, monkeypatch
):
    monkeypatch.setattr(build, "load_model", lambda *_: pytest.fail("the weights were read"))
    keys = keys | ({"dataset": str(tiny_rows / f"{keys['dataset']}.json")} if "dataset" in keys else {})
    made = recipes.load(tiny_recipe | {"model_name_or_path": other_models(model)} | keys)
    for refusing in (train.train, train.check):
        with pytest.raises(LabError, match=message) as error:
            refusing(made)
        assert error.value.exit_code == 2 and error.value.fix


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"lora_target": "q_proj,v_proj"}, {"q_proj", "v_proj"}),
        ({"lora_target": "layers.0.mlp.down_proj"}, {"down_proj"}),
        ({"lora_target": "q_proj", "additional_target": "embed_tokens"}, {"q_proj", "embed_tokens"}),
        ({"finetuning_type": "loha", "lora_target": "q_proj,v_proj", "peft_config": {
            "layers_to_transform": [1], "rank_pattern": {"layers.1.*q_proj": 2}, "exclude_modules": ["v_proj"]}},
         {"q_proj"}),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "mlp,input_layernorm"},
         {"gate_proj", "up_proj", "down_proj", "input_layernorm"}),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "q_proj", "freeze_extra_modules": "norm"},
         {"q_proj", "norm"}),
        # A tied head is the embedding: it is trained under either name.
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "q_proj", "freeze_extra_modules": "lm_head"},
         {"q_proj", "embed_tokens"}),
    ],
)  # fmt: skip
def test_exactly_the_named_layers_are_trained(keys, trained, other_models, tiny_recipe):
    made = recipes.load(tiny_recipe | {"model_name_or_path": other_models("tied")} | keys)
    base = LlamaForCausalLM.from_pretrained(other_models("tied"))
    known = targets.all_linear(base) | {"embed_tokens", "norm", "input_layernorm", "lm_head"}
    model = build.prepare_model(made, base, device.describe())
    paths = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {part for path in paths for part in path.split(".") if part in known} == trained


def test_a_block_is_found_where_experts_are_a_longer_list():
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList()
    for _ in range(2):
        block = torch.nn.Module()
        block.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8))
        model.layers.append(block)
    assert targets.blocks(model) is model.layers


def test_all_is_every_linear_layer_but_the_head(other_models, tiny_recipe):
    made = recipes.load(tiny_recipe | {"model_name_or_path": other_models("phi3")})
    model = build.skeleton(made, other_models("phi3"))
    assert targets.all_linear(model) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


@pytest.fixture
def first(tiny_recipe, tmp_path):
    """Return the run folder of an adapter of rank 4 on two layers, and the keys of a recipe that continues it."""
    done = train.train(recipes.load(tiny_recipe | {"lora_target": "q_proj,v_proj", "lora_alpha": 6, "max_steps": 1}))
    plain = {name: value for name, value in tiny_recipe.items() if name != "lora_rank"}
    return plain | {"adapter_name_or_path": str(done.folder), "output_dir": str(tmp_path / "second"), "max_steps": 1}


def test_a_continued_adapter_decides_its_own_keys_and_they_are_recorded(first):
    made = recipes.load(first)
    assert (made.lora_rank, made.lora_alpha, made.lora_target) == (4, 6, "q_proj,v_proj")
    done = train.train(made)
    assert json.loads((done.weights / "adapter_config.json").read_text())["r"] == 4
    written = (done.folder / "recipe.yaml").read_text()
    assert "lora_rank: 4" in written and "lora_alpha: 6" in written
    assert "| `lora_rank` | 4 |" in (done.folder / "README.md").read_text()
    # What was recorded is the same run.
    assert train.train(recipes.load(first)).reused and train.train(recipes.load(done.folder / "recipe.yaml")).reused
    shapes = {
        weight.shape[0]
        for name, weight in load_file(done.weights / "adapter_model.safetensors").items()
        if "lora_A" in name
    }
    assert shapes == {4}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora_rank": 16}, "`lora_rank: 16` conflicts with .*has 4"),
        ({"lora_rank": 8}, "`lora_rank: 8` conflicts with"),
        ({"lora_alpha": 16}, "`lora_alpha: 16`.*has 6"),
        ({"lora_dropout": 0.1}, "`lora_dropout: 0.1`.*has 0"),
        ({"lora_target": "q_proj"}, "`lora_target: q_proj`.*has q_proj,v_proj"),
        ({"lora_target": "all"}, "`lora_target: all`.*has q_proj, v_proj"),
        ({"additional_target": "lm_head"}, "`additional_target: lm_head`"),
        ({"use_dora": True}, "`use_dora: True`.*has false"),
        ({"pissa_init": True}, "`pissa_init: True`.*has false"),
        ({"stage": "rm", "dataset": "preference"}, "`stage: rm` cannot continue"),
    ],
    ids=str,
)
def test_what_a_continued_adapter_cannot_have_is_refused(first, tiny_rows, keys, message, capsys):
    keys = keys | ({"dataset": str(tiny_rows / f"{keys['dataset']}.json")} if "dataset" in keys else {})
    for refusing in (train.train, train.check):
        with pytest.raises(LabError, match=message) as error:
            refusing(recipes.load(first | keys))
        assert error.value.exit_code == 2 and error.value.fix


def test_what_agrees_with_a_continued_adapter_may_be_written(first):
    agreeing = {"lora_rank": 4, "lora_alpha": 6, "lora_target": "v_proj, q_proj", "lora_dropout": 0.0}
    assert recipes.load(first | agreeing).lora_rank == 4


@pytest.mark.parametrize("where", ["missing", "there"])
def test_a_checkpoint_to_resume_from_must_be_of_the_run(tiny_recipe, tmp_path, where):
    if where == "there":
        train.train(recipes.load(tiny_recipe | {"output_dir": str(tmp_path / "one"), "max_steps": 2}))
    asked = {"output_dir": str(tmp_path / "two"), "resume_from_checkpoint": str(tmp_path / "one" / "checkpoint-2")}
    with pytest.raises(LabError, match="cannot resume from this checkpoint: output_dir holds no run"):
        train.train(recipes.load(tiny_recipe | asked))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "dpo"}, "stage dpo trains on"),
        ({"eval_strategy": "steps"}, "no validation set|no validation"),
        ({"val_size": 12}, "cannot hold out"),
        ({"template": "llama3"}, "does not match this model"),
        ({"do_train": False}, "do_train: false"),
        ({"report_to": "wandb"}, "settings are inconsistent|wandb"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr cannot use these arguments"),
        ({"optim": "lomo"}, "the package lomo_optim is required"),
        ({"model_name_or_path": "./nowhere"}, "folder not found"),
        ({"lora_target": "W_pack"}, "called W_pack"),
        ({"adapter_name_or_path": "nowhere"}, "not an adapter"),
    ],
)
def test_check_refuses_what_train_refuses_and_leaves_nothing(tiny_recipe, tmp_path, keys, message, capsys):
    path = tmp_path / "r.yaml"
    recipes.strict_yaml.dump(tiny_recipe | keys, path)
    assert cli.main(["recipe", "check", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_check_takes_what_train_takes_without_reading_weights(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "load_model", lambda *_: pytest.fail("the weights were read"))
    path = tmp_path / "r.yaml"
    recipes.strict_yaml.dump(tiny_recipe | {"lora_target": "q_proj", "val_size": 0.25}, path)
    assert cli.main(["recipe", "check", str(path)]) == 0
    assert "valid recipe" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_check_says_what_it_could_not_check(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    recipes.strict_yaml.dump({"model_name_or_path": "nobody/no-such-model", "export_dir": "x"}, path)
    assert cli.main(["recipe", "check", str(path)]) == 0
    assert "only the keys were checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lora_rnak", "lora_rank"),
        ("learning_rat", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"),
        ("cutoff", "cutoff_len"),
        ("Stage", "stage"),
    ],
)
def test_a_near_name_is_suggested(typed, meant):
    with pytest.raises(LabError, match=f"did you mean .*{meant}"):
        recipes.load({"model_name_or_path": "smollm2-135m", typed: 1})


@pytest.mark.parametrize("typed", ["xyzzy", "gradient_predivide", "kv_lora_workers", "q"])
def test_a_name_like_no_other_gets_no_suggestion(typed):
    with pytest.raises(LabError) as error:
        recipes.load({"model_name_or_path": "smollm2-135m", typed: 1})
    assert "did you mean" not in str(error.value)
    assert error.value.fix


def test_names_that_share_letters_only_are_not_near():
    assert near("xyzzy", recipes.known()) == [] == near("", recipes.known())
    assert library_args.names("a, b,,c ") == ["a", "b", "c"]
