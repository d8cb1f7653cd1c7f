"""Choose the fastest engine: build, time and compare each with the original weights."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ftlab import tokens
from ftlab.errors import LabError, say
from ftlab.runs import engines
from ftlab.runs.adapters import merge_adapter
from ftlab.runs.engines import Loop

QUESTION = "Write a short story about a lighthouse keeper and a storm."
NEW_TOKENS, REPEATS = 32, 2
# The largest mean divergence, in nats per token, of an engine with changed weights that `auto` accepts.
LIMIT = 0.02


class Measured(NamedTuple):
    """The measurements of an engine.

    Attributes:
        tokens_per_second: for one answer at a time, after its first token; the best of several.
        divergence: mean Kullback-Leibler divergence of its next-token probabilities from those of the original model,
            along that model's own greedy answer, in nats per token; 0 if the weights are unchanged.
    """

    name: str
    tokens_per_second: float
    divergence: float

    def __str__(self) -> str:
        weights = engines.KINDS[self.name].weights or say("engine_unchanged")
        return say("engine_measured", weights=weights, **self._asdict())


class Clock(BaseStreamer):
    """A streamer that records the times of the prompt and of every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing at the end."""


def pick(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str = "auto"
) -> PreTrainedModel | PeftModel | Loop:
    """Return an engine by name; for "auto" the fastest whose divergence from the model is within LIMIT.

    A model that the loop cannot run is measured against nothing, and stays as it is.

    Raises:
        LabError: a requirement of the named engine is missing.
    """
    if name != "auto":
        return engines.build(name, model, tokenizer)
    if isinstance(model, PeftModel):
        model = merge_adapter(model)
    chosen, fastest, speed = model, "huggingface", 0.0
    for row, engine in measured(model, tokenizer, suited(model)) if engines.takes_cache(model) else ():
        if row.divergence <= LIMIT and row.tokens_per_second > speed:
            chosen, fastest, speed = engine, row.name, row.tokens_per_second
    print(say("engine_chosen", name=fastest, limit=LIMIT), flush=True)
    return chosen


def compare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str] = (), new_tokens: int = NEW_TOKENS
) -> list[Measured]:
    """Measure the engines that can run here, or those named, and print each result."""
    return [row for row, _ in measured(model, tokenizer, names or suited(model), new_tokens)]


def suited(model: PreTrainedModel) -> list[str]:
    """Return the engines worth measuring: a static cache pays off on a GPU, which compiles it; fewer bits on a CPU."""
    on_gpu = model.device.type != "cpu"
    return [name for name, kind in engines.KINDS.items() if not (kind.weights if on_gpu else name == "static")]


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], new_tokens: int = NEW_TOKENS
) -> Iterator[tuple[Measured, PreTrainedModel | Loop]]:
    """Yield the measurements of each engine, and the engine; print and skip those that cannot run here."""
    prompt = torch.tensor([tokens.prompt(tokenizer, [{"role": "user", "content": QUESTION}])], device=model.device)
    expected = following(engines.transformers_loop(model), prompt, new_tokens)
    answer = expected.argmax(-1).to(model.device)
    # No token has this id, so that no answer ends early.
    endless = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": model.config.vocab_size}
    for name in names:
        try:
            engine = engines.build(name, model, tokenizer)
        except LabError as missing:
            print(f"{name}: {missing.what}; {missing.fix}", flush=True)
            continue
        divergence = 0.0
        if isinstance(engine, Loop):
            log_probabilities = following(engine, prompt, new_tokens, answer)
            divergence = (expected.exp() * (expected - log_probabilities)).sum(-1).mean().item()
        row = Measured(name, rate(engine, prompt, endless | {"pad_token_id": tokenizer.pad_token_id}), divergence)
        print(row, flush=True)
        yield row, engine


@torch.inference_mode()
def following(loop: Loop, prompt: torch.Tensor, count: int, answer: torch.Tensor | None = None) -> torch.Tensor:
    """Return the log probabilities (count, vocabulary) after `prompt` (1, seq_len).

    Args:
        answer: the tokens (count,) to follow; None: the likeliest one at each position.
    """
    step = loop.begin()
    rows = [step(prompt)]
    for i in range(count - 1):
        rows.append(step(rows[-1].argmax(-1, keepdim=True) if answer is None else answer[i].view(1, 1)))
    return torch.cat(rows).float().log_softmax(-1).cpu()


def rate(engine: PreTrainedModel | Loop, prompt: torch.Tensor, fields: dict[str, Any]) -> float:
    """Return the tokens per second after the first one: the best of REPEATS runs."""
    prompt, rates = prompt.to(engine.device), []
    for _ in range(REPEATS):
        clock = Clock()
        engine.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), streamer=clock, **fields)
        _, first, *_, last = clock.times
        rates.append((len(clock.times) - 2) / (last - first))
    return max(rates)
