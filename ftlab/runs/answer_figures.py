"""The figures of one model's answers to examples, from token probabilities or from the answers' texts."""

import math
from collections.abc import Callable, Sequence

from ftlab import evaluate, figures
from ftlab.figures import Figure
from ftlab.responses import Response
from ftlab.runs.greedy import Checked

# Figures from one forward pass; the others need answers.
READ = ("loss", "accuracy")
# Figures of whole answers. For `exact_match` alone an answer is generated until it can no longer be the expected one.
WHOLE = ("contains", "json", "tool_calls", "bleu", "rouge")

# Answers and what was expected.
Pairs = list[tuple[Response, Response]]


def of_checked(checked: Sequence[Checked], names: Sequence[str]) -> dict[str, Figure]:
    """Return the figures from one forward pass over each example."""
    metrics, labels = {}, [one.labels for one in checked]
    if "loss" in names:
        loss = figures.ratio([one.loss for one in checked], labels)
        metrics = {
            "loss": loss,
            "perplexity": Figure(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), loss.n),
        }
    if "accuracy" in names:
        metrics["token_accuracy"] = figures.ratio([one.likeliest for one in checked], labels)
    return metrics


def absent(names: Sequence[str], expected: Sequence[Response]) -> list[str]:
    """Return the figures for which no expected answer has anything to compare."""
    missing = []
    for figure in (one for one in names if one in WHOLE):
        contents = [one.content for one in expected if applies(figure, one)]
        if not contents or (figure == "bleu" and not figures.has_four_tokens(contents)):
            missing.append(figure)
    return missing


def applies(figure: str, expected: Response) -> bool:
    """Return True if a figure applies to an expected answer."""
    if figure == "tool_calls":
        return bool(expected.calls)
    return bool(expected.content) and (figure != "json" or figures.json_object(expected.content) is not None)


def of_answers(names: Sequence[str], answers: Sequence[Response], expected: Sequence[Response]) -> dict[str, Figure]:
    """Return the figures of whole answers, each over the examples that it applies to."""
    metrics: dict[str, Figure] = {}
    for figure in names:
        pairs = [pair for pair in zip(answers, expected, strict=True) if figure in WHOLE and applies(figure, pair[1])]
        if pairs:
            metrics |= COMPUTED[figure](pairs)
    return metrics


def json_figures(pairs: Pairs) -> dict[str, Figure]:
    """Return the share of answers that are JSON objects, and the mean share of correct fields."""
    objects = [(figures.json_object(one.content), figures.json_object(other.content) or {}) for one, other in pairs]
    fields = [figures.share_of_fields(*pair) for pair in objects]
    return {
        "json_valid": figures.share([parsed is not None for parsed, _ in objects]),
        "json_fields": figures.ratio(fields),
    }


def texts(pairs: Pairs) -> tuple[list[str], list[str]]:
    """Return the texts of answers and of expected answers."""
    return [one.content for one, _ in pairs], [other.content for _, other in pairs]


COMPUTED: dict[str, Callable[[Pairs], dict[str, Figure]]] = {
    "contains": lambda pairs: {
        "contains": figures.share([evaluate.has_answer(*each) for each in zip(*texts(pairs), strict=True)])
    },
    "tool_calls": lambda pairs: {"tool_calls": figures.share([one.equals(other) for one, other in pairs])},
    "json": json_figures,
    "bleu": lambda pairs: {"bleu-4": figures.bleu(*texts(pairs))} if figures.has_four_tokens(texts(pairs)[1]) else {},
    "rouge": lambda pairs: figures.rouge(*texts(pairs)),
}
