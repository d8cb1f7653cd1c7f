"""Answers of an evaluation: for a panel, and as the files that LLaMA-Factory writes with `predict_with_generate`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ftlab import manifests
from ftlab.runs.folder import PREDICT_RESULTS, PREDICTIONS


class Answered(NamedTuple):
    """A model's answer to an example.

    Attributes:
        prompt, expected, answer: without control tokens.
        whole: False for an answer that was cut off when it could no longer be the expected one.
        right: whether it is the expected answer.
    """

    number: int
    prompt: str
    expected: str
    answer: str
    whole: bool
    right: bool


def answered(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[list[int], list[int]]],
    answers: Sequence[list[int] | None],
    whole: Sequence[bool],
    hits: Sequence[bool],
) -> list[Answered]:
    """Return the finished answers, numbered from 1.

    Args:
        pairs, answers: as in `write`.
    """

    def plain(ids: list[int]) -> str:
        """Return token ids as text without control tokens."""
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    return [
        Answered(number, plain(prompt), plain(label), plain(answer), ended, hit)
        for number, ((prompt, label), answer, ended, hit) in enumerate(zip(pairs, answers, whole, hits, strict=True), 1)
        if answer is not None
    ]


def write(
    where: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[list[int], list[int]]],
    answers: Sequence[list[int] | None],
) -> int:
    """Write generated_predictions.jsonl, a line per answer in the order of the examples, and return their number.

    Args:
        pairs: token ids of each prompt and of its expected answer.
        answers: token ids; None for an unfinished answer, which is left out.
    """
    rows = [
        {
            # As in LLaMA-Factory: the prompt with its control tokens, the answers without.
            "prompt": tokenizer.decode(prompt),
            "predict": tokenizer.decode(answer, skip_special_tokens=True).strip(),
            "label": tokenizer.decode(label, skip_special_tokens=True).strip(),
        }
        for (prompt, label), answer in zip(pairs, answers, strict=True)
        if answer is not None
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    manifests.write_text(where / PREDICTIONS, "".join(lines))
    return len(rows)


def write_results(where: Path, figures: dict[str, Any], rows: int, seconds: float) -> None:
    """Write predict_results.json: the figures under LLaMA-Factory's names, and the time they took."""
    values = {f"predict_{name}": value for name, value in figures.items()}
    pace = {"runtime": round(seconds, 3), "samples": rows, "samples_per_second": round(rows / seconds, 3)}
    manifests.write_json(where / PREDICT_RESULTS, values | {f"predict_{name}": value for name, value in pace.items()})
