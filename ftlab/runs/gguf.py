"""A model folder as one GGUF file, which llama.cpp and Ollama run: its tensor types, and the file itself.

Source of the layout: the GGUF specification and llama.cpp's own converter, https://github.com/ggml-org/llama.cpp.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from safetensors import safe_open
from transformers import AutoConfig

from ftlab import models
from ftlab.runs import gguf_families, gguf_tokenizer


class Kind(NamedTuple):
    """The tensor types of one kind of file.

    Attributes:
        matrices: most matrices.
        outer: the embedding, which is also the output layer of a tied model, where four bits cost the most.
        careful: value matrices (or fused query-key-value matrices) and the second feed-forward matrix in half of the
            layers, which llama.cpp gives more bits.
        after_eight: the attention output of a mixture of eight experts, in which attention is a small part.
        file_type: its name in the header.
        bytes_per_weight: upper bound for the whole file.
    """

    matrices: GGMLQuantizationType
    outer: GGMLQuantizationType
    careful: GGMLQuantizationType
    after_eight: GGMLQuantizationType
    file_type: LlamaFileType
    bytes_per_weight: float


Q = GGMLQuantizationType
KINDS = {
    "f16": Kind(Q.F16, Q.F16, Q.F16, Q.F16, LlamaFileType.MOSTLY_F16, 2.0),
    "q8_0": Kind(Q.Q8_0, Q.Q8_0, Q.Q8_0, Q.Q8_0, LlamaFileType.MOSTLY_Q8_0, 1.07),
    "q6_k": Kind(Q.Q6_K, Q.Q6_K, Q.Q6_K, Q.Q6_K, LlamaFileType.MOSTLY_Q6_K, 1.07),
    "q5_k_m": Kind(Q.Q5_K, Q.Q6_K, Q.Q6_K, Q.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, 0.9),
    "q4_k_m": Kind(Q.Q4_K, Q.Q6_K, Q.Q6_K, Q.Q5_K, LlamaFileType.MOSTLY_Q4_K_M, 0.8),
    "q4_0": Kind(Q.Q4_0, Q.Q8_0, Q.Q4_0, Q.Q4_0, LlamaFileType.MOSTLY_Q4_0, 0.57),
}
# Formats in blocks of 256 -> the format for rows that such blocks don't divide, as in llama.cpp.
SMALLER_BLOCKS = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
OUTER = ("token_embd.weight", "output.weight")
KEYS_AND_VALUES = (".attn_k.weight", ".attn_v.weight")
CAREFUL = (".attn_v.weight", ".attn_qkv.weight", ".ffn_down.weight", ".ffn_down_exps.weight")


def needs_llama_cpp(kind: str) -> bool:
    """Return True if a kind of file has formats that only llama.cpp itself writes.

    >>> [kind for kind in KINDS if needs_llama_cpp(kind)]
    ['q6_k', 'q5_k_m', 'q4_k_m']
    """
    return KINDS[kind].matrices in SMALLER_BLOCKS


def write(folder: Path, target: Path, kind: str) -> None:
    """Write the model of `folder` (config.json, safetensors, tokenizer) as the GGUF file `target`.

    Args:
        kind: a key of KINDS.
    Raises:
        LabError: an architecture, a position scheme or a tokenizer that this writer does not support.
    """
    with models.loading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tokenizer = models.load_tokenizer(folder)
    family = gguf_families.family_of(config, str(folder))
    formats = KINDS[kind]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[family.arch])
    gguf_families.add_settings(writer, config, family)
    writer.add_file_type(formats.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_tokenizer.add_tokenizer(writer, tokenizer, config.vocab_size, folder)
    layers, experts = config.num_hidden_layers, getattr(config, "num_local_experts", None) or 0
    for name, weight in gguf_families.converted(weights(folder), config, family, str(folder)):
        add_tensor(writer, name, weight.numpy(), format_of(name, formats, layers, experts))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, weight) of every tensor in a folder's safetensors, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is not a dict
                yield name, file.get_tensor(name)


def format_of(name: str, formats: Kind, layers: int, experts: int = 0) -> GGMLQuantizationType:
    """Return the format of a weight: that of llama.cpp's own quantizer for this kind of file.

    Compared with llama.cpp v0.5.0's `llama_model_quantize` for Llama, GPT-NeoX, Phi-3, BLOOM and Mixtral. Two
    differences are intended: the embedding and the output layer have `outer`, and a 70B's values no extra bit.
    Source: `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp.
    """
    if name in OUTER:
        return formats.outer
    if experts == 8 and formats.matrices != Q.F16 and name.endswith(KEYS_AND_VALUES):
        return Q.Q8_0
    if experts == 8 and name.endswith(".attn_output.weight"):
        return formats.after_eight
    if not name.endswith(CAREFUL):
        # A router decides by small differences.
        return Q.F32 if ".ffn_gate_inp." in name else formats.matrices
    layer = int(name.split(".")[1])
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return formats.careful if more else formats.matrices


def add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, wanted_format: GGMLQuantizationType) -> None:
    """Add one weight in the wanted format; vectors stay float32, rows that no block divides become float16."""
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    for kind in (wanted_format, SMALLER_BLOCKS.get(wanted_format, wanted_format), Q.F16):
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            break
    writer.add_tensor(name, quantized(values, kind), raw_dtype=kind)


def quantized(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Return float32 values, shape (..., columns), in a format of GGUF: bytes, or float16."""
    if kind not in SMALLER_BLOCKS:
        return gguf.quants.quantize(values, kind)
    # Only llama.cpp writes these; `ggml_quantize_chunk` is part of its C API.
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    blocks = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
    counts = [ctypes.c_int64(number) for number in (0, *rows.shape)]
    library.ggml_quantize_chunk(
        int(kind), ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(blocks.ctypes.data), *counts, None
    )
    return blocks.reshape(*values.shape[:-1], -1)
