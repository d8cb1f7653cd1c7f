"""Rows that generate together: each joins and leaves between two steps, its cache padded on the left.

Source: iteration-level scheduling, Yu et al. 2022, "Orca", OSDI.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ftlab.evaluate import pad_left
from ftlab.runs.chat import Until

# Dividing logits by less than this overflows; the likeliest token is what would be left anyway.
GREEDY_BELOW = 1e-3
# A character is at most four bytes, so that after this many tokens a broken one will not become whole.
LONGEST_CHARACTER = 8
Finish = Literal["stop", "length", "cancelled", "waited", "error"]


class Likelihood(NamedTuple):
    """The log probability of a chosen token, and the likeliest (token, log probability) in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Piece(NamedTuple):
    """What a step gave to one job: text, tokens generated so far, and at the end why it ended.

    Attributes:
        ids: all tokens of an answer that has come to its own end, or to its longest; () before that.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    likelihood: Likelihood | None = None
    ids: Sequence[int] = ()


@dataclass(eq=False)
class Job:
    """One answer to generate.

    Attributes:
        prompt: token ids, at least one.
        emit: is called on the engine's thread with each Piece; the last has a `finish`.
        max_tokens: tokens to generate at most.
        temperature: below GREEDY_BELOW the likeliest token is taken.
        logprobs: how many likeliest tokens to report per position; None reports nothing.
        adapter: whether the model's adapter is on.
        deadline: `time.monotonic()` after which the answer ends where it is.
        cancelled: set it, from any thread, to have the row dropped before the next step.
    """

    prompt: list[int]
    emit: Callable[[Piece], None]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    logprobs: int | None = None
    adapter: bool = True
    deadline: float = float("inf")
    cancelled: bool = False


@dataclass(eq=False)
class Row:
    """A job while it is being generated: the tokens so far and the text they make."""

    job: Job
    tokenizer: PreTrainedTokenizerBase
    length: int = 0
    generated: list[int] = field(default_factory=list)
    finish: Finish | None = None
    shown: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self.until = Until(self.job.stop)
        self.random = torch.Generator()
        if self.job.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(self.job.seed)

    def take(self, token: int, ends: bool, likelihood: Likelihood | None) -> None:
        """Add a token and emit the text that is certain; `ends` says that the token ends the answer."""
        self.generated.append(token)
        full = len(self.generated) >= self.job.max_tokens
        text = self.until.push(self.new_text(last=ends or full))
        if ends or self.until.found:
            self.finish = "stop"
        elif full or time.monotonic() > self.job.deadline:
            self.finish = "length"
        if self.finish:
            text += self.until.push(self.new_text(last=True)) + self.until.flush()
        if text or self.finish or likelihood:
            ids = self.generated if self.finish and not self.until.found else ()
            self.job.emit(Piece(text, len(self.generated), self.finish, likelihood, ids))

    def new_text(self, last: bool) -> str:
        """Return the text that the newest tokens added; half a character waits for its other bytes.

        Tokens are decoded together with those shown before: some tokenizers put the space between words there.
        """
        decode = self.tokenizer.decode
        text = decode(self.generated[self.shown :], skip_special_tokens=True)
        waiting = len(self.generated) - self.read
        if text.endswith("\N{REPLACEMENT CHARACTER}") and waiting < LONGEST_CHARACTER and not last:
            return ""
        before = decode(self.generated[self.shown : self.read], skip_special_tokens=True)
        self.shown, self.read = self.read, len(self.generated)
        return text[len(before) :]

    def end(self, finish: Finish) -> None:
        """End the row without another token."""
        self.finish = finish
        self.job.emit(Piece(self.until.flush(), len(self.generated), finish))


class Batch:
    """Rows that step together, their keys and values padded on the left to the longest."""

    def __init__(self, model: PreTrainedModel, ends: frozenset[int], pad: int) -> None:
        self.model, self.ends, self.pad = model, ends, pad
        self.rows: list[Row] = []
        self.joining: list[Row] = []
        self.cache = DynamicCache()

    @torch.inference_mode()
    def join(self) -> None:
        """Read the prompts of the rows in `joining` in one batch, and generate their first tokens."""
        rows = self.joining
        ids = pad_left([row.job.prompt for row in rows], self.pad).to(self.model.device)
        for row in rows:
            row.length = len(row.job.prompt)
        cache = DynamicCache()
        logits = self.forward(ids, rows, cache)
        self.cache = merged(self.cache, cache) if self.rows else cache
        self.rows += rows
        self.joining = []
        self.take(rows, logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token for every row."""
        ids = torch.tensor([[row.generated[-1]] for row in self.rows], device=self.model.device)
        for row in self.rows:
            row.length += 1
        self.take(self.rows, self.forward(ids, self.rows, self.cache))

    def forward(self, ids: torch.Tensor, rows: Sequence[Row], cache: DynamicCache) -> torch.Tensor:
        """Run the model over `ids` (rows, new tokens) and return the last position's logits, (rows, vocabulary)."""
        width = cache.get_seq_length() + ids.shape[1]
        lengths = torch.tensor([[row.length] for row in rows], device=ids.device)
        positions = torch.arange(width, device=ids.device) - (width - lengths)
        output = self.model(
            input_ids=ids,
            attention_mask=positions.ge(0).long(),
            position_ids=positions.clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float().cpu()

    def take(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Choose a token for each row from its logits, then drop the rows that ended."""
        likeliest = logits.argmax(-1).tolist()
        broken = logits.isnan().any(-1).tolist()
        for row, scores, best, nan in zip(rows, logits, likeliest, broken, strict=True):
            if nan:
                row.end("error")
                continue
            token = best if row.job.temperature < GREEDY_BELOW else sampled(scores, row)
            wanted = row.job.logprobs
            row.take(token, token in self.ends, None if wanted is None else likelihood(scores, token, wanted))
        self.drop()

    def drop(self) -> None:
        """Let go of the rows that ended, and of padding that no row needs any more."""
        kept = [i for i, row in enumerate(self.rows) if not row.finish]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            self.cache = DynamicCache()
            return
        longest = max(row.length for row in self.rows)
        for layer in self.cache.layers:
            layer.keys = layer.keys[kept, :, -longest:]
            layer.values = layer.values[kept, :, -longest:]


def sampled(scores: torch.Tensor, row: Row) -> int:
    """Draw a token from `scores` (vocabulary,) as the row's temperature and top_p say, with its own randomness."""
    scores = TemperatureLogitsWarper(row.job.temperature)(None, scores[None])
    if row.job.top_p < 1:
        scores = TopPLogitsWarper(row.job.top_p)(None, scores)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=row.random))


def likelihood(scores: torch.Tensor, token: int, count: int) -> Likelihood:
    """Return how likely `token` was under `scores` (vocabulary,), and the `count` most likely tokens."""
    logprobs = scores.log_softmax(-1)
    values, ids = logprobs.topk(count)
    return Likelihood(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))


def merged(one: DynamicCache, other: DynamicCache) -> DynamicCache:
    """Put the rows of two caches below each other, the narrower one padded on the left."""
    width = max(one.get_seq_length(), other.get_seq_length())
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        mine.keys = torch.cat([widened(mine.keys, width), widened(theirs.keys, width)])
        mine.values = torch.cat([widened(mine.values, width), widened(theirs.values, width)])
    return one


def widened(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad keys or values of shape (rows, heads, seq_len, head_dim) with zeros on the left to `width` positions."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
