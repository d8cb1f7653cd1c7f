"""The evaluation panel: the scores of a model on a data set, before and after its training."""

import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ftlab import embedded, errors
from ftlab.apps.board import estimates, train_view, validation
from ftlab.apps.board.chat_panel import WHOLE, tuned
from ftlab.apps.board.controls import EVALUATED
from ftlab.apps.board.form import Form
from ftlab.apps.board.named_widgets import heading, row
from ftlab.apps.board.predictions_table import PredictionsTable
from ftlab.apps.board.recipe_task import Task
from ftlab.apps.board.words import Words
from ftlab.recipe.keys import EVAL_FIGURES, Recipe
from ftlab.runs import evaluation
from ftlab.runs.watch import Watch

# Keys taken over from a recipe, besides those with a field.
KEPT = ("dataset_dir", "dataset_substitutions", "trust_remote_code", "quantization_bit", "default_system")
ROWS = 50
# The name in words.toml of each checkbox, row and column.
BOXES = {
    "loss": "figure_loss",
    "accuracy": "figure_accuracy",
    "exact_match": "figure_exact_match",
    "contains": "figure_contains",
    "json": "figure_json",
    "tool_calls": "figure_tool_calls",
    "bleu": "figure_bleu",
    "rouge": "figure_rouge",
    "multiple_choice": "figure_multiple_choice",
}
LINES = {
    "loss": "score_loss",
    "perplexity": "score_perplexity",
    "token_accuracy": "score_token_accuracy",
    "exact_match": "score_exact_match",
    "contains": "score_contains",
    "json_valid": "score_json_valid",
    "json_fields": "score_json_fields",
    "tool_calls": "score_tool_calls",
    "multiple_choice": "score_multiple_choice",
}
COLUMNS = {"base": "scored_base", "tuned": "scored_tuned"}


class EvaluatePanel:
    """Base and tuned model, scored on the same rows by the code of `ftlab eval`.

    Args:
        source: the keys of a recipe: its model, its validation set, and what its rows need.
        runs: the folder of runs whose adapters are offered.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    Attributes:
        task: form, button and result.
        found: the scores of the last evaluation.
        predictions: its answers.
    """

    def __init__(
        self, source: dict[str, Any] | None = None, runs: str | Path = "runs", lang: str | None = None
    ) -> None:
        self.words, self.runs = Words(lang), Path(runs)
        preset = source or {}
        values = {key: preset[key] for key in (*EVALUATED, *KEPT) if preset.get(key) is not None}
        values.setdefault("model_name_or_path", embedded.NAME)
        values["max_samples"] = ROWS
        sets = estimates.registered(Path(preset.get("dataset_dir") or "data"))
        if (held_out := f"{preset.get('dataset')}_eval") in sets:
            values.setdefault("eval_dataset", held_out)
        self.found: evaluation.Scores = {}
        self.predictions = PredictionsTable(self.words)
        self.figures = {name: self.box_of(BOXES[name], name in evaluation.USUAL) for name in EVAL_FIGURES}
        with errors.speaking(self.words.lang):
            form = Form(values, self.words, table=EVALUATED)
        form.controls["eval_dataset"].options = tuple(sets)
        ticked = widgets.VBox([heading(self.words("group_figures")), row(*self.figures.values())])
        self.task = Task(
            self.words, form, "eval", "evaluate_start", self.look, validation.ALL, self.score,
            "evaluate_start_empty", lambda made: Watch(evaluation.run_folder(made)), (ticked,), self.more,
            (self.predictions.box,),
        )  # fmt: skip
        for box in self.figures.values():
            box.observe(lambda _: self.task.changed(), names="value")
        self.list_adapters()
        self.box = self.task.box.add_class("ftlab-evaluate")

    def box_of(self, name: str, on: bool) -> widgets.Checkbox:
        """Return the checkbox of one figure."""
        box = widgets.Checkbox(value=on, description=self.words(name), tooltip=self.words.tip(name), indent=False)
        return box.add_class(f"ft-{name}")

    def list_adapters(self) -> None:
        """Offer the runs that have trained weights, one that has just ended included."""
        self.task.form.controls["adapter_name_or_path"].options = tuple(map(str, tuned(self.runs, WHOLE)))

    def take_over(self, before: "EvaluatePanel") -> None:
        """Show another panel's settings and scores."""
        self.task.take_over(before.task)
        for name, box in self.figures.items():
            box.value = before.figures[name].value
        self.found = before.found
        self.predictions.show(before.predictions.answers)
        if self.found:
            self.task.result.value = self.table()
        # Setting the checkboxes showed "ready" again.
        self.task.say_outcome()

    def chosen(self) -> list[str]:
        """Return the selected figures."""
        return [name for name, box in self.figures.items() if box.value]

    def more(self) -> dict[str, str]:
        """Return the key of the figures for the command, where they are not the usual ones."""
        return {} if self.chosen() == list(evaluation.USUAL) else {"eval_figures": ",".join(self.chosen())}

    def look(self, recipe: Recipe) -> str:
        """Show what will be compared.

        Raises:
            LabError: no figure is asked for.
        """
        if not self.chosen():
            raise errors.fail("board_no_figure")
        return self.words("evaluate_both" if recipe.adapter_name_or_path else "evaluate_base_only")

    def score(self, recipe: Recipe) -> str:
        """Score the recipe's model, and return the table; answers are shown even if it is stopped."""
        watch = self.task.watch or Watch(evaluation.run_folder(recipe))
        self.found = {}
        try:
            self.found = evaluation.score(recipe, recipe.max_samples or ROWS, self.chosen(), watch)
        finally:
            self.predictions.show(watch.answers)
        return self.table()

    def table(self) -> str:
        """Return the scores as a table: base, tuned, the difference, and whether it can be chance."""
        models = list(self.found)
        head = ["", self.words("score_rows"), *(self.words(COLUMNS[model]) for model in models)]
        head += [self.words("scored_moved")] if len(models) == 2 else []
        grid = train_view.grid(head, [self.line(figure) for figure in self.found["base"]["intervals"]])
        pair = self.found.get("tuned", {}).get("paired")
        if not pair:
            return grid
        with errors.speaking(self.words.lang):
            return f"{grid}<p>{html.escape(errors.say('eval_paired', **pair))}</p>"

    def name(self, figure: str) -> str:
        """Return a figure's label in the table."""
        if figure in LINES:
            return self.words(LINES[figure])
        return figure.upper() if figure in evaluation.HUNDRED else figure

    def line(self, figure: str) -> list[str]:
        """Return one line of the table: a figure of each model, with its interval."""
        scores = list(self.found.values())
        cells = [
            self.name(figure),
            str(scores[0]["intervals"][figure]["n"]),
            *(evaluation.written(figure, one) for one in scores),
        ]
        moved = [scores[1][figure] - scores[0][figure]] if len(scores) == 2 else []
        return cells + [format(change, f"+{evaluation.style(figure)}") for change in moved]
