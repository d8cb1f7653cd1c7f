"""The table of TrainingArguments' fields says what the library says, and behaves as its types do."""

import json
import typing

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from ftlab.recipe import keys, training_fields
from ftlab.recipe import read as recipes
from ftlab.recipe.training_fields import FIELDS, Named


def test_the_table_is_what_the_installed_transformers_has():
    table = json.loads(training_fields.TABLE.read_text(encoding="utf-8"))
    assert table == training_fields.describe(), "python -m ftlab.recipe.training_fields"


def test_another_version_of_transformers_is_asked_itself(monkeypatch):
    asked = []
    monkeypatch.setattr(training_fields, "installed", lambda name: "5.99.0")
    monkeypatch.setattr(training_fields, "describe", lambda: asked.append("") or {"classes": {}, "fields": {}})
    assert training_fields.read_fields() == {} and asked


def test_every_field_and_default_is_there():
    real = {name: field for name, field in TrainingArguments.__dataclass_fields__.items() if field.init}
    assert list(FIELDS) == list(real)
    for name, field in FIELDS.items():
        default = real[name].default
        if isinstance(default, str | int | float | bool | None):
            assert field.default == getattr(default, "value", default)


VALUES = (None, True, 3, -1, 0.5, "steps", "linear", "", [1], ["all"], {"a": 1}, {"a": True}, {"a": "b"}, b"x")


def test_a_value_is_judged_as_by_the_library_s_own_type():
    hints = typing.get_type_hints(TrainingArguments)
    # `fsdp` is read as true or false by then: transformers takes its many spellings for one text.
    for name in keys.TRAINING_HINTS.keys() - {"fsdp"}:
        real = TypeAdapter(hints[name], config={"strict": True, "arbitrary_types_allowed": True})
        for value in VALUES:
            assert verdict(recipes.adapter(name), value) == verdict(real, value), (name, value)


def verdict(adapter: TypeAdapter, value: object) -> str:
    """Return the first complaint about a value, "" where it fits."""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return ""


def test_an_object_of_the_library_s_class_is_one_of_the_class_that_stands_for_it():
    stand_in = training_fields.named("SchedulerType", ("linear",))
    assert isinstance(stand_in, Named)
    assert isinstance(SchedulerType.COSINE, stand_in) and not isinstance("cosine", stand_in)
