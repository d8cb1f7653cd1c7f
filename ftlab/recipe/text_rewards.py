"""Rewards that need only the text of a completion. Scripts for other frameworks include this file."""

import re
from collections.abc import Sequence
from typing import Any

# Words that a short answer may have without a penalty.
FREE_WORDS = 3
# Chinese, Japanese, Thai and other scripts that have no spaces between words.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def text_of(completion: Any) -> str:
    """Return the text of a completion: itself, or its last message's content."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def without_thought(text: str) -> str:
    """Return a text without the reasoning before its answer."""
    return text.rpartition("</think>")[2].strip()


def is_right(text: str, answer: str) -> bool:
    """Return True if a text contains an answer in whole words, ignoring case.

    >>> is_right("The capital is Oslo.", "Oslo"), is_right("Osloer", "Oslo"), is_right("首都是北京。", "北京")
    (True, False, True)
    """
    # Only letters and digits of scripts with spaces continue a word. 5 is neither in 4.5 nor in -5.
    letter = r"[^\W\u2e80-\U0010ffff]"
    before = rf"(?<!{letter})(?<!\d[.,])(?:(?<!(?<![0-9a-zA-Z_)\]])-)|(?!\d))"
    return (
        bool(answer)
        and re.search(rf"{before}{re.escape(answer)}(?!{letter})(?![.,]\d)", text, re.IGNORECASE) is not None
    )


def words(text: str) -> int:
    """Return the number of words in a text; two characters of a script without spaces count as one.

    >>> words("It is Oslo."), words("首都是北京。"), words("是 GPU")
    (3, 3, 2)
    """
    unspaced = UNSPACED.findall(text)
    if not unspaced:
        return len(text.split())
    others = [part for part in UNSPACED.sub(" ", text).split() if any(map(str.isalnum, part))]
    return -(-len(unspaced) // 2) + len(others)


def exact_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 where a completion is the row's answer and nothing else, 0 elsewhere; reasoning before it is ignored."""
    texts = [without_thought(text_of(completion)) for completion in completions]
    return [float(said == without_thought(want)) for said, want in zip(texts, answer, strict=True)]


def short_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 if a completion of up to FREE_WORDS words has the answer, 0.1 less per further word, 0 without it.

    Reasoning before the answer is ignored, in the completion and in the row.
    """
    texts = [without_thought(text_of(completion)) for completion in completions]
    brief = [min(1.0, max(0.0, 1 - (words(said) - FREE_WORDS) / 10)) for said in texts]
    return [
        is_right(said, without_thought(want)) * worth for said, want, worth in zip(texts, answer, brief, strict=True)
    ]
