"""Which recipe keys have a control, of what kind, and the conversion between its text and the recipe's value."""

import io
import typing
from functools import cache
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from ftlab import errors
from ftlab.catalogue import MODELS
from ftlab.recipe import keys, strict_yaml, training_fields
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import Recipe

MOST_VISIBLE = 12
Kind = typing.Literal["text", "slider", "choice"]


class Field(NamedTuple):
    """One key with a control.

    Attributes:
        kind: what the control is.
        options: a slider's stops, or what a text field suggests.
        most: the largest value that makes sense in a panel; recipes themselves have no such limit.
        required: it cannot be empty.
    """

    kind: Kind
    options: tuple = ()
    most: float | None = None
    required: bool = False


POWERS = tuple(2**n for n in range(11))
NAMES = tuple(model.name for model in MODELS)
TEXT, CHOICE = Field("text"), Field("choice")
FIELDS: dict[str, Field] = {
    "model_name_or_path": Field("text", NAMES, required=True),
    "dataset": Field("text", required=True),
    "output_dir": Field("text", required=True),
    "stage": CHOICE,
    "finetuning_type": CHOICE,
    "quantization_bit": CHOICE,
    "lora_rank": Field("slider", POWERS[:9], most=4096),
    "learning_rate": Field("text", most=1),
    "per_device_train_batch_size": Field("slider", POWERS[:8], most=4096),
    "gradient_accumulation_steps": Field("slider", POWERS[:8], most=4096),
    "max_steps": Field("text", most=10**7),
    "cutoff_len": Field("slider", (64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384), most=2**20),
    "lora_alpha": Field("text", most=10**5),
    "lora_dropout": TEXT,
    "lora_target": TEXT,
    "use_rslora": CHOICE,
    "use_dora": CHOICE,
    "pissa_init": CHOICE,
    "loraplus_lr_ratio": Field("text", most=10**4),
    "adapter_name_or_path": TEXT,
    "pref_beta": Field("text", most=10**3),
    "pref_loss": CHOICE,
    "dataset_dir": TEXT,
    "eval_dataset": TEXT,
    "val_size": Field("text", most=10**6),
    "max_samples": Field("text", most=10**8),
    "template": TEXT,
    "packing": CHOICE,
    "train_on_prompt": CHOICE,
    "mask_history": CHOICE,
    "num_train_epochs": Field("text", most=10**4),
    "lr_scheduler_type": Field("text", ("linear", "cosine", "constant", "constant_with_warmup")),
    "warmup_steps": Field("text", most=10**6),
    "weight_decay": Field("text", most=10),
    "seed": TEXT,
    "logging_steps": Field("text", most=10**6),
    "gradient_checkpointing": CHOICE,
    "save_steps": Field("text", most=10**7),
    "save_total_limit": Field("text", most=10**4),
    "eval_strategy": CHOICE,
    "eval_steps": Field("text", most=10**7),
    "early_stopping_steps": Field("text", most=10**4),
    "overwrite_output_dir": CHOICE,
}
# What the panels beside the training panel ask for.
MODEL, ROWS = FIELDS["model_name_or_path"], Field("text", ("20", "50", "100", "200"), most=10**4)
EVALUATED = {
    "model_name_or_path": MODEL,
    "adapter_name_or_path": TEXT,
    "eval_dataset": Field("text", required=True),
    "tasks": TEXT,
    "max_samples": ROWS,
    "cutoff_len": FIELDS["cutoff_len"],
    "template": TEXT,
}
EXPORTED = {
    "model_name_or_path": MODEL,
    "adapter_name_or_path": TEXT,
    "export_dir": Field("text", required=True),
    "export_dtype": CHOICE,
    "export_size": Field("slider", (1, 2, 5, 10, 20), most=1000),
    "export_gguf": CHOICE,
    "export_device": CHOICE,
}
SIZED = {
    "model_name_or_path": MODEL,
    "stage": CHOICE,
    "lora_rank": FIELDS["lora_rank"],
    "gradient_checkpointing": CHOICE,
}
# The visible keys first, under a heading each; the others are folded away under the same names.
GROUPS = {
    "group_data": ("model_name_or_path", "dataset", "output_dir", *tuple(FIELDS)[22:30]),
    "group_method": ("stage", "finetuning_type", "quantization_bit", "lora_rank", *tuple(FIELDS)[12:22]),
    "group_training": (*tuple(FIELDS)[7:12], *tuple(FIELDS)[30:37]),
    "group_saving": tuple(FIELDS)[37:],
}


def default(key: str) -> Any:
    """Return the default of a key."""
    if key in Recipe.model_fields:
        field = Recipe.model_fields[key]
        return None if field.is_required() else field.default
    if key in ("logging_steps", "gradient_checkpointing"):
        # ftlab's own: every step is logged, and the machine decides about the second.
        return 1 if key == "logging_steps" else None
    return training_fields.FIELDS[key].default


@cache
def choices(key: str) -> list[Any]:
    """Return the values of a choice; None, first, where the key may be left out with another meaning than its default.

    >>> choices("quantization_bit"), choices("use_dora"), choices("gradient_checkpointing")
    ([None, 4, 8], [False, True], [None, False, True])
    """
    if key not in Recipe.model_fields:
        values = [False, True] if bool in flat(keys.TRAINING_HINTS[key]) else recipes.choices_of(key)
        return [*([None] if default(key) is None else []), *values]
    hint = Recipe.model_fields[key].annotation
    values = (
        [False, True]
        if bool in flat(hint)
        else [one for part in (hint, *typing.get_args(hint)) if is_literal(part) for one in typing.get_args(part)]
    )
    return [*([None] if default(key) is None else []), *values]


def flat(hint: Any) -> tuple:
    """Return a type and the members of a union."""
    return (hint, *typing.get_args(hint))


def is_literal(hint: Any) -> bool:
    """Return True if a type is `Literal[...]`."""
    return typing.get_origin(hint) is typing.Literal


def is_text(key: str) -> bool:
    """Return True if a key has a text value, which is used as typed instead of being parsed as YAML."""
    hints = flat(Recipe.model_fields[key].annotation) if key in Recipe.model_fields else flat(keys.TRAINING_HINTS[key])
    return str in hints


def read_text(key: str, text: str) -> Any:
    """Return the value typed into a text field; None for an empty one.

    Raises:
        LabError: it is not valid YAML.
    """
    text = text.strip()
    if not text:
        return None
    return text if is_text(key) else strict_yaml.parse(text, key)


def write_text(value: Any) -> str:
    """Return what a text field shows for a value, so that `read_text` gives it back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def yaml_lines(values: dict[str, Any]) -> str:
    """Return plain values as YAML in their own order, so that `strict_yaml.read` gives them back."""
    text, writer = io.StringIO(), YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    for key, value in values.items():
        writer.dump({key: value}, text)
    return text.getvalue()


def read_lines(text: str) -> dict[str, Any]:
    """Return the keys of free `key: value` lines.

    Raises:
        LabError: they are not a YAML mapping.
    """
    if not text.strip():
        return {}
    values = strict_yaml.parse(text, "")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise errors.fail("recipe_yaml", reason=errors.say("yaml_mapping"))
    return {str(key): value for key, value in values.items()}
