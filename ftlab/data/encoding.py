"""Encode a data set's examples for a trainer: their training examples, and the tokens that cutoff_len removes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlab.data.read import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The columns of answers to a prompt, by the column that identifies such an example.
SIDES = {"chosen": ("chosen", "rejected"), "label": ("completion",)}


class Encoding(NamedTuple):
    """How examples are encoded: the recipe keys of these names."""

    cutoff_len: int | None = None
    train_on_prompt: bool = False
    mask_history: bool = False
    default_system: str | None = None
    # Whole conversations for a reward model instead of separate prompts and answers.
    judged: bool = False


class Outcome(NamedTuple):
    """The result of encoding an example.

    Attributes:
        examples: training examples, each with at least one trained token.
        lost: tokens removed by cutoff_len, `answer_lost` of them from answers.
    """

    examples: list[dict[str, Any]]
    lost: int
    answer_lost: int


def encode(tokenizer: "PreTrainedTokenizerBase", row: Row, how: Encoding) -> Outcome:
    """Encode an example in TRL's shape, for training and for every check that predicts what training will do.

    Returns:
        Of `messages`, `prompt` and `completion`, or `text`: {"input_ids", "labels"}; of a pair: {"prompt_ids",
        "chosen_ids", "rejected_ids"}, or whole conversations for a reward model; of a KTO example:
        {"prompt_ids", "completion_ids", "label"}. No training examples if nothing is left to train on.
    Raises:
        LabError: the chat template refuses the example.
    """
    row = with_system(row, how.default_system)
    column = next((name for name in SIDES if name in row), "")
    return encode_sides(tokenizer, row, how, SIDES[column]) if column else encode_turns(tokenizer, row, how)


def columns_of(columns: Sequence[str], how: Encoding) -> tuple[str, ...]:
    """Return the columns that training examples have, for the columns that a data set has."""
    if "chosen" in columns:
        return ("chosen_ids", "rejected_ids") if how.judged else ("prompt_ids", "chosen_ids", "rejected_ids")
    return ("prompt_ids", "completion_ids", "label") if "label" in columns else ("input_ids", "labels")


def with_system(row: Row, default_system: str | None) -> Row:
    """Return an example with a system turn where it has none."""
    column = next((name for name in ("messages", "prompt") if name in row), "")
    if not default_system or not column or (row[column] and row[column][0]["role"] == "system"):
        return row
    return row | {column: [{"role": "system", "content": default_system}, *row[column]]}


def encode_turns(tokenizer: "PreTrainedTokenizerBase", row: Row, how: Encoding) -> Outcome:
    """Encode a conversation or a text."""
    from ftlab import tokens

    whole = tokens.examples(tokenizer, row, mask_history=how.mask_history)
    cut = [tokens.truncated(turns, how.cutoff_len, how.train_on_prompt) for turns in whole]
    kept = [example for example in cut if any(label != tokens.IGNORED for label in example["labels"])]
    lost = sum(map(tokens.length, whole)) - sum(len(example["input_ids"]) for example in cut)
    answers = [tokens.truncated(turns, how.cutoff_len)["labels"] for turns in whole] if lost else []
    trained = sum(label != tokens.IGNORED for labels in answers for label in labels)
    whole_answers = sum(len(turn.answer) for turns in whole for turn in turns)
    return Outcome(kept, lost, whole_answers - trained if lost else 0)


def encode_sides(tokenizer: "PreTrainedTokenizerBase", row: Row, how: Encoding, sides: tuple[str, ...]) -> Outcome:
    """Encode a prompt with its answers."""
    from ftlab import tokens

    turns = tokens.sides(tokenizer, row, sides, with_tail=how.judged)
    prompt_ids, *answers = tokens.truncated_sides(turns, how.cutoff_len)
    answer_lost = sum(len(turn.answer) - len(ids) for turn, ids in zip(turns, answers, strict=True))
    lost = len(turns[0].source) - len(prompt_ids) + answer_lost
    # Two sides that differ only beyond cutoff_len teach nothing.
    if not all(answers) or (len(answers) > 1 and answers[0] == answers[1]):
        return Outcome([], lost, answer_lost)
    if how.judged:
        example = {f"{side}_ids": [*prompt_ids, *ids] for side, ids in zip(sides, answers, strict=True)}
    else:
        example = {"prompt_ids": prompt_ids} | {f"{side}_ids": ids for side, ids in zip(sides, answers, strict=True)}
    return Outcome([example | ({"label": row["label"]} if "label" in row else {})], lost, answer_lost)


def shown(tokenizer: "PreTrainedTokenizerBase", row: Row, how: Encoding) -> list[dict[str, list[int]]]:
    """Return the training examples of an example as `input_ids` and `labels`, of a pair one for each answer."""
    examples = []
    for example in encode(tokenizer, row, how).examples:
        if "input_ids" in example:
            examples.append(example)
            continue
        prompt = example.get("prompt_ids", [])
        answers = [ids for name, ids in example.items() if name.endswith("_ids") and name != "prompt_ids"]
        examples += [{"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids} for ids in answers]
    return examples
