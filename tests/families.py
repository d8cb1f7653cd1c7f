"""Random models of many families, with sizes that each of their configurations accepts."""

from typing import Any

import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHARED = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# Families whose configurations have other names.
OWN_NAMES = ("bloom", "gpt2", "mpt", "mamba", "mamba2", "rwkv", "falcon")
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "max_position_embeddings": 256},
    "gpt_oss": {"head_dim": 8, **EXPERTS},
    "gpt_neox": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16},
}
# Families that keep a recurrent state beside keys and values, or instead of them.
WITH_STATE: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8,
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
    "recurrent_gemma": {
        "num_key_value_heads": 1, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8,
        "logits_soft_cap": 1.0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "falcon_h1": {"head_dim": 8, "mamba_d_ssm": 32, **MAMBA, "mamba_n_heads": 4},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_expand": 1, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32, **MAMBA, **EXPERTS},
    "qwen3_next": {
        **LINEAR, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_5_text": LINEAR,
    "minimax": {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], **EXPERTS},
}  # fmt: skip


def model_of(family: str, **sizes: object) -> PreTrainedModel:
    """Return a random model of a family for `tiny.make_tokenizer`, with weights large enough for its tokens to matter.

    Args:
        sizes: fields of its configuration.
    """
    tokenizer = tiny.make_tokenizer()
    shared = {} if family in OWN_NAMES else SHARED | {"num_key_value_heads": 2}
    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields = shared | (SIZES | WITH_STATE).get(family, {}) | ends | sizes
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, bos_token_id=None, **fields)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model
