"""One LoRA step on a CPU with each of ftlab's settings taken away in turn: 8 rows of 96 tokens, 35 of them trained."""

import json
import sys
import time

from benchmarks import turns

VARIANTS = ("all settings", "every position scored", "fused attention", "adapters in float32", "none of them")
ROWS, TOKENS, TRAINED = 8, 96, 35


def measure(repeats: int, steps: int) -> dict:
    """Print seconds per step of each variant; return them and what each setting is worth."""
    table = turns.medians(turns.in_turns("benchmarks.levers", VARIANTS, repeats, str(steps)))
    turns.show(table)
    seconds = {variant: row["seconds_per_step"] for variant, row in table.items()}
    return {"levers": table, "ratios": {name: seconds[name] / seconds["all settings"] for name in VARIANTS[1:]}}


def main(variant: str, steps: int) -> None:
    """Take `steps` steps and print the seconds of one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.trainer import utils

    from ftlab import device, models

    without = variant
    bare = without == "none of them"
    if not bare and without != "every position scored":
        device.fit_output_layer(device.describe())
    attention = "sdpa" if bare or without == "fused attention" else "eager"
    path = models.fetch("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16", attn_implementation=attention)
    utils.add_fused_lm_head(model)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    in_float32 = bare or without == "adapters in float32"
    model = get_peft_model(model, lora, autocast_adapter_dtype=in_float32).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    ids = torch.randint(0, 49000, (ROWS, TOKENS))
    labels = ids.masked_fill(torch.arange(TOKENS) < TOKENS - TRAINED, -100)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    timed = sorted(seconds[2:])
    print(json.dumps({"seconds_per_step": timed[len(timed) // 2]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
