"""Explain a key of a recipe: its meaning, type, default and range, and the library field that it becomes."""

import inspect
import json
import tomllib
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from ftlab.errors import language, say
from ftlab.recipe import hub_token, keys, translated_keys
from ftlab.recipe.keys import Recipe
from ftlab.recipe.read import OFT, TRAINING_RANGES, choices_of, unknown
from ftlab.recipe.training_fields import FIELDS
from ftlab.recipe.translated_keys import reason

# Keys that become others -> the message of their meaning.
RESOLVED_MEANING = {
    "warmup_ratio": "explain_warmup_ratio",
    "neat_packing": "explain_neat_packing",
    "use_galore": "explain_use_galore",
    "use_apollo": "explain_use_apollo",
    "oft_target": "explain_oft_target",
    **dict.fromkeys(OFT, "explain_oft"),
    "fsdp_transformer_layer_cls_to_wrap": "explain_fsdp_layers",
    "fsdp_min_num_params": "explain_fsdp_size",
}


def explain(name: str) -> str:
    """Return the meaning of a key, its type, default and range, and its library field.

    Raises:
        LabError: no such key; the nearest is named.
    """
    if name in translated_keys.RENAMED:
        new, why = translated_keys.RENAMED[name]
        return say("explain_renamed", key=name, new=new, reason=say(why)) + f"\n{explain(new)}"
    if name in RESOLVED_MEANING:
        field, _ = OFT.get(name, ("", None))
        return say("explain_key", key=name, meaning=say(RESOLVED_MEANING[name], field=field))
    if name in translated_keys.DROPPED:
        return say("explain_dropped", key=name, reason=reason(translated_keys.DROPPED[name], name))
    if name == hub_token.KEY:
        return say("explain_key", key=name, meaning=say("recipe_token_meaning"))
    if why := translated_keys.OUT_OF_REACH.get(name) or keys.REFUSED_TRAINING.get(name, ""):
        return say("explain_key", key=name, meaning=reason(why, name))
    if name in Recipe.model_fields and name != "training":
        return explain_own(name)
    if name in keys.TRAINING_HINTS:
        return explain_training(name)
    raise unknown(name, "")


def explain_own(name: str) -> str:
    """Explain a key of this recipe."""
    field = Recipe.model_fields[name]
    default = say("explain_required") if field.is_required() else say("explain_default", value=written(field.default))
    limits = ", ".join(bound(limit) for limit in field.metadata)
    extra = field.json_schema_extra
    becomes = extra["becomes"] if isinstance(extra, dict) else ""
    return lines(
        say("explain_key", key=name, meaning=meaning(name, str(field.description))),
        say("explain_type", type=described(field.annotation, default, limits)),
        say("explain_becomes", field=becomes or say("explain_ftlab")),
    )


def explain_training(name: str) -> str:
    """Explain a TrainingArguments field; in English by its own documentation."""
    field, choices = FIELDS[name], choices_of(name)
    low, high = TRAINING_RANGES.get(name, (None, None))
    limits = "" if low is None else say("explain_range", low=f"{low:g}", high=f"{high:g}")
    default = say("explain_default", value=written(field.default))
    return lines(
        say("explain_key", key=name, meaning=meaning(name, field.meaning)),
        say("explain_type", type=described(field.hint, default, limits)),
        # Not a value of the message, which would be cut.
        say("explain_choices") + ": " + ", ".join(choices) if choices else "",
        say("explain_becomes", field=f"transformers.TrainingArguments.{name}"),
    )


def written(value: Any) -> str:
    """Return a default as a YAML has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def lines(*parts: str) -> str:
    """Return the first line and, indented below it, the others that are not empty."""
    return "\n  ".join(filter(None, parts))


def described(hint: Any, *parts: str) -> str:
    """Return a type's name, and what is known about its values."""
    return "; ".join(filter(None, (type_name(hint), *parts)))


def meaning(name: str, english: str) -> str:
    """Return the meaning of a key in the user's language; a field of a newer transformers may have English only."""
    return chinese().get(name, english) if language() == "zh" else english


@cache
def chinese() -> dict[str, str]:
    """Return key -> its meaning in Chinese; in English, keys.py and the library's documentation have it."""
    return tomllib.loads(Path(__file__).with_name("meanings_zh.toml").read_text(encoding="utf-8"))


def bound(limit: Any) -> str:
    """Return one limit of a key as words."""
    match limit:
        case Ge(ge=low):
            return say("explain_at_least", limit=low)
        case Gt(gt=low):
            return say("explain_above", limit=low)
        case Le(le=high):
            return say("explain_at_most", limit=high)
        case Lt(lt=high):
            return say("explain_below", limit=high)
    return say("explain_not_empty")


def type_name(hint: Any) -> str:
    """Return a readable name of a type."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " | ".join(type_name(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    if hint is types.NoneType:
        return "null"
    return hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint).replace("typing.", "")
