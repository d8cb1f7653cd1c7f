"""The second model of a loss: GKD's teacher, or a reference other than the model that training starts from."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from ftlab import models, saved_weights
from ftlab.device import Machine
from ftlab.errors import fail
from ftlab.recipe import library_args
from ftlab.recipe.keys import Recipe
from ftlab.runs import chat, folder
from ftlab.runs.adapters import merge_adapter


def folder_of(recipe: Recipe, base: str) -> str:
    """Return the folder of a recipe's second model.

    Args:
        base: the folder of the model that is trained.
    Raises:
        LabError: it is not a model, or has another vocabulary than the model that is trained.
    """
    key = str(recipe.second_model)
    name = str(getattr(recipe, key))
    # As in LLaMA-Factory, `model_revision` is for both; local models have none.
    path = models.fetch(name, **recipe.source | ({} if models.has_revisions(name) else {"revision": "main"}))
    own, other = models.embedding_rows(base), models.embedding_rows(path)
    if own != other:
        raise fail("train_reference", where=key, name=name, own=own, other=other)
    # Families of the same vocabulary size (Llama 2 and Mistral) have different tokens for the same ids.
    ours, theirs = (models.load_tokenizer(place, recipe.trust_remote_code).get_vocab() for place in (base, path))
    moved = [token for token, number in ours.items() if theirs.get(token, number) != number]
    if moved:
        # The one with the lowest id: the library's own order differs between processes.
        token = min(moved, key=ours.__getitem__)
        numbers = {"own": ours[token], "other": theirs[token]}
        raise fail("train_reference_tokens", where=key, name=name, token=repr(token), **numbers)
    if weights := adapter_of(recipe, path):
        saved_weights.require_language_model(weights)
        saved_weights.refuse_virtual_tokens(weights, "ref_model_adapters")
    return path


def adapter_of(recipe: Recipe, path: str) -> saved_weights.Weights | None:
    """Return the adapter of the reference model, None without one.

    Raises:
        LabError: it is not there, or it belongs to another base.
    """
    if recipe.second_model != "ref_model" or not recipe.ref_model_adapters:
        return None
    return folder.weights_for(str(recipe.ref_model_adapters), Path(path), str(recipe.ref_model))


def load(recipe: Recipe, base: str, machine: Machine) -> Any:
    """Return the second model in the dtype of the trained model; a reference has its adapter merged.

    Raises:
        LabError: as `folder_of`, or its weights cannot be read.
    """
    path = folder_of(recipe, base)
    options = library_args.model_settings(recipe, machine)
    weights = adapter_of(recipe, path)
    whole = weights is not None and not weights.is_adapter
    model = models.load_weights(AutoModelForCausalLM, weights.folder if whole and weights else path, **options)
    tokenizer = models.load_tokenizer(path, recipe.trust_remote_code)
    if weights and weights.is_adapter:
        before = folder.chain(str(recipe.ref_model_adapters))[:-1]
        model = chat.merge_before(model, before, Path(path), str(recipe.ref_model))
        model = merge_adapter(chat.with_adapter(model, weights, tokenizer))
    return model.eval().requires_grad_(False)
