"""From the logits of one row to its next token: penalties and bias, then the draw."""

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ftlab.apps.serve.job import Job, Likelihood

# Dividing logits by less than this overflows; only the likeliest token would be left anyway.
GREEDY_BELOW = 1e-3


def choose(scores: torch.Tensor, job: Job, generated: Sequence[int], random: torch.Generator) -> int:
    """Return the next token of a row from its logits (vocabulary,).

    Raises:
        Unfollowable: the row's constraint is too complex.
    """
    scores = penalized(scores, job, generated)
    if job.constraint:
        scores = job.constraint.allowed(scores)
    if job.temperature < GREEDY_BELOW:
        return int(scores.argmax())
    return draw(warped(scores, job).softmax(-1), random)


def draw(probabilities: torch.Tensor, random: torch.Generator) -> int:
    """Return a token drawn from its probabilities (vocabulary,), by the inverse of their cumulative sum.

    `torch.multinomial` draws a random number for every token of the vocabulary, this draws one. In float64, so that the
    tail of a large vocabulary is not rounded away.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    position = torch.rand(1, generator=random, dtype=torch.float64) * cumulative[-1]
    # `right` skips tokens of probability 0, whose cumulative sum is that of the token before.
    return int(torch.searchsorted(cumulative, position, right=True))


def penalized(scores: torch.Tensor, job: Job, generated: Sequence[int]) -> torch.Tensor:
    """Return logits (vocabulary,) after the penalties and the bias of a job.

    Source: presence and frequency penalties and `logit_bias` as in OpenAI's API reference, over the answer alone; the
    repetition penalty of Keskar et al. 2019, "CTRL", over prompt and answer.
    """
    if job.repetition_penalty != 1:
        seen = torch.tensor([[*job.prompt, *generated]])
        scores = RepetitionPenaltyLogitsProcessor(job.repetition_penalty)(seen, scores[None])[0]
    if generated and (job.presence_penalty or job.frequency_penalty):
        counts = torch.bincount(torch.tensor(generated), minlength=len(scores))
        scores = scores - job.frequency_penalty * counts - job.presence_penalty * counts.gt(0)
    if job.logit_bias:
        bias = torch.tensor(list(job.logit_bias.values()))
        scores = scores.index_add(0, torch.tensor(list(job.logit_bias)), bias)
    return scores


def warped(scores: torch.Tensor, job: Job) -> torch.Tensor:
    """Return logits (vocabulary,) whose softmax is drawn from, warped in the order of `generate`."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(job.temperature)])
    if job.top_k:
        warpers.append(TopKLogitsWarper(job.top_k))
    if job.top_p < 1:
        warpers.append(TopPLogitsWarper(job.top_p))
    if job.min_p:
        warpers.append(MinPLogitsWarper(job.min_p))
    return warpers(None, scores[None])[0]


def likelihood(scores: torch.Tensor, token: int, count: int) -> Likelihood:
    """Return how likely `token` was under `scores` (vocabulary,), and the `count` most likely tokens."""
    logprobs = scores.log_softmax(-1)
    values, ids = logprobs.topk(count)
    return Likelihood(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
