"""One answer to generate: what is asked of the engine, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ftlab.apps.serve.constraints import Constraint

Finish = Literal["stop", "length", "cancelled", "waited", "unfollowable", "error"]
# PEFT's name of a model's first adapter.
ADAPTER = "default"


class Likelihood(NamedTuple):
    """The log probability of a chosen token, and the likeliest (token, log probability) in its place.

    Attributes:
        logprob: None for the first token of a prompt, which follows nothing.
    """

    token: int
    logprob: float | None
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
        temperature: below sampling.GREEDY_BELOW the likeliest token is taken.
        top_k: sample from this many likeliest tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one's probability.
        repetition_penalty: divides the positive logits of tokens in the prompt and the answer, multiplies the negative.
        presence_penalty: is subtracted from the logit of every token that the answer contains.
        frequency_penalty: is subtracted once for each time that the answer contains it.
        logit_bias: token ids to what is added to their logits.
        logprobs: how many likeliest tokens to report per position; None reports nothing.
        constraint: what the answer may say; None lets it say anything.
        adapter: PEFT's name of the adapter that is on; None for the model without.
        deadline: `time.monotonic()` after which the answer ends where it is.
        cancelled: set it, from any thread, to have the row dropped before the next step.
    """

    prompt: list[int]
    emit: Callable[[Piece], None]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    seed: int | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None
    adapter: str | None = ADAPTER
    deadline: float = float("inf")
    cancelled: bool = False
