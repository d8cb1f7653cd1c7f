"""Speed: tokens per second of LoRA and of decoding, and the peak rates of this GPU."""

import json
import random
import time
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks import limit
from benchmarks.gpu.parts import DATA, Place
from benchmarks.gpu.works import RESERVED_BYTES, require_memory
from ftlab import device
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.runs import train as training

RANK, BATCH, LENGTH, ROWS = 16, 8, 1024, 128
STEPS, WARM_UP = 12, 3
DRY_LENGTH, DRY_ROWS, DRY_STEPS = 64, 16, 4
SIDE, DRY_SIDE = 8192, 256
COPIED, DRY_COPIED = 2**26, 2**20
NEW_TOKENS, DRY_NEW_TOKENS = 64, 6


def card(place: Place) -> dict[str, Any]:
    """Return the best rate of a large product in TFLOP/s, in the format of training, and the bandwidth in GB/s."""
    dtype = getattr(torch, device.describe().dtype)
    side = DRY_SIDE if place.dry else SIDE
    one, other = (torch.randn(side, side, device=limit.ON).to(dtype) for _ in range(2))
    seconds = limit.best_seconds(lambda: one @ other, 1)
    return {
        "dtype": device.describe().dtype,
        "matrix_tflops": 2 * side**3 / seconds / 1e12,
        "copy_gb_per_second": limit.bandwidth(1, DRY_COPIED if place.dry else COPIED),
    }


class Clock(TrainerCallback):
    """Count the tokens of every step, and when it ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[torch.Tensor] = []
        self.trained: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Watch what goes through the model."""
        model.register_forward_pre_hook(self.look, with_kwargs=True)
        self.note()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when a step ended."""
        self.note()

    def note(self) -> None:
        """Note the time at which all work so far is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def look(self, model: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Count a batch's tokens without padding, and those with a label."""
        ids, mask, labels = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("labels")
        self.tokens.append(mask.sum() if mask is not None and mask.shape == ids.shape else torch.tensor(ids.numel()))
        self.trained.append(self.tokens[-1] if labels is None else (labels != -100).sum())

    def figures(self) -> dict[str, float]:
        """Return tokens per second, without and with a label, and seconds per step, after the warm-up."""
        seconds = self.ends[-1] - self.ends[WARM_UP]
        steps = len(self.ends) - 1 - WARM_UP
        # One batch a step.
        tokens, trained = (sum(map(int, counts[-steps:])) for counts in (self.tokens, self.trained))
        return {
            "tokens_per_second": tokens / seconds,
            "trained_tokens_per_second": trained / seconds,
            "seconds_per_step": seconds / steps,
            "tokens_per_step": tokens / steps,
        }


def train(side: str, size: str, place: Place) -> dict[str, Any]:
    """Time LoRA by ftlab's recipe or by TRL's trainer, with its defaults or tuned, on the same rows."""
    rows, lengths = write_rows(size, place)
    clock = Clock()
    run = lora_recipe(side, size, place)
    require_memory(run)
    if side.startswith("ftlab"):
        training.train(run, callbacks=[clock], quiet=True)
    else:
        train_with_trl(side, run, rows, clock, place)
    figures = clock.figures()
    needed = needed_flops(run, figures, lengths)
    return figures | {"model_tflops": needed / figures["seconds_per_step"] / 1e12} | {"settings": settings(side, run)}


def lora_recipe(side: str, size: str, place: Place) -> recipes.Recipe:
    """Return the recipe of ftlab's side; it also tells what TRL's side would take of memory."""
    keys = {
        "model_name_or_path": str(place.model(size)), "dataset": "speed", "dataset_dir": str(place.folder),
        "output_dir": str(place.run(f"speed {side} {size}")), "lora_rank": RANK, "learning_rate": 1e-4,
        "per_device_train_batch_size": BATCH, "cutoff_len": DRY_LENGTH if place.dry else LENGTH,
        "max_steps": DRY_STEPS if place.dry else STEPS, "save_strategy": "no", "plot_loss": False,
        "disable_tqdm": True, "logging_steps": 50,
    }  # fmt: skip
    if not side.endswith("tuned"):
        return recipes.load(keys)
    keys |= {"packing": True, "gradient_checkpointing": False}
    return recipes.load(keys | {"gradient_checkpointing": not fits(recipes.load(keys))})


def fits(run: recipes.Recipe) -> bool:
    """Return True if the GPU holds a recipe, as predicted; a CPU always does here."""
    machine = device.describe()
    room = machine.memory_bytes - RESERVED_BYTES
    return machine.accelerator != "cuda" or memory_needs.needs(run, machine).peak < room


def settings(side: str, run: recipes.Recipe) -> str:
    """Return the settings of a side that differ from its defaults."""
    if not side.endswith("tuned"):
        return "defaults"
    keeps = "checkpointing" if run.training["gradient_checkpointing"] else "no checkpointing"
    if side.startswith("ftlab"):
        return f"packing, {keeps}"
    return f"packing, {keeps}, bfloat16 base, {attention()}{', liger' if find_spec('liger_kernel') else ''}"


def attention() -> str:
    """Return the fastest attention that is installed."""
    return "flash_attention_2" if find_spec("flash_attn") else "sdpa"


def train_with_trl(side: str, run: recipes.Recipe, rows: list[dict[str, str]], clock: Clock, place: Place) -> None:
    """Train with SFTTrainer on the same rows; tuned as its guide to speed and memory says."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    tuned: dict[str, Any] = {
        "packing": True,
        "gradient_checkpointing": run.training.get("gradient_checkpointing"),
        "use_liger_kernel": find_spec("liger_kernel") is not None,
        "model_init_kwargs": {"dtype": device.describe().dtype, "attn_implementation": attention()},
    }
    args = SFTConfig(
        output_dir=run.output_dir,
        use_cpu=not torch.cuda.is_available(),
        max_steps=run.training["max_steps"],
        per_device_train_batch_size=BATCH,
        max_length=run.cutoff_len,
        learning_rate=1e-4,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(tuned if side.endswith("tuned") else {}),
    )
    chats = [
        {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }
        for row in rows
    ]
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        run.model_name_or_path, args, train_dataset=Dataset.from_list(chats), peft_config=adapter, callbacks=[clock]
    )
    trainer.train()


def write_rows(size: str, place: Place) -> tuple[list[dict[str, str]], list[int]]:
    """Write questions with answers of an eighth to all of the length, from data/; return them and their tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place.model(size))
    length, count = (DRY_LENGTH, DRY_ROWS) if place.dry else (LENGTH, ROWS)
    source = tokenizer((DATA / "preference_en.jsonl").read_text(encoding="utf-8"))["input_ids"]
    draw, rows = random.Random(0), []
    for number in range(count):
        # The question and ChatML's frame take less than a sixteenth.
        wanted = draw.randrange(length // 8, length - length // 8)
        start = draw.randrange(len(source) - wanted)
        answer = tokenizer.decode(source[start : start + wanted])
        rows.append({"instruction": f"Write text {number}.", "output": answer})
    (place.folder / "speed.json").write_text(json.dumps(rows), encoding="utf-8")
    (place.folder / "dataset_info.json").write_text(json.dumps({"speed": {"file_name": "speed.json"}}))
    return rows, [len(tokenizer(row["output"])["input_ids"]) for row in rows]


def needed_flops(run: recipes.Recipe, figures: dict[str, float], lengths: list[int]) -> float:
    """Return the multiplications and additions that a LoRA step needs, recomputed activations not counted.

    Per token, a frozen weight takes 2 forward and 2 for the gradient of its input, a weight of an adapter 2 more;
    causal attention over a row of L tokens 6 x L x its width per layer; the output layer 4 where there is a label.
    """
    decoder = memory_needs.sizes(run.model_name_or_path)
    tokens = figures["tokens_per_step"]
    trained = figures["trained_tokens_per_second"] * figures["seconds_per_step"]
    length = sum(count**2 for count in lengths) / sum(lengths)
    per_token = 4 * decoder.layers * decoder.linear_parameters + 6 * decoder.lora_parameters(RANK)
    per_token += 6 * decoder.layers * decoder.heads * decoder.head_dim * length
    return per_token * tokens + 4 * decoder.vocabulary * decoder.hidden * trained


def decode(size: str, place: Place) -> dict[str, Any]:
    """Return tokens per second of one answer at a time, by `generate` and by ftlab's loop, and the memory roof."""
    from ftlab.runs import chat, pick_engine

    model, tokenizer = chat.load(str(place.model(size)))
    rows = pick_engine.compare(model, tokenizer, ["huggingface", "loop"], DRY_NEW_TOKENS if place.dry else NEW_TOKENS)
    # Every token reads all weights; of an embedding that is not the output layer a single row.
    read = sum(weight.nbytes for weight in model.parameters())
    if not model.config.tie_word_embeddings:
        read -= model.get_input_embeddings().weight.nbytes
    bandwidth = limit.bandwidth(1, DRY_COPIED if place.dry else COPIED)
    rates = {f"{row.name}_tokens_per_second": row.tokens_per_second for row in rows}
    return rates | {"roof_tokens_per_second": bandwidth * 1e9 / read}
