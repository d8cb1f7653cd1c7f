"""Rows that generate together: each joins and leaves between two steps, its cache padded on the left.

Source: iteration-level scheduling, Yu et al. 2022, "Orca", OSDI.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ftlab.apps.serve import sampling
from ftlab.apps.serve.constraints import Unfollowable
from ftlab.apps.serve.job import Finish, Job, Likelihood, Piece
from ftlab.evaluate import pad_left
from ftlab.runs.chat import Until

# A character has at most four bytes, so after this many tokens a broken one cannot become complete.
LONGEST_CHARACTER = 8


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
        """Add a token and emit the text that is final; `ends`: the token ends the answer."""
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
        """Return the text that the newest tokens added; an incomplete character waits for its other bytes.

        Tokens are decoded together with those emitted before: some tokenizers write the space between words there.
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


class Batch(ABC):
    """Rows that step together; a subclass computes their logits and holds their key-value cache.

    Args:
        ends: tokens that end an answer.
    """

    def __init__(self, ends: frozenset[int]) -> None:
        self.ends = ends
        self.rows: list[Row] = []
        self.joining: list[Row] = []

    @abstractmethod
    def prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the prompts of new rows; return the logits (rows, vocabulary) of what follows them."""

    @abstractmethod
    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the newest token of all rows; return the logits (rows, vocabulary) of what follows it."""

    @abstractmethod
    def keep(self, kept: Sequence[int]) -> None:
        """Drop the keys and values of all rows but those with the indices `kept`."""

    @torch.inference_mode()
    def join(self) -> None:
        """Prefill the prompts of the rows in `joining`, and generate their first tokens."""
        rows = self.joining
        logits = self.prefill(rows)
        self.rows += rows
        self.joining = []
        self.take(rows, logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token for every row."""
        self.take(self.rows, self.decode(self.rows))

    def take(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Choose a token for each row from its logits, then drop the rows that ended."""
        usable = logits.amax(-1).isfinite().tolist()
        for row, scores, finite in zip(rows, logits, usable, strict=True):
            try:
                if finite:
                    self.take_one(row, scores)
                else:
                    row.end("error")
            except Unfollowable:
                row.end("unfollowable")
        self.drop()

    def take_one(self, row: Row, scores: torch.Tensor) -> None:
        """Choose a token for a row from its logits (vocabulary,).

        Raises:
            Unfollowable: the row's constraint is too complex.
        """
        job = row.job
        token = sampling.choose(scores, job, row.generated, row.random)
        complete = job.constraint is not None and job.constraint.take(token)
        likelihood = None if job.logprobs is None else sampling.likelihood(scores, token, job.logprobs)
        row.take(token, complete or token in self.ends, likelihood)

    def drop(self) -> None:
        """Drop the rows that ended."""
        kept = [i for i, row in enumerate(self.rows) if not row.finish]
        if len(kept) < len(self.rows):
            self.keep(kept)
            self.rows = [self.rows[i] for i in kept]


class PaddedBatch(Batch):
    """Rows of a transformers model, their keys and values padded on the left to the longest.

    Args:
        pad: the token that fills up shorter prompts.
    """

    def __init__(self, model: PreTrainedModel, ends: frozenset[int], pad: int) -> None:
        super().__init__(ends)
        self.model, self.pad = model, pad
        self.cache = DynamicCache()

    def prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the prompts of new rows, in one batch."""
        ids = pad_left([row.job.prompt for row in rows], self.pad).to(self.model.device)
        for row in rows:
            row.length = len(row.job.prompt)
        cache = DynamicCache()
        logits = self.forward(ids, rows, cache)
        self.cache = merged(self.cache, cache) if self.rows else cache
        return logits

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the newest token of all rows."""
        ids = torch.tensor([[row.generated[-1]] for row in rows], device=self.model.device)
        for row in rows:
            row.length += 1
        return self.forward(ids, rows, self.cache)

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

    def keep(self, kept: Sequence[int]) -> None:
        """Drop the rows that ended, and padding that no row needs any more."""
        if not kept:
            self.cache = DynamicCache()
            return
        kept = list(kept)
        longest = max(self.rows[i].length for i in kept)
        for layer in self.cache.layers:
            layer.keys = layer.keys[kept, :, -longest:]
            layer.values = layer.values[kept, :, -longest:]


def merged(one: DynamicCache, other: DynamicCache) -> DynamicCache:
    """Concatenate the rows of two caches, the narrower one padded on the left."""
    width = max(one.get_seq_length(), other.get_seq_length())
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        mine.keys = torch.cat([widened(mine.keys, width), widened(theirs.keys, width)])
        mine.values = torch.cat([widened(mine.values, width), widened(theirs.values, width)])
    return one


def widened(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad keys or values of shape (rows, heads, seq_len, head_dim) with zeros on the left to `width` positions."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
