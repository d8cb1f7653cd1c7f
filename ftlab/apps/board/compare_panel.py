"""The compare panel: the loss curves of several runs in one picture, and the settings in which they differ."""

import contextlib
from pathlib import Path

import ipywidgets as widgets

from ftlab.apps.board import controls, curves, train_view
from ftlab.apps.board.named_widgets import actions, button, empty, field
from ftlab.apps.board.words import Words
from ftlab.errors import LabError
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import Recipe
from ftlab.runs import folder as folders


class ComparePanel:
    """Runs beside each other.

    Args:
        runs: the folder of runs.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    """

    def __init__(self, runs: str | Path = "runs", lang: str | None = None) -> None:
        self.words, self.runs = Words(lang), Path(runs)
        self.chosen = field(self.words, "compared_runs", widgets.SelectMultiple(rows=8))
        self.refresh = button(self.words, "compare_refresh", "success")
        self.refresh.on_click(lambda _: self.list_runs())
        self.legend = widgets.HTML()
        self.plot = widgets.Image(format="png", layout={"display": "none"}).add_class("ft-plot")
        self.table = widgets.HTML().add_class("ft-compared")
        self.chosen.observe(lambda _: self.show(), names="value")
        columns = widgets.Box([self.chosen, widgets.VBox([self.legend, self.plot, self.table])]).add_class("ft-columns")
        self.box = widgets.VBox([columns, actions(self.refresh)]).add_class("ftlab-compare")
        self.list_runs()

    def take_over(self, before: "ComparePanel") -> None:
        """Show the runs that are chosen in another panel."""
        self.chosen.value = tuple(one for one in before.chosen.value if one in dict(self.chosen.options).values())

    def list_runs(self) -> None:
        """Offer all runs, the newest first, and choose the two newest where nothing is chosen."""
        runs = [one.folder for one in folders.list_runs(self.runs)]
        before = [folder for folder in self.chosen.value if folder in runs]
        self.chosen.options = [(folder.name, folder) for folder in runs]
        self.chosen.value = tuple(before or runs[:2])
        self.show()

    def show(self) -> None:
        """Draw the chosen runs' curves, and list what they differ in."""
        runs: tuple[Path, ...] = self.chosen.value
        self.plot.layout.display = "" if runs else "none"
        if not runs:
            self.table.value, self.legend.value = empty(self.words("compare_empty")), ""
            return
        logs = {folder.name: folders.read_log(folder) for folder in runs}
        self.plot.value, self.legend.value = curves.picture_and_legend(logs, self.words)
        head = ["", *(folder.name for folder in runs)]
        self.table.value = train_view.grid(head, [*self.results(runs), *self.differences(runs)])

    def results(self, runs: tuple[Path, ...]) -> list[list[str]]:
        """Return the lines of the results: the last step and the last losses of each run."""
        logs = [folders.read_log(folder) for folder in runs]
        lines = [[self.words("compared_steps"), *(str(folders.last_step(rows)) for rows in logs)]]
        for name, key in (("compared_loss", "loss"), ("compared_eval_loss", "eval_loss")):
            last = [next((row[key] for row in reversed(rows) if key in row), None) for rows in logs]
            if any(one is not None for one in last):
                lines.append([self.words(name), *("-" if one is None else f"{one:.3f}" for one in last)])
        return lines

    def differences(self, runs: tuple[Path, ...]) -> list[list[str]]:
        """Return a line for each key in which the runs differ, defaults written out; a dash stands for none."""
        run_recipes = [recipe_of(folder) for folder in runs]
        names = dict.fromkeys(name for one in run_recipes if one for name in recipes.plain(one) if name != "output_dir")
        lines = [[name, *(shown(one, name) for one in run_recipes)] for name in names]
        return [line for line in lines if len(set(line[1:])) > 1]


def recipe_of(folder: Path) -> Recipe | None:
    """Return the recipe of a run, None where it cannot be read."""
    with contextlib.suppress(LabError):
        return recipes.read(folders.read_recipe(folder))[0]
    return None


def shown(recipe: Recipe | None, key: str) -> str:
    """Return a key's value in a run, its default included; a dash for a key that the run does not use."""
    if recipe is None or (key.startswith("lora_") and recipe.finetuning_type != "lora"):
        return "-"
    if key == "lora_alpha":
        return str(library_args.lora_alpha(recipe))
    value = getattr(recipe, key) if key in Recipe.model_fields else recipe.training.get(key, controls.default(key))
    return "-" if value is None else str(value)
