"""A run of another framework as a recipe: each of its keys is mapped, refused, or reported as without effect."""

import re
from typing import Any

from ftlab.errors import fail, near, say
from ftlab.recipe import keys, translated_keys
from ftlab.recipe.foreign_files import OWN, Source
from ftlab.recipe.frameworks.table import Framework, Values
from ftlab.recipe.translated_keys import reason

# Old names of TrainingArguments' fields, and keys that depend on others: the recipe reader handles them.
OLD_NAMES = {"warmup_ratio", "resume_from_checkpoint", "fsdp", "fsdp_config", "nproc_per_node", "stage"}
OLD_NAMES |= {name for name, (_, why) in translated_keys.RENAMED.items() if why != "why_llamafactory_renamed_it"}
OLD_NAMES -= {"max_length", "max_seq_length"}
# Keys whose values must not appear in a log.
SECRET = re.compile(r"secret|api_key|^(?:\w*(?:hub|hf|auth|swanlab)_)?token$")
EMPTY: tuple[Any, ...] = (False, "", [], {})


def translate(source: Source, where: str) -> tuple[Values, dict[str, str], list[str]]:
    """Return the keys of a recipe, the place of each, and notes.

    Raises:
        LabError: naming every key of the file that a recipe cannot express, or two keys that contradict each other.
    """
    framework = source.framework
    computed = [say("recipe_note_computed", names=", ".join(source.computed))] if source.computed else []
    if framework is OWN:
        return source.values, source.places, computed
    config = {name: value for name, value in source.values.items() if value is not None}
    entries = key_by_key(source, config, where)
    values, origin = together(source, entries, where)
    notes = [say("recipe_note_foreign", title=framework.title, count=len(config))]
    notes += computed
    notes += [note for _, note in entries.values() if note]
    usual = [f"{name}: {shown(config[name])}" for name, (kept, note) in entries.items() if not (kept or note)]
    notes += [say("recipe_note_usual", keys=", ".join(usual))] if usual else []
    unset = {name: text for name, text in framework.nulls.items() if source.values.get(name, "") is None}
    notes += [say("recipe_note_null", key=name, meaning=say(text)) for name, text in unset.items()]
    theirs = filled_in(config, values, framework, where, {*unset})
    if theirs:
        listed = ", ".join(f"{name}: {shown(value)}" for name, value in theirs.items())
        notes.append(say("recipe_note_defaults", title=framework.title, keys=listed))
    trained = values.get("stage", "sft") == "sft"
    unsaid = framework.unsaid | (framework.unsaid_in_sft if trained else {})
    notes += [say(text) for name, text in unsaid.items() if name not in config]
    return theirs | values, {key: source.places.get(name, where) for key, name in origin.items()}, notes


def key_by_key(source: Source, config: Values, where: str) -> dict[str, tuple[Values, str]]:
    """Return the recipe keys and a note for each key of a file.

    Raises:
        LabError: naming every key that a recipe cannot express.
    """
    entries: dict[str, tuple[Values, str]] = {}
    refused: list[str] = []
    for name, value in config.items():
        try:
            entries[name] = comes_to(name, value, config, source.framework)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            why = str(error) if isinstance(error, ValueError) else say("why_other_form")
            refused.append(f"{source.places.get(name, where)}: {name}: {shown(value, name)}: {why}")
    if refused:
        raise fail("recipe_foreign", where=where, title=source.framework.title, count=len(refused), keys=refused)
    return entries


def together(source: Source, entries: dict[str, tuple[Values, str]], where: str) -> tuple[Values, dict[str, str]]:
    """Return the keys of a recipe, and which key of the file each comes from.

    Raises:
        LabError: two keys of the file give one recipe key different values.
    """
    values: Values = {}
    origin: dict[str, str] = {}
    for name, (kept, _) in entries.items():
        for key, entry in kept.items():
            if key == "dataset_substitutions":
                entry = values.get(key, {}) | entry
            elif key == "report_to" and isinstance(entry, list):
                entry = list(dict.fromkeys([*values.get(key, []), *entry]))
            elif key in values and values[key] != entry and key != "stage":
                raise fail(
                    "recipe_two_names",
                    where=source.places.get(name, where),
                    key=name,
                    value=shown(source.values[name]),
                    new=origin[key],
                    first=shown(values[key]),
                )
            values[key], origin[key] = entry, name
    return values, origin


def filled_in(config: Values, values: Values, framework: Framework, where: str, unset: set[str]) -> Values:
    """Return a framework's defaults for keys that the file leaves out, as keys of a recipe.

    Args:
        unset: keys that are null in the file, where null is a value.
    Raises:
        LabError: a default that a recipe cannot express.
    """
    theirs = {name: value for name, value in framework.defaults(config).items() if name not in unset}
    defaults: Values = {}
    for name, value in theirs.items():
        if name in config:
            continue
        try:
            defaults |= comes_to(name, value, theirs | config, framework)[0]
        except ValueError as error:
            line = say("foreign_default", key=name, value=shown(value), reason=error)
            raise fail("recipe_foreign", where=where, title=framework.title, count=1, keys=line) from None
    return {key: value for key, value in defaults.items() if key not in values}


def comes_to(name: str, value: Any, config: Values, framework: Framework) -> tuple[Values, str]:
    """Return the recipe keys and a note for one key of a file; neither if a recipe behaves that way anyway.

    Raises:
        ValueError: a recipe cannot express it.
    """
    if name in framework.read:
        result = framework.read[name](value, config)
        kept, note = result if isinstance(result, tuple) else (result, "")
        return kept, f"{name}: {note}" if note else ""
    if name in framework.dropped:
        why = reason(framework.dropped[name], name)
        return {}, say("recipe_note_dropped", key=name, value=shown(value, name), reason=why)
    ours = {theirs: key for key, theirs in framework.names.items()} | framework.also
    if name in ours:
        return {ours[name]: value}, ""
    if name not in keys.TRAINING_HINTS and any(value == empty and type(value) is type(empty) for empty in EMPTY):
        return {}, ""
    if name in framework.refused:
        raise ValueError(reason(framework.refused[name], name))
    passed = framework.trainer and (name in keys.TRAINING_HINTS or name in translated_keys.DROPPED)
    if passed or name in OLD_NAMES or name in keys.REFUSED_TRAINING:
        return {name: value}, ""
    raise ValueError(unknown(name, [*ours, *framework.read, *framework.dropped]))


def unknown(name: str, known: list[str]) -> str:
    """Return the reason for refusing a key that is in no table, with similar known keys."""
    nearest = near(name, known)
    return say("recipe_foreign_unknown") + (f" ({say('did_you_mean', nearest=', '.join(nearest))})" if nearest else "")


def shown(value: Any, name: str = "") -> str:
    """Return a value for a message; the value of a key that holds a secret is not shown."""
    if SECRET.search(name):
        return "***"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
