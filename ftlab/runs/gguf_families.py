"""The model families that llama.cpp supports: their names, hyperparameters and weight layouts there.

Source: llama.cpp's own converter and its model graphs, https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import gguf
import torch
from gguf import MODEL_ARCH
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ftlab.errors import fail, say

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123]\.weight)")
Named = tuple[str, torch.Tensor]


class Family(NamedTuple):
    """What llama.cpp needs to know about a family.

    Attributes:
        arch: its name there.
        activation: the only one that it supports for this family; "" if the family has just one.
        permuted: transformers rotates row i of a head with row i + head_dim / 2, llama.cpp row 2i with row 2i + 1.
        fused: a head's rows of query, key and value lie together; llama.cpp wants all queries first.
        norm_offset: what transformers adds to the weight of a norm while computing.
        rms: norms divide by the root mean square, without a mean.
        own_head: llama.cpp asks for the output layer even where it is the embedding.
    """

    arch: MODEL_ARCH
    activation: str = "silu"
    permuted: bool = False
    fused: bool = False
    norm_offset: float = 0
    rms: bool = True
    own_head: bool = False


FAMILIES = {
    # Mistral's and Mixtral's weights are laid out as Llama's; llama.cpp has one name for all.
    "LlamaForCausalLM": Family(MODEL_ARCH.LLAMA, permuted=True),
    "MistralForCausalLM": Family(MODEL_ARCH.LLAMA, permuted=True),
    "MixtralForCausalLM": Family(MODEL_ARCH.LLAMA, permuted=True),
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3),
    "Olmo2ForCausalLM": Family(MODEL_ARCH.OLMO2, own_head=True),
    "GemmaForCausalLM": Family(MODEL_ARCH.GEMMA, "gelu_pytorch_tanh", norm_offset=1),
    "Gemma2ForCausalLM": Family(MODEL_ARCH.GEMMA2, "gelu_pytorch_tanh", norm_offset=1),
    "GlmForCausalLM": Family(MODEL_ARCH.CHATGLM),
    "Glm4ForCausalLM": Family(MODEL_ARCH.GLM4),
    "Phi3ForCausalLM": Family(MODEL_ARCH.PHI3),
    "PhiForCausalLM": Family(MODEL_ARCH.PHI2, "gelu_new", rms=False, own_head=True),
    "GPTNeoXForCausalLM": Family(MODEL_ARCH.GPTNEOX, "gelu", fused=True, rms=False, own_head=True),
    "BloomForCausalLM": Family(MODEL_ARCH.BLOOM, "", fused=True, rms=False),
}

# Families that transformers' GGUF reader supports; it reads Mistral's as Llama's.
READ_BACK = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("Gemma2ForCausalLM", "Phi3ForCausalLM", "BloomForCausalLM"),
)


def family_of(config: PretrainedConfig, where: str) -> Family:
    """Return the family of a model; refuse one whose file would load but give nonsense.

    Raises:
        LabError: naming what is not supported.
    """
    architecture = (config.architectures or ["?"])[0]
    family = FAMILIES.get(architecture)
    if family is None:
        raise fail("export_gguf", where=where, what=say("gguf_architecture", name=architecture))
    rope = rope_of(config).get("rope_type", "default")
    if rope != "default" and (rope, family.arch) != ("llama3", MODEL_ARCH.LLAMA):
        raise fail("export_gguf", where=where, what=say("gguf_positions", name=rope))
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if family.activation and activation != family.activation:
        raise fail("export_gguf", where=where, what=f"the activation {activation}")
    if family.arch == MODEL_ARCH.GEMMA2 and config.query_pre_attn_scalar != config.head_dim:
        raise fail("export_gguf", where=where, what=f"query_pre_attn_scalar {config.query_pre_attn_scalar}")
    return family


def key_heads(config: PretrainedConfig, family: Family) -> int:
    """Return the number of key-value heads of a layer."""
    shared = None if family.fused else getattr(config, "num_key_value_heads", None)
    return shared or config.num_attention_heads


def rope_of(config: PretrainedConfig) -> dict:
    """Return a model's rotary position settings, {} for one without."""
    return getattr(config, "rope_parameters", None) or {}


def add_settings(writer: gguf.GGUFWriter, config: PretrainedConfig, family: Family) -> None:
    """Add the hyperparameters from which llama.cpp builds the model."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # BLOOM has no position limit, and its feed-forward layer is always four times as wide.
    inner = 4 * config.hidden_size if family.arch == MODEL_ARCH.BLOOM else config.intermediate_size
    writer.add_context_length(getattr(config, "max_position_embeddings", None) or 2048)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads(config, family))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if rope := rope_of(config):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
        writer.add_rope_freq_base(rope["rope_theta"])
    if family.rms:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    add_own_settings(writer, config, family)


def add_own_settings(writer: gguf.GGUFWriter, config: PretrainedConfig, family: Family) -> None:
    """Add the hyperparameters that only one family has."""
    if experts := getattr(config, "num_local_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if family.arch == MODEL_ARCH.LLAMA and getattr(config, "sliding_window", None):
        # Mistral's: llama.cpp stores it but attends to everything, which is the same within the window.
        writer.add_sliding_window(config.sliding_window)
    if family.arch == MODEL_ARCH.GPTNEOX:
        writer.add_parallel_residual(config.use_parallel_residual)
    if family.arch == MODEL_ARCH.PHI3:
        writer.add_sliding_window(config.sliding_window or 0)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if family.arch == MODEL_ARCH.GEMMA2:
        writer.add_sliding_window(config.sliding_window)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def converted(weights: Iterable[Named], config: PretrainedConfig, family: Family, where: str) -> Iterator[Named]:
    """Yield the weights under llama.cpp's names and in its order, in float32.

    Raises:
        LabError: a weight without a name in llama.cpp.
    """
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    for name, weight in stacked(weights, getattr(config, "num_local_experts", None) or 0, where):
        # The table has BLOOM's names without this prefix.
        short = names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        if short is None:
            raise fail("export_gguf", where=where, what=say("gguf_weight", name=name))
        yield short, reordered(weight.float(), short, config, family)
        if short == "token_embd.weight" and family.own_head and config.tie_word_embeddings:
            yield "output.weight", weight.float()
    if rope_of(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", stretched(config)


def stacked(weights: Iterable[Named], experts: int, where: str) -> Iterator[Named]:
    """Yield weights, with a layer's experts stacked as (experts, rows, columns).

    Raises:
        LabError: a layer that lacks some of its experts.
    """
    waiting: dict[str, dict[int, torch.Tensor]] = {}
    for name, weight in weights:
        one = EXPERT.fullmatch(name)
        if not one:
            yield name, weight
            continue
        parts = waiting.setdefault(f"{one[1]}.{one[3]}", {})
        parts[int(one[2])] = weight
        if len(parts) == experts:
            yield f"{one[1]}.{one[3]}", torch.stack([parts[number] for number in range(experts)])
            parts.clear()
    if incomplete := next((f"{name}, {len(parts)} of {experts}" for name, parts in waiting.items() if parts), ""):
        raise fail("export_gguf", where=where, what=say("gguf_experts", names=incomplete))


def reordered(weight: torch.Tensor, name: str, config: PretrainedConfig, family: Family) -> torch.Tensor:
    """Return a weight in llama.cpp's layout; most are unchanged."""
    if family.norm_offset and name.endswith("norm.weight"):
        return weight + family.norm_offset
    heads = config.num_attention_heads
    if family.fused and ".attn_qkv." in name:
        parts = weight.reshape(heads, 3, -1, *weight.shape[1:])
        return parts.swapaxes(0, 1).reshape(weight.shape).contiguous()
    rotated = {".attn_q.": heads, ".attn_k.": key_heads(config, family)}
    count = next((count for part, count in rotated.items() if part in name), 0)
    if not (family.permuted and count):
        return weight
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def stretched(config: PretrainedConfig) -> torch.Tensor:
    """Return llama.cpp's divisors of Llama 3.1's rotary frequencies, shape (head_dim / 2,)."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return plain / frequencies
