"""Encoded examples saved to a folder: the recipe key `tokenized_path`.

As in LLaMA-Factory: if the folder does not exist, the examples are encoded and saved to it, and nothing is trained; if
it exists, it is read instead of the data sets. Its manifest records how they were encoded; the recipe must match.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from transformers import PreTrainedTokenizerBase

from ftlab import manifests
from ftlab.errors import fail, reason_of, say
from ftlab.recipe.keys import Recipe
from ftlab.recipe.library_args import encoding_of
from ftlab.runs.target import refuse_place

Splits = tuple[Dataset, Dataset | None]


def read(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Splits:
    """Return the training and validation sets from the folder.

    Raises:
        LabError: it is damaged, holds something else, or was encoded with other settings.
    """
    folder = Path(str(recipe.tokenized_path)).expanduser()
    if reason := manifests.problem(folder, encoded_by(recipe, tokenizer)):
        raise fail("tokenized_other", where=str(folder), reason=reason)
    try:
        datasets = load_from_disk(str(folder))
    # datasets may raise any exception of its readers.
    except Exception as error:
        raise fail("tokenized_other", where=str(folder), reason=reason_of(error)) from None
    print(say("tokenized_read", where=folder, rows=len(datasets["train"])))
    return datasets["train"], datasets.get("validation")


def write(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, datasets: Splits) -> None:
    """Save encoded examples to the folder, which is renamed into place when complete.

    Raises:
        LabError: the folder is not allowed.
    """
    folder = Path(str(recipe.tokenized_path)).expanduser()
    refuse_place(folder, "tokenized_path")
    partial = folder.with_name(manifests.PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    parts = dict(zip(("train", "validation"), datasets, strict=True))
    DatasetDict({name: rows for name, rows in parts.items() if rows is not None}).save_to_disk(str(partial))
    manifests.write_manifest(partial, encoded_by(recipe, tokenizer))
    partial.rename(folder)


def encoded_by(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what encoded examples depend on besides the data: stage, cutting and masking keys, tokenizer."""
    own = json.dumps([tokenizer.get_vocab(), str(tokenizer.chat_template)], sort_keys=True)
    tokens = hashlib.sha256(own.encode()).hexdigest()[:16]
    return {"stage": recipe.objective, "tokenizer": tokens} | encoding_of(recipe)._asdict()
