"""`report_to`, offline, with the real packages where they are installed (pip install 'ftlab[trackers]')."""

import pytest

from ftlab import packages
from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import train


def losses_of(tiny_recipe, tracker: str) -> list[float]:
    """Train with a tracker and return the losses of the run's own log."""
    run = train.train(recipes.load(tiny_recipe | {"report_to": tracker, "run_name": "one", "max_steps": 2}))
    return [entry["loss"] for entry in train.folders.read_log(run.folder) if "loss" in entry]


def test_tensorboard_has_the_losses_of_the_run_in_its_folder(tiny_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = losses_of(tiny_recipe, "tensorboard")
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(events)).Reload().Scalars("train/loss")
    assert [scalar.value for scalar in scalars] == pytest.approx(losses, abs=1e-3)


def test_wandb_writes_an_offline_run(tiny_recipe, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert losses_of(tiny_recipe, "wandb")
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow_has_the_losses_of_the_run(tiny_recipe, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    losses = losses_of(tiny_recipe, "mlflow")
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.run_name == "one"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.value for metric in history] == pytest.approx(losses, abs=1e-3)


def test_trackio_keeps_the_run(tiny_recipe, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert losses_of(tiny_recipe, "trackio") and list((tmp_path / "trackio").rglob("*.db"))


@pytest.mark.parametrize("trackers", ["swanlab", ["tensorboard", "swanlab"]])
def test_swanlab_is_refused_by_name(tiny_recipe, trackers):
    with pytest.raises(
        LabError, match=r"swanlab.*is not supported\n.*its callback is broken in this transformers"
    ) as refused:
        recipes.load(tiny_recipe | {"report_to": trackers})
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("tracker", "package"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("trackio", "trackio")],
)
def test_a_tracker_that_is_not_installed_is_one_line(tiny_recipe, tmp_path, monkeypatch, capsys, tracker, package):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    recipes.strict_yaml.dump(tiny_recipe | {"report_to": tracker}, tmp_path / "r.yaml")
    assert cli.main(["train", str(tmp_path / "r.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"the package {tracker} is required here" in said and f"pip install {package}" in said
    assert len(said.strip().splitlines()) == 2 and not (tmp_path / "run").exists()
