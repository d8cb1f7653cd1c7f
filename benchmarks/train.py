"""LoRA on identity_en: the recipe's defaults against trl as it comes, trl with the obvious settings, a plain loop.

The same rows in the same order, the same steps, rank, optimizer and learning rate.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import limit, turns

VARIANTS = ("ftlab", "trl defaults", "trl best settings", "plain loop")
BATCHES = (4, 8)
RANK, LEARNING_RATE, SEED = 16, 1e-3, 42
WARM_UP = 2  # steps that are not timed: the first ones fill caches and pools
# Multiplications and additions per token of a LoRA step: forward and the gradient of the input, 2 per weight each.
FLOPS_PER_WEIGHT = 4
LINEAR_WEIGHTS = 30 * sum(n * m for n, m in limit.SHAPES)
HEAD_WEIGHTS = 49152 * 576


def measure(repeats: int, steps: int) -> dict:
    """Print the table of both batch sizes; return figures and ratios of samples per second."""
    best = limit.matrix_rate(limit.torch.bfloat16, repeats)
    found = {"matrix_gflops": best, "batches": {}, "ratios": {}}
    for batch in BATCHES:
        table = turns.medians(turns.in_turns("benchmarks.train", VARIANTS, repeats, str(batch), str(steps)))
        print(f"\nbatch {batch}, {steps} steps, {repeats} turns")
        turns.show(table)
        found["batches"][batch] = table
    table = found["batches"][BATCHES[-1]]
    speed = {variant: row["samples_per_second"] for variant, row in table.items()}
    found["ratios"] = {
        "lora_vs_trl_defaults": speed["ftlab"] / speed["trl defaults"],
        "lora_vs_trl_best_settings": speed["ftlab"] / speed["trl best settings"],
        "lora_vs_plain_loop": speed["ftlab"] / speed["plain loop"],
        "lora_share_of_machine_limit": table["ftlab"]["needed_gflops"] / best,
    }
    return found


def rows() -> list[dict]:
    """Return identity_en as prompt and completion."""
    from ftlab.data import registry

    found = registry.load("identity_en", "data", substitutions={"name": "Lumi", "author": "the Ada Lab"})
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in found]


class Clock:
    """Remember when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def callback(self):
        """Return a TrainerCallback that feeds this clock."""
        from transformers import TrainerCallback

        clock = self

        class Ticks(TrainerCallback):
            def on_step_end(self, *_, **__):
                clock.ends.append(time.perf_counter())

            def on_log(self, args, state, control, logs=None, **_):
                if logs and "loss" in logs:
                    clock.losses.append(float(logs["loss"]))

        return Ticks()


def run_ftlab(batch: int, steps: int, clock: Clock, folder: str) -> None:
    """Train recipes/sft_lora.yaml."""
    from ftlab.runs import recipe, train

    overrides = {
        "per_device_train_batch_size": batch, "max_steps": steps, "output_dir": folder, "seed": SEED,
        "learning_rate": LEARNING_RATE, "lora_rank": RANK, "logging_steps": 1, "save_strategy": "no",
    }  # fmt: skip
    loaded = recipe.load("recipes/sft_lora.yaml", [f"{key}={value}" for key, value in overrides.items()])
    train.train(loaded, callbacks=[clock.callback()])


def run_trl(batch: int, steps: int, clock: Clock, folder: str, best: bool) -> None:
    """Train with SFTTrainer; `best` sets what a reader of its manual would set on a CPU."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from ftlab import models

    obvious = (
        {"gradient_checkpointing": False, "bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}} if best else {}
    )
    args = SFTConfig(
        output_dir=folder,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        **obvious,
    )
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    data = Dataset.from_list(rows())
    trainer = SFTTrainer(models.fetch("smollm2-135m"), args, train_dataset=data, peft_config=lora)
    trainer.add_callback(clock.callback())
    trainer.train()


def run_loop(batch: int, steps: int, clock: Clock) -> None:
    """Train with a loop of a dozen lines: padded batches, the model's own loss, AdamW."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    from ftlab import evaluate, models, tokens

    path = models.fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = [tokens.encode(tokenizer, row) for row in rows()]
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16")
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, steps)
    order = torch.randperm(len(encoded)).tolist() * steps
    for step in range(steps):
        chosen = [encoded[i] for i in order[step * batch : (step + 1) * batch]]
        ids = evaluate.pad_right([row["input_ids"] for row in chosen], tokenizer.pad_token_id)
        mask = evaluate.pad_right([[1] * len(row["input_ids"]) for row in chosen], 0)
        labels = evaluate.pad_right([row["labels"] for row in chosen], tokens.IGNORED)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.ends.append(time.perf_counter())


def main(variant: str, batch: int, steps: int) -> None:
    """Run one variant and print its figures as JSON."""
    from transformers import AutoTokenizer

    from ftlab import models, tokens

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if variant == "ftlab":
            run_ftlab(batch, steps, clock, str(Path(folder) / "run"))
        elif variant == "plain loop":
            run_loop(batch, steps, clock)
        else:
            run_trl(batch, steps, clock, folder, best=variant == "trl best settings")
    seconds = (clock.ends[-1] - clock.ends[WARM_UP - 1]) / (len(clock.ends) - WARM_UP)
    tokenizer = AutoTokenizer.from_pretrained(models.fetch("smollm2-135m"))
    encoded = [tokens.encode(tokenizer, row) for row in rows()]
    total = sum(len(row["input_ids"]) for row in encoded) / len(encoded)
    trained = sum(label != tokens.IGNORED for row in encoded for label in row["labels"]) / len(encoded)
    needed = FLOPS_PER_WEIGHT * (LINEAR_WEIGHTS * total + HEAD_WEIGHTS * trained) * batch
    figures = {
        "samples_per_second": batch / seconds,
        "trained_tokens_per_second": batch * trained / seconds,
        "needed_gflops": needed / seconds / 1e9,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "final_loss": sum(clock.losses[-4:]) / 4,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
