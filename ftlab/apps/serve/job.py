"""One answer to generate: the request to the engine, and its results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ftlab.apps.serve.constraints import Constraint

Finish = Literal["stop", "length", "cancelled", "waited", "unfollowable", "error"]
# PEFT's name of a model's first adapter.
ADAPTER = "default"


class Likelihood(NamedTuple):
    """The log probability of a chosen token, and the likeliest (token, log probability) at its position.

    Attributes:
        logprob: None for the first token of a prompt.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]]


class Piece(NamedTuple):
    """The result of a step for one job: text, tokens generated so far, and at the end the finish reason.

    Attributes:
        ids: all tokens of an answer that ended by itself or reached its maximum length; () before that.
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
        emit: called on the engine's thread with each Piece; the last has a `finish`.
        max_tokens: tokens to generate at most.
        temperature: below sampling.GREEDY_BELOW the likeliest token is taken.
        top_k: sample from this many likeliest tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one's probability.
        repetition_penalty: divides the positive logits of tokens in the prompt and the answer, multiplies the negative.
        presence_penalty: is subtracted from the logit of every token that the answer contains.
        frequency_penalty: is subtracted once for each occurrence in the answer.
        logit_bias: token ids to what is added to their logits.
        logprobs: how many likeliest tokens to report per position; None reports nothing.
        constraint: the constraint on the answer; None allows anything.
        adapter: PEFT's name of the active adapter; None for the model without one.
        deadline: `time.monotonic()` at which the answer is cut off.
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
