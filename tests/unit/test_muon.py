"""Muon from a recipe: torch's own on matrices, AdamW on the rest, and a state that can be saved and loaded."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from ftlab import device
from ftlab.errors import LabError
from ftlab.recipe import library_args, memory_needs
from ftlab.recipe import read as recipes
from ftlab.runs import build, muon, train
from ftlab.runs.muon import MuonAndAdamW

ARGS = TrainingArguments(learning_rate=0.1, weight_decay=0.01, use_cpu=True)


def weights() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,)))


def steps(optimizers, parameters, count: int) -> None:
    for number in range(count):
        for weight in parameters:
            weight.grad = weight.detach() * (number + 1) + 0.5
        for one in optimizers:
            one.step()


def test_each_part_is_torchs_own():
    matrix, vector = weights()
    steps([MuonAndAdamW([matrix], [{"params": [vector], "weight_decay": 0.0}], ARGS)], (matrix, vector), 3)
    alone, other = weights()
    own = torch.optim.Muon([alone], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    steps([own, torch.optim.AdamW([other], lr=0.1, weight_decay=0.0)], (alone, other), 3)
    assert torch.equal(matrix, alone) and torch.equal(vector, other)


def test_a_saved_state_goes_on_as_if_it_had_not_stopped():
    first, second = weights(), weights()
    made = [MuonAndAdamW([pair[0]], [{"params": [pair[1]]}], ARGS) for pair in (first, second)]
    steps(made[:1], first, 2)
    for weight, trained in zip(second, first, strict=True):
        weight.data.copy_(trained)
    made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
    steps(made[:1], first, 2)
    steps(made[1:], second, 2)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_recipe_trains_matrices_with_muon(method, tiny_recipe):
    made = recipes.load(tiny_recipe | {"use_muon": True, "finetuning_type": method})
    model = build.skeleton(made, made.model_name_or_path)
    if method == "lora":
        model = build.mark_trained(made, model, library_args.plan(made, device.describe()))
    found = muon.optimizer(model, ARGS)
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices = {names[id(weight)] for weight in found.param_groups[0]["params"]}
    others = {names[id(weight)] for group in found.param_groups[1:] for weight in group["params"]}
    assert matrices and all("proj" in name for name in matrices)
    assert not others if method == "lora" else {"model.norm.weight", "model.embed_tokens.weight"} <= others


class StopAtTwo(TrainerCallback):
    """Ask a run to stop after its second step, as `touch STOP` does."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 1:
            (Path(args.output_dir) / "STOP").touch()


def test_a_run_with_muon_resumes_where_it_stopped(tiny_recipe, tmp_path):
    keys = tiny_recipe | {"use_muon": True, "max_steps": 4}
    whole = train.train(recipes.load(keys | {"output_dir": str(tmp_path / "whole")}))
    assert train.train(recipes.load(keys), callbacks=[StopAtTwo()]).stopped_at == 2
    again = train.train(recipes.load(keys))
    left, right = ((run.weights / "adapter_model.safetensors").read_bytes() for run in (whole, again))
    assert left == right


@pytest.mark.parametrize("keys", [{"optim": "adafactor"}, {"loraplus_lr_ratio": 4.0}, {"optim_args": "a=1"}])
def test_a_second_optimizer_is_refused(keys, tiny_recipe):
    with pytest.raises(LabError, match=f"use_muon.*{next(iter(keys))}") as error:
        recipes.load(tiny_recipe | {"use_muon": True} | keys)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("model", ["tiny_model_dir", "tiny_mixture_dir"])
@pytest.mark.parametrize("keys", [{"finetuning_type": "full"}, {"finetuning_type": "freeze"}, {}])
def test_its_memory_is_estimated_as_its_states(keys, model, tiny_recipe, request):
    """Muon has one moment of a matrix; embedding, output layer, norms and experts have AdamW's two."""
    base = {"model_name_or_path": str(request.getfixturevalue(model)), "use_muon": True, "lora_target": "q_proj"}
    recipe = recipes.load(tiny_recipe | base | {"freeze_trainable_layers": 1} | keys)
    machine = device.Machine("cpu", "test", "float32", 2, 2**34, "test")
    trained = build.prepare_model(recipe, build.load_model(recipe, base["model_name_or_path"], machine), machine)
    made = muon.optimizer(trained, ARGS)
    for weight in trained.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    made.step()
    tensors = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    states = sum(value.numel() * value.element_size() for value in tensors if value.ndim)
    estimated = memory_needs.needs(recipe, machine).optimizer
    assert estimated == pytest.approx(states, rel=0.02)
    assert estimated < memory_needs.needs(recipe.model_copy(update={"use_muon": False}), machine).optimizer
