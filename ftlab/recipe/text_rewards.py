"""Rewards that need the text of a completion alone. What another framework is given for a recipe prints this file."""

import re
from collections.abc import Sequence
from typing import Any

# Words that a short answer may have for nothing.
FREE_WORDS = 3


def text_of(completion: Any) -> str:
    """Return the text of a completion: itself, or what its last message says."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def is_right(text: str, answer: str) -> bool:
    """Return True if a text contains an answer, in whole words, upper and lower case alike.

    >>> is_right("The capital is Oslo.", "Oslo"), is_right("Osloer", "Oslo")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def exact_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 where a completion is the row's answer and nothing else, 0 elsewhere."""
    return [float(text_of(said).strip() == want.strip()) for said, want in zip(completions, answer, strict=True)]


def short_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 if a completion of up to FREE_WORDS words has the answer, 0.1 less per further word, 0 without it."""
    texts = [text_of(completion) for completion in completions]
    brief = [min(1.0, max(0.0, 1 - (len(said.split()) - FREE_WORDS) / 10)) for said in texts]
    return [is_right(said, want) * worth for said, want, worth in zip(texts, answer, brief, strict=True)]
