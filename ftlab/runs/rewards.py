"""Reward functions with TRL's signature, so that PPO, GRPO and RLOO take the same ones.

A reward function gets `prompts`, `completions` and every other column of the rows by name, one entry per completion,
and returns one number per completion. Completions are texts, or lists of messages where the prompts are.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from ftlab import models, saved_weights, tokens
from ftlab.errors import LabError, fail, reason_of
from ftlab.recipe.keys import REWARDS, Recipe
from ftlab.recipe.text_rewards import exact_answer, short_answer, text_of
from ftlab.runs import chat

Reward = Callable[..., list[float]]
# Batch size of a reward model.
BATCH = 16


def functions(recipe: Recipe, base: str, dtype: torch.dtype) -> list[Reward]:
    """Return the reward functions of a recipe: those of `reward_funcs`, then the reward model.

    Args:
        base: the folder of the model that is trained.
        dtype: that of a reward model.
    Raises:
        LabError: `reward_model` is not a reward model.
    """
    result = [BUILT_IN[name.strip()] for name in (recipe.reward_funcs or "").split(",") if name.strip()]
    return result + ([from_model(recipe.reward_model, base, dtype)] if recipe.reward_model else [])


def checked(function: Reward) -> Reward:
    """Return a reward function that requires one finite number per completion, and names the function in errors.

    Raises (when called):
        LabError: the function raised, returned too few or too many rewards, or one that is not finite.
    """
    name = name_of(function)

    def check(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        try:
            values = list(function(prompts=prompts, completions=completions, **columns))
        except LabError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise fail("reward_raised", where=name, exit_code=1, reason=reason) from error
        if len(values) != len(completions):
            raise fail("reward_length", where=name, exit_code=1, given=len(values), needed=len(completions))
        return [number(value, name, completions[i]) for i, value in enumerate(values)]

    # TRL logs a function's rewards under its name.
    check.__name__ = name
    return check


def name_of(function: Reward) -> str:
    """Return the name of a function, of the function inside a `partial`, or of a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def number(value: Any, name: str, completion: Any) -> float:
    """Return a reward as a float.

    Raises:
        LabError: it is not a finite number.
    """
    try:
        reward = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        text = text_of(completion)
        raise fail("reward_value", where=name, exit_code=1, value=repr(value)[:60], completion=repr(text[:60]))
    return reward


BUILT_IN: dict[str, Reward] = dict(zip(REWARDS, (exact_answer, short_answer), strict=True))


def from_model(name: str, base: str, dtype: torch.dtype) -> Reward:
    """Return the reward function of a model trained in stage rm: its score for prompt and completion.

    Args:
        name: a run folder of stage rm, an adapter folder, or a folder with a whole reward model.
        base: the model under the adapter, if the one that the adapter names does not exist.
    Raises:
        LabError: no reward model can be loaded from there.
    """
    folder = require_model(name)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        judge = load_reward_model(folder, base, dtype).to(device).eval()
        tokenizer = models.load_tokenizer(folder)
    except LabError as error:
        raise fail("reward_model", where=name, reason=error.what) from None
    except Exception as error:
        raise fail("reward_model", where=name, reason=reason_of(error)) from None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    judge.config.pad_token_id = tokenizer.pad_token_id

    @torch.inference_mode()
    def reward_model(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        chats = [tokens.judged(tokenizer, list(prompt), list(answer)) for prompt, answer in pairs]
        scores: list[float] = []
        for start in range(0, len(chats), BATCH):
            part = chats[start : start + BATCH]
            # Padded on the right: the score is that of each row's last token.
            batch = tokenizer.pad({"input_ids": part}, padding_side="right", return_tensors="pt")
            scores += judge(**batch.to(device)).logits[:, 0].float().tolist()
        return scores

    return reward_model


def require_model(name: str) -> Path:
    """Return the folder of a reward model, whose weights are not read.

    Raises:
        LabError: no reward model can be loaded from there.
    """
    folder = Path(name).expanduser()
    folder = next((folder / part for part in saved_weights.RESULTS if (folder / part).is_dir()), folder)
    try:
        if not (folder / saved_weights.ADAPTER_CONFIG).is_file():
            return require_head(models.check_folder(folder))
        if (kind := models.read_json(folder / saved_weights.ADAPTER_CONFIG).get("task_type")) != "SEQ_CLS":
            raise fail("reward_adapter", where=str(folder), kind=kind)
        return folder
    except LabError as error:
        raise fail("reward_model", where=name, reason=error.what) from None


def require_head(folder: Path) -> Path:
    """Return the folder of a whole reward model.

    Raises:
        LabError: it has no reward head; transformers would initialize one at random.
    """
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            if any(name.startswith("score.") for name in file.keys()):  # noqa: SIM118 - no mapping
                return folder
    raise fail("model_missing_weights", where=str(folder), count=1, names="score.weight")


def load_reward_model(folder: Path, base: str, dtype: torch.dtype) -> Any:
    """Return a reward model: an adapter on its base, or a whole model.

    Raises:
        LabError: a whole model has no reward head; transformers would initialize one at random.
    """
    kind = AutoModelForSequenceClassification
    if not (folder / "adapter_config.json").is_file():
        return models.load_weights(kind, folder, new_head=False, num_labels=1, dtype=dtype)
    config = PeftConfig.from_pretrained(folder)
    under = config.base_model_name_or_path or base
    under = under if Path(under).is_dir() else base
    model = models.load_weights(kind, under, num_labels=1, dtype=dtype)
    adapter = models.adapter(str(folder))
    chat.fit_vocabulary(model, adapter, models.load_tokenizer(folder))
    return PeftModel.from_pretrained(model, adapter)
