"""One LoRA step on a CPU without each of ftlab's fast paths in turn: 8 rows of 41 to 59 tokens, 17 trained in each.

As in identity_en, all rows share their first 24 tokens, which come from the chat template.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import turns
from benchmarks.limit import DTYPE

# Variant -> the parts that run as in the libraries; none in the first.
VARIANTS: dict[str, tuple[str, ...]] = {
    "all fast paths": (),
    "logits computed twice": ("head",),
    "logits of all positions": ("head", "tiles"),
    "rows without a shared prefix": ("rows",),
    "prefixes not shared": ("shared",),
    "eager attention": ("shared", "attention"),
    "SDPA": ("shared", "sdpa"),
    "gradient checkpointing": ("checkpointing",),
    "PEFT's LoRA": ("lora",),
    "PEFT's LoRA in the base's dtype": ("lora", "rounded"),
    "no fast paths": ("head", "tiles", "shared", "sdpa", "lora"),
}
LENGTHS, TRAINED, COMMON = (41, 50, 59, 45, 53, 48, 57, 43), 17, 24


def measure(repeats: int, steps: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Print seconds per step of each variant; return them and the slowdown of each variant.

    Args:
        only: variants besides the first; all by default.
    """
    # In float32 the adapters have the base's dtype in any case.
    known = [name for name, plain in VARIANTS.items() if torch.float32 != DTYPE or "rounded" not in plain]
    names = [name for name in known if not only or name in only or not VARIANTS[name]]
    table = turns.medians(turns.in_turns("benchmarks.levers", names, repeats, str(steps)))
    turns.show(table)
    seconds = {variant: row["seconds_per_step"] for variant, row in table.items()}
    return {"levers": table, "ratios": {name: seconds[name] / seconds[names[0]] for name in names[1:]}}


def main(variant: str, steps: int) -> None:
    """Take `steps` steps and print the seconds of one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    from ftlab import cpu, device, models
    from ftlab.cpu import attention, lora, prefix_sharing

    plain = VARIANTS[variant]
    cpu.install(cpu.decide(device.describe(), wanted="tiles" not in plain))
    if "head" in plain:
        utils._ChunkedLogProbFunction = ChunkedLogProbFunction
    path = models.fetch("smollm2-135m")
    kernel = "sdpa" if "sdpa" in plain else "eager"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE, attn_implementation=kernel)
    if not {"attention", "sdpa"} & set(plain):
        attention.use(model)
        if "shared" not in plain:
            prefix_sharing.install(model.base_model)
    utils.add_fused_lm_head(model)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config, autocast_adapter_dtype="rounded" not in plain).train()
    if "lora" not in plain:
        lora.install(model)
    if "checkpointing" in plain:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    rows = torch.randint(0, 49000, (len(LENGTHS), max(LENGTHS)))
    if "rows" not in plain:
        rows[:, :COMMON] = rows[0, :COMMON]
    inputs = batch([row[:length] for row, length in zip(rows, LENGTHS, strict=True)])
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        model(**inputs, fused_lm_head=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    timed = sorted(seconds[2:])
    print(json.dumps({"seconds_per_step": timed[len(timed) // 2]}))


def batch(rows: list[Any]) -> dict[str, Any]:
    """Return rows as a batch of TRL's collator."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    given = []
    for row in rows:
        ids = row.tolist()
        given.append({"input_ids": ids, "labels": [-100] * (len(ids) - TRAINED) + ids[-TRAINED:]})
    return dict(DataCollatorForLanguageModeling(pad_token_id=0)(given))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
