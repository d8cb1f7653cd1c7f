"""`lr_scheduler_type` with `lr_scheduler_kwargs`: every schedule of transformers, one line where it cannot be built."""

import json
import math
from pathlib import Path

import pytest

from ftlab import device
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import build, folder, train

CPU = device.Machine("cpu", "test", "float32", 2, 2**34, "test")
EVALUATED = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 2}
# Schedule -> the least that it needs.
NEEDS = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {},
    "polynomial": {},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "reduce_lr_on_plateau": EVALUATED,
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-4}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 2}},
    "greedy": EVALUATED,
}


def built(keys, tiny_recipe):
    return build.training_args(recipes.load(tiny_recipe | keys), Path("run"), CPU)[0]


def test_every_schedule_of_transformers_is_known_here():
    assert set(NEEDS) == set(recipes.choices_of("lr_scheduler_type"))


@pytest.mark.parametrize("name", NEEDS)
def test_every_schedule_is_built_with_the_least_that_it_needs(tiny_recipe, name):
    args = built({"lr_scheduler_type": name} | NEEDS[name], tiny_recipe)
    assert args.lr_scheduler_type.value == name
    assert args.lr_scheduler_kwargs == NEEDS[name].get("lr_scheduler_kwargs")


@pytest.mark.parametrize("name", [name for name, needs in NEEDS.items() if needs])
def test_a_schedule_without_what_it_needs_is_refused(tiny_recipe, name):
    with pytest.raises(LabError) as refused:
        built({"lr_scheduler_type": name}, tiny_recipe)
    assert name in str(refused.value) and refused.value.exit_code == 2


@pytest.mark.parametrize("name", NEEDS)
def test_an_argument_that_a_schedule_does_not_know_is_refused(tiny_recipe, name):
    needs = NEEDS[name].get("lr_scheduler_kwargs", {})
    with pytest.raises(LabError, match=f"{name} cannot use these arguments: unknown: nonsense"):
        built({"lr_scheduler_type": name} | NEEDS[name] | {"lr_scheduler_kwargs": needs | {"nonsense": 1}}, tiny_recipe)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cosine", {"num_cycles": "two"}, r"takes \[num_cycles\]"),
        ("cosine", {"num_training_steps": 5}, "unknown: num_training_steps"),
        ("polynomial", {"lr_end": 1}, "must be smaller than initial lr"),
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}, "Only one of min_lr or min_lr_rate"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "decay_type": "step"}, "Unknown decay type"),
    ],
)
def test_an_argument_that_a_schedule_cannot_use_is_refused(tiny_recipe, name, arguments, message):
    with pytest.raises(LabError, match=message):
        built({"lr_scheduler_type": name, "lr_scheduler_kwargs": arguments}, tiny_recipe)


@pytest.mark.parametrize(
    ("keys", "rate"),
    [
        # Of a step from 0 to 5, as a share of `learning_rate`.
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}},
            lambda step: 0.5 + 0.25 * (1 + math.cos(math.pi * step / 6)),
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2,
             "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "linear"}},
            lambda step: [0, 0.5, 1, 1, 1, 0.5][step],
        ),
    ],
)  # fmt: skip
def test_a_run_follows_the_schedule_that_was_asked_for(tiny_recipe, keys, rate):
    run = train.train(recipes.load(tiny_recipe | keys))
    log = [json.loads(line) for line in (run.folder / folder.LOG).read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == pytest.approx([tiny_recipe["learning_rate"] * rate(step) for step in range(6)])
