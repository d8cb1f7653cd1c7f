"""Train several recipes one after the other in the processes that torchrun started: `processes.py JOBS.json`.

Each process writes what it saw into JOBS.json.RANK: the ids of the examples of every step, the bytes that it held, and
how each run ended.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig

from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import rewards, train

# The tiny model's token that ends an answer.
END = 256


class Watch(TrainerCallback):
    """Note the examples that reach the model, and touch STOP in one process when asked."""

    def __init__(self, stop: Path | None) -> None:
        self.stop, self.ids, self.bytes = stop, [], {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Listen at the embedding."""
        model.get_input_embeddings().register_forward_pre_hook(self.see)

    def see(self, module: torch.nn.Module, inputs: tuple) -> None:
        """Note a digest of each row."""
        for row in inputs[0]:
            self.ids.append(hashlib.sha256(str([token for token in row.tolist() if token]).encode()).hexdigest()[:8])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any) -> None:
        """Count what this process holds, while the gradients are there."""
        self.bytes = held(model, optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a stop after the second step."""
        if self.stop and state.global_step == 2:
            self.stop.touch()


class Seeded(TrainerCallback):
    """Let a model sample from a seed of the prompt and of the completion's place in its group, and reward letters.

    Processes have seeds of their own, and a batch has one: what a process samples depends on the rows beside it.
    """

    def __init__(self) -> None:
        self.first, self.prompts, self.completions = int(os.environ.get("RANK", "0")), [], []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Replace the sampling."""
        if isinstance(args, GRPOConfig):
            self.generate, model.generate = model.generate, self.write

    def write(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any) -> torch.Tensor:
        """Return the prompts with completions, as `generate` does, row by row."""
        rows = []
        for place, (prompt, mask) in enumerate(zip(input_ids, attention_mask, strict=True), self.first):
            self.prompts.append(str(prompt[mask.bool()].tolist()))
            with torch.random.fork_rng():
                # With these some completions end early: processes write different numbers of tokens.
                torch.manual_seed(sum(prompt[mask.bool()].tolist()) + place)
                rows.append(self.generate(input_ids=prompt[None], attention_mask=mask[None], **settings)[0])
            self.completions.append(rows[-1][len(prompt) :].tolist())
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=END)


def letters(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Return the share of letters in each completion: a random model's completions differ in it."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(map(str.isalpha, text)) / max(1, len(text)) for text in texts]


def held(model: torch.nn.Module, optimizer: Any) -> dict[str, int]:
    """Return the bytes of weights, gradients and AdamW's moments in this process: of a DTensor its own part."""
    weights = list(model.parameters())
    zero = getattr(optimizer, "optimizer", None)
    if type(zero).__name__.startswith("DeepSpeedZero"):
        return held_by_deepspeed(weights, zero)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    parts = {"weights": weights, "gradients": [weight.grad for weight in weights], "optimizer": moments}
    return {name: sum(map(local_bytes, filter(torch.is_tensor, part))) for name, part in parts.items()}


def held_by_deepspeed(weights: list[torch.nn.Parameter], zero: Any) -> dict[str, int]:
    """Return the bytes of weights and optimizer state in this process; gradients are gone when a callback looks.

    The state is a float32 copy of the process's share of the weights, and AdamW's moments of that copy.
    """
    copies = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    moments = [state[name] for state in zero.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    # ZeRO-3 leaves an empty tensor in the place of a weight, and this process's share beside it.
    shares = [getattr(weight, "ds_tensor", weight) for weight in weights]
    return {"weights": sum(one.nbytes for one in shares), "optimizer": sum(one.nbytes for one in [*copies, *moments])}


def local_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor in this process."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes


def split(way: str, path: str, rank: int) -> dict[str, int]:
    """Take one step with this process's part of a model, and return what it holds."""
    model = AutoModelForCausalLM.from_pretrained(path)
    layers = model.model.layers
    if way == "tensor":
        plan = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        plan |= {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel()}
        for layer in layers:
            parallelize_module(layer, init_device_mesh("cpu", (2,)), plan)
        model(torch.arange(8)[None]).logits.sum().backward()
    else:
        half = len(layers) // 2
        model.model.layers, model.model.embed_tokens = (layers[:half], layers[half:])[rank], None
        model(inputs_embeds=torch.ones(1, 8, model.config.hidden_size)).logits.sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    return held(model, optimizer)


def run(values: dict[str, Any], rank: str) -> dict[str, Any]:
    """Train one recipe and return what this process saw."""
    folder = Path(values["output_dir"])
    watch = Watch(folder / "STOP" if values.pop("stop_by", None) == rank else None)
    seeded = Seeded()
    try:
        done = train.train(recipes.load(values), callbacks=[watch, seeded])
    except LabError as error:
        return {"error": str(error), "ids": watch.ids}
    return {
        "stopped_at": done.stopped_at,
        "reused": done.reused,
        "ids": watch.ids,
        "bytes": watch.bytes,
        "prompts": seeded.prompts,
        "completions": seeded.completions,
    }


if __name__ == "__main__":
    jobs, rank = Path(sys.argv[1]), os.environ["RANK"]
    rewards.BUILT_IN["short_answer"] = letters
    seen = {name: run(values, rank) for name, values in json.loads(jobs.read_text()).items()}
    if "lora_fsdp" in seen:
        path = json.loads(jobs.read_text())["lora"]["model_name_or_path"]
        seen |= {way: split(way, path, int(rank)) for way in ("tensor", "pipeline")}
    jobs.with_name(f"{jobs.name}.{rank}").write_text(json.dumps(seen))
