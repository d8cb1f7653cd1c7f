"""Bytes: what training takes, from plain numbers."""

# Bytes per model parameter: weights, then what training adds for every *trained* parameter.
BFLOAT16 = 2
NF4_WITH_BLOCK_SCALES = 0.56  # 4 bits, one byte of scale per 64 weights, scales of scales
ADAM_IN_FLOAT32 = 4 + 4 + 8  # a float32 copy, its gradient, two moments
LORA_SHARE = 0.01  # r = 16 on all linear layers of a 7B model: about one weight in a hundred


def rough_needs_bytes(parameters: int) -> dict[str, int]:
    """Estimate what a model of `parameters` weights needs: to run, and to train with QLoRA, LoRA and in full.

    Returns:
        Bytes for weights, gradients and optimizer. Activations are left out: they grow with batch and length.
    """
    lora = LORA_SHARE * ADAM_IN_FLOAT32
    return {
        "run": int(parameters * BFLOAT16),
        "qlora": int(parameters * (NF4_WITH_BLOCK_SCALES + lora)),
        "lora": int(parameters * (BFLOAT16 + lora)),
        "full": int(parameters * (BFLOAT16 + ADAM_IN_FLOAT32)),
    }
