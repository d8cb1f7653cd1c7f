"""Stop a run as a person does, and compare the resumed run with one that was never stopped."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ftlab.recipe import read as recipes
from ftlab.runs import folder, train


class StopAt(TrainerCallback):
    """Ask a run to stop after the step that follows `step`, as `touch STOP` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            (Path(args.output_dir) / folder.STOP).touch()


def weights_with_and_without_a_stop(keys: dict[str, Any], tmp_path: Path) -> tuple[bytes, bytes]:
    """Return the adapter of a run that was never stopped, and of one that stopped after two steps and resumed."""
    whole = train.train(recipes.load(keys | {"output_dir": str(tmp_path / "whole")}))
    assert train.train(recipes.load(keys), callbacks=[StopAt(1)]).stopped_at == 2
    again = train.train(recipes.load(keys))
    assert again.metrics["resumed_from_step"] == 2
    left, right = ((run.weights / "adapter_model.safetensors").read_bytes() for run in (whole, again))
    return left, right
