"""The fields of `transformers.TrainingArguments`: type, default, meaning, as a table for fast start-up.

Importing TrainingArguments takes seconds, because it imports torch. `training_fields.json` has the fields for
one version of transformers; if another is installed, it is imported and inspected. Regenerate the table with
`python -m ftlab.recipe.training_fields`.
"""

import dataclasses
import enum
import json
import re
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from ftlab.device import installed

TABLE = Path(__file__).with_name("training_fields.json")
# Names in type annotations, in addition to the classes of transformers.
PLAIN: dict[str, Any] = {kind.__name__: kind for kind in (bool, dict, float, int, list, str, type(None))}
PLAIN |= {"Any": Any, "Literal": Literal, "Union": Union}


class Named(type):
    """A placeholder for a class of another library: instances are recognized by class name, without an import.

    Attributes:
        choices: the values of its members if it is an enumeration, else ().
    """

    choices: tuple[str, ...]

    def __instancecheck__(cls, value: object) -> bool:
        return any(kind.__name__ == cls.__name__ for kind in type(value).__mro__)


class TrainingField(NamedTuple):
    """One field: its type, in which other libraries' classes are Named; its default; the start of its documentation."""

    hint: Any
    default: Any
    meaning: str


def read_fields() -> dict[str, TrainingField]:
    """Return the fields of the TrainingArguments that is installed."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return fields(table if table["transformers"] == installed("transformers") else describe())


def fields(table: dict[str, Any]) -> dict[str, TrainingField]:
    """Return the fields that a table describes."""
    names = PLAIN | {name: named(name, tuple(choices)) for name, choices in table["classes"].items()}
    return {
        name: TrainingField(eval(field["type"], names), field["default"], field["meaning"])
        for name, field in table["fields"].items()
    }


@cache
def named(name: str, choices: tuple[str, ...]) -> Named:
    """Return the placeholder for a class of another library."""
    return Named(name, (), {"choices": choices})


def describe() -> dict[str, Any]:
    """Return the installed TrainingArguments as a table."""
    from transformers import TrainingArguments, __version__

    hints = typing.get_type_hints(TrainingArguments)
    init_fields = [field for field in dataclasses.fields(TrainingArguments) if field.init]
    classes = {kind.__name__: kind for field in init_fields for kind in classes_in(hints[field.name])}
    return {
        "transformers": __version__,
        "classes": {name: [member.value for member in members(kind)] for name, kind in sorted(classes.items())},
        "fields": {
            field.name: {
                "type": text_of(hints[field.name]),
                "default": default_of(field),
                "meaning": meaning_of(field.name, TrainingArguments.__doc__ or ""),
            }
            for field in init_fields
        },
    }


def classes_in(hint: Any) -> set[type]:
    """Return the classes of other libraries in a type."""
    if parts := typing.get_args(hint):
        return set().union(*map(classes_in, parts))
    return {hint} if isinstance(hint, type) and hint.__name__ not in PLAIN else set()


def members(kind: type) -> list[enum.Enum]:
    """Return the members of an enumeration, [] for any other class."""
    return list(kind) if issubclass(kind, enum.Enum) else []


def text_of(hint: Any) -> str:
    """Return a type as source text, without the modules of its classes."""
    whole = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return re.sub(r"[\w.]+\.", "", whole)


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a field as a plain value."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value.value if isinstance(value, enum.Enum) else value


def meaning_of(name: str, documentation: str) -> str:
    """Return the first sentences on a field in transformers' own docstring."""
    pattern = rf"^        {name} ?\(.*?\):\n(.*?)(?=^        \S|^    \S|\Z)"
    match = re.search(pattern, documentation, re.DOTALL | re.MULTILINE)
    text = " ".join(match.group(1).split()) if match else "see the documentation of TrainingArguments"
    return text if len(text) <= 300 else text[:297].rsplit(" ", 1)[0] + " ..."


FIELDS = read_fields()

if __name__ == "__main__":
    TABLE.write_text(json.dumps(describe(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
