"""The parts of the check, the most important first; no large library is imported here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parents[2] / "data"
# What `ftlab train` imports beside torch and transformers.
TRAIN = ("trl", "datasets", "peft", "accelerate", "pydantic", "ruamel.yaml", "psutil", "filelock")
ANSWER = (*TRAIN, "gguf")
FOUR_BITS = (*TRAIN, "bitsandbytes")
# Estimate of every part of a dry run, in seconds: two cores that other jobs share.
DRY_SECONDS = 10.0


class Unfit(Exception):
    """This machine cannot run a part; the reason is its text."""


class Place(NamedTuple):
    """The work folder, and whether this is a dry run on the CPU."""

    folder: Path
    dry: bool

    @property
    def log(self) -> Path:
        """The file that the libraries' output goes to."""
        return self.folder / "worker.log"

    def model(self, size: str) -> Path:
        """Return the folder of a model."""
        return self.folder / "models" / size

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / name.replace(" ", "_")


class Part(NamedTuple):
    """One part of the check.

    Attributes:
        name: what it is called everywhere. group: card, works, memory or speed.
        seconds: estimate on an H100. work: runs it and returns figures.
        packages: modules it imports, without which it is skipped. after: parts whose results it needs.
    """

    name: str
    group: str
    seconds: float
    work: Callable[[Place], dict[str, Any]]
    packages: tuple[str, ...] = TRAIN
    after: tuple[str, ...] = ()


def parts(dry: bool = False) -> list[Part]:
    """Return all parts, the most important first."""
    found = [
        Part("matrix rate and bandwidth", "card", 4, call("speed", "card"), ()),
        Part("make 135M", "card", 4, call("models", "make", "135M"), ()),
        works("sft lora 135M", 8),
        works("sft qlora nf4 135M", 6, packages=FOUR_BITS),
        works("sft lora fp16 135M", 6),
        memory("lora 4 x 512 135M", 4),
        works("dpo 135M", 6),
        works("reward model 135M", 5),
        works("grpo 135M", 10, after=("reward model 135M",)),
        Part("make 1B", "card", 8, call("models", "make", "1B"), ()),
        *(speed(side, "1B", 10) for side in ("ftlab", "TRL defaults", "TRL tuned")),
        works("resume 135M", 10),
        works("export and reload 135M", 8, packages=ANSWER, after=("sft lora 135M",)),
        works("chat 135M", 5, packages=ANSWER, after=("export and reload 135M",)),
        works("ppo 135M", 10, after=("reward model 135M",)),
        *(memory(f"{method} 4 x 1024{way} 1B", 6) for method in ("lora", "qlora", "full") for way in WAYS),
        works("sft full 1B", 15),
        Part("make 7B", "card", 35, call("models", "make", "7B"), ()),
        *(speed(side, "7B", 25) for side in ("ftlab", "TRL defaults", "TRL tuned")),
        works("sft qlora nf4 7B", 20, packages=FOUR_BITS),
        decode("1B", 8),
        decode("7B", 15),
        *(memory(f"{method} 1 x 512{way} 1B", 5) for method in ("lora", "qlora", "full") for way in WAYS),
        *(memory(f"{method} 1 x 1024 checkpointing 7B", 15) for method in ("lora", "qlora")),
        *(memory(f"{stage} 8 x 256 135M", 5) for stage in ("dpo", "grpo", "rm")),
        speed("ftlab tuned", "1B", 10),
        speed("ftlab tuned", "7B", 25),
    ]
    return [part._replace(seconds=DRY_SECONDS) for part in found] if dry else found


WAYS = ("", " checkpointing")


def works(name: str, seconds: float, packages: tuple[str, ...] = TRAIN, after: tuple[str, ...] = ()) -> Part:
    """Return a part that shows that something works; the last word of its name is the model's size."""
    make = f"make {name.split()[-1]}"
    return Part(name, "works", seconds, call("works", "check", name), packages, (make, *after))


def memory(name: str, seconds: float) -> Part:
    """Return a part that compares predicted with measured memory."""
    packages = FOUR_BITS if name.startswith("qlora") else TRAIN
    return Part(f"memory {name}", "memory", seconds, call("memory", "cell", name), packages, after_of(name))


def speed(side: str, size: str, seconds: float) -> Part:
    """Return a part that times LoRA by one side's code and settings."""
    work = call("speed", "train", side, size)
    return Part(f"speed {side} {size}", "speed", seconds, work, TRAIN, (f"make {size}",))


def decode(size: str, seconds: float) -> Part:
    """Return a part that times answers."""
    return Part(f"decode {size}", "speed", seconds, call("speed", "decode", size), ANSWER, (f"make {size}",))


def after_of(name: str) -> tuple[str, ...]:
    """Return the part that makes the model whose size ends a name."""
    return (f"make {name.split()[-1]}",)


def call(module: str, function: str, *arguments: str) -> Callable[[Place], dict[str, Any]]:
    """Return a function that imports a module of this folder when it is called, not before."""
    return partial(late, module, function, arguments)


def late(module: str, function: str, arguments: tuple[str, ...], place: Place) -> dict[str, Any]:
    """Import a module of this folder and call one of its functions."""
    from importlib import import_module

    return getattr(import_module(f"benchmarks.gpu.{module}"), function)(*arguments, place)
