"""Numbers that are none: a run stops at once, says so, and leaves no file that holds one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from ftlab import saved_weights
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import train


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield every tensor inside a nested state."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors(inner)


def broken_files(folder: Path) -> list[Path]:
    """Return the weight and state files in `folder` that hold a NaN or an infinity."""
    found = {path: load_file(path) for path in folder.rglob("*.safetensors")}
    found |= {path: torch.load(path, weights_only=True) for path in folder.rglob("optimizer.pt")}
    return [path for path, state in found.items() if not all(t.float().isfinite().all() for t in tensors(state))]


def poisoned(folder: Path, part: str, value: float) -> None:
    """Put `value` into the first weight whose name holds `part`."""
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    name = next(name for name in sorted(weights) if part in name)
    weights[name].view(-1)[0] = value
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_broken_base_weights(tiny_recipe, tmp_path, finetuning_type, value):
    import tiny

    base = tiny.make_model(tmp_path / "base")
    poisoned(base, "layers.0.mlp.down_proj", value)
    values = tiny_recipe | {"model_name_or_path": str(base), "finetuning_type": finetuning_type}
    with pytest.raises(LabError, match="step 1") as error:
        train.train(recipes.load(values))
    folder = Path(values["output_dir"])
    assert error.value.exit_code == 1 and not broken_files(folder)
    assert not (folder / "adapter").exists() and not (folder / "model").exists()


def test_a_broken_adapter_to_go_on_from(tiny_recipe, tmp_path):
    first = train.train(recipes.load(tiny_recipe))
    poisoned(first.weights, "lora_B", float("nan"))
    values = tiny_recipe | {"adapter_name_or_path": str(first.weights), "output_dir": str(tmp_path / "second")}
    with pytest.raises(LabError, match="step 1") as error:
        train.train(recipes.load(values))
    assert error.value.exit_code == 1 and not broken_files(tmp_path / "second")


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
def test_a_number_breaks_during_training(tiny_recipe, monkeypatch, step, where):
    whole = Trainer.training_step

    def training_step(self, model, *arguments, **options):
        loss = whole(self, model, *arguments, **options)
        if self.state.global_step + 1 == step:
            weight = next(weight for weight in model.parameters() if weight.requires_grad)
            if where == "gradient":
                weight.grad.view(-1)[0] = float("inf")
            elif where == "weight":
                weight.data.view(-1)[0] = float("nan")
            else:
                return loss * float("nan")
        return loss

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with pytest.raises(LabError, match=f"step ({step}|{step + 1})") as error:
        train.train(recipes.load(tiny_recipe | {"logging_steps": 1}))
    folder = Path(tiny_recipe["output_dir"])
    assert error.value.exit_code == 1 and not broken_files(folder) and not (folder / "adapter").exists()
    # The saves before it are whole, and the run goes on from the newest of them.
    monkeypatch.setattr(Trainer, "training_step", whole)
    saved = sorted(path.name for path in folder.glob(f"{saved_weights.PREFIX}*"))
    assert saved == [f"{saved_weights.PREFIX}{n}" for n in (2, 4) if n < step]
    assert not train.train(recipes.load(tiny_recipe | {"logging_steps": 1})).reused


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400"])
def test_a_learning_rate_that_is_no_number_is_refused(tiny_recipe, value):
    with pytest.raises(LabError, match=r"finite|between|cannot be") as error:
        recipes.load(tiny_recipe, [f"learning_rate={value}"])
    assert error.value.exit_code == 2


def test_a_learning_rate_that_explodes(tiny_recipe):
    values = tiny_recipe | {"learning_rate": 1e5, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    try:
        train.train(recipes.load(values))
    except LabError as error:
        assert error.exit_code == 1
    assert not broken_files(Path(values["output_dir"]))
