"""Load what the command line names for the engine: a model, its adapters by name, or a recipe."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftlab import models, saved_weights
from ftlab.apps.serve.security import Limits
from ftlab.apps.serve.service import Served
from ftlab.errors import fail, reason_of, say
from ftlab.recipe import hub_token
from ftlab.recipe import read as recipes
from ftlab.runs import chat, engines, folder
from ftlab.runs.adapters import merge_adapter

BASE = "-base"
# The engines that generate several answers at once.
BACKENDS = ("huggingface", *(name for name, kind in engines.KINDS.items() if kind.gguf))
# The keys that select the model; requests set the others.
SOURCE = ("model_revision", "cache_dir", "trust_remote_code", hub_token.KEY)
NAMED = re.compile(r"([\w.-]+)=(.+)")


class Loaded(NamedTuple):
    """What is served.

    Attributes:
        served: models by the names that clients use.
        defaults: fields of a Job that a request does not set.
        backend: what generates, one of BACKENDS.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    served: dict[str, Served]
    limits: Limits
    defaults: dict[str, Any]
    backend: str = "huggingface"


def load(
    model_name_or_path: str,
    adapters: Sequence[str] = (),
    name: str | None = None,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
    backend: str | None = None,
) -> Loaded:
    """Return what to serve.

    Args:
        model_name_or_path: a model, or a RECIPE.yaml.
        adapters: DIR for one adapter under the model's name, or NAME=DIR for each of several.
        name: the model's name for clients; API_MODEL_NAME, or its own, if None.
        overrides: `key=value` for a recipe; for a model the keys that select it.
        backend: one of BACKENDS; all but "huggingface" merge the adapter, of which there may be one.
    Raises:
        LabError: no such model, an adapter that does not fit, or arguments that exclude each other.
    """
    name = name or os.environ.get("API_MODEL_NAME")
    if model_name_or_path.endswith((".yaml", ".yml")):
        if adapters or backend:
            raise fail("flags_with_recipe", model=model_name_or_path)
        return of_recipe(model_name_or_path, [*overrides, *["trust_remote_code=true"] * trust_remote_code], name)
    source = source_of(model_name_or_path, overrides, trust_remote_code)
    name = name or own_name(model_name_or_path)
    pairs = [split(adapter) for adapter in adapters]
    for _, place in pairs:
        saved_weights.refuse_virtual_tokens(saved_weights.weights_of(place), "serve")
    if len(pairs) > 1 or any(client for client, _ in pairs):
        if backend not in (None, "huggingface"):
            raise fail("serve_backend_adapters", backend=backend)
        return several(model_name_or_path, pairs, name, source)
    adapter = pairs[0][1] if pairs else None
    model, tokenizer = chat.load(model_name_or_path, adapter, **source)
    system = chat.system_turn(None, adapter)
    return generating_with(
        backend or "huggingface", Loaded(model, tokenizer, with_base(name, model, system), Limits(), {})
    )


def generating_with(backend: str, loaded: Loaded) -> Loaded:
    """Return what to serve with an engine: one that reads a file has the adapter in it, and cannot switch it off."""
    if backend == "huggingface":
        return loaded
    model = merge_adapter(loaded.model) if isinstance(loaded.model, PeftModel) else loaded.model
    served = {name: one for name, one in loaded.served.items() if one.adapter is not None}
    return loaded._replace(model=model, served=served, backend=backend)


def source_of(model_name_or_path: str, overrides: Sequence[str], trust_remote_code: bool) -> dict[str, Any]:
    """Return the options of `models.fetch` for a model without a recipe.

    Raises:
        LabError: any other key.
    """
    if any(one.partition("=")[0] not in SOURCE for one in overrides):
        raise fail("serve_overrides", model=model_name_or_path, keys=", ".join(SOURCE))
    keys = {"model_name_or_path": model_name_or_path, "trust_remote_code": trust_remote_code}
    return recipes.load(keys, overrides).source


def of_recipe(path: str, overrides: Sequence[str], name: str | None) -> Loaded:
    """Return the model of a recipe with what its run has trained; its sampling keys are the defaults of requests."""
    recipe = recipes.load(path, overrides)
    backend = chat.engine_of(recipe)
    if backend not in BACKENDS:
        raise fail("serve_backend", where=path, backend=recipe.infer_backend)
    if recipe.num_beams > 1:
        raise fail("serve_beams", where=path)
    if trained := chat.weights_folder(recipe):
        saved_weights.refuse_virtual_tokens(saved_weights.weights_of(trained), "serve")
    model, tokenizer = chat.from_recipe(recipe.model_copy(update={"infer_backend": "huggingface"}))
    served = with_base(
        name or own_name(recipe.model_name_or_path),
        model,
        chat.system_turn(recipe.default_system, chat.weights_folder(recipe)),
    )
    generation = chat.generation_of(recipe)
    longest = generation["max_new_tokens"]
    defaults: dict[str, Any] = {
        key: generation[key] for key in ("temperature", "top_p", "top_k", "repetition_penalty") if key in generation
    }
    limits = Limits(default_tokens=longest, max_tokens=max(longest, Limits.max_tokens))
    if not recipe.do_sample:
        defaults["temperature"] = 0.0
    return generating_with(backend, Loaded(model, tokenizer, served, limits, defaults))


def own_name(model_name_or_path: str) -> str:
    """Return the name of a model: the one that was given, or its folder's."""
    return Path(model_name_or_path).resolve().name if os.path.isdir(model_name_or_path) else model_name_or_path


def with_base(name: str, model: PreTrainedModel | PeftModel, system: Sequence[dict[str, Any]]) -> dict[str, Served]:
    """Return a model under its name, and the model without its adapter as `NAME-base`, if it has one to switch off."""
    return {name: Served(system=system)} | ({name + BASE: Served(None)} if chat.switchable(model) else {})


def split(adapter: str) -> tuple[str, str]:
    """Return an adapter's name for clients and its folder; the name is "" where none is given.

    >>> split("support=runs/a/adapter"), split("runs/lr=1e-4/adapter")
    (('support', 'runs/a/adapter'), ('', 'runs/lr=1e-4/adapter'))
    """
    match = NAMED.fullmatch(adapter)
    return (match[1], match[2]) if match and not os.path.exists(adapter) else ("", adapter)


def several(model_name_or_path: str, adapters: Sequence[tuple[str, str]], name: str, source: dict[str, Any]) -> Loaded:
    """Return a model under its own name, and each of its adapters under the name given for it.

    Args:
        source: options of `models.fetch`.
    Raises:
        LabError: a name is missing or taken; an adapter that cannot be switched off, or with another tokenizer.
    """
    clients = [name, *(client for client, _ in adapters)]
    if "" in clients or len(set(clients)) < len(clients):
        raise fail("serve_names", model=name)
    (_, first), *others = adapters
    model, tokenizer = chat.load(model_name_or_path, first, **source)
    base = Path(models.fetch(model_name_or_path, **source))
    for number, (_, place) in enumerate(others, 1):
        weights = folder.weights_for(place, base, model_name_or_path)
        if len(folder.chain(place)) > 1:
            raise fail("serve_adapters", where=place, reason=say("serve_adapters_base"))
        own = chat.tokenizer_of(weights, base, source["trust_remote_code"])
        if (own.chat_template, own.get_vocab()) != (tokenizer.chat_template, tokenizer.get_vocab()):
            raise fail("serve_adapters", where=place, reason=say("serve_adapters_tokenizer"))
        add(model, weights, f"adapter{number}")
    if not chat.switchable(model):
        raise fail("serve_adapters", where=", ".join(place for _, place in adapters), reason=say("serve_adapters_base"))
    served = {name: Served(None)}
    for (client, place), inner in zip(adapters, model.peft_config, strict=True):
        served[client] = Served(inner, chat.system_turn(None, place))
    return Loaded(model.eval(), tokenizer, served, Limits(), {})


def add(model: PreTrainedModel | PeftModel, weights: saved_weights.Weights, name: str) -> None:
    """Put another adapter on a model, under PEFT's `name`.

    Raises:
        LabError: it is not an adapter, or does not fit.
    """
    if not (weights.is_adapter and isinstance(model, PeftModel)):
        raise fail("serve_adapters", where=str(weights.folder), reason=say("serve_adapters_base"))
    try:
        model.load_adapter(str(weights.folder), adapter_name=name)
    # PEFT raises whatever the settings of an adapter lead it into.
    except Exception as error:
        raise fail("serve_adapters", where=str(weights.folder), reason=reason_of(error)[:160]) from None
