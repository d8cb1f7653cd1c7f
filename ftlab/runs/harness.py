"""Benchmarks of lm-evaluation-harness (lm-eval) on a loaded model: tasks by name, or custom task files."""

import contextlib
import hashlib
import itertools
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ftlab import figures, packages
from ftlab.errors import fail, reason_of, say, suggest
from ftlab.evaluate import ONE_BY_ONE
from ftlab.figures import Figure

# The folder of task files, next to dataset_info.json.
FOLDER = "tasks"
BATCH = 32

# lm-eval's tasks by the requested name.
Tasks = dict[str, Any]


class Scored(NamedTuple):
    """The results of a model on benchmarks.

    Attributes:
        figures: "TASK METRIC" -> figure over all examples of the task, or of the tasks in a group.
        rows: the total number of examples.
        hits: which examples are right, by the first metric of each task that tells.
        prompts: task -> sha256 of its prompts; two scores are comparable if it is the same.
    """

    figures: dict[str, Figure]
    rows: int
    hits: list[bool]
    prompts: dict[str, str]


def load_tasks(names: Sequence[str], folder: Path) -> Tasks:
    """Return lm-eval's tasks with their data: those of a .yaml file, of a file in `folder`, or lm-eval's own.

    Raises:
        LabError: lm-eval is not installed, no task is named, or one is unknown, broken, or its data cannot be read.
    """
    if not names:
        raise fail("eval_task_unknown", where="tasks", name="", own=", ".join(course_tasks(folder)), hint="")
    packages.require("lm_eval", "tasks")
    files = {name: file_of(name, folder) for name in names}
    return {name: load_task(manager(None in files.values()), name, file, folder) for name, file in files.items()}


@cache
def manager(own_tasks: bool) -> Any:
    """Return lm-eval's task manager; it takes seconds to index lm-eval's own tasks."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_defaults=own_tasks)


def course_tasks(folder: Path) -> list[str]:
    """Return the names of the task files in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def file_of(name: str, folder: Path) -> Path | None:
    """Return the task file for a name, None if it can only be one of lm-eval's tasks.

    Raises:
        LabError: a path without a file.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if path.is_file():
        return path.resolve()
    if name.endswith((".yaml", ".yml")):
        raise fail("data_no_file", where=name)
    return None


def load_task(tasks: Any, name: str, file: Path | None, folder: Path) -> Any:
    """Return one task, or group of tasks, as lm-eval evaluates it.

    Raises:
        LabError: it is unknown, broken, or its data cannot be read.
    """
    own = course_tasks(folder)
    if file is None and name not in tasks.all_tasks:
        hint = suggest(name, [*own, *tasks.all_tasks])
        raise fail("eval_task_unknown", where="tasks", name=name, own=", ".join(own), hint=f"{hint} " if hint else "")
    try:
        # A task file refers to data relative to itself.
        with contextlib.chdir(file.parent if file else Path()):
            return tasks.load([str(file) if file else name])
    # A task file may contain anything, and datasets may raise any exception of its readers.
    except Exception as error:
        raise fail("eval_task", where=name, reason=reason_of(error), own=", ".join(own)) from error


def score_tasks(
    model: Any, tokenizer: PreTrainedTokenizerBase, tasks: Tasks, limit: int | None = None, seed: int = 42
) -> Scored:
    """Evaluate a model on tasks, with its chat template.

    Args:
        limit: examples at most of each task, drawn at random with the seed (lm-eval's own `--limit` takes the first);
            None: all.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    size = 1 if model.config.model_type in ONE_BY_ONE else BATCH
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
    computed: dict[str, Figure] = {}
    rows, hits, prompts = 0, [], {}
    for name, task in tasks.items():
        drawn = (
            {one: sample(len(leaf.eval_docs), limit, seed) for one, leaf in task["tasks"].items()} if limit else None
        )
        scored = evaluate(harness, task, samples=drawn, bootstrap_iters=0, apply_chat_template=True)
        examples = list(itertools.chain.from_iterable(scored["samples"].values()))
        values = values_of(examples)
        say_left_out(name, examples)
        computed |= {f"{name} {metric}": figure_of(numbers) for metric, numbers in values.items()}
        rows += len({(example["doc_hash"], example["doc_id"]) for example in examples})
        hits += next((list(map(bool, numbers)) for numbers in values.values() if says_right(numbers)), [])
        prompts[name] = hashlib.sha256("".join(example["prompt_hash"] for example in examples).encode()).hexdigest()
    return Scored(computed, rows, hits, prompts)


def sample(total: int, limit: int, seed: int) -> list[int]:
    """Return at most `limit` of the numbers below `total`, drawn at random, in their order."""
    return sorted(random.Random(seed).sample(range(total), min(limit, total)))


def values_of(examples: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the metrics with a number per example, by name, and by filter if there is one."""
    values: dict[str, list[float]] = defaultdict(list)
    for example in examples:
        way = "" if example["filter"] == "none" else f" {example['filter']}"
        for metric in example["metrics"]:
            if isinstance(example[metric], int | float):
                values[metric + way].append(float(example[metric]))
    return values


def say_left_out(name: str, examples: Sequence[dict[str, Any]]) -> None:
    """Print the metrics of a task without a value per example, such as perplexity and BLEU.

    Raises:
        LabError: the task has no other metrics.
    """
    per_example = {metric for example in examples for metric in example["metrics"]}
    each = {metric for example in examples for metric in example["metrics"] if isinstance(example[metric], int | float)}
    if per_example and not each:
        raise fail("eval_task_corpus", where=name, metrics=", ".join(sorted(per_example)))
    if per_example - each:
        print(say("eval_metrics_left_out", task=name, metrics=", ".join(sorted(per_example - each))))


def says_right(numbers: Sequence[float]) -> bool:
    """Return True if a metric is right or wrong for each example."""
    return {*numbers} <= {0.0, 1.0}


def figure_of(numbers: Sequence[float]) -> Figure:
    """Return the share of right examples, or the mean of another metric."""
    return figures.share(list(map(bool, numbers))) if says_right(numbers) else figures.ratio(numbers)
