"""The page itself: the panels as tabs. It runs in the kernel that Voila starts for every visit."""

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from ftlab import device, embedded, saved_weights
from ftlab.apps.board import named_widgets, train_view, training_job
from ftlab.apps.board.background import said
from ftlab.apps.board.named_widgets import bad, button, empty
from ftlab.apps.board.train_panel import TrainPanel
from ftlab.apps.board.visit import ONE_ARENA, RECIPE, WORKING_FOLDER
from ftlab.apps.board.words import Words
from ftlab.apps.quick_imports import quick_imports
from ftlab.recipe import strict_yaml
from ftlab.runs import folder as folders

# What the train tab starts with if no recipe is given.
BEGINNING: dict[str, Any] = {
    "model_name_or_path": embedded.NAME,
    "dataset": "identity_en",
    "dataset_substitutions": {"name": "Lumi", "author": "the Ada Lab"},
    "output_dir": "runs/board",
    "lora_rank": 16,
    "cutoff_len": 256,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "max_steps": 30,
}


def data(values: dict[str, Any], lang: str) -> Any:
    """Return the data panel for a recipe."""
    from ftlab.apps.board.data_panel import DataPanel

    name = str(values.get("dataset") or "").split(",")[0].strip()
    model, length = str(values.get("model_name_or_path") or embedded.NAME), int(values.get("cutoff_len", 1024))
    substitutions = values.get("dataset_substitutions")
    return DataPanel(name, values.get("dataset_dir", "data"), model, length, lang, substitutions, values)


def train(values: dict[str, Any], lang: str) -> TrainPanel:
    """Return the train panel for a recipe."""
    return TrainPanel(values, lang=lang, mode="process")


def evaluate(values: dict[str, Any], lang: str) -> Any:
    """Return the evaluation panel for a recipe."""
    from ftlab.apps.board.evaluate_panel import EvaluatePanel

    return EvaluatePanel(trained(values), runs(values), lang)


def compare(values: dict[str, Any], lang: str) -> Any:
    """Return the panel that compares a recipe's runs."""
    from ftlab.apps.board.compare_panel import ComparePanel

    return ComparePanel(runs(values), lang)


def chat(values: dict[str, Any], lang: str) -> Any:
    """Return the chat panel for a recipe."""
    from ftlab.apps.board.chat_panel import ChatPanel

    name = str(values.get("model_name_or_path") or embedded.NAME)
    return ChatPanel(name, runs=runs(values), lang=lang, recipe=values)


def export(values: dict[str, Any], lang: str) -> Any:
    """Return the export panel for a recipe."""
    from ftlab.apps.board.export_panel import ExportPanel

    return ExportPanel(trained(values), runs(values), lang)


def memory(values: dict[str, Any], lang: str) -> Any:
    """Return the memory panel for a recipe."""
    from ftlab.apps.board.memory_panel import MemoryPanel

    return MemoryPanel(values, lang)


def learn(values: dict[str, Any], lang: str) -> Any:
    """Return the quiz."""
    from ftlab.apps.board.quiz_panel import QuizPanel

    return QuizPanel(lang=lang)


def trained(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with its own run as the adapter, if the run has trained weights."""
    folder = Path(str(values.get("output_dir") or "")).expanduser()
    return values | ({"adapter_name_or_path": str(folder)} if saved_weights.holds_weights(folder) else {})


def runs(values: dict[str, Any]) -> Path:
    """Return the folder of runs of a recipe."""
    return Path(str(values.get("output_dir") or "runs/board")).expanduser().parent


# The steps in the order of work. A panel is imported when it is opened: its imports take seconds.
STEPS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "tab_data": data,
    "tab_train": train,
    "tab_evaluate": evaluate,
    "tab_compare": compare,
    "tab_chat": chat,
    "tab_export": export,
    "tab_memory": memory,
    "tab_learn": learn,
}


def show() -> None:
    """Show the page in the folder, and with the recipe, that `ftlab board` was given."""
    os.chdir(os.environ.get(WORKING_FOLDER) or ".")
    # For the server alone: a training may tokenize with many threads, which one arena would make wait for each other.
    for name, value in ONE_ARENA.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    display(Board(os.environ.get(RECIPE) or None).box)


class Board:
    """The panels as steps in the order of work; each is created when it is first opened.

    A page that is opened again shows the training that is still running, wherever it was started.

    Args:
        source: the path of a recipe.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    Attributes:
        panels: name of a step -> its panel, for those that were opened.
        before: the same, in their last state, for the language that was switched away from.
    """

    def __init__(self, source: str | None = None, lang: str | None = None) -> None:
        self.box = widgets.VBox().add_class("ftlab").add_class("ftlab-board")
        self.before: dict[str, Any] = {}
        values = strict_yaml.read(Path(source))[0] if source else dict(BEGINNING)
        running = training_job.living_under(runs(values))
        self.speak(Words(lang), folders.read_recipe(running.folder, folders.PANEL_RECIPE) if running else values)

    def speak(self, words: Words, values: dict[str, Any], opened: str = "tab_train") -> None:
        """Show everything in a language, with these settings."""
        self.words = words
        self.train = train(values, words.lang)
        self.panels: dict[str, Any] = {}
        waiting = empty(words("panel_loading"))
        self.tabs = widgets.Tab(
            [widgets.VBox([widgets.HTML(waiting).add_class("ft-loading")]) for _ in STEPS], selected_index=None
        )
        self.tabs.titles = tuple(map(words, STEPS))
        self.tabs.observe(lambda change: self.open(change["new"]), names="selected_index")
        self.language = button(words, "language")
        self.language.on_click(lambda _: self.switch())
        self.facts = widgets.HTML().add_class("ft-facts")
        self.notice = widgets.HTML(layout={"display": "none"}).add_class("ft-notice")
        self.train.form.watchers.append(self.tell)
        self.tell()
        self.box.children = [widgets.HBox([self.facts, self.language]), self.notice, self.tabs]
        self.tabs.selected_index = list(STEPS).index(opened)

    def tell(self) -> None:
        """Show model, data set and machine at the top."""
        shown, machine = self.train.form.values(), device.describe()
        text = self.words(
            "facts",
            model=shown.get("model_name_or_path") or "-",
            data=shown.get("dataset") or "-",
            machine=machine.name,
            memory=train_view.gib(machine.memory_bytes),
        )
        self.facts.value = html.escape(text)
        self.say()

    def say(self, text: str = "") -> None:
        """Show a message below the header until the next step or change; "" shows none."""
        self.notice.value = f'<p role="status">{html.escape(text)}</p>' if text else ""
        self.notice.layout.display = "" if text else "none"

    def open(self, number: int | None) -> None:
        """Create a step's panel from the settings in the train step when it is first opened."""
        self.say()
        if number is None or (name := list(STEPS)[number]) in self.panels:
            return
        try:
            panel = self.train if name == "tab_train" else self.create(name)
        except Exception as error:
            # An exception in a widget's event handler is not shown anywhere.
            self.fill(number, widgets.HTML(bad(said(error))))
            return
        self.panels[name] = panel
        if listed := getattr(panel, "list_adapters", None):
            self.train.after.append(listed)
        if name in self.before and hasattr(panel, "take_over"):
            panel.take_over(self.before[name])
        self.fill(number, panel.box)

    def create(self, name: str) -> Any:
        """Return a step's panel from the settings in the train step."""
        with quick_imports():
            return STEPS[name](self.train.form.right, self.words.lang)

    def fill(self, number: int, shown: widgets.Widget) -> None:
        """Replace the content of a step."""
        before, self.tabs.children[number].children = self.tabs.children[number].children, [shown]
        for widget in before:
            named_widgets.close(widget)

    def switch(self) -> None:
        """Show the page in the other language; settings, scores and conversations stay."""
        if any(not getattr(panel, "task", panel).idle.is_set() for panel in self.panels.values() if works(panel)):
            self.say(self.words("busy_language"))
            return
        self.before, opened = {**self.before, **self.panels}, list(STEPS)[self.tabs.selected_index or 0]
        left, shown = self.train, self.box.children
        left.leave()
        self.speak(Words("en" if self.words.lang == "zh" else "zh"), left.form.right, opened)
        self.train.form.take_over(left.form)
        for widget in shown:
            named_widgets.close(widget)


def works(panel: Any) -> bool:
    """Return True for a panel with work running in this kernel; a training runs in its own process."""
    return hasattr(getattr(panel, "task", panel), "idle") and not isinstance(panel, TrainPanel)
