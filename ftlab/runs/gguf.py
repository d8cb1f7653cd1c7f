"""A model folder as one GGUF file, which llama.cpp and Ollama run: names, row order, number formats, tokenizer.

Source of the layout: the GGUF specification and llama.cpp's own converter, https://github.com/ggml-org/llama.cpp.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from ftlab import models, tokens
from ftlab.errors import fail

# name -> (format of the matrices, format of the embedding, what the header calls it). The embedding is also the
# output layer of a tied model, where four bits cost the most.
KINDS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
# Mistral's weights are Llama's; llama.cpp reads both under one name.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
EMBEDDINGS = ("token_embd.weight", "output.weight")


def write(folder: Path, target: Path, kind: str) -> None:
    """Write the model of `folder` (config.json, safetensors, tokenizer) as the GGUF file `target`.

    Args:
        kind: a key of KINDS.
    Raises:
        LabError: an architecture, a position scheme or a tokenizer that this writer does not know.
    """
    with models.loading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tokenizer = models.load_tokenizer(folder)
    require_known(config, folder)
    matrices, embedding, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(target, "llama")
    add_settings(writer, config, tokenizer)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer, config.vocab_size, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights(folder):
        short = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if short is None:
            raise fail("export_gguf", where=str(folder), what=f"a weight called {name}")
        values = permuted(weight.float(), short, config).numpy()
        asked = embedding if short in EMBEDDINGS else matrices
        add_tensor(writer, short, values, asked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def require_known(config: PretrainedConfig, folder: Path) -> None:
    """Refuse what would be written wrongly: a file that loads and then talks nonsense.

    Raises:
        LabError: naming what is not known.
    """
    architecture = (config.architectures or ["?"])[0]
    if architecture not in ARCHITECTURES:
        raise fail("export_gguf", where=str(folder), what=f"the architecture {architecture}")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope != "default":
        raise fail("export_gguf", where=str(folder), what=f"positions of the type {rope}")
    if config.hidden_act != "silu":
        raise fail("export_gguf", where=str(folder), what=f"the activation {config.hidden_act}")


def weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, weight) of every tensor in a folder's safetensors, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is not a dict
                yield name, file.get_tensor(name)


def permuted(weight: torch.Tensor, name: str, config: PretrainedConfig) -> torch.Tensor:
    """Return the rows of a query or key matrix in llama.cpp's order, any other weight unchanged.

    transformers rotates row i of a head with row i + head_dim / 2, llama.cpp row 2i with row 2i + 1.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    count = next((heads[part] for part in heads if f".{part}." in name), None)
    if count is None:
        return weight
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, asked: gguf.GGMLQuantizationType) -> None:
    """Add one weight in the format asked; vectors stay float32, rows that no block divides become float16."""
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    block, _ = gguf.GGML_QUANT_SIZES[asked]
    kind = asked if values.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def add_settings(writer: gguf.GGUFWriter, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the numbers that llama.cpp builds the model from, and the chat template."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    template = tokenizer.chat_template
    if template:
        writer.add_chat_template(template if isinstance(template, str) else template["default"])


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, folder: Path) -> None:
    """Add a byte-level BPE tokenizer: tokens with their kinds, merges, the ids with a meaning.

    Raises:
        LabError: another kind of tokenizer.
    """
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(inner, folder))
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = []
    for number in range(size):
        if number not in names:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            kinds.append(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    merges = inner["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    # Where a chat template ends turns with another token than eos: llama.cpp stops at both.
    ends = [number for number in tokens.end_ids(tokenizer) if number != tokenizer.eos_token_id]
    if ends:
        writer.add_eot_token_id(ends[0])
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


def pre_tokenizer(inner: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name for how a tokenizer cuts text into words.

    Args:
        inner: what a tokenizer.json says.
    Raises:
        LabError: no byte-level BPE, or another way of cutting.
    """
    before = inner["pre_tokenizer"] or {}
    parts = before.get("pretokenizers", [before])
    kinds = [part.get("type") for part in parts]
    known = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}
    plain = inner["model"]["type"] == "BPE" and not inner["normalizer"]
    if not plain or tuple(kinds) not in known or parts[-1].get("add_prefix_space"):
        raise fail("export_gguf", where=str(folder), what=f"this tokenizer ({inner['model']['type']}, {kinds})")
    return known[tuple(kinds)]
