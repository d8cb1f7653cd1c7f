"""Compare two models blind: a judge or a person picks the better answer to each question; with a sign test."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftlab import evaluate, figures
from ftlab.data import registry
from ftlab.errors import fail, say
from ftlab.recipe import read as recipes
from ftlab.runs import chat, folder
from ftlab.runs.preferences import LEFT, RIGHT, SKIP, Labels, Rater

PLACE = Path("runs/compare")
QUESTION = """Here is a question and two answers.

Question: {question}

Answer 1: {left}

Answer 2: {right}

Which answer is better? Reply with 1 or 2."""


def longer(question: str, left: str, right: str) -> int:
    """Pick the answer with more characters."""
    return SKIP if len(left) == len(right) else LEFT if len(left) > len(right) else RIGHT


def shorter(question: str, left: str, right: str) -> int:
    """Pick the answer with fewer characters."""
    return longer(question, right, left)


# Judges that need no model.
JUDGES: dict[str, Rater] = {"longer": longer, "shorter": shorter}


class Pile(NamedTuple):
    """Questions that two models have answered.

    Attributes:
        answers: question -> the answers of A and B, which differ.
        equal: questions with two equal answers, or with an empty one.
        labels: the anonymous pairs of answers to choose from.
    """

    answers: dict[str, tuple[str, str]]
    equal: int
    labels: Labels


class Outcome(NamedTuple):
    """How often each model was picked, and the result of the sign test.

    Attributes:
        ties: equal answers, and pairs that nobody preferred.
        p: p-value of the sign test, the probability of at least this difference between two equal models.
        more: pairs still needed for a power of 80% at this difference; None if the shares are equal.
    """

    a: int
    b: int
    ties: int
    p: float
    more: int | None


class Side(NamedTuple):
    """A model that answers, its tokenizer, and the system turn that it was trained with, if any."""

    model: Any
    tokenizer: Any
    system: Sequence[chat.Message] = ()


def load_side(name: str) -> Side:
    """Return the model of a recipe, a run folder, or a model's name.

    Raises:
        LabError: there is none.
    """
    path = Path(name).expanduser() / folder.RECIPE
    if name.endswith((".yaml", ".yml")):
        recipe = recipes.load(name)
    elif path.is_file():
        recipe, _ = recipes.read(path, [f"output_dir={path.parent}"])
    else:
        return Side(*chat.load(name))
    return Side(*chat.from_recipe(recipe), chat.system_turn(recipe.default_system, chat.weights_folder(recipe)))


def questions(dataset: str, dataset_dir: str | Path, limit: int) -> list[str]:
    """Return the questions of conversations with one question and no system turn, a random sample above `limit`.

    Raises:
        LabError: there are none.
    """
    unique = dict.fromkeys(filter(None, map(question_of, registry.rows_of(dataset, dataset_dir))))
    if not unique:
        raise fail("compare_no_questions", where=dataset)
    all_questions = list(unique)
    return [
        all_questions[number]
        for number in sorted(registry.drawn(len(all_questions), min(limit, len(all_questions)), seed=0))
    ]


def question_of(row: dict[str, Any]) -> str:
    """Return the only question of a row, "" if it has several turns, a system turn or no question."""
    messages = row.get("messages") or row.get("prompt") or []
    prompts = [message for message in messages if message["role"] != "assistant"]
    return prompts[0]["content"] if len(prompts) == 1 and prompts[0]["role"] == "user" else ""


def pile(
    a: str,
    b: str,
    prompts: Sequence[str],
    name: str,
    place: Path = PLACE,
    *,
    max_new_tokens: int = 128,
    fresh: bool = False,
) -> Pile:
    """Return pairs of two models' greedy answers in random order; picks are saved as the preference set `name`.

    Args:
        fresh: discard earlier picks of that name; otherwise they count, and their questions are not asked again.
    Raises:
        LabError: a model that cannot be loaded, or earlier picks about other answers.
    """
    # Only one of them is in memory at a time.
    sides = [replies(load_side(model), prompts, max_new_tokens) for model in (a, b)]
    # An empty answer cannot be trained on: such a pair is a tie, like one of equal answers.
    rows = [
        (question, *pair) for question, *pair in zip(prompts, *sides, strict=True) if all(pair) and pair[0] != pair[1]
    ]
    if fresh:
        (place / f"{name}.jsonl").unlink(missing_ok=True)
    labels, answers = Labels(rows, name, place), {question: (one, other) for question, one, other in rows}
    if any({row["chosen"], row["rejected"]} != {*answers.get(row["instruction"], ())} for row in labels.preferences()):
        raise fail("compare_other_answers", where=str(labels.path))
    return Pile(answers, len(prompts) - len(rows), labels)


def name_of(a: str, b: str, by: str | None) -> str:
    """Return the name of the preference set of a comparison, such as "smollm2-135m_runs-tuned_longer"."""
    # With the parent folder: many folders are just called "adapter" or "model".
    parts = ("-".join(Path(one.removesuffix(".yaml")).parts[-2:]) for one in (a, b, by or "person"))
    return "_".join(re.sub(r"\W+", "-", one).strip("-") for one in parts)


def replies(side: Side, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Return a model's greedy answers."""
    conversations = [[*side.system, {"role": "user", "content": question}] for question in prompts]
    return evaluate.generate_answers(side.model, side.tokenizer, conversations, max_new_tokens)


def judge(name: str) -> Rater:
    """Return a judge of JUDGES, else a model that is asked which answer is better.

    Raises:
        LabError: it is the name of neither a judge nor a model.
    """
    if name in JUDGES:
        return JUDGES[name]
    side = load_side(name)

    def lead(question: str, left: str, right: str) -> float:
        """Return by how much the model prefers the number of the left answer."""
        choice = {"question": QUESTION.format(question=question, left=left, right=right), "choices": ["1", "2"]}
        ((one, two),) = evaluate.choice_log_probabilities(side.model, side.tokenizer, [choice])
        return one - two

    def rate(question: str, left: str, right: str) -> int:
        # Asked in both orders, so that a preference for a position cancels out.
        lead_of_left = lead(question, left, right) - lead(question, right, left)
        return SKIP if lead_of_left == 0 else LEFT if lead_of_left > 0 else RIGHT

    return rate


def outcome(compared: Pile) -> Outcome:
    """Return the outcome of the picks so far."""
    picked = compared.labels.preferences()
    sides = [compared.answers[row["instruction"]].index(row["chosen"]) for row in picked]
    a, b = sides.count(0), sides.count(1)
    ties = compared.equal + len(compared.answers) - len(compared.labels.rows) - len(picked)
    needed = figures.pairs_needed(a / len(picked)) if picked else None
    return Outcome(a, b, ties, figures.sign_test(a, b), None if needed is None else max(0, needed - len(picked)))


def report(one: Outcome) -> str:
    """Return an outcome as text."""
    lines = [say("compare_outcome", a=one.a, b=one.b, ties=one.ties, p=one.p)]
    if one.more is None:
        return "\n".join([*lines, say("compare_no_difference")])
    return "\n".join([*lines, say("compare_more" if one.more else "compare_enough", more=one.more)])
