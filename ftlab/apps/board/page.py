"""The page itself: the panels as tabs. It runs in the kernel that Voila starts for every visit."""

import os
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from ftlab import embedded
from ftlab.apps.board import training_job
from ftlab.apps.board.chat_panel import ChatPanel
from ftlab.apps.board.data_panel import DataPanel
from ftlab.apps.board.evaluate_panel import EvaluatePanel
from ftlab.apps.board.export_panel import ExportPanel
from ftlab.apps.board.memory_panel import MemoryPanel
from ftlab.apps.board.quiz_panel import QuizPanel
from ftlab.apps.board.train_panel import TrainPanel
from ftlab.apps.board.voila_server import RECIPE, WORKING_FOLDER
from ftlab.apps.board.words import Words
from ftlab.recipe import strict_yaml
from ftlab.runs import folder as folders

# What the train tab begins with where no recipe is named.
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


def show() -> None:
    """Show the page in the folder, and with the recipe, that `ftlab board` was given."""
    os.chdir(os.environ.get(WORKING_FOLDER) or ".")
    display(board(os.environ.get(RECIPE) or None))


def board(source: str | None = None, lang: str | None = None) -> widgets.Tab:
    """Return the panels as tabs.

    A page that is opened again begins with the training that still runs, wherever it was started.
    """
    words = Words(lang)
    values = strict_yaml.read(Path(source))[0] if source else dict(BEGINNING)
    root = Path(values.get("output_dir") or "runs/board").expanduser().parent
    running = training_job.living_under(root)
    written = folders.read_recipe(running.folder, folders.PANEL_RECIPE) if running else values
    train = TrainPanel(written, lang=words.lang, mode="process")
    name = str(values.get("dataset") or "").split(",")[0].strip()
    model = str(values.get("model_name_or_path") or embedded.NAME)
    data = DataPanel(name, values.get("dataset_dir", "data"), model, int(values.get("cutoff_len", 1024)), words.lang)
    evaluate = EvaluatePanel(values, root, words.lang)
    chat = ChatPanel(model, runs=root, lang=words.lang)
    export = ExportPanel(values, root, words.lang)
    train.after += [evaluate.list_adapters, chat.list_adapters, export.list_adapters]
    panels = {
        "tab_data": data.box,
        "tab_train": train.view.box,
        "tab_evaluate": evaluate.box,
        "tab_chat": chat.box,
        "tab_export": export.box,
        "tab_memory": MemoryPanel(values, words.lang).box,
        "tab_quiz": QuizPanel(lang=words.lang).box,
    }
    tabs = widgets.Tab(list(panels.values()), selected_index=list(panels).index("tab_train"))
    tabs.titles = tuple(map(words, panels))
    return tabs.add_class("ftlab-board")
