"""Encode a recipe's examples, and print how many were read, cut and dropped."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ftlab import tokens
from ftlab.data import check, registry
from ftlab.data.arrow_cache import features
from ftlab.data.encoding import columns_of, encode, with_system
from ftlab.data.split import overlap, question, split
from ftlab.errors import LabError, fail, say
from ftlab.recipe.keys import REWARDED, Recipe
from ftlab.recipe.library_args import COLUMNS, encoding_of, names

# How many unusable examples are named.
NAMED = 4


def splits(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset | None]:
    """Return the training and validation sets (None without validation), in the form the trainers take.

    Raises:
        LabError: examples that cannot be read or that the stage cannot train on, or none is left.
    """
    trained, held_out = read_splits(recipe)
    validated = None if held_out is None else as_trained(recipe, held_out, tokenizer)
    return as_trained(recipe, trained, tokenizer), validated


def read_splits(recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """Return the examples of a recipe in TRL's shapes, for training and for validation, each with its place.

    `val_size` holds out examples after dropping duplicates; those with the same question stay on one side.
    """
    trained = read_examples(recipe, recipe.dataset or "")
    if recipe.dataset_substitutions:
        both = ",".join(filter(None, [recipe.dataset, recipe.eval_dataset]))
        left = registry.unused(recipe.dataset_substitutions, both, recipe.dataset_dir, recipe.max_samples)
        if left:
            print(say("train_substitutions", names=", ".join(left)))
    if recipe.eval_dataset:
        held_out = read_examples(recipe, recipe.eval_dataset)
        if count := overlap(trained, held_out):
            print(say("train_overlap", count=count, rows=len(held_out)))
        return trained, held_out
    if not recipe.val_size:
        return trained, None
    if recipe.val_size >= len(trained):
        raise fail("train_val_size", where="val_size", size=int(recipe.val_size), rows=len(trained))
    parts = split(trained, val_size=recipe.val_size, test_size=0, seed=recipe.training.get("seed", 42))
    if not len(parts.validation):
        raise fail("train_val_size", where="val_size", size=recipe.val_size, rows=len(trained))
    if recipe.mix_strategy == "interleave_over":
        repeated = not_asked(trained, parts.validation)
        print(say("train_repeats", count=len(repeated), unique=len(parts.train)))
        return repeated, parts.validation
    return parts.train, parts.validation


def not_asked(rows: Dataset, held_out: Dataset) -> Dataset:
    """Return the rows whose question is not held out; rows that the mixture repeats are kept."""
    prompts = {question(row) for row in held_out}
    return rows.select([number for number, row in enumerate(rows) if question(row) not in prompts])


def read_examples(recipe: Recipe, dataset: str) -> Dataset:
    """Return the examples of some data sets in TRL's shapes, each with its place, if the stage can train on them."""
    # A validation set is read whole: the mixture and its probabilities are for the training examples.
    mixed = dataset == recipe.dataset
    chances = [float(part) for part in names(recipe.interleave_probs or "")] if mixed else []
    rows = registry.load(
        dataset,
        recipe.dataset_dir,
        max_samples=recipe.max_samples,
        mix_strategy=recipe.mix_strategy if mixed else "concat",
        interleave_probs=chances or None,
        seed=recipe.training.get("seed", 42),
        substitutions=recipe.dataset_substitutions,
        on_bad_rows=recipe.on_bad_rows,
        places=True,
    )
    columns = COLUMNS[recipe.objective]
    if not set(columns) <= set(rows.column_names):
        available = ", ".join(name for name in rows.column_names if name != "where")
        raise fail("train_columns", where=dataset, stage=recipe.objective, needed=", ".join(columns), found=available)
    return rows


def prepared(recipe: Recipe, dataset: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the examples of some data sets in the form their stage's trainer takes."""
    return as_trained(recipe, read_examples(recipe, dataset), tokenizer)


def as_trained(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, scored: bool = False) -> Dataset:
    """Return examples in the form their stage's trainer takes, and say what was cut or dropped.

    Args:
        scored: the examples are evaluated; say what their cutting does to the scores.
    """
    if recipe.objective in REWARDED:
        return as_prompts(recipe, rows, tokenizer)
    return as_token_ids(recipe, rows, tokenizer, scored=scored)


def as_token_ids(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, scored: bool = False) -> Dataset:
    """Return the training examples of every example, as token ids."""
    how, count = encoding_of(recipe), Count(recipe)
    types = {
        name: Value("bool") if name == "label" else List(Value("int64")) for name in columns_of(rows.column_names, how)
    }

    def encode_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        examples: list[dict[str, Any]] = []
        for number in range(len(batch["where"])):
            row = present({name: column[number] for name, column in batch.items()})
            outcome = count.usable(partial(encode, tokenizer, row, how), row["where"])
            weighted = any(message.get("weight") == 0 for message in row.get("messages", []))
            count.prompted += how.train_on_prompt and weighted
            if outcome is None:
                continue
            count.outcome(len(outcome.examples), outcome.lost, how.mask_history and last_untrained(row))
            examples += outcome.examples
        return {name: [example[name] for example in examples] for name in types}

    examples = rows.map(
        encode_batch,
        batched=True,
        remove_columns=rows.column_names,
        features=Features(types),
        # Counted each time: a cached result would print nothing.
        load_from_cache_file=False,
        desc="tokenize",
    )
    count.say()
    if scored and count.cut:
        print(say("eval_cut", count=count.cut, limit=recipe.cutoff_len))
    return examples


def label_note(recipe: Recipe, rows: Dataset) -> str:
    """Return a note if KTO's examples all have one label, or are sorted by it and trained in their order; else ""."""
    labels = list(rows["label"]) if recipe.objective == "kto" else []
    ordered = recipe.training.get("train_sampling_strategy", "sequential") == "sequential"
    return check.label_note(labels) if ordered or len(set(labels)) == 1 else ""


def as_prompts(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return `prompt` (messages) and `answer` (text) of the examples that end with an answer and whose prompt fits."""
    if "tools" in rows.column_names:
        raise fail("train_tools", where=recipe.dataset or "", stage=recipe.objective)
    examples, count = [], Count(recipe)
    for row in map(present, rows):
        *before, last = with_system(row, recipe.default_system)["messages"]
        prompt = count.usable(partial(tokens.prompt, tokenizer, before), row["where"])
        if prompt is None:
            continue
        untrained = last_untrained(row)
        answered = not untrained and last["role"] == "assistant" and last.get("content")
        fits = before and len(prompt) <= recipe.cutoff_len and answered
        count.outcome(int(bool(fits)), 0, untrained)
        if fits:
            examples.append({"prompt": before, "answer": last["content"]})
    count.say()
    return Dataset.from_list(examples, features=features(("prompt", "answer")))


class Count:
    """Counts of a recipe's examples while they are encoded.

    Attributes:
        read, kept, cut, dropped: examples; dropped ones had no answer left within cutoff_len.
        untrained: dropped because the last answer, the only one for `mask_history`, ppo, grpo and rloo, has weight 0.
        prompted: examples with an answer of weight 0, which `train_on_prompt` trains as part of the prompt.
        made: training examples; a conversation may give several.
        lost: tokens that cutoff_len removed from the kept ones.
        bad: problems of examples that the chat template refuses.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.read = self.kept = self.cut = self.dropped = self.untrained = self.made = self.lost = 0
        self.prompted = 0
        self.bad: list[LabError] = []

    def usable(self, work: Callable[[], Any], where: str) -> Any:
        """Return the result of `work`; None if the chat template refuses the example and the recipe drops such.

        Raises:
            LabError: the template refuses it; its place is named.
        """
        self.read += 1
        try:
            return work()
        except LabError as error:
            problem = LabError(error.what, where, error.fix)
            if self.recipe.on_bad_rows == "refuse":
                raise problem from None
            self.bad.append(problem)
            return None

    def outcome(self, made: int, lost: int, untrained: bool = False) -> None:
        """Count one example; `untrained`: its last answer has weight 0."""
        self.made += made
        self.kept += bool(made)
        self.dropped += not made
        self.untrained += not made and untrained
        self.cut += bool(made and lost)
        self.lost += lost if made else 0

    def say(self) -> None:
        """Print the counts.

        Raises:
            LabError: none is left.
        """
        paired = "chosen" in COLUMNS[self.recipe.objective]
        nothing = say("train_no_pair_left") if paired else say("train_no_answer_left")
        several = say("train_examples_several", count=self.made) if self.made > self.kept else ""
        limit = self.recipe.cutoff_len
        if encoding_of(self.recipe).cutoff_len is None:
            print(say("train_examples_joined", read=self.read, limit=limit))
            return
        counts = {"read": self.read, "kept": self.kept, "cut": self.cut, "lost": self.lost, "dropped": self.dropped}
        print(say("train_examples", several=several, limit=limit, nothing=nothing, **counts))
        if self.bad:
            print(say("train_refused_examples", count=len(self.bad)))
            print("\n".join(str(problem) for problem in self.bad[:NAMED]))
        if self.untrained:
            print(say("train_untrained", count=self.untrained))
        if self.prompted:
            print(say("train_prompted", count=self.prompted))
        if not self.kept and self.untrained == self.dropped > 0:
            raise fail("train_all_untrained", where=self.recipe.dataset or "")
        if not self.kept:
            raise fail("train_no_rows", where=self.recipe.dataset or "", cutoff_len=self.recipe.cutoff_len)


def last_untrained(row: dict[str, Any]) -> bool:
    """Return True if the last answer of a conversation has weight 0."""
    return bool(row.get("messages")) and row["messages"][-1].get("weight") == 0


def present(row: dict[str, Any]) -> dict[str, Any]:
    """Return an example without columns, and keys of messages, that are None because a table filled them."""
    return {
        name: [without_none(one) for one in value] if isinstance(value, list) else value
        for name, value in row.items()
        if value is not None
    }


def without_none(message: Any) -> Any:
    """Return a message without its keys that hold None; tool calls and schemas are not changed."""
    return (
        {name: value for name, value in message.items() if value is not None} if isinstance(message, dict) else message
    )


def digests(datasets: tuple[Dataset, Dataset | None]) -> str:
    """Return a digest of the training rows and of the validation rows."""
    return "+".join(digest(part) for part in datasets if part is not None)


def digest(dataset: Dataset) -> str:
    """Return a digest of every example, in order."""
    sha256 = hashlib.sha256()
    for row in dataset:
        sha256.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return sha256.hexdigest()[:16]
