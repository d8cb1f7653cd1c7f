"""Ray: `use_ray: true` starts the processes of a run as workers of Ray Train, on this machine or on a cluster."""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ftlab import packages
from ftlab.errors import LabError, fail, reason_of, say, suggest
from ftlab.recipe.keys import Recipe
from ftlab.runs import launch
from ftlab.system_errors import explained

# Variables that Ray reads. Its workers import torch and transformers while they start, which takes longer than its
# 60 seconds if they share a slow disk or few cores. Its workers replace print by a logger, which
# interferes with how datasets inspects code. The last one disables usage statistics.
SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def asked(recipe: Recipe) -> bool:
    """Return True if Ray must start the processes of a run, and this is not one of them.

    Raises:
        LabError: another launcher has started this process.
    """
    # Ray's workers import it before anything else; torchrun's, Slurm's and MPI's processes have not.
    if recipe.in_ray and "WORLD_SIZE" in os.environ and "ray" not in sys.modules:
        raise fail("ray_launcher", where="use_ray" if recipe.use_ray else "USE_RAY")
    return recipe.in_ray and "WORLD_SIZE" not in os.environ


def scaling(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of Ray's ScalingConfig; each worker needs a GPU if this machine has one, else a CPU."""
    needs = recipe.resources_per_worker or {"GPU" if launch.accelerators(recipe) else "CPU": 1}
    return {
        "num_workers": recipe.ray_num_workers,
        "use_gpu": needs.get("GPU", 0) > 0,
        "resources_per_worker": dict(needs),
        "placement_strategy": recipe.placement_strategy,
    }


def connection(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of ray.init: without an address Ray starts on this machine, for this run."""
    own = {} if on_cluster(recipe) else {"include_dashboard": False}
    return own | {"logging_level": "ERROR"} | recipe.ray_init_kwargs


def on_cluster(recipe: Recipe) -> bool:
    """Return True if Ray is already running and this run must use it."""
    return "address" in recipe.ray_init_kwargs or "RAY_ADDRESS" in os.environ


def start(recipe: Recipe, arguments: Sequence[str], command: Callable[[Sequence[str]], int]) -> int:
    """Run `ftlab ARGUMENTS` in the workers of Ray, and return the exit code of the first one.

    Args:
        command: function that runs them in a worker.
    Raises:
        LabError: Ray is not installed, does not start or lacks resources, or the error of the first failed worker.
    """
    packages.require("ray", "use_ray")
    os.environ |= SETTINGS | os.environ
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    require_names(recipe.ray_init_kwargs, inspect.signature(ray.init).parameters)
    try:
        # Without a dashboard one of Ray's own actors logs a warning every second.
        ray.init(**{"logging_config": ray.LoggingConfig(log_level="ERROR")} | connection(recipe))
    except Exception as error:
        # Ray raises these two for an invalid value, and Exception if its processes do not start in time.
        wrong = isinstance(error, TypeError | ValueError)
        raise fail(
            "ray_failed", where="ray_init_kwargs", exit_code=2 if wrong else 1, reason=reason_of(error)
        ) from None
    try:
        if not on_cluster(recipe):
            require_resources(recipe, ray.cluster_resources())
        # Ray would retry a failing start forever, and log the traceback of every LabError.
        once = FailureConfig(controller_failure_limit=0)
        record = RunConfig(storage_path=recipe.ray_storage_path, failure_config=once, logging_config=quiet())
        config = {"folder": os.getcwd(), "arguments": list(arguments), "command": command}
        trainer = TorchTrainer(
            work, train_loop_config=config, scaling_config=ScalingConfig(**scaling(recipe)), run_config=record
        )
        return trainer.fit().return_value or 0
    except ray.train.TrainingFailedError as error:
        raise reported(getattr(error, "worker_failures", None) or {}, str(error)) from None
    finally:
        ray.shutdown()


def require_names(given: Iterable[str], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse an argument that `ray.init` lacks; those with an underscore are allowed.

    Raises:
        LabError: with the nearest one.
    """
    names = sorted(name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD)
    for name in given:
        if name not in names and not name.startswith("_"):
            hint = suggest(name, names, say("one_of", names=", ".join(names)))
            raise fail("recipe_unknown_key", where="ray_init_kwargs", key=name, hint=hint)


def quiet() -> Any:
    """Return Ray's logging settings without its own progress messages."""
    from ray.train import LoggingConfig

    return LoggingConfig(log_level="CRITICAL")


def require_resources(recipe: Recipe, there: dict[str, float]) -> None:
    """Refuse more workers than this machine has CPUs or GPUs for: Ray would wait for other machines.

    Raises:
        LabError: naming the missing resource.
    """
    settings = scaling(recipe)
    for name, each in settings["resources_per_worker"].items():
        needed = each * settings["num_workers"]
        if needed > there.get(name, 0):
            names: dict[str, Any] = {"needed": f"{needed:g}", "there": f"{there.get(name, 0):g}", "resource": name}
            raise fail("ray_resources", where="ray_num_workers", workers=settings["num_workers"], **names)


def work(config: dict[str, Any]) -> int:
    """Run a command in a worker, which has torch's variables for distributed training, and return its exit code.

    Raises:
        LabError: an error that the user can fix; Ray passes it to the process that started the workers.
    """
    # Ray starts its workers in its own folder.
    os.chdir(config["folder"])
    try:
        return config["command"](config["arguments"])
    except Exception as error:
        if known := explained(error):
            raise known from None
        raise


def reported(failures: dict[int, Exception], reason: str) -> LabError:
    """Return the error of the first failed worker.

    Args:
        failures: rank -> the exception in that worker.
        reason: Ray's message if no worker failed.
    """
    ranks = sorted(failures.items())
    errors = [failure for _, failure in ranks if isinstance(failure, LabError)]
    # A worker whose peer ended reports lost contact.
    causes = [failure for failure in errors if say("world_contact") not in str(failure)]
    lost = [(rank, last_line(str(failure))) for rank, failure in ranks if not isinstance(failure, LabError)]
    ends = [fail("world_lost", exit_code=1, rank=rank, reason=line) for rank, line in lost]
    unstarted = fail("ray_failed", where="use_ray", exit_code=1, reason=last_line(reason))
    return next(iter(causes + ends + errors), unstarted)


def last_line(text: str) -> str:
    """Return the last non-empty line of a text, at most 200 characters."""
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "?")
