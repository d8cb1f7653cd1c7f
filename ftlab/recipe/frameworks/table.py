"""The table of another framework's keys, and functions that several tables share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftlab.data.dataset_info import ONLINE
from ftlab.data.read import SUFFIXES
from ftlab.errors import say

Values = dict[str, Any]
# The result for one of their keys: keys of a recipe, and perhaps a note.
Translation = Values | tuple[Values, str]
ATTENTION = {
    "eager": "disabled", "sdpa": "sdpa", "flash_attn": "fa2", "flash_attention_2": "fa2", "flash_attention_3": "fa3",
    "auto": "auto",
}  # fmt: skip


def nothing(config: Values) -> Values:
    """Return no defaults."""
    return {}


@dataclass(frozen=True)
class Framework:
    """Another framework: its name for each recipe key, the conversion of values, and its defaults.

    Attributes:
        names: key of a recipe -> its key.
        values: key of a recipe -> function from our value to its value; None: it has no such value.
        stages, tunings: our value -> its value.
        title: what its users call it.
        also: further keys of its own that are read -> the recipe key with the same values.
        read: its key -> function from its value and all its keys to keys of a recipe; a ValueError refuses it.
        dropped: its key -> the message why it can be ignored.
        refused: its key -> the message why a recipe cannot express it.
        defaults: function from the given keys to its defaults for other keys, where they differ from a recipe's.
        unsaid: its key -> the message of a note if a file leaves it out; unsaid_in_sft: the same, for SFT only.
        nulls: its key -> the message what null means, if it is not the same as leaving the key out.
        trainer: whether it takes the fields of `transformers.TrainingArguments` under their own names.
        fields: the fields that it takes; (): all.
    """

    names: dict[str, str]
    values: dict[str, Callable[[Any], Any]]
    stages: dict[str, str]
    tunings: dict[str, str]
    title: str
    also: dict[str, str] = field(default_factory=dict)
    read: dict[str, Callable[[Any, Values], Translation]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    defaults: Callable[[Values], Values] = nothing
    unsaid: dict[str, str] = field(default_factory=dict)
    unsaid_in_sft: dict[str, str] = field(default_factory=dict)
    nulls: dict[str, str] = field(default_factory=dict)
    trainer: bool = True
    fields: tuple[str, ...] = ()


def comma_parts(text: str) -> list[str]:
    """Return the parts of a list written with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def listed(value: Any) -> list[Any]:
    """Return a list as it is, a text as its parts, any other value as the only one."""
    return value if isinstance(value, list) else comma_parts(value) if isinstance(value, str) else [value]


def joined(value: Any) -> str:
    """Return a list, or a text with commas, as a recipe's comma list."""
    return ",".join(str(part) for part in listed(value))


def target(value: Any) -> str:
    """Return PEFT's `target_modules` as `lora_target`.

    Raises:
        ValueError: a regular expression.
    """
    parts = [str(part) for part in listed(value)]
    if any(not part.replace("_", "").replace(".", "").replace("-", "").isalnum() for part in parts):
        raise ValueError(say("why_layers_not_a_pattern"))
    return "all" if parts in (["all-linear"], ["all_linear"], ["all"]) else ",".join(parts)


def only(allowed: Any, reason: str) -> Callable[[Any, Values], Translation]:
    """Return the reader of a key with a single allowed value, which gives no keys; `reason` is a message."""

    def read(value: Any, config: Values) -> Translation:
        if value not in (allowed if isinstance(allowed, tuple) else (allowed,)):
            raise ValueError(say(reason))
        return {}

    return read


def attention(value: Any, config: Values) -> Translation:
    """Return an `attn_implementation` as `flash_attn`."""
    if value not in ATTENTION:
        raise ValueError(say("why_known_attention", names=", ".join(ATTENTION)))
    return {"flash_attn": ATTENTION[value]}


def initial(value: Any, config: Values) -> Translation:
    """Return PEFT's `init_lora_weights`."""
    if value in (True, "default", "true"):
        return {}
    if value in ("gaussian", "olora", "orthogonal"):
        return {"init_lora_weights": value}
    start, _, count = str(value).partition("_niter_")
    if start != "pissa" or not (count or "1").isdigit():
        raise ValueError(say("why_known_starts"))
    # PEFT's "pissa" is the exact decomposition, pissa_iter: -1.
    return {"pissa_init": True, "pissa_iter": int(count) if count else -1}


def added(value: Any, config: Values) -> Translation:
    """Return added special tokens as ordinary ones: control tokens in data are escaped."""
    return ({"add_tokens": joined(value)}, say("why_added_as_ordinary")) if value else {}


def optimizer(value: Any, config: Values) -> Translation:
    """Return an optimizer's name; Muon has a key of its own."""
    return {"use_muon": True} if value == "muon" else {"optim": value}


def stretched(value: Any, config: Values) -> Translation:
    """Return `rope_scaling`, a name or a mapping, and a note if a factor is replaced by the length.

    Raises:
        ValueError: a type of scaling that a recipe lacks.
    """
    fields = value if isinstance(value, dict) else {"type": value}
    way = fields.get("rope_type", fields.get("type"))
    if way not in ("linear", "dynamic", "yarn", "llama3"):
        raise ValueError(say("why_known_rope_scaling"))
    factor = fields.get("factor")
    return {"rope_scaling": way}, say("why_rope_factor", factor=factor) if factor else ""


def templated(names: dict[str, str]) -> Callable[[Any, Values], Translation]:
    """Return the reader of a chat template's name; "" stands for the model's own."""

    def read(value: Any, config: Values) -> Translation:
        if value not in names:
            raise ValueError(say("why_leave_out_template"))
        return {"template": names[value]} if names[value] else {}

    return read


def off(reason: str) -> Callable[[Any, Values], Translation]:
    """Return the reader of a switch that a recipe lacks; false has no effect, and `reason` is a message."""

    def read(value: Any, config: Values) -> Translation:
        if value not in (False, None, "", [], {}):
            raise ValueError(say(reason))
        return {}

    return read


def accumulation(batch: Any, micro: Any, config: Values) -> Values:
    """Return the examples per step over all processes as accumulation."""
    processes = max(1, int(config.get("nproc_per_node", 1)))
    return {"gradient_accumulation_steps": max(1, int(batch) // int(micro) // processes)}


def rows(paths: list[str], key: str = "dataset") -> Values:
    """Return the keys that name data sets: files by their paths, hub ids with `dataset_dir: ONLINE`.

    Raises:
        ValueError: both kinds.
    """
    local = [path for path in paths if Path(path).suffix.lower() in SUFFIXES or Path(path).exists()]
    if local and len(local) < len(paths):
        raise ValueError(say("why_files_and_hub_ids"))
    return {key: ",".join(paths)} | ({} if local else {"dataset_dir": ONLINE})
