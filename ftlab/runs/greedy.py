"""Greedy answers to examples with a known expected answer, which is used as a draft and verified in one forward pass.

Example: the expected answer is the tokens `12 pm <end>`. One pass over prompt and expected answer gives the likeliest
token at each position, given the expected ones before it. If these are `12 pm <end>`, that is the greedy answer, and no
token had to be generated. If they are `12 am <end>`, the greedy answer begins `12 am`: up to there the model would have
seen the same tokens. The likeliest token after `pm` says nothing about what follows `am`: from there the
answer is generated, token by token.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig

from ftlab import responses, tokens
from ftlab.evaluate import pad_left, pad_right
from ftlab.memory import PLAIN_ATTENTION

Example = dict[str, list[int]]
# Called with the amount of finished work; it may raise to stop.
Advance = Callable[[int], None]
# An answer's number and its token ids -> how many tokens may still be generated, 0 where it has ended.
Left = Callable[[int, list[int]], int]
# Positions per batch of a pass (logits take most of the memory), and answers that are continued together.
READ, WRITTEN = 2048, 64
# Generation settings that do not change which token is the likeliest.
HARMLESS = {
    "use_cache", "output_attentions", "output_hidden_states", "pad_token_id", "bos_token_id", "eos_token_id",
    "transformers_version", "do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens",
    "_from_model_config",
}  # fmt: skip


class Checked(NamedTuple):
    """The results of one forward pass over an example.

    Attributes:
        loss: the sum over its trained tokens, in nats.
        labels, likeliest: the number of trained tokens, and of those that are the likeliest at their position.
        beginning: what is known of the greedy answer: the expected tokens up to the first that is not the likeliest,
            and the likeliest token there.
    """

    loss: float
    labels: int
    likeliest: int
    beginning: list[int]


def plain(model: Any) -> bool:
    """Return True if `generate` with this model's settings is plain greedy decoding with Llama's attention."""
    settings: GenerationConfig = model.generation_config
    return model.config.model_type in PLAIN_ATTENTION and settings.to_diff_dict().keys() <= HARMLESS


class Prefix:
    """The key-value cache of the prefix that all rows share, computed once.

    Args:
        rows: token ids; at least one token of each is left out of the prefix.
        most: maximum length of the prefix in tokens.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], most: int) -> None:
        # The common prefix of the first and the last in sorted order is shared by all between them.
        first, last = min(map(list, rows)), max(map(list, rows))
        differs = (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
        self.size = max(0, min(next(differs, most), most, len(min(rows, key=len)) - 1))
        self.cache = DynamicCache(config=model.config)
        if self.size:
            ids = torch.tensor([list(first[: self.size])], device=model.device)
            model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def repeated(self, rows: int) -> DynamicCache:
        """Return a cache with the prefix in each of its rows."""
        cache = copy.deepcopy(self.cache)
        if self.size:
            cache.batch_repeat_interleave(rows)
        return cache


@torch.inference_mode()
def check(model: Any, examples: Sequence[Example], pad_token_id: int, advance: Advance) -> list[Checked]:
    """Return the results of a forward pass over each example, in order; `advance` gets the number of examples done."""
    model.eval()
    # Predictions before the first label do not count.
    most = min(next(n for n, label in enumerate(one["labels"]) if label != tokens.IGNORED) for one in examples) - 1
    prefix = Prefix(model, [one["input_ids"] for one in examples], most if plain(model) else 0)
    by_number: dict[int, Checked] = {}
    for chosen in batches([len(one["input_ids"]) for one in examples], READ):
        by_number |= zip(chosen, check_batch(model, [examples[i] for i in chosen], pad_token_id, prefix), strict=True)
        advance(len(chosen))
    return [by_number[i] for i in range(len(examples))]


def check_batch(model: Any, examples: list[Example], pad_token_id: int, prefix: Prefix) -> list[Checked]:
    """Return the results of a forward pass over one batch of examples."""
    ids = pad_right([one["input_ids"][prefix.size :] for one in examples], pad_token_id).to(model.device)
    mask = pad_right([[1] * len(one["input_ids"]) for one in examples], 0).to(model.device)
    labels = pad_right([one["labels"][prefix.size :] for one in examples], tokens.IGNORED).to(model.device)[:, 1:]
    # The output layer is a fifth of a small model: positions without a label in any row skip it.
    places = labels.ne(tokens.IGNORED).any(0).nonzero()[:, 0]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if plain(model):
        inputs |= {"past_key_values": prefix.repeated(len(examples)), "use_cache": True, "logits_to_keep": places}
    logits = model(**inputs).logits
    logits, labels = logits if plain(model) else logits[:, places], labels[:, places]
    labelled, likeliest = labels.ne(tokens.IGNORED), logits.argmax(-1)
    losses = torch.zeros(labels.shape, device=logits.device)
    losses[labelled] = functional.cross_entropy(logits[labelled].float(), labels[labelled], reduction="none")
    hits = (likeliest == labels) & labelled
    rows = zip(losses.sum(1).tolist(), labelled.sum(1).tolist(), hits.sum(1).tolist(), strict=True)
    guesses = [row[where].tolist() for row, where in zip(likeliest, labelled, strict=True)]
    return [
        Checked(*row, known_beginning(responses.split(one)[1], guess))
        for one, row, guess in zip(examples, rows, guesses, strict=True)
    ]


def known_beginning(expected: list[int], likeliest: list[int]) -> list[int]:
    """Return the beginning of the greedy answer.

    Args:
        likeliest: the likeliest tokens at all labelled positions; the last ones are those of this answer.

    >>> known_beginning([5, 6, 7], [9, 5, 8, 7])
    [5, 8]
    """
    guesses = likeliest[-len(expected) :]
    differs = (n for n, pair in enumerate(zip(expected, guesses, strict=True)) if pair[0] != pair[1])
    return guesses[: next(differs, len(guesses)) + 1]


@torch.inference_mode()
def write(
    model: Any,
    pad_token_id: int,
    prompts: Sequence[list[int]],
    answers: list[list[int]],
    left: Left,
    advance: Advance,
) -> None:
    """Continue greedy answers, in place, until all have ended; `advance` gets the number of tokens done.

    Args:
        prompts: token ids.
        answers: their answers so far.
    """
    going = [i for i, answer in enumerate(answers) if left(i, answer)]
    if not going:
        return
    prefix = Prefix(model, [prompts[i] + answers[i] for i in going], min(len(prompts[i]) for i in going))
    lengths = [len(prompts[i]) + len(answers[i]) for i in going]
    for chosen in batches(lengths, WRITTEN * max(lengths), WRITTEN):
        batch = Batch(model, pad_token_id, prompts, answers, [going[n] for n in chosen], prefix)
        while batch.going:
            before = sum(left(i, answers[i]) for i in batch.going)
            numbers = batch.going
            batch.step(left)
            advance(before - sum(left(i, answers[i]) for i in numbers))


class Batch:
    """Answers that are generated together; finished rows are dropped.

    Attributes:
        going: the indices of its answers.
    """

    def __init__(
        self,
        model: Any,
        pad_token_id: int,
        prompts: Sequence[list[int]],
        answers: list[list[int]],
        going: list[int],
        prefix: Prefix,
    ) -> None:
        self.model, self.answers, self.going = model, answers, going
        rows = [(prompts[i] + answers[i])[prefix.size :] for i in going]
        self.cache, self.new = prefix.repeated(len(rows)), pad_left(rows, pad_token_id).to(model.device)
        mask = pad_left([[1] * len(row) for row in rows], 0).to(model.device)
        self.mask = functional.pad(mask, (prefix.size, 0), value=1)

    def step(self, left: Left) -> None:
        """Append one token to each answer."""
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -self.new.shape[1] :]
        inputs = {"position_ids": places, "past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        token = self.model(input_ids=self.new, attention_mask=self.mask, **inputs).logits[:, -1].argmax(-1)
        for i, one in zip(self.going, token.tolist(), strict=True):
            self.answers[i].append(one)
        stays = [n for n, i in enumerate(self.going) if left(i, self.answers[i])]
        if len(stays) < len(self.going):
            kept = torch.tensor(stays, dtype=torch.long, device=token.device)
            token, self.mask, self.going = token[kept], self.mask[kept], [self.going[n] for n in stays]
            self.cache.batch_select_indices(kept)
        self.new, self.mask = token[:, None], functional.pad(self.mask, (0, 1), value=1)


def batches(lengths: Sequence[int], positions: int, most: int = 2**30) -> Iterator[list[int]]:
    """Yield row indices in batches of similar length, the longest first, so that a lack of memory shows at once.

    Args:
        positions: rows times the longest of them, at most. most: rows, at most.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, min(positions // max(1, lengths[order[0]]), most))
        yield order[:size]
        order = order[size:]
