"""What the weights are loaded as (`bf16`, `fp16`, `pure_bf16`) and where (`device_map`, `max_memory`, offloading)."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ftlab import cpu, device, models
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe.training_fields import FIELDS
from ftlab.runs import build, chat, train

CPU = device.Machine("cpu", "test", "bfloat16", 2, 2**34, "test")
PLAIN = device.Machine("cpu", "test", "float32", 2, 2**34, "test")
GPU = device.Machine("cuda", "test", "bfloat16", 2, 2**34, "test")
OLD_GPU = device.Machine("cuda", "test", "float16", 2, 2**34, "test")
FULL = {"finetuning_type": "full"}


@pytest.fixture(autouse=True)
def restored():
    """Put back what building a model has replaced."""
    yield
    cpu.undo()


@pytest.mark.parametrize(
    ("keys", "machine", "autocast", "weights", "trained"),
    [
        # LoRA: the base in the machine's format, adapters in float32 where their products are.
        ({}, PLAIN, "", torch.float32, torch.float32),
        ({}, CPU, "", torch.bfloat16, torch.float32),
        ({"bf16": True}, CPU, "", torch.bfloat16, torch.float32),
        ({"bf16": False}, CPU, "", torch.bfloat16, torch.float32),
        ({"fp16": True}, CPU, "", torch.bfloat16, torch.float32),
        ({}, GPU, "bf16", torch.bfloat16, torch.float32),
        ({"fp16": True}, GPU, "fp16", torch.bfloat16, torch.float32),
        ({"fp16": True}, OLD_GPU, "fp16", torch.float16, torch.float32),
        ({"bf16": True}, OLD_GPU, "fp16", torch.float16, torch.float32),
        # Weights that are trained: float32 and autocast, unless `pure_bf16` says otherwise.
        (FULL, CPU, "bf16", torch.float32, torch.float32),
        (FULL, GPU, "bf16", torch.float32, torch.float32),
        (FULL | {"fp16": True}, OLD_GPU, "fp16", torch.float32, torch.float32),
        (FULL | {"pure_bf16": True}, CPU, "", torch.bfloat16, torch.bfloat16),
    ],
)
def test_what_the_precision_keys_build(tiny_recipe, monkeypatch, keys, machine, autocast, weights, trained):
    recipe = recipes.load(tiny_recipe | keys)
    settings, _ = build.library_args.training_settings(recipe, Path("run"), machine)
    assert [name for name in ("bf16", "fp16") if settings.get(name, FIELDS[name].default)] == [autocast] * bool(
        autocast
    )
    model = build.load_model(recipe, recipe.model_name_or_path, machine)
    assert {weight.dtype for weight in model.parameters()} == {weights}
    built = build.mark_trained(recipe, model, build.library_args.plan(recipe, machine, "llama"))
    assert {weight.dtype for weight in built.parameters() if weight.requires_grad} == {trained}


@pytest.mark.parametrize(
    ("keys", "passed"),
    [
        ({"device_map": "cpu"}, {"device_map": "cpu", "max_memory": None, "offload_folder": None}),
        ({"max_memory": {"cpu": "1GiB"}}, {"device_map": "auto", "max_memory": {"cpu": 2**30}}),
        ({"device_map": "balanced", "offload_folder": "off"}, {"device_map": "balanced", "offload_folder": "off"}),
    ],
)
def test_training_and_chat_place_the_weights_where_a_recipe_says(tiny_recipe, monkeypatch, keys, passed):
    given, load = [], models.load_weights
    monkeypatch.setattr(
        models, "load_weights", lambda *place, **options: given.append(options) or load(*place, **options)
    )
    recipe = recipes.load(tiny_recipe | keys)
    assert train.train(recipe).metrics["train_loss"] > 0
    chat.from_recipe(recipe)
    assert len(given) == 2 and all(options | passed == options for options in given)


def test_a_device_for_each_module_is_passed_on(tiny_recipe):
    recipe = recipes.load(tiny_recipe, ["device_map.model=cpu", "device_map.lm_head=cpu", "max_memory.0=1GiB"])
    options = build.library_args.placement(recipe)
    # A number on the command line is that of a GPU.
    assert options["device_map"] == {"model": "cpu", "lm_head": "cpu"} and options["max_memory"] == {0: "1GiB"}


def test_offloaded_weights_answer_as_before_and_are_not_trained(tiny_recipe, tmp_path):
    # Room for 102 of the 107 thousand weights, of the two or four bytes that each has on this machine.
    room = 100 * getattr(torch, device.describe().dtype).itemsize
    keys = {"max_memory": {"cpu": f"{room}KiB"}, "offload_folder": str(tmp_path / "offloaded")}
    recipe = recipes.load(tiny_recipe | keys | {"shortcuts": False})
    asked = [{"role": "user", "content": "Hi"}]
    there, tokenizer = chat.from_recipe(recipe)
    assert "disk" in there.hf_device_map.values()
    whole, _ = chat.from_recipe(recipes.load(tiny_recipe | {"shortcuts": False}))
    assert chat.reply(there, tokenizer, asked, max_new_tokens=8) == chat.reply(
        whole, tokenizer, asked, max_new_tokens=8
    )
    with pytest.raises(LabError, match="offloaded weights cannot be trained") as refused:
        train.train(recipe)
    assert refused.value.exit_code == 2 and not Path(tiny_recipe["output_dir"]).exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"device_map": "nonsense"},
        {"max_memory": {"cpu": "much"}},
        {"max_memory": {"cpu": "1KiB"}, "offload_folder": "off"},
    ],
)
def test_a_place_that_weights_cannot_have_is_one_line(tiny_recipe, tmp_path, monkeypatch, keys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError) as refused:
        chat.from_recipe(recipes.load(tiny_recipe | keys))
    assert refused.value.exit_code == 2 and len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("method", "package"),
    [("gptq", "gptqmodel==7.6.0 optimum"), ("awq", "gptqmodel==7.6.0 optimum"), ("aqlm", "aqlm==1.1.7")],
)
def test_weights_of_a_quantizer_that_is_not_here_are_one_line(tiny_recipe, tiny_model_dir, tmp_path, method, package):
    folder = shutil.copytree(tiny_model_dir, tmp_path / method)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"in_group_size": 8, "out_group_size": 1, "num_codebooks": 1, "nbits_per_codebook": 16}
    quantized = {"quant_method": method} | (sizes if method == "aqlm" else {"bits": 4, "group_size": 64})
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    recipe = recipes.load(tiny_recipe | {"model_name_or_path": str(folder)})
    if find_spec(package.partition("=")[0]):
        pytest.skip(f"{package} is installed")
    with pytest.raises(LabError, match=rf"quantized by {method.upper()}(.|\n)*`pip install {package}`") as error:
        train.train(recipe)
    assert error.value.exit_code == 2 and error.value.where == str(folder)
