"""Trained weights on disk: an adapter, a whole model, or the result or a checkpoint of a run."""

import json
from pathlib import Path
from typing import NamedTuple

from ftlab import manifests
from ftlab.errors import fail, reason_of

ADAPTER, MODEL = "adapter", "model"
RESULTS = (ADAPTER, MODEL)
# Values of `finetuning_type` that train the model itself; all others train an adapter.
WHOLE_MODELS = ("full", "freeze", "bitfit")
# The prefix of a checkpoint's folder, before its step.
PREFIX = "checkpoint-"
# The adapter as it was before training, in the folder of a run whose adapter changes the base (PiSSA, OLoRA).
PISSA_START = "pissa_start"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Weights(NamedTuple):
    """Trained weights: the folder they are in, and whether they are an adapter or a whole model."""

    folder: Path
    is_adapter: bool


def result_name(finetuning_type: str) -> str:
    """Return which of RESULTS a run with this `finetuning_type` writes."""
    return MODEL if finetuning_type in WHOLE_MODELS else ADAPTER


def several(name: str | Path) -> list[str]:
    """Return the parts of a list of folders with commas; a folder whose own name has a comma is one.

    >>> several("runs/a, runs/b")
    ['runs/a', 'runs/b']
    """
    parts = [part.strip() for part in str(name).split(",") if part.strip()]
    return [str(name)] if Path(name).expanduser().exists() else parts or [str(name)]


def weights_of(name: str | Path) -> Weights:
    """Return the trained weights in a folder (the last of several): an adapter, a whole model, or a run.

    A finished run has `adapter/` or `model/`; of a stopped run the newest checkpoint is taken that matches its
    manifest.

    Raises:
        LabError: there are none, or they are not safetensors.
    """
    name = several(name)[-1]
    folder = Path(name).expanduser()
    places = (*(folder / part for part in RESULTS), folder)
    if (weights := next((one for place in places if (one := look(place))), None)) is not None:
        return weights
    if (weights := newest(folder)) is not None:
        return weights
    raise fail("model_no_adapter", where=str(name), files=f"{ADAPTER_CONFIG}, {ADAPTER_WEIGHTS}")


def newest(folder: Path) -> Weights | None:
    """Return the weights of a run's newest valid checkpoint, None if there is none."""
    run_id = (manifests.read_manifest(folder) or {}).get("run_id")
    for path in checkpoints(folder) if run_id else ():
        weights = look(path)
        if weights and not manifests.problem(path, {"run_id": run_id}):
            return weights
    return None


def holds_weights(folder: Path) -> bool:
    """Return True if a run has trained weights: its result, or a checkpoint."""
    return any(look(folder / part) for part in RESULTS) or newest(folder) is not None


def look(folder: Path) -> Weights | None:
    """Return the weights directly in a folder, None if there are none; a whole model counts if a run made it."""
    if (folder / ADAPTER_CONFIG).is_file():
        return Weights(folder, True) if (folder / ADAPTER_WEIGHTS).is_file() else None
    whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return Weights(folder, False) if whole and "run_id" in (manifests.read_manifest(folder) or {}) else None


def require_language_model(weights: Weights) -> None:
    """Refuse a reward model, which has one output instead of a language model's head.

    Raises:
        LabError: naming its folder.
    """
    name, key = (ADAPTER_CONFIG, "task_type") if weights.is_adapter else ("config.json", "architectures")
    kind = str(json.loads((weights.folder / name).read_text(encoding="utf-8")).get(key))
    if "SEQ_CLS" in kind or "ForSequenceClassification" in kind:
        raise fail("folder_reward_model", where=str(weights.folder))


def refuse_virtual_tokens(weights: Weights, what: str) -> None:
    """Refuse an adapter with virtual tokens, which cannot be merged and have their own logits and positions.

    Args:
        what: the purpose for which it is refused.
    Raises:
        LabError: naming the method; or its configuration cannot be read.
    """
    config = {}
    if weights.is_adapter:
        path = weights.folder / ADAPTER_CONFIG
        try:
            config = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise fail("model_broken_json", where=str(path), reason=reason_of(error)) from None
    if config.get("num_virtual_tokens"):
        raise fail("folder_virtual_tokens", where=str(weights.folder), kind=config.get("peft_type"), what=what)


def checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, highest step first."""
    numbered = [path for path in run_folder.glob(PREFIX + "*") if path.is_dir() and step_of(path) >= 0]
    return sorted(numbered, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name, -1 if there is none."""
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() and number.isascii() else -1
