"""FSDP and DeepSpeed settings in transformers' current form, from the spellings in recipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftlab.data import decoding
from ftlab.errors import LabError, fail, say, suggest

# The folder of recipes/deepspeed: in a checkout, and in a wheel.
SHIPPED = ("zero1", "zero2", "zero3", "zero3_offload")
FOLDERS = tuple(Path(__file__).parents[up] / place / "recipes" / "deepspeed" for up, place in ((2, "."), (1, "course")))
# Former keys of transformers next to `fsdp`, which LLaMA-Factory's files still have.
BESIDE = ("fsdp_transformer_layer_cls_to_wrap", "fsdp_min_num_params")
# Words of `fsdp` -> entries of `fsdp_config`.
WORDS: dict[str, dict[str, Any]] = {
    "full_shard": {"reshard_after_forward": True},
    "shard_grad_op": {"reshard_after_forward": False},
    "offload": {"cpu_offload": True},
    "auto_wrap": {},
}
# accelerate's names, without `fsdp_` -> transformers'.
RENAMED = {
    "offload_params": "cpu_offload",
    "sharding_strategy": "reshard_after_forward",
    "backward_prefetch_policy": "backward_prefetch",
}
CONFIG = (
    "version", "min_num_params", "transformer_layer_cls_to_wrap", "auto_wrap_policy", "reshard_after_forward",
    "cpu_offload", "state_dict_type", "cpu_ram_efficient_loading", "activation_checkpointing", "forward_prefetch",
    "backward_prefetch", "use_orig_params", "sync_module_states", "limit_all_gathers",
)  # fmt: skip


def fsdp(keys: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """Return the keys of FSDP as `fsdp: true` and one `fsdp_config`, and no note.

    Raises:
        LabError: a strategy or an entry that FSDP2 does not have, or a configuration file that cannot be read.
    """
    given = keys.get("fsdp", False)
    words = given.split() if isinstance(given, str) else given if isinstance(given, list) else ()
    config = read(keys.get("fsdp_config") or {}, "fsdp_config", where)
    more = {name: keys[name] for name in BESIDE if keys.get(name)}
    settings: dict[str, Any] = {}
    for word in map(str, words):
        if word not in WORDS:
            raise refused("fsdp", word, suggest(word, WORDS, say("one_of", names=", ".join(WORDS))), where)
        settings |= WORDS[word]
    for name, value in (config | more).items():
        settings |= entry(str(name).removeprefix("fsdp_"), value, where)
    on = bool(words) if isinstance(given, str | list) else given
    return ({"fsdp": on} if on is not False else {}) | ({"fsdp_config": settings} if settings else {}), ""


def beside(name: str) -> Callable[[dict[str, Any], str], tuple[dict[str, Any], str]]:
    """Return `fsdp` for one of the former keys next to it, with a note that it belongs into `fsdp_config`."""
    new = f"fsdp_config.{name.removeprefix('fsdp_')}"
    return lambda asked, where: (
        fsdp(asked, where)[0],
        say("recipe_note_renamed", key=name, new=new, value=repr(asked[name]), reason=say("why_transformers_name")),
    )


def entry(name: str, value: Any, where: str) -> dict[str, Any]:
    """Return one entry of `fsdp_config` under transformers' name.

    Raises:
        LabError: transformers would ignore it.
    """
    new = RENAMED.get(name, name)
    if new not in CONFIG:
        raise refused("fsdp_config", name, suggest(name, CONFIG, say("one_of", names=", ".join(CONFIG))), where)
    if name == "sharding_strategy" and isinstance(value, str):
        word = value.lower()
        if word not in ("full_shard", "shard_grad_op"):
            raise refused("fsdp_config", value, say("one_of", names="FULL_SHARD, SHARD_GRAD_OP"), where)
        return WORDS[word]
    return {new: value}


def refused(key: str, value: str, hint: str, where: str) -> LabError:
    """Build the error for an unknown word of FSDP."""
    return fail("recipe_choice", where=where, key=key, value=repr(value), hint=hint)


def deepspeed(value: str | dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of `deepspeed`: a mapping itself, or the content of a file or of one of SHIPPED.

    Raises:
        LabError: a file that is missing, or that holds no JSON object.
    """
    if value in SHIPPED:
        value = str(next(path for folder in FOLDERS if (path := folder / f"{value}.json").is_file()))
    return read(value, "deepspeed", "deepspeed")


def read(value: str | dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return the configuration in a key, or in the JSON file that it names.

    Raises:
        LabError: a file that is missing, or that holds no JSON object.
    """
    if isinstance(value, dict):
        return value
    try:
        config = json.loads(decoding.text_of(Path(str(value)).expanduser()))
    except (OSError, ValueError):
        config = None
    # transformers would treat an empty one as no configuration.
    if not isinstance(config, dict) or not config:
        raise fail("recipe_json", where=where, key=key, path=str(value), names=", ".join(SHIPPED))
    return config
