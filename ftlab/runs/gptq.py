"""GPTQ: quantize an exported model through transformers, optimum and gptqmodel; works on a CPU.

Source: Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323.
"""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTQConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftlab import models, packages, tokens
from ftlab.data import read
from ftlab.errors import LabError, fail
from ftlab.recipe.keys import Recipe

# Weights that share a scale: the first size that divides every row of the model's matrices.
GROUP_SIZES = (128, 64, 32, 16)


def texts_for(recipe: Recipe) -> list[str]:
    """Return the texts that a recipe's quantization is calibrated on; [] if it asks for none.

    Raises:
        LabError: a package is missing, the recipe names no texts, or they cannot be read.
    """
    if not recipe.export_quantization_bit:
        return []
    for module in ("gptqmodel", "optimum"):
        packages.require(module, "export_quantization_bit")
    if not recipe.export_quantization_dataset:
        raise fail("recipe_missing_key", key="export_quantization_dataset")
    return texts_in(Path(recipe.export_quantization_dataset).expanduser())[: recipe.export_quantization_nsamples]


def texts_in(path: Path) -> list[str]:
    """Return the column `text` of a file.

    Raises:
        LabError: a row cannot be read or has no such text, or the file has no rows.
    """
    texts = []
    for place, row in read.rows(path):
        if isinstance(row, LabError):
            raise row
        text = row.get("text")
        if not isinstance(text, str):
            raise fail("data_not_text", where=f"{path}:{place}", column="text", got=read.kind(text))
        texts.append(text)
    if not texts:
        raise fail("data_no_rows", where=str(path))
    return texts


def quantize(recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> PreTrainedModel:
    """Replace the weights in a model's folder by quantized ones; return the model as loaded from there again.

    Args:
        texts: are cut to `export_quantization_maxlen` tokens each.
    Raises:
        LabError: the model cannot be quantized.
    """
    # gptqmodel starts two threads to load models, and refuses to on a machine for which it chose one.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    cut = [tokenizer.decode(tokens.ids_of(tokenizer, text)[: recipe.export_quantization_maxlen]) for text in texts]
    asked = GPTQConfig(
        bits=recipe.export_quantization_bit, dataset=cut, tokenizer=tokenizer, group_size=group_size(folder)
    )
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": recipe.trust_remote_code}
    model = models.load_weights(AutoModelForCausalLM, folder, quantization_config=asked, **options)
    # Otherwise the texts would be saved in config.json.
    model.config.quantization_config.dataset = model.config.quantization_config.tokenizer = None
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    model.save_pretrained(folder, max_shard_size=f"{recipe.export_size}GB")
    return models.load_weights(AutoModelForCausalLM, folder, **options).eval()


def group_size(folder: Path) -> int:
    """Return how many weights of a row share a scale.

    Raises:
        LabError: no size divides the rows.
    """
    config = models.read_config(folder)
    rows = [config[name] for name in ("hidden_size", "intermediate_size") if name in config]
    for size in GROUP_SIZES:
        if not any(row % size for row in rows):
            return size
    raise fail("export_gptq_rows", where=str(folder), rows=", ".join(map(str, rows)))
