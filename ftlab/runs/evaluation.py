"""Score a recipe on its held-out examples, before and after training, without training anything.

One forward pass gives loss and token accuracy, and tells which examples the model answers as expected. Answers are
generated for the others only, and no further than the figures need them (`greedy.py`).
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from ftlab import evaluate, figures, manifests, packages, responses, saved_weights, tokens
from ftlab.errors import LabError, fail, say
from ftlab.figures import Figure
from ftlab.recipe.keys import REWARDED, Recipe
from ftlab.recipe.library_args import names
from ftlab.responses import Response
from ftlab.runs import answer_figures, chat, dataset, folder, greedy, harness, predictions, questions, target
from ftlab.runs.answer_figures import READ, WHOLE
from ftlab.runs.greedy import Example
from ftlab.runs.watch import STOPPED, Stopped, Watch

# Model ("base", "tuned") -> figure -> number, and "rows", "intervals", "paired" and "prompts".
Scores = dict[str, dict[str, Any]]
# The default figures.
USUAL = ("loss", "exact_match")
PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}
# The default number of examples without `max_samples`.
LIMIT = 200
# Tokens that an answer may be longer than the longest expected one.
SPARE = 8
# Keys of a chat's answers that LLaMA-Factory's predictions follow too.
SAMPLED = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty")
# Questions whose choices are compared at once.
QUESTIONS = 32
# Figures on a scale of 100, and figures that are shares.
HUNDRED, SHARES = ("bleu-4", *figures.ROUGE), (
    "token_accuracy", "exact_match", "contains", "json_valid", "json_fields", "tool_calls", "multiple_choice",
)  # fmt: skip


class Model(NamedTuple):
    """A model under evaluation: "base" or "tuned", with its tokenizer and Watch."""

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    watch: Watch


class Result(NamedTuple):
    """The result of one model: its figures, which examples are right, and the hash of each benchmark's prompts."""

    figures: dict[str, Figure]
    rows: int
    hits: list[bool] | None = None
    prompts: dict[str, str] | None = None


def score(recipe: Recipe, limit: int | None = None, figures: Sequence[str] = (), watch: Watch | None = None) -> Scores:
    """Return {"base" and/or "tuned": {figure: number, "rows", "intervals"}} and write it into the run folder.

    The examples are those of `eval_dataset`, else those that `val_size` holds out of `dataset`, tokenized as in
    training. "tuned" is the run in `output_dir`, else `adapter_name_or_path`; if there is
    neither, a note is printed and only the base is scored. With both models, "tuned" has "paired": what training
    changed.

    Args:
        limit: examples at most, drawn at random; None: `max_samples`, else 200.
        figures: names as in the key `eval_figures`; none: those of the recipe.
        watch: shows the progress and can stop the work; None: only Ctrl-C and a file STOP in the run folder can.
    Raises:
        LabError: no data set, a stage without answers, weights that cannot be read or of another base, a figure
            that does not apply to the examples, a missing package, or the evaluation was stopped.
    """
    refuse(recipe)
    trained = chat.weights_folder(recipe)
    if trained:
        saved_weights.refuse_virtual_tokens(saved_weights.weights_of(trained), "eval")
    # As in a chat: the system turn of the run where the recipe has none.
    system = chat.system_turn(recipe.default_system, trained)
    recipe = recipe.model_copy(update={"default_system": system[0]["content"] if system else None})
    work = on_tasks(recipe, limit) if recipe.tasks is not None else on_examples(recipe, trained, limit, figures)
    say_other_run(recipe, trained)
    with predicting_into(recipe):
        watch = watch or Watch(run_folder(recipe))
        try:
            with watch.listening():
                scores = as_scores(evaluate_both(recipe, trained, watch, work))
        except Stopped:
            raise fail("eval_stopped", exit_code=STOPPED) from None
        if where := run_folder(recipe):
            manifests.write_json(where / folder.SCORES, scores)
    return scores


def on_tasks(recipe: Recipe, limit: int | None) -> Callable[[Model], Result]:
    """Return a function that scores a model on a recipe's benchmarks.

    Raises:
        LabError: a task that cannot be loaded.
    """
    tasks = harness.load_tasks(names(recipe.tasks or ""), Path(recipe.dataset_dir) / harness.FOLDER)

    def work(one: Model) -> Result:
        most, seed = limit or recipe.max_samples, recipe.training.get("seed", 42)
        scored = harness.score_tasks(one.model, one.tokenizer, tasks, most, seed)
        return Result(scored.figures, scored.rows, scored.hits or None, scored.prompts)

    return work


def on_examples(
    recipe: Recipe, trained: Path | None, limit: int | None, figures: Sequence[str]
) -> Callable[[Model], Result]:
    """Return a function that scores a model on a recipe's held-out examples.

    Raises:
        LabError: no such examples, or figures that do not apply to them.
    """
    limit = limit or recipe.max_samples or LIMIT
    choices = sample(questions.read_all(recipe), limit, recipe)
    metric_names = tuple(figures) or figures_of(recipe, bool(choices))
    require(metric_names, bool(choices))
    if recipe.predict_with_generate and (sampling := sampling_keys(recipe)):
        print(say("eval_greedy", keys=", ".join(sampling)))
    examples: list[Example] = []

    def work(one: Model) -> Result:
        if choices:
            return choose(one, choices, recipe.default_system)
        if not examples:
            one.watch.enter("preparing")
            # Both models answer the same examples, tokenized with the first one's chat template.
            examples.extend(held_out(recipe, one.tokenizer, trained, limit))
        predicts = recipe.predict_with_generate and one.name == ("tuned" if trained else "base")
        return answer(
            one, examples, metric_names, recipe if predicts else None, named=bool(figures or recipe.eval_figures)
        )

    return work


def sampling_keys(recipe: Recipe) -> list[str]:
    """Return the keys of a recipe that ask for other answers than the greedy ones that are scored."""
    greedy_values = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    values = {name: getattr(recipe, name) for name in SAMPLED if name in recipe.model_fields_set}
    return [name for name, value in values.items() if greedy_values.get(name) != value]


def refuse(recipe: Recipe) -> None:
    """Refuse a recipe without anything to score.

    Raises:
        LabError: no data set, a stage without answers, or no folder for the predictions.
    """
    if recipe.tasks is None and not (recipe.eval_dataset or recipe.dataset):
        raise fail("recipe_missing_key", key="eval_dataset")
    if recipe.tasks is None and recipe.objective not in ("sft", "gkd", *REWARDED):
        raise fail("eval_stage", where="stage", stage=recipe.objective)
    if recipe.predict_with_generate and not recipe.output_dir:
        raise fail("recipe_missing_key", key="output_dir")


def figures_of(recipe: Recipe, choices: bool) -> tuple[str, ...]:
    """Return the figures of a recipe."""
    if recipe.eval_figures:
        return tuple(names(recipe.eval_figures))
    if choices:
        return ("multiple_choice",)
    accuracy = ("accuracy",) if recipe.compute_accuracy else ()
    return (*USUAL, *accuracy, *(("bleu", "rouge") if recipe.predict_with_generate else ()))


def require(metric_names: Sequence[str], choices: bool) -> None:
    """Refuse figures that cannot be computed, before a model is loaded.

    Raises:
        LabError: a package is missing, or the figure needs answers but the examples have choices, or the reverse.
    """
    for figure in metric_names:
        if (figure == "multiple_choice") != choices:
            raise fail("eval_nothing_for", where="eval_figures", figure=figure)
        if module := PACKAGES.get(figure):
            packages.require(module, figure)


def run_folder(recipe: Recipe) -> Path | None:
    """Return the folder that scores are written to, None if it does not exist."""
    where = Path(recipe.output_dir).expanduser() if recipe.output_dir else None
    return where if where and where.is_dir() else None


def predicting_into(recipe: Recipe) -> AbstractContextManager[None]:
    """Return a context in which the output folder exists if the recipe needs predictions.

    Raises:
        LabError: a folder that cannot be written to.
    """
    if not recipe.predict_with_generate:
        return nullcontext()
    where = Path(recipe.output_dir or "").expanduser()
    target.refuse_place(where, "output_dir")
    return target.claimed(where)


def say_other_run(recipe: Recipe, trained: Path | None) -> None:
    """Print a note if the weights are not of the recipe's run, or that run was one of another recipe."""
    chat.say_untrained(recipe, trained)
    run = run_folder(recipe)
    if run and trained == run and (changed := folder.changes(manifests.read_manifest(run) or {}, recipe, {})):
        print(say("eval_other_run", where=run, changed=changed))


def evaluate_both(
    recipe: Recipe, trained: Path | None, watch: Watch, work: Callable[[Model], Result]
) -> dict[str, Result]:
    """Return the results of `work` for base and tuned model; the tuned one is evaluated first."""
    options = chat.options_of(recipe)
    watch.enter("loading")
    with watch.stopping_anywhere():
        model, tokenizer = chat.load(recipe.model_name_or_path, trained, **options)
    with watch.stopping(model):
        if trained is None:
            return {"base": work(Model("base", model, tokenizer, watch))}
        tuned = work(Model("tuned", model, tokenizer, watch))
        if chat.switchable(model):
            with model.disable_adapter():
                return {"base": work(Model("base", model, tokenizer, watch)), "tuned": tuned}
    # Only one of them is in memory at a time, and both read the examples with the tokenizer of the run.
    del model
    watch.enter("loading")
    with watch.stopping_anywhere():
        base, _ = chat.load(recipe.model_name_or_path, **options)
    chat.grow(base, tokenizer)
    with watch.stopping(base):
        return {"base": work(Model("base", base, tokenizer, watch)), "tuned": tuned}


def held_out(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, trained: Path | None, limit: int = LIMIT
) -> list[Example]:
    """Return the examples to score, encoded; print a note if the run may have been trained on them."""
    # With `train_on_prompt` the labels would not show where the answer begins.
    plain = recipe.model_copy(update={"train_on_prompt": False})
    if recipe.eval_dataset:
        # The sample is drawn from the whole set: a sorted set begins with examples of one kind.
        examples = dataset.read_examples(plain.model_copy(update={"max_samples": None}), recipe.eval_dataset)
        rows = dataset.as_trained(plain, sample(examples, limit, recipe), tokenizer, scored=True)
    elif recipe.val_size:
        examples = dataset.read_splits(recipe)[1]
        rows = dataset.as_trained(recipe, examples, tokenizer, scored=True)
        if trained and not held_out_by(trained, dataset.digest(rows)):
            print(say("eval_other_rows", where=str(trained)))
        rows = dataset.as_trained(plain, examples, tokenizer) if recipe.train_on_prompt else rows
        rows = sample(rows, limit, recipe)
    else:
        print(say("eval_seen", name=recipe.dataset))
        examples = sample(dataset.read_examples(plain, recipe.dataset or ""), limit, recipe)
        rows = dataset.as_trained(plain, examples, tokenizer, scored=True)
    return [example for row in rows for example in as_examples(row, tokenizer)]


def held_out_by(trained: Path, digest: str) -> bool:
    """Return True if a run validated on the examples with this digest, and so was not trained on them."""
    manifest = manifests.read_manifest(trained) or manifests.read_manifest(trained.parent) or {}
    return str(manifest.get("data")).partition("+")[2] == digest


def as_examples(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return a prepared row as token ids and labels; rows of ppo, grpo and rloo are still text."""
    if "input_ids" in row:
        return [row]
    messages = [*row["prompt"], {"role": "assistant", "content": row["answer"]}]
    return tokens.encode(tokenizer, {"messages": messages})


def sample(rows: Any, limit: int, recipe: Recipe) -> Any:
    """Return at most `limit` rows of a list or a data set, drawn with the recipe's seed, in their original order."""
    if len(rows) <= limit:
        return rows
    seed = recipe.training.get("seed", 42)
    picked = harness.sample(len(rows), limit, seed)
    print(say("eval_sample", n=limit, total=len(rows), seed=seed))
    return [rows[i] for i in picked] if isinstance(rows, list) else rows.select(picked)


def answer(
    one: Model,
    examples: Sequence[Example],
    metric_names: Sequence[str],
    predicting: Recipe | None,
    *,
    named: bool = True,
) -> Result:
    """Return the figures of one model on encoded examples; each is prompted for its last answer.

    Args:
        predicting: the recipe into whose run folder the answers are written; None: they are not saved.
        named: whether the figures were named explicitly; those implied by `predict_with_generate` may be left out.
    Raises:
        LabError: a named figure does not apply, or a loss is NaN.
    """
    began = time.monotonic()
    with one.watch.line(f"{one.name}: reading", len(examples)) as advance:
        checked = greedy.check(one.model, examples, one.tokenizer.pad_token_id, advance)
    if not all(math.isfinite(each.loss) for each in checked):
        raise fail("model_not_finite", where=one.name, exit_code=1)
    metrics = answer_figures.of_checked(checked, metric_names)
    if {*metric_names} <= {*READ} and not predicting:
        return Result(metrics, len(examples))
    inputs = Prompts.of(one, examples)
    for figure in answer_figures.absent(metric_names, inputs.expected):
        if named:
            raise fail("eval_nothing_for", where="eval_figures", figure=figure)
        if predicting:
            print(say("eval_left_out", figure=figure))
    answers = generate_greedy(one, inputs, checked, metric_names, predicting)
    replies, hits = inputs.read(answers)
    metrics |= {"exact_match": figures.share(hits)} if "exact_match" in metric_names else {}
    metrics |= answer_figures.of_answers(metric_names, replies, inputs.expected)
    if predicting and (where := run_folder(predicting)):
        predictions.write_results(where, values_of(metrics), len(examples), time.monotonic() - began)
    return Result(metrics, len(examples), hits if "exact_match" in metric_names else None)


class Prompts(NamedTuple):
    """Token ids of each prompt and expected answer, the reader of answers, and the parsed expected answers."""

    pairs: list[tuple[list[int], list[int]]]
    reader: responses.Reader
    expected: list[Response]

    @classmethod
    def of(cls, one: Model, examples: Sequence[Example]) -> "Prompts":
        """Split encoded examples into prompts and expected answers."""
        pairs, reader = [responses.split(example) for example in examples], responses.Reader(one.tokenizer)
        return cls(pairs, reader, [reader.read(*pair) for pair in pairs])

    def read(self, answers: Sequence[list[int] | None]) -> tuple[list[Response], list[bool]]:
        """Return the parsed answers, and which equal the expected ones; None is an empty answer."""
        replies = [self.reader.read(prompt, ids or []) for (prompt, _), ids in zip(self.pairs, answers, strict=True)]
        return replies, [one.equals(other) for one, other in zip(replies, self.expected, strict=True)]


def generate_greedy(
    one: Model,
    inputs: Prompts,
    checked: Sequence[greedy.Checked],
    metric_names: Sequence[str],
    predicting: Recipe | None,
) -> list[list[int]]:
    """Return the token ids of greedy answers, complete if a figure or the predictions need them.

    Raises:
        LabError: stopped; the finished answers are in generated_predictions.jsonl.
    """
    most = max(len(label) for _, label in inputs.pairs) + SPARE
    if predicting and "max_new_tokens" in predicting.model_fields_set:
        most = predicting.max_new_tokens
    prompts, ends = [prompt for prompt, _ in inputs.pairs], evaluate.end_ids(one.model, one.tokenizer)
    if not greedy.plain(one.model):
        answers = evaluate.generate_ids(one.model, one.tokenizer, prompts, most)
        return keep(one, inputs, answers, predicting, [True] * len(answers))
    whole = bool(predicting) or not {*metric_names}.isdisjoint(WHOLE)

    def left(number: int, ids: list[int]) -> int:
        """Return how many tokens may still be generated."""
        ended = ids[-1] in ends or not (whole or inputs.reader.may_equal(ids, inputs.expected[number]))
        return 0 if ended else max(0, most - len(ids))

    def ended(ids: list[int] | None) -> bool:
        """Return True for an answer that ended or reached the maximum length."""
        return ids is not None and (ids[-1] in ends or len(ids) >= most)

    answers = [each.beginning[:most] for each in checked]
    try:
        with one.watch.line(f"{one.name}: answering", sum(map(left, range(len(answers)), answers))) as advance:
            greedy.write(one.model, one.tokenizer.pad_token_id, prompts, answers, left, advance)
    except Stopped:
        finished = [None if left(number, ids) else ids for number, ids in enumerate(answers)]
        keep(one, inputs, finished, predicting, [ended(ids) for ids in finished])
        if predicting and run_folder(predicting):
            raise stopped_with(finished, predicting) from None
        raise
    return keep(one, inputs, answers, predicting, [ended(ids) for ids in answers])


Answers = TypeVar("Answers", bound=Sequence[list[int] | None])


def keep(one: Model, inputs: Prompts, answers: Answers, predicting: Recipe | None, whole: Sequence[bool]) -> Answers:
    """Give answers to the Watch, and return them.

    Args:
        predicting: the recipe into whose run folder they are also written; None: nowhere.
        whole: which answers are complete.
    """
    hits = inputs.read(answers)[1]
    one.watch.answers[one.name] = predictions.answered(one.tokenizer, inputs.pairs, answers, whole, hits)
    if predicting and (where := run_folder(predicting)):
        predictions.write(where, one.tokenizer, inputs.pairs, answers)
    return answers


def stopped_with(answers: Sequence[list[int] | None], predicting: Recipe) -> LabError:
    """Build the error for an evaluation that was stopped after some answers were saved."""
    kept, where = sum(ids is not None for ids in answers), Path(predicting.output_dir or "") / folder.PREDICTIONS
    return fail("eval_stopped_kept", where=str(where), exit_code=STOPPED, kept=kept, total=len(answers))


def choose(one: Model, rows: Sequence[dict[str, Any]], system: str | None = None) -> Result:
    """Return the share of multiple-choice questions for which the right choice is the likeliest.

    Args:
        system: the system turn before every question.
    """
    picked: list[int] = []
    with one.watch.line(f"{one.name}: choosing", len(rows)) as advance:
        for start in range(0, len(rows), QUESTIONS):
            picked += evaluate.choices(one.model, one.tokenizer, rows[start : start + QUESTIONS], system)
            advance(len(picked) - start)
    hits = [choice == question["answer"] for choice, question in zip(picked, rows, strict=True)]
    return Result({"multiple_choice": figures.share(hits)}, len(hits), hits)


def values_of(metrics: dict[str, Figure]) -> dict[str, float]:
    """Return the figures without their intervals."""
    return {name: figure.value for name, figure in metrics.items()}


def as_scores(results: dict[str, Result]) -> Scores:
    """Return results in the saved form; base and tuned are compared if both have results per example."""
    scores: Scores = {
        name: {
            **values_of(result.figures),
            "rows": result.rows,
            "intervals": {
                figure: {"low": each.low, "high": each.high, "n": each.n} for figure, each in result.figures.items()
            },
        }
        | ({"prompts": result.prompts} if result.prompts else {})
        for name, result in results.items()
    }
    hits = [result.hits for result in results.values() if result.hits is not None]
    if len(hits) == 2:
        scores["tuned"]["paired"] = figures.paired(*hits)._asdict()
    return scores


def scores_table(scores: Scores) -> str:
    """Return scores as a table with a line per figure, and what training changed below it."""
    models = list(scores)
    width = max(16, *(len(figure) + 2 for figure in scores[models[0]]["intervals"]))
    cells = {figure: [written(figure, scores[name]) for name in models] for figure in scores[models[0]]["intervals"]}
    column = max(28, *(len(text) + 2 for texts in cells.values() for text in texts))
    lines = [f"{'':<{width}}{'n':>6}   " + "".join(f"{name:<{column}}" for name in models) + "(95% interval)"]
    for figure, interval in scores[models[0]]["intervals"].items():
        shown = "".join(f"{text:<{column}}" for text in cells[figure])
        lines.append(f"{figure:<{width}}{interval['n']:>6}   {shown}".rstrip())
    if pair := scores.get("tuned", {}).get("paired"):
        lines.append(say("eval_paired", **pair))
    return "\n".join(lines)


def written(figure: str, scores: dict[str, Any]) -> str:
    """Return one figure with its interval as text."""
    interval, how = scores["intervals"][figure], style(figure)
    value, low, high = (format(number, how) for number in (scores[figure], interval["low"], interval["high"]))
    return f"{value} ({low}-{high})"


def style(figure: str) -> str:
    """Return the format of a figure: percent, a scale of 100, or a number; a benchmark's name ends with its metric."""
    return ".0%" if figure.split()[-1] in (*SHARES, "acc", "acc_norm") else ".1f" if figure in HUNDRED else ".3f"
