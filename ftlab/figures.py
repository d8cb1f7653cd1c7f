"""Figures of an evaluation, each with n and its 95% interval: shares, means, BLEU-4, ROUGE; whether two models differ.

A figure other than a share is computed from sums over the examples, so that one bootstrap serves all of them.
"""

import bisect
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ftlab import packages
from ftlab.evaluate import interval, without_thought
from ftlab.responses import canonical

BOOTSTRAP_SAMPLES = 1000
# Chinese characters. Such a text has no spaces between its words.
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
# Scripts whose texts have no spaces between words: Chinese characters, kana, Thai, Lao, Burmese, Khmer.
UNSPACED = re.compile(rf"{HAN.pattern}|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]")
# rouge-score keeps only a-z and 0-9, which leaves little of a text with more than this share of other letters.
FOREIGN = 0.25
# The power of a sign test: how likely it detects a difference that exists.
POWER = 0.8
ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}


class Figure(NamedTuple):
    """A figure, the ends of its 95% interval, and the number of examples that it comes from."""

    value: float
    low: float
    high: float
    n: int


class Paired(NamedTuple):
    """What changed from one model to another on the same examples.

    Attributes:
        gained, lost: examples that only the second or only the first model answers correctly.
        p: how often two equally good models differ by at least this much (McNemar's exact test).
    """

    gained: int
    lost: int
    p: float


def share(hits: Sequence[bool]) -> Figure:
    """Return the share of examples that are right, with Wilson's interval."""
    value = sum(hits) / len(hits)
    return Figure(value, *interval(value, len(hits)), len(hits))


def ratio(above: Sequence[float], below: Sequence[float] | None = None) -> Figure:
    """Return the sum of one number over that of another, with its bootstrap interval; without `below`, the mean."""
    counts = below if below is not None else [1] * len(above)
    return bootstrapped(np.array([above, counts], dtype=float).T, lambda total: float(total[0] / total[1]))


def bootstrapped(rows: np.ndarray, figure: Callable[[np.ndarray], float]) -> Figure:
    """Return a figure that is computed from a sum over examples, with the interval of resampled examples.

    The same rows always give the same interval. Source: Efron 1979, Ann. Stat. 7, 1; percentile method.

    Args:
        rows: (examples, numbers).
        figure: computes it from the sum, (numbers,).
    """
    drawn = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), BOOTSTRAP_SAMPLES)
    low, high = np.percentile([figure(total) for total in drawn @ rows], [2.5, 97.5])
    return Figure(figure(rows.sum(0)), float(low), float(high), len(rows))


def paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Compare two models' right answers to the same examples with McNemar's exact test, both sides.

    Only examples on which they disagree count: between equal models each is a fair coin.
    Source: McNemar 1947, Psychometrika 12, 153.

    >>> paired([True] * 2 + [False] * 8, [False] * 2 + [True] * 8)
    Paired(gained=8, lost=2, p=0.109375)
    """
    gained = sum(bool(new and not old) for old, new in zip(before, after, strict=True))
    lost = sum(bool(old and not new) for old, new in zip(before, after, strict=True))
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return Paired(gained, lost, min(1.0, 2 * tail / 2**n))


def sign_test(wins: int, losses: int) -> float:
    """Return how often two equal sides differ by at least this much, ties aside: the sign test, both tails, mid-p.

    Only half of the outcome's own probability is counted. The exact p rejects less often than its 5%: two equal sides
    in 3.5% of all tests with 100 pairs, the mid-p in 5.7%. Source: Lancaster 1961, J. Am. Stat. Assoc. 56, 223.

    >>> round(sign_test(8, 2), 4), sign_test(0, 0)
    (0.0654, 1.0)
    """
    pairs, fewer = wins + losses, min(wins, losses)
    if wins == losses:
        return 1.0
    return (2 * sum(math.comb(pairs, k) for k in range(fewer)) + math.comb(pairs, fewer)) / 2**pairs


def sign_test_power(pairs: int, share: float) -> float:
    """Return the power of a sign test at 5% with this many pairs, of which one side wins this share."""
    # p falls with the wins of the side that has fewer: this many numbers of them have one of at most 5%.
    few = bisect.bisect_right(range(pairs // 2 + 1), 0.05, key=lambda fewer: sign_test(fewer, pairs - fewer))
    shown = [*range(few), *range(pairs + 1 - few, pairs + 1)]
    return sum(math.comb(pairs, wins) * share**wins * (1 - share) ** (pairs - wins) for wins in shown)


def pairs_needed(share: float) -> int | None:
    """Return how many pairs, ties aside, give the sign test a power of 80% for a share; None if it is one half.

    >>> pairs_needed(0.6), pairs_needed(0.75), pairs_needed(1.0), pairs_needed(0.5)
    (194, 29, 5, None)
    """
    if share == 0.5:
        return None
    quantile = statistics.NormalDist().inv_cdf
    spread = quantile(0.975) / 2 + quantile(POWER) * math.sqrt(share * (1 - share))
    pairs = math.ceil((spread / (share - 0.5)) ** 2)
    # The normal approximation gives too few pairs when they are few, and is good when they are many.
    while pairs < 1000 and sign_test_power(pairs, share) < POWER:
        pairs += 1
    return pairs


def json_object(text: str) -> dict[str, Any] | None:
    """Parse a text that is a JSON object, ignoring reasoning before it; return None for anything else.

    >>> json_object('{"a": 1}'), json_object('Here it is: {"a": 1}')
    ({'a': 1}, None)
    """
    try:
        value = json.loads(without_thought(text), parse_constant=constant_refused)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def constant_refused(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not JSON")


def share_of_fields(answer: dict[str, Any] | None, expected: dict[str, Any]) -> float:
    """Return the share of an object's top-level fields that an answer has right; a field too many is a wrong one.

    >>> share_of_fields({"a": 1, "c": 3}, {"a": 1, "b": 2})
    0.3333333333333333
    """
    fields = answer or {}
    names = expected.keys() | fields.keys()
    right = [name in expected and name in fields and same(fields[name], expected[name]) for name in names]
    return sum(right) / len(names) if names else 1.0


def same(one: Any, other: Any) -> bool:
    """Return True if two JSON values are equal; the order of keys does not matter, 1.0 is 1, and true is not."""
    return canonical(one) == canonical(other)


def bleu(answers: Sequence[str], references: Sequence[str]) -> Figure:
    """Return corpus BLEU-4 on a scale of 100, as sacrebleu computes it, each pair in the tokens of its reference.

    Raises:
        LabError: sacrebleu is not installed.
    """
    metrics = bleu_metrics(references)
    scores = [
        metric.sentence_score(answer, [reference])
        for metric, answer, reference in zip(metrics, answers, references, strict=True)
    ]
    rows = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores])

    def corpus(total: np.ndarray) -> float:
        counts = [int(number) for number in total]
        return metrics[0].compute_bleu(counts[:4], counts[4:8], counts[8], counts[9]).score

    return bootstrapped(rows, corpus)


def bleu_metrics(references: Sequence[str]) -> list[Any]:
    """Return sacrebleu's BLEU with the tokenizer for each of these references.

    `zh` splits Chinese into characters, and is used for a set that is mostly Chinese, as in papers; `char` splits
    other scripts without spaces; `13a` is sacrebleu's default.

    Raises:
        LabError: sacrebleu is not installed.
    """
    packages.require("sacrebleu", "bleu")
    from sacrebleu.metrics import BLEU

    mostly = chinese(references)

    @cache
    def metric(tokenizer: str) -> BLEU:
        # `effective_order` silences a warning about single sentences; of these only the counts are used.
        return BLEU(tokenize=tokenizer, effective_order=True)

    def tokenizer(text: str) -> str:
        letters = [character for character in text if character.isalpha()]
        unspaced = sum(bool(UNSPACED.match(one) and not HAN.match(one)) for one in letters)
        if unspaced > FOREIGN * len(letters):
            return "char"
        return "zh" if mostly or HAN.search(text) else "13a"

    return [metric(tokenizer(text)) for text in references]


def has_four_tokens(references: Sequence[str]) -> bool:
    """Return True if a reference has at least four tokens, without which BLEU-4 is 0 even for right answers."""
    pairs = zip(bleu_metrics(references), references, strict=True)
    return any(len(metric.tokenizer(text).split()) >= 4 for metric, text in pairs)


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, Figure]:
    """Return the mean F-measures of ROUGE-1, -2 and -L on a scale of 100, as rouge-score computes them.

    Chinese references: on jieba's words; otherwise on rouge-score's own, without stemming. That drops all letters but
    a-z: a reference in another script is compared by its words, those of jieba where the script has no spaces.

    Raises:
        LabError: rouge-score or jieba is not installed.
    """
    packages.require("rouge_score", "rouge")
    from rouge_score.rouge_scorer import RougeScorer

    jieba_for_all = chinese(references)

    @cache
    def scorer(script: str) -> RougeScorer:
        tokenizer = {"latin": None, "unspaced": Words, "other": SpacedWords}[script]
        return RougeScorer(list(ROUGE.values()), tokenizer=tokenizer and tokenizer())

    scores = [
        scorer("unspaced" if jieba_for_all else script_of(reference)).score(reference, answer)
        for answer, reference in zip(answers, references, strict=True)
    ]
    return {name: ratio([100 * one[theirs].fmeasure for one in scores]) for name, theirs in ROUGE.items()}


def chinese(texts: Sequence[str]) -> bool:
    """Return True if most of the texts contain Chinese characters."""
    return sum(bool(HAN.search(text)) for text in texts) > len(texts) / 2


def script_of(text: str) -> str:
    """Return the script of a text, which decides how ROUGE splits it: "latin", "unspaced" or "other".

    >>> script_of("Paris is 2,000 years old."), script_of("Привет, мир"), script_of("こんにちは")
    ('latin', 'other', 'unspaced')
    """
    letters = [character for character in text if character.isalpha()]
    if sum(character > "\u024f" for character in letters) <= FOREIGN * len(letters):
        return "latin"
    return "unspaced" if UNSPACED.search(text) else "other"


class SpacedWords:
    """A rouge-score tokenizer for any script with spaces between words."""

    def tokenize(self, text: str) -> list[str]:
        """Return runs of letters and digits, in lower case."""
        return re.findall(r"[^\W_]+", text.lower())


class Words:
    """A rouge-score tokenizer with jieba's words."""

    def __init__(self) -> None:
        packages.require("jieba", "rouge")
        import jieba

        # jieba reports on stderr that it builds its dictionary.
        jieba.setLogLevel("WARNING")
        self.cut = jieba.lcut

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, without white space."""
        return [word for word in self.cut(text) if word.strip()]
