"""The steps of a run, counted before it begins, and notes on settings that lie beyond its last step."""

import math
from typing import Any, NamedTuple

import pyarrow.compute as pc
from datasets import Dataset

from ftlab.errors import say
from ftlab.recipe.keys import REWARDED, WITHOUT_WARMUP, Recipe
from ftlab.runs import build, launch


class Planned(NamedTuple):
    """The steps and epochs of a whole run; 0 where they depend on the answers to generate."""

    steps: int
    epochs: float


def planned(recipe: Recipe, args: Any, rows: int) -> Planned:
    """Return the steps and epochs of a run on `rows` rows, as Trainer counts them."""
    if recipe.objective in REWARDED:
        return Planned(max(0, args.max_steps), 0.0)
    batch = args.train_batch_size * max(args.world_size, launch.to_start(recipe))
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    updates = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
    return Planned(steps, steps / updates)


def count(recipe: Recipe, args: Any, examples: Dataset) -> int:
    """Return the number of steps of a whole run; 0 if it depends on the answers to generate."""
    # With `max_steps` the data needs no packing.
    rows = 0 if args.max_steps > 0 else len(build.packed(examples, args))
    return planned(recipe, args, rows).steps


def never_reached(recipe: Recipe, args: Any, examples: Dataset) -> list[str]:
    """Return a note for each setting that the run ends too early for."""
    if args.eval_strategy == "no" and args.warmup_steps <= 1:
        return []
    # Trainer packs the data again, which takes minutes for millions of examples. Every note holds from a number of rows
    # on, or up to one, so that one that holds for neither bound needs no exact number.
    if not any(
        notes(recipe, args, planned(recipe, args, rows)) for rows in {fewest_rows(examples, args), len(examples)}
    ):
        return []
    return notes(recipe, args, planned(recipe, args, len(build.packed(examples, args))))


def fewest_rows(examples: Dataset, args: Any) -> int:
    """Return the number of rows if packing left no room in any: 30 tokens in rows of 8 are at least 4 rows."""
    if not getattr(args, "packing", False):
        return len(examples)
    parts = examples.select_columns("input_ids").with_format("arrow").iter(batch_size=1000)
    tokens = sum(pc.sum(pc.list_value_length(part["input_ids"])).as_py() for part in parts)
    return math.ceil(tokens / args.max_length)


def notes(recipe: Recipe, args: Any, plan: Planned) -> list[str]:
    """Return a note for the warm-up, for the evaluations, and for early stopping, if a run ends before."""
    found, end = [], plan.steps
    # Below 1 they are shares of the steps.
    warm = args.warmup_steps if args.warmup_steps > 1 and args.lr_scheduler_type not in WITHOUT_WARMUP else 0
    if 0 < end < warm:
        found.append(say("train_never_warm", warm=int(warm), steps=end, rate=args.learning_rate * (end - 1) / warm))
    by_steps = args.eval_strategy == "steps"
    last: float = end if by_steps else plan.epochs
    if args.eval_strategy == "no" or not last:
        return found
    patience = recipe.early_stopping_steps
    if args.eval_delay > last:
        key = "train_never_evaluated" if by_steps else "train_never_evaluated_epochs"
        found.append(say(key, delay=args.eval_delay, last=last))
    elif by_steps and args.eval_steps > last:
        found.append(say("train_evaluated_last", every=int(args.eval_steps), steps=end))
    elif patience and (times := evaluations(args, last)) <= patience:
        found.append(say("train_never_stopped", patience=patience, needed=patience + 1, times=times))
    return found


def evaluations(args: Any, last: float) -> int:
    """Return how often a run is evaluated before its last step, or its last epoch."""
    every = 1 if args.eval_strategy == "epoch" else args.eval_steps
    every = math.ceil(last * every) if every < 1 else every
    return sum(moment >= args.eval_delay for moment in range(int(every), math.ceil(last), int(every)))
