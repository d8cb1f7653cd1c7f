"""Fine-tuning on identity_en: ftlab's recipes against TRL defaults, TRL tuned, a plain loop.

All have the same examples in the same order (checked), initial adapters, steps, rank, optimizer and learning rate.
LLaMA-Factory is compared too if its command is given; its initial adapters are its own.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import limit, llamafactory, sides, turns
from benchmarks.sides import Side

VARIANTS = {
    "lora": ("ftlab", "trl defaults", "trl tuned", "plain loop"),
    # A machine without bfloat16 emulates it: half a minute per step, so this runs only if it is named.
    "installed": ("ftlab", "trl as installed"),
    "qlora": ("ftlab", "plain peft", "trl defaults"),
    "full": ("ftlab", "trl defaults"),
}
RECIPES = {"lora": "sft_lora", "installed": "sft_lora", "qlora": "sft_qlora", "full": "sft_full"}
BATCHES = (4, 8)
RANK, SEED = 16, 42
LEARNING_RATE = {"lora": 1e-3, "installed": 1e-3, "qlora": 1e-3, "full": 2e-5}
SUBSTITUTIONS = {"name": "Lumi", "author": "the Ada Lab"}
LINEAR_WEIGHTS = 30 * sum(n * m for n, m in limit.SHAPES)
ADAPTER_WEIGHTS = 30 * sum(RANK * (n + m) for n, m in limit.SHAPES)
HEAD_WEIGHTS = 49152 * 576


def measure(repeats: int, steps: int, only: Sequence[str] = (), command: str = "") -> dict[str, Any]:
    """Print one table per method and batch size; return figures and ratios of trained tokens per second.

    Args:
        only: which of VARIANTS to compare; lora, qlora and full by default.
        command: the path of `llamafactory-cli`, which is then compared in lora and installed.
    """
    found: dict[str, Any] = {"tables": {}, "ratios": {}}
    for method in only or ("lora", "qlora", "full"):
        best = limit.matrix_rate(limit.DTYPE, repeats)
        tables = {}
        variants = VARIANTS[method] + ((llamafactory.NAME,) if command and method in ("lora", "installed") else ())
        for batch in BATCHES:
            arguments = (method, str(batch), str(steps), command)
            tables[batch] = turns.medians(turns.in_turns("benchmarks.train", variants, repeats, *arguments))
            print(f"\n{method}, batch {batch}, {steps} steps, {repeats} turns")
            turns.show(tables[batch])
            # The tokens of another program are not known.
            turns.same({name: row for name, row in tables[batch].items() if name != llamafactory.NAME}, "samples")
        found["tables"][method] = tables
        found["ratios"] |= ratios(method, tables, max(best, limit.matrix_rate(limit.DTYPE, repeats)))
    return found


def ratios(method: str, tables: dict[int, dict[str, Any]], matrix_gflops: float) -> dict[str, float]:
    """Return the ratios of one method, over both batch sizes together."""
    mine, *others = tables[BATCHES[0]]
    speed = {variant: together(tables, variant, "trained_tokens_per_second") for variant in (mine, *others)}
    found = {}
    for other in others:
        name = f"{method}_vs_{other.replace(' ', '_')}" if other != "plain peft" else "qlora_vs_plain"
        found[name] = speed[mine] / speed[other]
        pairs = [(table[mine], table[other]) for table in tables.values()]
        if other != llamafactory.NAME:  # it trains on one more token per row
            found[f"{name}_loss_difference"] = max(abs(a["final_loss"] / b["final_loss"] - 1) for a, b in pairs)
        found[f"{name}_peak_memory"] = max(a["peak_gib"] / b["peak_gib"] for a, b in pairs)
    if method == "lora":
        found["lora_share_of_machine_limit"] = together(tables, mine, "needed_gflops") / matrix_gflops
        found["lora_distinct_share_of_machine_limit"] = together(tables, mine, "distinct_gflops") / matrix_gflops
    return found


def together(tables: dict[int, dict[str, Any]], variant: str, rate: str) -> float:
    """Return a rate per second over the timed steps of all batch sizes together."""
    rows = [table[variant] for table in tables.values()]
    return sum(row[rate] * row["seconds_per_step"] for row in rows) / sum(row["seconds_per_step"] for row in rows)


def rows() -> list[dict[str, list[int]]]:
    """Return identity_en as `input_ids` and `labels`: from messages, TRL would train on one more token per row."""
    from transformers import AutoTokenizer

    from ftlab import models, tokens
    from ftlab.data import registry

    tokenizer = AutoTokenizer.from_pretrained(models.fetch("smollm2-135m"))
    rows = registry.load("identity_en", "data", substitutions=SUBSTITUTIONS)
    return [example for row in rows for example in tokens.encode(tokenizer, row)]


def recipe_of(method: str, batch: int, steps: int, folder: str) -> Any:
    """Return the method's recipe with the settings that all variants share."""
    from ftlab.recipe import read as recipes

    keys = {
        "dataset": "identity_en", "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": batch,
        "learning_rate": LEARNING_RATE[method], "warmup_steps": 0, "seed": SEED, "save_strategy": '"no"',
        "logging_steps": 1, "plot_loss": "false", "mix_strategy": "concat", "interleave_probs": "null",
    } | ({} if method == "full" else {"lora_rank": RANK})  # fmt: skip
    keys |= {f"dataset_substitutions.{name}": value for name, value in SUBSTITUTIONS.items()}
    return recipes.load(f"recipes/{RECIPES[method]}.yaml", [f"{key}={value}" for key, value in keys.items()])


def run_ftlab(method: str, batch: int, steps: int, side: Side, folder: str) -> None:
    """Train the method's recipe."""
    from ftlab.runs import train

    train.train(recipe_of(method, batch, steps, folder), callbacks=[side], quiet=True)


def run_trl(method: str, batch: int, steps: int, side: Side, folder: str, variant: str) -> None:
    """Train with SFTTrainer in the dtype that suits the machine; "trl as installed" has all of TRL's defaults.

    "trl tuned" has no gradient checkpointing, and loads the base model in that dtype.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from ftlab import models

    obvious: dict[str, Any] = {} if variant == "trl as installed" else sides.precision()
    if variant == "trl tuned":
        obvious |= {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": limit.DTYPE}}
    if method == "qlora":
        obvious["model_init_kwargs"] = {"dtype": limit.DTYPE, "quantization_config": four_bits()}
    args = SFTConfig(
        output_dir=folder,
        use_cpu=sides.ON_CPU,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=LEARNING_RATE[method],
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        **obvious,
    )
    trainer = SFTTrainer(
        models.fetch("smollm2-135m"),
        args,
        train_dataset=Dataset.from_list(rows()),
        peft_config=None if method == "full" else lora(),
        callbacks=[side],
    )
    trainer.train()


def run_loop(method: str, batch: int, steps: int, side: Side) -> None:
    """Train with a loop of a dozen lines: padded batches, the model's own loss, AdamW.

    For qlora the model is prepared as PEFT's guide to quantization does it.
    """
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    from ftlab import models

    path = models.fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = rows()
    if method == "qlora":
        model = AutoModelForCausalLM.from_pretrained(path, quantization_config=four_bits())
        model = prepare_model_for_kbit_training(model)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=limit.DTYPE)
    model = get_peft_model(model, lora()).train().to(limit.ON)
    side.begin(model)
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=LEARNING_RATE[method], weight_decay=0
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, steps)
    loader = torch.utils.data.DataLoader(encoded, batch, sampler=order(encoded), collate_fn=tokenizer_batch(tokenizer))
    for inputs in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
        loss = model(**{name: value.to(limit.ON) for name, value in inputs.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        side.losses.append(loss.item())
        side.on_step_end(None, None, None)


def order(encoded: list[Any]) -> Any:
    """Return a sampler that draws rows in the order in which Trainer draws them."""
    from accelerate.data_loader import SeedableRandomSampler

    return SeedableRandomSampler(encoded, data_seed=SEED)


def run_llamafactory(command: str, method: str, batch: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train with LLaMA-Factory's command; settings that the comparison does not fix have their defaults.

    Args:
        method: lora, with weights in the dtype that suits the machine, or installed, with the published ones.
    Returns:
        Its figures.
    """
    from ftlab import models
    from ftlab.data import registry

    # On a CPU it loads weights in their own dtype: keys such as `bf16: false` have no effect.
    path = models.fetch("smollm2-135m") if method == "installed" else in_format(folder / "model")
    keys = {
        "model_name_or_path": path, "stage": "sft", "do_train": True,
        "finetuning_type": "lora", "lora_rank": RANK, "lora_target": "all", "cutoff_len": 256,
        "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": LEARNING_RATE["lora"],
        "lr_scheduler_type": "cosine", "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": SEED,
        "use_cpu": sides.ON_CPU,
    } | ({} if method == "installed" else sides.precision())  # fmt: skip
    encoded = rows()
    trained = [sum(label != -100 for label in row["labels"][1:]) for row in encoded]
    drawn = itertools.chain.from_iterable(itertools.repeat(order(encoded)))
    batches = [sum(trained[i] for i in itertools.islice(drawn, batch)) for _ in range(steps)]
    plain = [
        {"instruction": row["messages"][0]["content"], "input": "", "output": row["messages"][1]["content"]}
        for row in registry.load("identity_en", "data", substitutions=SUBSTITUTIONS)
    ]
    return llamafactory.figures(command, keys, plain, batches, folder)


def in_format(folder: Path) -> str:
    """Save the embedded model in the dtype that suits the machine, and return the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftlab import models

    path = models.fetch("smollm2-135m")
    for part in (AutoModelForCausalLM.from_pretrained(path, dtype=limit.DTYPE), AutoTokenizer.from_pretrained(path)):
        part.save_pretrained(folder)
    return str(folder)


def four_bits() -> Any:
    """Return the quantization of all sides of qlora."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=limit.DTYPE,
    )


def lora() -> Any:
    """Return the adapter that all sides train."""
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def tokenizer_batch(tokenizer: Any) -> Any:
    """Return a function that pads encoded rows into tensors of shape (batch, seq_len)."""
    from ftlab import evaluate, tokens

    def batch(chosen: list[dict[str, list[int]]]) -> dict[str, Any]:
        ids = [row["input_ids"] for row in chosen]
        return {
            "input_ids": evaluate.pad_right(ids, tokenizer.pad_token_id),
            "attention_mask": evaluate.pad_right([[1] * len(row) for row in ids], 0),
            "labels": evaluate.pad_right([row["labels"] for row in chosen], tokens.IGNORED),
        }

    return batch


def needed_flops(tokens: float, trained: float, length: float) -> float:
    """Return the floating-point operations that a LoRA step needs without shared prefixes.

    Per token, a frozen weight takes 2 forward and 2 for the gradient of its input, a weight of an adapter 2 more for
    its own; causal attention over `length` tokens needs half of the score matrix, three times (forward, and two
    gradients of each of its two products); the output layer is needed where there is a label.
    """
    attention = 30 * 576 * length * 6
    return (4 * LINEAR_WEIGHTS + 6 * ADAPTER_WEIGHTS + attention) * tokens + 4 * HEAD_WEIGHTS * trained


def main(variant: str, method: str, batch: int, steps: int, command: str) -> None:
    """Run one variant and print its figures as JSON."""
    side = Side()
    with tempfile.TemporaryDirectory() as folder:
        if variant == llamafactory.NAME:
            print(json.dumps(run_llamafactory(command, method, batch, steps, Path(folder))))
            return
        if variant == "ftlab":
            run_ftlab(method, batch, steps, side, str(Path(folder) / "run"))
        elif variant.startswith("plain"):
            run_loop(method, batch, steps, side)
        else:
            run_trl(method, batch, steps, side, folder, variant)
    figures = side.figures()
    if method == "lora":
        tokens, trained = figures["tokens_per_second"], figures["trained_tokens_per_second"]
        length = tokens * figures["seconds_per_step"] / batch
        figures["needed_gflops"] = needed_flops(tokens, trained, length) / 1e9
        distinct = tokens * figures["distinct_share"]
        figures["distinct_gflops"] = needed_flops(distinct, trained, length) / 1e9
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
