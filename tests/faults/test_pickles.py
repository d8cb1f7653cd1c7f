"""A pickle runs code when it is read: one in every place that a model, adapter, checkpoint or set is read from."""

import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from ftlab import models
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import chat, train

PICKLED = (
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "model.pkl",
    "model.ckpt",
    "adapter_model.bin",
    "training_args.bin",
)
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt")


class Canary:
    """An object whose unpickling writes a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return Path.write_text, (self.sign, "it ran")


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """The file that appears when a canary is unpickled."""
    return tmp_path / "it-ran"


def put(path: Path, sign: Path) -> None:
    """Write a canary there, as plain pickle does and, for torch's own suffixes, as torch.save does."""
    if path.suffix in (".pt", ".pth", ".bin"):
        torch.save(Canary(sign), path)
    else:
        path.write_bytes(pickle.dumps(Canary(sign)))


def attempt(values: dict) -> LabError | None:
    """Train; return the error a user would see, if there is one."""
    try:
        train.train(recipes.load(values))
    except LabError as error:
        return error
    return None


def test_the_canary_runs_when_it_is_unpickled(tmp_path, sign):
    put(tmp_path / "x.pkl", sign)
    pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert sign.exists()


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("instead", [True, False], ids=["instead of safetensors", "beside them"])
def test_in_a_model_folder(tiny_recipe, tmp_path, sign, name, instead):
    base = tiny.make_model(tmp_path / "base")
    put(base / name, sign)
    if instead:
        (base / "model.safetensors").unlink()
        with pytest.raises(LabError):
            models.fetch(str(base))
    error = attempt(tiny_recipe | {"model_name_or_path": str(base)})
    assert not sign.exists() and (error is not None) == instead


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"])
def test_in_an_adapter_folder(tiny_recipe, tmp_path, sign, name):
    first = train.train(recipes.load(tiny_recipe))
    adapter = shutil.copytree(first.weights, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    put(adapter / name, sign)
    values = tiny_recipe | {"adapter_name_or_path": str(adapter), "output_dir": str(tmp_path / "second")}
    assert attempt(values) is not None and not sign.exists()
    with pytest.raises(LabError):
        chat.load(tiny_recipe["model_name_or_path"], adapter)
    assert not sign.exists()


@pytest.mark.parametrize("name", STATES)
def test_in_a_checkpoint(tiny_recipe, sign, name):
    folder = train.train(recipes.load(tiny_recipe)).folder
    shutil.rmtree(folder / "adapter")
    newest = folder / "checkpoint-6"
    put(newest / name, sign)
    assert attempt(tiny_recipe) is None and not sign.exists()


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pt", "rows.json", "rows.parquet", "rows.arrow"])
def test_as_a_data_set(tiny_recipe, tmp_path, sign, name):
    put(tmp_path / name, sign)
    assert attempt(tiny_recipe | {"dataset": str(tmp_path / name)}) is not None and not sign.exists()


def test_code_beside_a_model_is_not_run(tiny_recipe, tmp_path, sign):
    import json

    base = tiny.make_model(tmp_path / "base")
    (base / "modeling_x.py").write_text(f"from pathlib import Path\nPath({str(sign)!r}).write_text('it ran')\n")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.X"}, "model_type": "x"}
    (base / "config.json").write_text(json.dumps(config))
    assert attempt(tiny_recipe | {"model_name_or_path": str(base)}) is not None and not sign.exists()
