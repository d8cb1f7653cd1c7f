"""Does it work: a few steps of every stage through `ftlab train`'s own code, export, chat and a resumed run."""

import math
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from benchmarks.gpu.parts import DATA, Place, Unfit
from ftlab import device
from ftlab.recipe import memory_needs
from ftlab.recipe import read as recipes
from ftlab.runs import train
from ftlab.runs.callbacks import trainable_weights

# Beside the model: what CUDA, its libraries and their workspaces take.
RESERVED_BYTES = 1.5 * 2**30
NEW_TOKENS, DRY_NEW_TOKENS = 32, 6
# What `name` of a part becomes; steps are optimizer steps.
SFT = {"stage": "sft", "dataset": "orders", "max_steps": 5}
PAIRS = {"dataset": "preference_en", "max_steps": 5, "cutoff_len": 256}
ASKED = {"dataset": "facts_en", "max_steps": 4, "temperature": 1.0, "cutoff_len": 256}
FOUR_BITS = {"quantization_bit": 4, "double_quantization": True}
KEYS: dict[str, dict[str, Any]] = {
    "sft lora": SFT,
    "sft qlora nf4": SFT | FOUR_BITS,
    # float16 finds its loss scale by overflowing in the first steps.
    "sft lora fp16": SFT | {"max_steps": 12},
    "sft full": SFT | {"finetuning_type": "full", "learning_rate": 2e-5, "per_device_train_batch_size": 4},
    "dpo": PAIRS | {"stage": "dpo"},
    "reward model": PAIRS | {"stage": "rm"},
    "grpo": ASKED | {"stage": "grpo", "num_generations": 4},
    "ppo": ASKED | {"stage": "ppo", "ppo_epochs": 2},
}
# What a dry run does less of.
DRY = {"max_samples": 16, "per_device_train_batch_size": 4, "cutoff_len": 128, "max_steps": 3}
# A resumed run goes on after this step.
RESUME_AT = 3
# How many times as far from the uninterrupted run as that one's repetition a resumed run may be.
NOISE = 3.0


def check(name: str, place: Place) -> dict[str, Any]:
    """Run a part of the group "works" by its name."""
    what, size = name.rsplit(" ", 1)
    own = {"resume": resume, "export and reload": export, "chat": chat}
    if what in own:
        return own[what](size, place)
    keys = KEYS[what] | {"model_name_or_path": str(place.model(size)), "output_dir": str(place.run(name))}
    if what in ("grpo", "ppo"):
        # Random weights never give the right answer; a random judge tells completions apart.
        keys |= {"reward_model": str(place.run(f"reward model {size}"))}
        keys |= {"max_new_tokens": DRY_NEW_TOKENS if place.dry else NEW_TOKENS}
    keys |= DRY if place.dry else {}
    # float16 needs loss scaling, which a CPU does not have: a dry run takes float32.
    other = "float32" if place.dry else "float16"
    with forced(other if what.endswith("fp16") else ""):
        return train_and_look(keys)


class Look(TrainerCallback):
    """Note losses, seconds per step, and which trained weights a gradient has reached."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []
        self.unreached: dict[str, torch.Tensor] = {}
        self.trained = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Find the weights that are trained."""
        self.unreached = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.trained = len(trainable_weights(model))
        self.ends.append(time.perf_counter())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Strike out the weights whose gradient is not zero; B of LoRA begins at zero, so A's comes a step later."""
        for name in [name for name, weight in self.unreached.items() if is_reached(weight.grad)]:
            del self.unreached[name]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when a step ended."""
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Note a step's loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def is_reached(gradient: torch.Tensor | None) -> bool:
    """Return True if a gradient is finite and not all zero."""
    return gradient is not None and bool(gradient.any()) and bool(gradient.isfinite().all())


def train_and_look(keys: dict[str, Any], callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train a recipe; return its figures.

    Raises:
        ArithmeticError: a loss that is not finite, or trained weights that no gradient reached.
        Unfit: more memory than the GPU has.
    """
    look = Look()
    run = recipes.load(common() | keys)
    require_memory(run)
    done = train.train(run, callbacks=[look, *callbacks], quiet=True)
    if not look.losses or not all(map(math.isfinite, look.losses)):
        raise ArithmeticError(f"losses that are not finite: {look.losses}")
    if look.unreached and done.stopped_at is None:
        names = sorted(look.unreached)
        raise ArithmeticError(f"no gradient reached {len(names)} of {look.trained} weights, such as {names[0]}")
    steps = [later - earlier for earlier, later in zip(look.ends, look.ends[1:], strict=False)]
    return {
        "steps": len(steps),
        "first_loss": look.losses[0],
        "last_loss": look.losses[-1],
        "trained_tensors": look.trained,
        "seconds_per_step": statistics.median(steps[1:] or steps),
        "dtype": device.describe().dtype,
    }


def common() -> dict[str, Any]:
    """Return the keys that all runs share."""
    return {
        "dataset_dir": str(DATA), "lora_rank": 16, "learning_rate": 1e-3, "per_device_train_batch_size": 8,
        "cutoff_len": 512, "max_samples": 64, "save_strategy": "no", "plot_loss": False, "disable_tqdm": True,
    }  # fmt: skip


def require_memory(run: recipes.Recipe) -> None:
    """Refuse a recipe that the GPU cannot hold, as predicted.

    Raises:
        Unfit: with both sizes.
    """
    machine = device.describe()
    predicted = memory_needs.needs(run, machine).peak
    if machine.accelerator == "cuda" and predicted + RESERVED_BYTES > machine.memory_bytes:
        raise Unfit(f"needs {predicted / 2**30:.1f} GiB, the GPU has {machine.memory_bytes / 2**30:.1f}")


@contextmanager
def forced(dtype: str) -> Any:
    """Make `device.describe` return another dtype inside the block; "" leaves its own choice."""
    before = os.environ.pop("FTLAB_DTYPE", None)
    os.environ |= {"FTLAB_DTYPE": dtype} if dtype else {}
    try:
        yield
    finally:
        os.environ.pop("FTLAB_DTYPE", None)
        os.environ |= {} if before is None else {"FTLAB_DTYPE": before}


class StopAt(TrainerCallback):
    """Ask for a stop during a step, as a user does: with a file STOP in the run folder."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the file during the last step that is wanted."""
        if state.global_step == self.step - 1:
            (self.folder / "STOP").touch()


def resume(size: str, place: Place) -> dict[str, Any]:
    """Stop a run and go on; compare its adapter with an uninterrupted run's, and that with its own repetition.

    Kernels that add in another order every time make two equal runs differ: that difference is what a resumed run
    may show as well.

    Raises:
        ArithmeticError: it differs more.
    """
    keys = SFT | (DRY if place.dry else {})
    keys |= {"model_name_or_path": str(place.model(size)), "max_steps": 2 * RESUME_AT}
    folders = {name: place.run(f"resume {name}") for name in ("whole", "again", "stopped")}
    for folder in (folders["whole"], folders["again"]):
        train_and_look(keys | {"output_dir": str(folder)})
    stopped = keys | {"output_dir": str(folders["stopped"])}
    train_and_look(stopped, [StopAt(folders["stopped"], RESUME_AT)])
    train_and_look(stopped)
    whole, again, resumed = (load_file(folder / "adapter/adapter_model.safetensors") for folder in folders.values())
    figures = {"difference": difference(whole, resumed), "difference_of_repetition": difference(whole, again)}
    if figures["difference"] > NOISE * figures["difference_of_repetition"]:
        raise ArithmeticError("the resumed run differs: {difference:.1e}, its repetition {difference_of_repetition:.1e}"
                              .format(**figures))  # fmt: skip
    return figures


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the distance of two sets of weights, as a share of the first one's length."""
    apart = sum((one[name].float() - other[name].float()).square().sum().item() for name in one)
    return math.sqrt(apart / sum(weight.float().square().sum().item() for weight in one.values()))


def export(size: str, place: Place) -> dict[str, Any]:
    """Merge the adapter of the first run, save, reload and compare; ftlab's export raises where answers differ."""
    from ftlab.runs import export as exporting

    keys = {
        "model_name_or_path": str(place.model(size)),
        "adapter_name_or_path": str(place.run(f"sft lora {size}")),
        "export_dir": str(place.run(f"merged {size}")),
        "export_device": "auto",
    }
    done = exporting.export(recipes.load(keys))
    return {"logit_difference": done.total_difference, "greedy_equal_share": done.greedy_equal_share}


def chat(size: str, place: Place) -> dict[str, Any]:
    """Answer with the exported model and with the adapter on its base.

    Raises:
        ArithmeticError: an empty answer.
    """
    from ftlab.runs import chat as chatting

    question = [{"role": "user", "content": "What is the capital of France?"}]
    figures = {}
    for name, model, adapter in (
        ("exported", place.run(f"merged {size}"), None),
        ("adapter", place.model(size), place.run(f"sft lora {size}")),
    ):
        loaded, tokenizer = chatting.load(str(model), adapter)
        # Random weights end an answer at any token.
        plain = {"max_new_tokens": DRY_NEW_TOKENS, "suppress_tokens": tokenizer.all_special_ids}
        answer = "".join(chatting.stream(loaded, tokenizer, question, **plain))
        if not answer:
            raise ArithmeticError(f"an empty answer of the {name} model")
        figures[f"{name}_characters"] = len(answer)
    return figures
