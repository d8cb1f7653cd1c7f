"""The compare panel: the loss curves of several runs in one picture, and the settings in which they differ."""

import contextlib
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ftlab.apps.board import curves, train_view
from ftlab.apps.board.named_widgets import actions, button, empty, field
from ftlab.apps.board.words import Words
from ftlab.errors import LabError
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
        self.plot = widgets.Image(format="png", layout={"display": "none"}).add_class("ft-plot")
        self.table = widgets.HTML().add_class("ft-compared")
        self.chosen.observe(lambda _: self.show(), names="value")
        columns = widgets.Box([self.chosen, widgets.VBox([self.plot, self.table])]).add_class("ft-columns")
        self.box = widgets.VBox([columns, actions(self.refresh)]).add_class("ftlab-compare")
        self.list_runs()

    def list_runs(self) -> None:
        """Offer all runs, the newest first, and choose the two newest where nothing is chosen."""
        found = [one.folder for one in folders.list_runs(self.runs)]
        before = [folder for folder in self.chosen.value if folder in found]
        self.chosen.options = [(folder.name, folder) for folder in found]
        self.chosen.value = tuple(before or found[:2])
        self.show()

    def show(self) -> None:
        """Draw the chosen runs' curves, and list what they differ in."""
        found: tuple[Path, ...] = self.chosen.value
        self.plot.layout.display = "" if found else "none"
        if not found:
            self.table.value = empty(self.words("compare_empty"))
            return
        self.plot.value = curves.picture({folder.name: folders.read_log(folder) for folder in found})
        head = ["", *(folder.name for folder in found)]
        self.table.value = train_view.grid(head, [*self.results(found), *self.differences(found)])

    def results(self, found: tuple[Path, ...]) -> list[list[str]]:
        """Return the lines of the results: the last step and the last losses of each run."""
        logs = [folders.read_log(folder) for folder in found]
        lines = [[self.words("compared_steps"), *(str(folders.last_step(rows)) for rows in logs)]]
        for name, key in (("compared_loss", "loss"), ("compared_eval_loss", "eval_loss")):
            last = [next((row[key] for row in reversed(rows) if key in row), None) for rows in logs]
            if any(one is not None for one in last):
                lines.append([self.words(name), *("-" if one is None else f"{one:.3f}" for one in last)])
        return lines

    def differences(self, found: tuple[Path, ...]) -> list[list[str]]:
        """Return a line for each key in which the runs differ; a dash stands for its default."""
        recipes: list[dict[str, Any]] = []
        for folder in found:
            recipes.append({})
            with contextlib.suppress(LabError):
                recipes[-1] = folders.read_recipe(folder)
        names = [name for name in dict.fromkeys(name for one in recipes for name in one) if name != "output_dir"]
        values = {name: [one.get(name) for one in recipes] for name in names}
        return [
            [name, *("-" if value is None else str(value) for value in line)]
            for name, line in values.items()
            if any(value != line[0] for value in line)
        ]
