"""`use_ray: true`: what Ray is told, what is refused before it starts, and the error of a worker in one line."""

import os
import pickle
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest

from ftlab.apps import cli
from ftlab.errors import LabError, fail
from ftlab.recipe import read as recipes
from ftlab.runs import launch, ray_workers

RAY = {"use_ray": True, "ray_num_workers": 2}


class Failure(Exception):
    """Ray's TrainingFailedError."""


def init(started: dict, address=None, *, num_cpus=None, logging_level=20, logging_config=None, **kwargs) -> None:
    """Note what ray.init was told; as the real one, it says too late that it does not know a name."""
    if isinstance(num_cpus, str):
        raise ValueError("num_cpus must be a number")
    named = {"address": address, "num_cpus": num_cpus, "logging_level": logging_level, "logging_config": logging_config}
    started["init"] = {name: value for name, value in named.items() if value is not None} | kwargs


def trainer(started: dict) -> type:
    """Return a stand-in for TorchTrainer, which runs one worker in this process and notes what it was told."""

    class Trainer:
        def __init__(self, function, train_loop_config, **configs):
            started.update(configs)
            self.run = lambda: function(train_loop_config)

        def fit(self):
            try:
                return SimpleNamespace(return_value=self.run())
            except Exception as error:
                failure = Failure("Training failed due to worker errors")
                # As Ray brings it out of the worker.
                failure.worker_failures = {0: pickle.loads(pickle.dumps(error))}
                raise failure from None

    return Trainer


@pytest.fixture
def ray(monkeypatch) -> dict:
    """Put a stand-in in the place of Ray, with two CPUs, and return what it was told."""
    started: dict = {}
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    fake, train = sys.modules["ray"], sys.modules["ray.train"]
    fake.train, fake.init, fake.shutdown = train, partial(init, started), lambda: None
    fake.cluster_resources, fake.LoggingConfig = lambda: {"CPU": 2.0}, lambda log_level: log_level
    train.TrainingFailedError = Failure
    for name in ("FailureConfig", "RunConfig", "ScalingConfig", "LoggingConfig"):
        setattr(train, name, lambda **given: given)
    sys.modules["ray.train.torch"].TorchTrainer = trainer(started)
    monkeypatch.setattr(ray_workers.packages, "require", lambda module, where: None)
    return started


def test_ray_is_told_what_the_recipe_says(ray, tiny_recipe, monkeypatch):
    made = recipes.load(tiny_recipe | RAY | {"ray_storage_path": "there", "placement_strategy": "SPREAD"})
    assert ray_workers.start(made, ["train", "r.yaml"], lambda arguments: len(arguments)) == 2
    assert ray["init"] == {"include_dashboard": False, "logging_level": "ERROR", "logging_config": "ERROR"}
    scaling = {"num_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 1}, "placement_strategy": "SPREAD"}
    assert ray["scaling_config"] == scaling and ray["run_config"]["storage_path"] == "there"
    # Somebody who waits for other machines says so.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "7")
    ray_workers.start(made, [], len)
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "7"


def test_a_cluster_is_asked_by_its_address(ray, tiny_recipe):
    named = {"address": "auto", "logging_config": "INFO"}
    many = RAY | {"ray_num_workers": 64, "ray_init_kwargs": named, "resources_per_worker": {"GPU": 2}}
    assert ray_workers.start(recipes.load(tiny_recipe | many), [], len) == 0
    assert ray["init"] == {"logging_level": "ERROR"} | named
    assert ray["scaling_config"]["use_gpu"] and ray["scaling_config"]["num_workers"] == 64


def test_more_workers_than_this_machine_has_room_for_are_refused(ray, tiny_recipe):
    with pytest.raises(LabError, match=r"3 workers need CPU: 3, Ray has 2\n  fix: .*address: auto"):
        ray_workers.start(recipes.load(tiny_recipe | RAY | {"ray_num_workers": 3}), [], len)
    needy = recipes.load(tiny_recipe | RAY | {"resources_per_worker": {"GPU": 0.5}})
    with pytest.raises(LabError, match="2 workers need GPU: 1, Ray has 0"):
        ray_workers.start(needy, [], len)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"adress": "auto"}, "ray_init_kwargs: unknown recipe key `adress`\n  fix: did you mean address?"),
        ({"kwargs": 1}, "ray_init_kwargs: unknown recipe key `kwargs`"),
        ({"num_cpus": "two"}, "ray_init_kwargs: Ray could not start its workers: num_cpus must be a number"),
    ],
)
def test_what_ray_init_cannot_use_is_invalid_input(ray, tiny_recipe, given, line):
    made = recipes.load(tiny_recipe | RAY | {"ray_init_kwargs": given})
    with pytest.raises(LabError) as told:
        ray_workers.start(made, [], len)
    assert str(told.value).startswith(line) and told.value.exit_code == 2 and not ray
    hidden = {"_temp_dir": "there"}
    ray_workers.start(recipes.load(tiny_recipe | RAY | {"ray_init_kwargs": hidden}), [], len)
    assert ray["init"].items() >= hidden.items()


@pytest.mark.parametrize(("asked", "where"), [({"use_ray": True}, "use_ray"), ({}, "USE_RAY")])
def test_processes_of_another_launcher_are_not_rays(tiny_recipe, tmp_path, monkeypatch, capsys, asked, where):
    path = tmp_path / "r.yaml"
    recipes.write(recipes.load(tiny_recipe | asked), path)
    for name, value in {"USE_RAY": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert cli.main(["train", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"ftlab: {where}: Ray has to start the processes of this run, but")


def test_a_ray_that_does_not_start_is_one_line(ray, tiny_recipe, tmp_path, monkeypatch, capsys):
    error = Exception("The current node timed out during startup.\nMore.")
    monkeypatch.setattr(sys.modules["ray"], "init", lambda **_: (_ for _ in ()).throw(error))
    path = tmp_path / "r.yaml"
    recipes.write(recipes.load(tiny_recipe | RAY), path)
    assert cli.main(["train", str(path)]) == 1
    line = "ftlab: ray_init_kwargs: Ray could not start its workers: The current node timed out during startup.\n"
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("given", [{"use_ray": True}, {}])
def test_train_starts_the_workers_once(ray, tiny_recipe, tmp_path, monkeypatch, given):
    if not given:
        monkeypatch.setenv("USE_RAY", "1")
    path, calls = tmp_path / "r.yaml", []
    recipes.write(recipes.load(tiny_recipe | given), path)
    monkeypatch.setattr(launch, "to_start", lambda recipe: calls.append(os.environ.get("WORLD_SIZE")) or 1)
    monkeypatch.setattr(launch, "start", lambda processes, arguments: 5)
    start = ray_workers.start

    def started(recipe, arguments, command):
        monkeypatch.setenv("WORLD_SIZE", "1")
        return start(recipe, arguments, command)

    monkeypatch.setattr(ray_workers, "start", started)
    # In the worker torch's environment is there, and nothing starts Ray again.
    assert cli.main(["train", str(path)]) == 5 and calls == ["1"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (fail("world_number", where="NNODES", value="two"), 2, "ftlab: NNODES: must be a whole number, not `two`\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "ftlab: x: "),
        (ZeroDivisionError("once"), 1, "ftlab: process 0 ended (once), and the others were"),
    ],
)
def test_what_a_worker_cannot_do_is_one_line(ray, tiny_recipe, tmp_path, monkeypatch, capsys, error, code, line):
    path = tmp_path / "r.yaml"
    recipes.write(recipes.load(tiny_recipe | RAY), path)
    monkeypatch.setattr(launch, "to_start", lambda recipe: (_ for _ in ()).throw(error))
    asked = ray_workers.asked
    monkeypatch.setattr(ray_workers, "asked", lambda recipe: "init" not in ray and asked(recipe))
    assert cli.main(["train", str(path)]) == code
    assert capsys.readouterr().err.startswith(line)


def test_the_worker_that_failed_first_is_named():
    gone, told = fail("world_contact", exit_code=1), LabError("no such file", fix="write it")
    assert str(ray_workers.reported({0: gone, 1: told}, "")) == "no such file\n  fix: write it"
    assert "process 1 ended (killed)" in str(ray_workers.reported({0: gone, 1: RuntimeError("a\nkilled\n")}, ""))
    assert str(ray_workers.reported({0: gone}, "")).startswith("lost contact")
    assert "Ray could not start its workers: too few" in str(ray_workers.reported({}, "So\ntoo few\n"))


def test_ppo_runs_in_one_worker(tiny_recipe):
    made = tiny_recipe | {"stage": "ppo", "reward_funcs": "short_answer", "use_ray": True}
    recipes.load(made)
    with pytest.raises(LabError, match="`stage: ppo` runs in one process: remove `ray_num_workers`"):
        recipes.load(made | RAY)


def test_what_ray_does_not_read_is_said(tiny_recipe, capsys):
    recipes.load(tiny_recipe | {"ray_num_workers": 2})
    assert "ray_num_workers: 2 has no effect in this run: it needs use_ray: true" in capsys.readouterr().out
    recipes.load(tiny_recipe | RAY | {"nproc_per_node": 2})
    assert "nproc_per_node: 2 has no effect in this run: it needs use_ray: false" in capsys.readouterr().out
