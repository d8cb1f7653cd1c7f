"""Read a recipe, one run as plain keys, from YAML or a dict; check and write it."""

import contextlib
import json
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ftlab.errors import LabError, fail, say, suggest
from ftlab.recipe import (
    continued,
    foreign_files,
    from_frameworks,
    hub_token,
    keys,
    sharding,
    strict_yaml,
    translated_keys,
)
from ftlab.recipe.keys import Recipe
from ftlab.recipe.training_fields import Named
from ftlab.recipe.translated_keys import reason

# The largest integer in a recipe; larger ones would overflow somewhere far from the recipe.
LARGEST = 2**40
# TrainingArguments has no ranges; outside of these a run can only fail later, or silently do nothing.
TRAINING_RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, 2**20),
    "per_device_eval_batch_size": (1, 2**20),
    "gradient_accumulation_steps": (1, 2**20),
    "num_train_epochs": (0, 2**20),
    "max_steps": (-1, 2**40),
    "learning_rate": (0, 10**6),
    "warmup_steps": (0, 2**40),
    "weight_decay": (0, 10**6),
    "max_grad_norm": (0, 10**9),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "logging_steps": (1e-6, 2**40),
    "save_steps": (1e-6, 2**40),
    "eval_steps": (1e-6, 2**40),
    "save_total_limit": (1, 2**20),
    "seed": (0, 2**32 - 1),
    "adam_epsilon": (0, 10**6),
    "label_smoothing_factor": (0, 1),
    "neftune_noise_alpha": (0, 10**6),
    "dataloader_num_workers": (0, 4096),
}
COMMA_LISTS = (
    "dataset", "eval_dataset", "adapter_name_or_path", "lora_target", "additional_target", "freeze_trainable_modules",
    "freeze_extra_modules", "interleave_probs", "reward_funcs", "tasks", "add_tokens",
)  # fmt: skip


class SourceKeys(NamedTuple):
    """The keys of a recipe file: their values, and their places (`file:line`)."""

    values: dict[str, Any]
    places: dict[str, str]
    place: str

    def where(self, key: str) -> str:
        """Return the place of a key, or the file if the key is not in it."""
        return self.places.get(key, self.place)


def load(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file or a dict, with `key=value` overrides; every translated key is printed.

    Raises:
        LabError: unreadable YAML, an unknown key (with the nearest), a value of the wrong type; the line is named.
    """
    recipe, notes = read(source, overrides)
    for note in notes:
        print(note)
    return recipe


def check(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Return the notes on translated keys and on the recipe; nothing is fetched or trained.

    Raises:
        LabError: what `load` raises, and a data set that does not exist.
    """
    from ftlab.data import registry

    recipe, notes = read(source, overrides)
    sets = ",".join(names for names in (recipe.dataset, recipe.eval_dataset) if names)
    for name in filter(None, (part.strip() for part in sets.split(","))):
        registry.find(name, Path(recipe.dataset_dir))
    return notes


def read(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Return the recipe and the notes of its translation."""
    source_keys, opening_notes = (
        (SourceKeys(dict(source), {}, ""), []) if isinstance(source, dict) else open_file(Path(source), overrides)
    )
    for override in overrides:
        override_key(source_keys, override)
    opening_notes += hub_token.take(source_keys.values, source_keys.where(hub_token.KEY))
    source_keys, notes = translate(source_keys)
    recipe = build(source_keys)
    return recipe, opening_notes + notes + remarks(recipe)


def open_file(path: Path, overrides: Sequence[str]) -> tuple[SourceKeys, list[str]]:
    """Return the keys of a recipe file, or of another framework's file with notes."""
    source = foreign_files.recognize(path)
    stage = next((text.removeprefix("stage=") for text in overrides if text.startswith("stage=")), None)
    if stage and source.framework is foreign_files.TRL:
        # With a YAML of TRL's, the command chooses the trainer, and thereby the defaults.
        source.values["stage"] = stage
    values, places, notes = from_frameworks.translate(source, str(path))
    return SourceKeys(values, places, str(path)), notes


def override_key(source_keys: SourceKeys, override: str) -> None:
    """Set one key from `key=value`, or one entry of a mapping from `key.entry=value`."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise fail("recipe_override", where=override)
    if name == hub_token.KEY:
        # Kept as text: neither its value nor an error about it is shown.
        source_keys.values[name], source_keys.places[name] = text, name
        return
    name, _, entry = name.partition(".")
    value = strict_yaml.parse(text, override)
    inner = source_keys.values.get(name)
    source_keys.values[name] = ((inner if isinstance(inner, dict) else {}) | {entry: value}) if entry else value
    source_keys.places[name] = override


def translate(source_keys: SourceKeys) -> tuple[SourceKeys, list[str]]:
    """Return the keys under their current names, and a note per key that was renamed or dropped.

    Raises:
        LabError: a key or a value that is not supported, or two names of one setting with different values.
    """
    entries = {str(name): value for name, value in source_keys.values.items() if value is not None}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notes: list[str] = []
    places = dict(source_keys.places)
    for name, value in entries.items():
        where = source_keys.where(name)
        refuse_out_of_reach(name, value, where)
        if name in translated_keys.DROPPED and entries.get(translated_keys.MAIN_OF.get(name, "")) is not True:
            notes.append(ignored_note(name, value, reason(translated_keys.DROPPED[name], name)))
        if name in (*translated_keys.DROPPED, *translated_keys.OUT_OF_REACH, *RESOLVED):
            continue
        if name in translated_keys.RENAMED:
            pairs = renamed(name, value)
            new, why = translated_keys.RENAMED[name]
            notes.append(renamed_note(name, new, pairs[new], say(why)))
        else:
            joined = isinstance(value, list) and name in COMMA_LISTS
            pairs = {name: ",".join(map(str, value)) if joined else value}
        for new, new_value in pairs.items():
            if new in values and values[new] != new_value:
                raise two_values(source_keys, origins[new], entries[origins[new]], name, value)
            values[new], origins[new] = new_value, name
            if new not in entries:
                places[new] = where
    for name in (name for name in RESOLVED if name in entries):
        pairs, note = RESOLVED[name](entries, source_keys.where(name))
        values |= pairs
        places |= dict.fromkeys(pairs, source_keys.where(name))
        notes += [note] if note else []
    return SourceKeys(values, places, source_keys.place), notes


def refuse_out_of_reach(name: str, value: Any, where: str) -> None:
    """Refuse a key or a value that is not supported.

    Raises:
        LabError: with what to write instead.
    """
    if name in translated_keys.OUT_OF_REACH and asks(name, value):
        raise fail(
            "recipe_out_of_reach",
            where=where,
            key=f"{name}: {brief(value)}",
            instead=reason(translated_keys.OUT_OF_REACH[name], name),
        )
    for one in value if isinstance(value, list) else [value]:
        if instead := translated_keys.ELSEWHERE.get((name, one) if isinstance(one, str | bool) else ("", "")):
            raise fail("recipe_out_of_reach", where=where, key=f"{name}: {brief(value)}", instead=say(instead))


def asks(name: str, value: Any) -> bool:
    """Return True if the value of a key of OUT_OF_REACH has an effect."""
    nothing = translated_keys.ASKS_NOTHING.get(name, False)
    # True is 1 in Python, but not a number here.
    return value is not False and not (value == nothing and isinstance(value, bool) == isinstance(nothing, bool))


def ignored_note(name: str, value: Any, why: str) -> str:
    """Return the note for a key that is ignored."""
    return say("recipe_note_dropped", key=name, value=brief(value), reason=why)


def renamed_note(name: str, new: str, value: Any, why: str) -> str:
    """Return the note for a key that has another name."""
    return say("recipe_note_renamed", key=name, new=new, value=brief(value), reason=why)


def renamed(name: str, value: Any) -> dict[str, Any]:
    """Return a key of RENAMED under its new name."""
    mapped = translated_keys.RENAMED_VALUES.get(name, {}).get(value, value) if isinstance(value, bool) else value
    return {translated_keys.RENAMED[name][0]: mapped}


def two_values(source_keys: SourceKeys, new: str, first: Any, name: str, value: Any) -> LabError:
    """Build the error for two names of one setting with different values."""
    return fail(
        "recipe_two_names", where=source_keys.where(name), key=name, value=brief(value), new=new, first=brief(first)
    )


Resolved = tuple[dict[str, Any], str]


def warmup(entries: dict[str, Any], where: str) -> Resolved:
    """Return `warmup_ratio` as `warmup_steps`; as in transformers 4, it applies unless warmup_steps is above 0.

    Raises:
        LabError: a ratio that is not between 0 and 1.
    """
    ratio, steps = entries["warmup_ratio"], entries.get("warmup_steps", 0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise fail("recipe_range", where=where, key="warmup_ratio", value=brief(ratio), reason=say("range_share"))
    if steps != 0:
        overruling = f"warmup_steps: {brief(steps)}"
        return {}, say("recipe_note_overruled", key="warmup_ratio", value=brief(ratio), by=overruling)
    # transformers takes 1 and more as steps; the largest number below 1 is a share that is rounded up to all steps.
    share = ratio if ratio < 1 else math.nextafter(1, 0)
    why = say("why_share_of_steps" if ratio < 1 else "why_all_steps")
    return {"warmup_steps": share}, renamed_note("warmup_ratio", "warmup_steps", share, why)


def neat_packing(entries: dict[str, Any], where: str) -> Resolved:
    """Return `neat_packing` as `packing`: true turns packing on, as in LLaMA-Factory, whatever `packing` says.

    Raises:
        LabError: stage pt, which joins texts instead of keeping them apart.
    """
    value = entries["neat_packing"]
    if value is False:
        return {}, ignored_note("neat_packing", value, say("why_packed_apart"))
    if entries.get("stage") == "pt":
        raise fail("recipe_together", where=where, reason=say("fits_neat_packing"))
    why = say("why_packing_overridden" if entries.get("packing") is False else "why_packed_apart")
    return {"packing": value}, renamed_note("neat_packing", "packing", value, why)


def low_rank(name: str, settings: dict[str, str]) -> Callable[[dict[str, Any], str], Resolved]:
    """Return the resolver of `use_galore` or `use_apollo`: transformers' optimizer, its target and arguments.

    Args:
        settings: LLaMA-Factory's key without its prefix -> transformers' name in `optim_args`.
    """

    def resolve(entries: dict[str, Any], where: str) -> Resolved:
        key, value = f"use_{name}", entries[f"use_{name}"]
        if value is False:
            return {}, ""
        if value is not True:
            raise wrong_type(key, bool, value, say("type_switch"), where)
        if entries.get("finetuning_type", "lora") == "lora":
            raise fail("recipe_together", where=where, reason=say("fits_whole_weights", key=key))
        options = {
            short: entries[f"{name}_{short}"] for short in settings if entries.get(f"{name}_{short}") is not None
        }
        words = ",".join(f"{settings[short]}={value}" for short, value in options.items())
        target = str(entries.get(f"{name}_target", "all"))
        values = {
            "optim": f"{name}_adamw{'_layerwise' * (entries.get(f'{name}_layerwise') is True)}",
            "optim_target_modules": "all-linear" if target == "all" else [part.strip() for part in target.split(",")],
        } | ({"optim_args": words} if words else {})
        listed = ", ".join(f"{new}: {brief(now)}" for new, now in values.items())
        return values, say("recipe_note_optimizer", key=key, found=listed)

    return resolve


# LLaMA-Factory's keys of OFT -> fields of PEFT's OFTConfig, and LLaMA-Factory's defaults.
OFT = {"oft_rank": ("r", 0), "oft_block_size": ("oft_block_size", 32), "module_dropout": ("module_dropout", 0.0)}


def oft(name: str) -> Callable[[dict[str, Any], str], Resolved]:
    """Return the resolver of a key of OFT: fields of `peft_config`, or for `oft_target` the layers."""

    def resolve(entries: dict[str, Any], where: str) -> Resolved:
        if entries.get("finetuning_type") != "oft":
            return {}, ignored_note(name, entries[name], say("why_only_with", main="finetuning_type: oft"))
        if name == "oft_target":
            layers = entries[name]
            values = {"lora_target": ",".join(map(str, layers)) if isinstance(layers, list) else layers}
        else:
            fields = {field: entries.get(key, usual) for key, (field, usual) in OFT.items()}
            values = {"peft_config": fields | (entries.get("peft_config") or {})}
        ((new, value),) = values.items()
        return values, renamed_note(name, new, value, say("why_in_peft_config"))

    return resolve


def resume(entries: dict[str, Any], where: str) -> Resolved:
    """Return `resume_from_checkpoint`; true is dropped, because an unfinished run is resumed anyway."""
    value = entries["resume_from_checkpoint"]
    if value is not True:
        return {"resume_from_checkpoint": value}, ""
    folder = Path(str(entries.get("output_dir", ""))).expanduser()
    left = entries.get("output_dir") and next(folder.glob("checkpoint-*"), None)
    why = say("why_resumed_anyway") if left else say("why_no_checkpoint", folder=folder)
    return {}, ignored_note("resume_from_checkpoint", True, why)


# Keys whose translation depends on other keys.
RESOLVED: dict[str, Callable[[dict[str, Any], str], Resolved]] = {
    "warmup_ratio": warmup,
    "neat_packing": neat_packing,
    "use_galore": low_rank(
        "galore",
        {"rank": "rank", "update_interval": "update_proj_gap", "scale": "scale", "proj_type": "proj_type"},
    ),
    "use_apollo": low_rank(
        "apollo",
        {
            "rank": "rank",
            "update_interval": "update_proj_gap",
            "scale": "scale",
            "proj": "proj",
            "proj_type": "proj_type",
            "scale_type": "scale_type",
        },
    ),
    **{name: oft(name) for name in ("oft_target", *OFT)},
    "resume_from_checkpoint": resume,
    "fsdp": sharding.fsdp,
    "fsdp_config": sharding.fsdp,
    **{name: sharding.beside(name) for name in sharding.BESIDE},
}


def remarks(recipe: Recipe) -> list[str]:
    """Return notes on a recipe: keys without effect in this run, and keys with side effects.

    They are about the resolved recipe, not about the keys as written.
    """
    lines = [
        say("recipe_note_no_effect", key=name, value=brief(value), needs=needs)
        for name, value, needs in keys.ineffective(recipe)
    ]
    lines += [say("recipe_note_overwrite")] if recipe.overwrite_output_dir else []
    return lines + ([say("recipe_note_remote_code")] if recipe.trust_remote_code else [])


def build(source_keys: SourceKeys) -> Recipe:
    """Sort keys into recipe keys and TrainingArguments fields, and check both.

    Raises:
        LabError: an unknown key, a value of the wrong type or out of range, two keys that contradict each other.
    """
    own, training = {}, {}
    for name, value in source_keys.values.items():
        outside = "" if keys.finite(value) else say("range_finite")
        if isinstance(value, int) and abs(value) > LARGEST and name not in TRAINING_RANGES:
            outside = say("range_between", low=-LARGEST, high=LARGEST)
        if outside:
            raise fail("recipe_range", where=source_keys.where(name), key=name, value=brief(value), reason=outside)
        if name in Recipe.model_fields and name != "training":
            own[name] = value
        elif name in keys.TRAINING_HINTS:
            training[name] = checked_training(name, value, source_keys.where(name))
        else:
            raise unknown(name, source_keys.where(name))
    refuse_contradictions(training, source_keys)
    try:
        recipe = Recipe(**own, training=training)
    except ValidationError as error:
        raise explained(error.errors()[0], source_keys) from None
    return continued.settle(recipe, source_keys.places)


def refuse_contradictions(training: dict[str, Any], source_keys: SourceKeys) -> None:
    """Refuse TrainingArguments fields that contradict each other and that transformers lets pass.

    Raises:
        LabError: naming the two.
    """
    old, new = "gradient_checkpointing", "activation_checkpointing"
    for part in ("", "_kwargs"):
        if old + part in training and training[old + part] != training.get(new + part, training[old + part]):
            raise two_values(source_keys, new + part, training[new + part], old + part, training[old + part])
    if training.get("bf16") and training.get("fp16"):
        raise fail("recipe_together", where=source_keys.where("fp16"), reason=say("fits_precision"))
    # With 0 steps transformers takes one step at a learning rate of 0.
    most, epochs = training.get("max_steps", -1), training.get("num_train_epochs", 3)
    for name, value in (("max_steps", most), ("num_train_epochs", epochs if most < 0 else 1)):
        if value == 0:
            where, nothing = source_keys.where(name), say("range_nothing")
            raise fail("recipe_range", where=where, key=name, value=brief(value), reason=nothing)
    warm = training.get("warmup_steps", 0)
    if warm > 1 and warm != int(warm):
        raise wrong_type("warmup_steps", int, warm, say("type_whole_steps"), source_keys.where("warmup_steps"))


def explained(problem: ErrorDetails, source_keys: SourceKeys) -> LabError:
    """Build the error for a validation error of pydantic."""
    if not problem["loc"]:
        return fail("recipe_together", where=source_keys.place, reason=problem["msg"].removeprefix("Value error, "))
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return fail("recipe_missing_key", where=source_keys.place, key=name)
    where, value = source_keys.where(name), problem["input"]
    if problem["type"].startswith(("greater_than", "less_than")):
        return fail("recipe_range", where=where, key=name, value=brief(value), reason=mismatch(problem))
    return wrong_type(name, Recipe.model_fields[name].annotation, value, mismatch(problem), where)


# pydantic's types of errors -> messages, which in English are pydantic's own.
MISMATCHES = {
    "bool_type": "input_bool", "int_type": "input_int", "float_type": "input_float", "string_type": "input_str",
    "dict_type": "input_dict", "list_type": "input_list", "string_too_short": "input_empty",
    "literal_error": "input_choice", "is_instance_of": "input_class",
    "greater_than": "input_above", "greater_than_equal": "input_at_least", "less_than": "input_below",
    "less_than_equal": "input_at_most",
}  # fmt: skip


def mismatch(problem: ErrorDetails) -> str:
    """Return why pydantic refuses a value: in the user's language, or in its own words if it is none of MISMATCHES."""
    if problem["type"] not in MISMATCHES:
        return problem["msg"]
    limits: dict[str, Any] = problem.get("ctx", {})
    # pydantic joins the choices of a Literal as English does.
    names = str(limits.get("expected", "")).replace(" or ", say("input_or"))
    limit = next((f"{limits[name]:g}" for name in ("gt", "ge", "lt", "le") if name in limits), "")
    return say(MISMATCHES[problem["type"]], names=names, limit=limit, kind=limits.get("class"))


def wrong_type(name: str, hint: Any, value: Any, why: str, where: str) -> LabError:
    """Build the error for a value of the wrong type; where one of the right type is meant, the fix is its line."""
    right = plain_value(hint, value)
    # A number as it was written in the quotes: 1e-4, not 0.0001.
    written = value if isinstance(value, str) and not isinstance(right, bool | str) else json.dumps(right)
    if right is not None:
        remedy = say("write_line", line=f"{name}: {written}")
    elif name in keys.TRAINING_HINTS and choices_of(name):
        remedy = say("one_of", names=", ".join(choices_of(name)))
    else:
        remedy = suggest(str(value), choices_in(hint), say("right_type"))
    return fail("recipe_value", where=where, key=name, value=brief(value), reason=why, hint=remedy)


def choices_in(hint: Any) -> list[str]:
    """Return the texts that a type with a list of values takes, [] for any other type."""
    parts = [part for whole in (hint, *typing.get_args(hint)) for part in typing.get_args(whole)]
    return [part for part in parts if isinstance(part, str)]


def plain_value(hint: Any, value: Any) -> bool | int | float | str | None:
    """Return the plain value of a type that a value stands for, None where none can be told.

    >>> plain_value(float, "1e-4"), plain_value(bool, "yes"), plain_value(int, 8.0), plain_value(str, 7)
    (0.0001, True, 8, '7')
    >>> plain_value(int, "x"), plain_value(int, True)
    (None, None)
    """
    lax = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    for written in (value, plain_text(value)):
        with contextlib.suppress(ValidationError):
            right = TypeAdapter(hint, config=lax).validate_python(written)
            # True is 1 in Python: whoever writes it for a number means no number.
            number = isinstance(value, bool) and not isinstance(right, bool)
            return right if isinstance(right, bool | int | float | str) and not number else None
    return None


def plain_text(value: Any) -> Any:
    """Return what a text is without its quotes, any other value unchanged."""
    try:
        return strict_yaml.parse(value, "") if isinstance(value, str) else value
    except LabError:
        return value


def unknown(name: str, where: str) -> LabError:
    """Build the error for an unknown key, with the nearest known ones."""
    if name in keys.REFUSED_TRAINING:
        return fail("recipe_out_of_reach", where=where, key=name, instead=say(keys.REFUSED_TRAINING[name]))
    hint = suggest(name, [*known(), *translated_keys.RENAMED, *RESOLVED], say("recipe_keys_listed"))
    return fail("recipe_unknown_key", where=where, key=brief(name).strip("'"), hint=hint)


def known() -> list[str]:
    """Return every valid recipe key."""
    return [name for name in Recipe.model_fields if name != "training"] + list(keys.TRAINING_HINTS)


def checked_training(name: str, value: Any, where: str) -> Any:
    """Check type, name and range of a TrainingArguments field's value, and return it unchanged."""
    choices = choices_of(name)
    if choices and isinstance(value, str) and value not in choices:
        hint = suggest(value, choices, say("one_of", names=", ".join(choices)))
        raise fail("recipe_choice", where=where, key=name, value=brief(value), hint=hint)
    try:
        adapter(name).validate_python(value)
    except ValidationError as error:
        raise wrong_type(name, keys.TRAINING_HINTS[name], value, mismatch(error.errors()[0]), where) from None
    if name in TRAINING_RANGES and isinstance(value, int | float) and not in_range(name, value):
        low, high = TRAINING_RANGES[name]
        end = say("range_at_most", limit=f"{high:g}") if value > high else say("range_at_least", limit=f"{low:g}")
        raise fail("recipe_range", where=where, key=name, value=brief(value), reason=end)
    return value


def in_range(name: str, value: float) -> bool:
    """Return True if the value of a key of TRAINING_RANGES lies within its range; NaN does not."""
    low, high = TRAINING_RANGES[name]
    return low <= value <= high


@cache
def adapter(name: str) -> TypeAdapter:
    """Return the validator of a TrainingArguments field's own type, without pydantic's conversions."""
    return TypeAdapter(keys.TRAINING_HINTS[name], config={"strict": True, "arbitrary_types_allowed": True})


@cache
def choices_of(name: str) -> list[str]:
    """Return the names that a TrainingArguments field accepts, [] if it accepts any text."""
    parts = typing.get_args(keys.TRAINING_HINTS[name])
    return [choice for part in parts if isinstance(part, Named) for choice in part.choices]


def brief(value: object) -> str:
    """Return a value as text for a message."""
    # YAML's true and false, not Python's.
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write(recipe: Recipe, path: Path) -> None:
    """Write a recipe as flat YAML, training fields included, so that `load` reads the same recipe back."""
    strict_yaml.dump(plain(recipe), path)


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that differ from their defaults, training fields included."""
    values = recipe.model_dump(exclude_defaults=True)
    return values | values.pop("training", {})


def defaults(names: Iterable[str]) -> dict[str, Any]:
    """Return the defaults of the given keys that are ftlab's own, without training fields."""
    return {name: Recipe.model_fields[name].default for name in names if name in Recipe.model_fields}


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that affect the trained weights, training fields included."""
    sampled = keys.SAMPLING if recipe.writes else ()
    values = recipe.model_dump(exclude=set(keys.OUTSIDE_THE_RUN) - set(sampled)) | {"packing": recipe.packs}
    training = values.pop("training")
    return values | {name: value for name, value in training.items() if name not in keys.TRAINING_OUTSIDE_THE_RUN}
