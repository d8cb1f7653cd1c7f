"""Read the keys that describe an adapter from the adapter that a recipe continues."""

import contextlib
import json
from typing import Any

from ftlab import saved_weights
from ftlab.errors import LabError, fail, say
from ftlab.recipe.keys import LAYER_METHODS, PROMPT_METHODS, Recipe

# Key of a recipe -> its name in PEFT's adapter_config.json.
DECIDED = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target": "target_modules",
    "additional_target": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def settle(recipe: Recipe, where: dict[str, str]) -> Recipe:
    """Return a recipe that continues an adapter, with the adapter's values for the keys that it determines.

    A recipe without an adapter, with one that does not exist yet, or that trains a new one is returned unchanged; of
    several adapters the last is continued.

    Args:
        where: key -> `file:line`.
    Raises:
        LabError: a key has another value than the adapter.
    """
    if not recipe.continues or (config := config_of(str(recipe.adapter_name_or_path))) is None:
        return recipe
    require_stage(recipe, config, where)
    explicit, has = recipe.model_fields_set, decided(config)
    kind = str(config.get("peft_type")).lower()
    if kind != "lora":
        return settle_method(recipe, kind, where)
    if "lora_target" in explicit and recipe.lora_target == "all":
        # Whether the adapter has all layers depends on the model: see build.rehearse.
        del has["lora_target"]
    for key, value in (has | {"finetuning_type": kind, "pissa_init": False, "init_lora_weights": None}).items():
        own = getattr(recipe, key)
        if key in explicit and own is not None and comparable(own) != comparable(value):
            raise other(recipe, key, value, where)
    return recipe.model_copy(update=has)


def other(recipe: Recipe, key: str, value: Any, where: dict[str, str]) -> LabError:
    """Build the error for a key whose value is not the adapter's."""
    shown = str(value).lower() if isinstance(value, bool) else value
    names: dict[str, Any] = {"key": key, "value": getattr(recipe, key), "adapter": recipe.adapter_name_or_path}
    return fail("recipe_continued", where=where.get(key, key), has=shown, **names)


def settle_method(recipe: Recipe, kind: str, where: dict[str, str]) -> Recipe:
    """Return a recipe that continues an adapter of a method other than LoRA, whose config is in its folder.

    Raises:
        LabError: another method, config fields that the adapter already has, or keys that its method cannot use.
    """
    if "finetuning_type" in recipe.model_fields_set and recipe.finetuning_type != kind:
        raise other(recipe, "finetuning_type", kind, where)
    for key in ("peft_config", "lora_target", "additional_target"):
        if key in recipe.model_fields_set:
            raise other(recipe, key, say("adapter_own_config"), where)
    if kind not in (*LAYER_METHODS, *PROMPT_METHODS):
        return recipe
    settled = recipe.model_copy(update={"finetuning_type": kind})
    try:
        # Without `finetuning_type` the keys were checked for lora.
        settled.fits_together()
    except ValueError as error:
        place = where.get("adapter_name_or_path", "adapter_name_or_path")
        raise fail("recipe_together", where=place, reason=str(error)) from None
    return settled


def require_stage(recipe: Recipe, config: dict[str, Any], where: dict[str, str]) -> None:
    """Refuse to continue a reward model as a language model, and the reverse.

    Raises:
        LabError: naming the kind of the adapter.
    """
    if (config.get("task_type") == "SEQ_CLS") != (recipe.stage == "rm"):
        kind = config.get("task_type")
        raise fail(
            "recipe_continued_stage",
            where=where.get("stage", "stage"),
            stage=recipe.stage,
            adapter=recipe.adapter_name_or_path,
            kind=kind,
        )


def config_of(name: str) -> dict[str, Any] | None:
    """Return the adapter_config.json of an adapter, or of the one in a run folder; None if there is none."""
    with contextlib.suppress(LabError, OSError, ValueError, TypeError):
        weights = saved_weights.weights_of(name)
        return dict(json.loads((weights.folder / saved_weights.ADAPTER_CONFIG).read_text(encoding="utf-8")))
    return None


def decided(config: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's config as values of recipe keys."""
    values = {key: config.get(name, Recipe.model_fields[key].default) for key, name in DECIDED.items()}
    return {key: ",".join(sorted(value)) if isinstance(value, list) else value for key, value in values.items()}


def comparable(value: Any) -> Any:
    """Return a value in a form that ignores the order of a comma list."""
    return sorted(part.strip() for part in value.split(",")) if isinstance(value, str) else value
