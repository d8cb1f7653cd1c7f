"""Tiny checkpoints of GPTQ, AWQ and AQLM, written without their packages.

Sources of the layouts: AutoGPTQ's `qlinear`, AutoAWQ's `WQLinear_GEMM`, AQLM's `QuantizedLinear`.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP, LEVELS, PER_INT = 32, 16, 8
# The order of eight values in an int32 of AWQ.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
SETTINGS = {
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False, "checkpoint_format": "gptq"},
    "awq": {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "aqlm": {
        "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1, "nbits_per_codebook": 16,
        "linear_weights_not_to_quantize": ["lm_head"],
    },
}  # fmt: skip


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return levels (inputs, outputs), scales and zero points (groups, outputs) of a weight (outputs, inputs)."""
    groups = weight.T.reshape(-1, GROUP, weight.shape[0])
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (LEVELS - 1)).half().float()
    zero = (-low / scale).round().clamp(1, LEVELS - 1)
    levels = (groups / scale + zero).round().clamp(0, LEVELS - 1)
    return levels.reshape(weight.shape[1], -1).long(), scale[:, 0], zero[:, 0].long()


def packed(levels: torch.Tensor, dim: int, order: list[int] | None = None) -> torch.Tensor:
    """Return 4-bit levels as int32, eight values along `dim` in each."""
    eights = levels.movedim(dim, -1).unflatten(-1, (-1, PER_INT))[..., order or list(range(PER_INT))]
    return (eights << torch.arange(0, 32, 4)).sum(-1).to(torch.int32).movedim(-1, dim).contiguous()


def tensors(method: str, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a checkpoint has instead of a linear layer's weight (outputs, inputs)."""
    outputs, inputs = weight.shape
    if method == "aqlm":
        # The codebook holds the layer's own groups of eight weights, so that nothing is lost.
        book = torch.zeros(1, 2**16, 1, 8)
        own = weight.reshape(-1, 8)
        book[0, : len(own), 0] = own
        codes = torch.arange(len(own)).reshape(outputs, inputs // 8, 1).to(torch.int16)
        new = {"codes": codes, "codebooks": book.half(), "scales": torch.ones(outputs, 1, 1, 1).half()}
        return {f"{name}.{part}": value for part, value in new.items()}
    levels, scales, zeros = rounded(weight)
    if method == "awq":
        both = {"qweight": packed(levels, 1, AWQ_ORDER), "qzeros": packed(zeros, 1, AWQ_ORDER)}
    else:
        # Its first format stores zero points less one.
        both = {"qweight": packed(levels, 0), "qzeros": packed(zeros - 1, 1)}
        both["g_idx"] = torch.arange(inputs, dtype=torch.int32) // GROUP
    return {f"{name}.{part}": value for part, value in (both | {"scales": scales.half()}).items()}


def quantize(folder: Path, method: str) -> None:
    """Quantize the linear layers of the blocks of a model in a folder, there."""
    weights = load_file(folder / "model.safetensors")
    new: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if ".layers." in name and weight.ndim == 2:
            new |= tensors(method, name.removesuffix(".weight"), weight.float())
        else:
            new[name] = weight
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method} | SETTINGS[method]
    (folder / "config.json").write_text(json.dumps(config))
