"""The chat panel: one question to the base and to its adapters, side by side, streamed."""

import html
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ipywidgets as widgets
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ftlab import embedded, models, saved_weights
from ftlab.apps.board.background import Work
from ftlab.apps.board.controls import NAMES
from ftlab.apps.board.named_widgets import actions, button, close, empty, field, row
from ftlab.apps.board.words import Words
from ftlab.errors import fail, say
from ftlab.runs import chat
from ftlab.runs import folder as folders

# Seconds between two updates of an answer that is being written.
REDRAW_SECONDS = 0.15
BASE = ""
# In the folder of a run that trained a whole model.
WHOLE = "model/config.json"


class ChatPanel:
    """A model and its adapters to talk to.

    Args:
        model: the base: a catalogue name, a folder or a hub id.
        adapters: adapter or run folders that can be chosen; None lists the runs under `runs`.
        runs: the folder of runs.
        system: the system prompt.
        lang: "en" or "zh"; None takes FTLAB_LANG.
        recipe: keys of the recipe that names the base.
    Attributes:
        histories: column name -> its conversation; "" is the base.
        idle: set while nothing is loaded or written.
    """

    def __init__(
        self,
        model: str = embedded.NAME,
        adapters: Sequence[str | Path] | None = None,
        runs: str | Path = "runs",
        system: str = "",
        lang: str | None = None,
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.words, self.recipe = Words(lang), recipe
        self.loaded: tuple[Any, PreTrainedTokenizerBase] | None = None
        self.histories: dict[str, list[dict[str, str]]] = {}
        self.names: dict[str, str] = {}
        # The system turn that a column's adapter was trained with, for an empty system prompt.
        self.systems: dict[str, list[chat.Message]] = {}
        self.left = threading.Event()
        self.work = Work(self.words.lang, lambda reason: self.say("chat_failed", reason=reason), self.ended)
        self.idle = self.work.idle
        self.given, self.runs = adapters, Path(runs)
        self.model = self.field("chat_base_model", widgets.Combobox(value=model, options=NAMES))
        self.adapters = self.field("chat_adapters", widgets.SelectMultiple(rows=3))
        self.list_adapters()
        self.adapters.value = tuple(value for _, value in self.adapters.options[:1])
        self.system = self.field("chat_system", widgets.Textarea(value=system))
        self.question = self.field("chat_question", widgets.Textarea())
        self.load_button = self.button("chat_load", self.load, "success")
        self.send = self.button("chat_send", self.ask, "success")
        self.stop = self.button("chat_stop", self.left.set, "danger")
        self.clear = self.button("chat_clear", self.forget)
        self.send.disabled = self.stop.disabled = True
        self.sampling = self.sampling_fields()
        self.columns: dict[str, widgets.HTML] = {}
        self.table = widgets.Box().add_class("ft-columns")
        self.status = widgets.HTML(html.escape(self.words("chat_not_loaded"))).add_class("ft-chat-status")
        self.hint = widgets.HTML(empty(self.words("chat_empty")))
        sampling = widgets.Box(list(self.sampling.values())).add_class("ft-fields")
        more = widgets.Accordion([widgets.VBox([self.system, sampling])])
        more.titles = (self.words("chat_more"),)
        self.box = widgets.VBox(
            [
                row(self.model, self.adapters),
                more,
                self.hint,
                self.table,
                self.question,
                actions(self.load_button, self.send, self.stop, self.clear, self.status),
            ]
        ).add_class("ftlab-chat")

    def take_over(self, before: "ChatPanel") -> None:
        """Take over another panel's model, conversations and settings."""
        self.model.value, self.system.value = before.model.value, before.system.value
        self.question.value = before.question.value
        chosen = [one for one in before.adapters.value if one in dict(self.adapters.options).values()]
        self.adapters.value = tuple(chosen)
        for name, setting in self.sampling.items():
            setting.value = before.sampling[name].value
        self.loaded, self.names, self.systems = before.loaded, before.names, before.systems
        if self.loaded:
            self.forget()
            self.histories = before.histories
            for column in self.columns:
                self.draw(column)
            self.ended()
            self.say("chat_ready", model=self.model.value.strip(), adapters=len(self.names) - 1)

    def list_adapters(self) -> None:
        """Fill the list of adapters: runs, then their checkpoints; a training that has just ended is in it."""
        adapters = with_checkpoints(tuned(self.runs)) if self.given is None else [Path(one) for one in self.given]
        chosen = self.adapters.value
        self.adapters.options = [(label_of(one), str(one)) for one in adapters]
        self.adapters.value = tuple(one for one in chosen if one in map(str, adapters))

    def sampling_fields(self) -> dict[str, widgets.Widget]:
        """Return the sampling controls by their name in `generate`."""
        controls = {
            "do_sample": widgets.Checkbox(value=False, indent=False),
            "temperature": widgets.FloatSlider(value=0.7, min=0.1, max=2, step=0.05),
            "top_p": widgets.FloatSlider(value=0.9, min=0.05, max=1, step=0.05),
            "top_k": widgets.IntSlider(value=50, min=0, max=200),
            "max_new_tokens": widgets.IntSlider(value=128, min=8, max=1024, step=8),
            "repetition_penalty": widgets.FloatSlider(value=1, min=1, max=2, step=0.05),
        }
        return {name: self.field(name, widget) for name, widget in controls.items()}

    def field(self, name: str, widget: widgets.Widget) -> widgets.Widget:
        """Give a control its name and tooltip; the label of a sampling control includes its key."""
        control, label = field(self.words, name, widget), self.words(name)
        if not name.startswith("chat_") and label != name:
            control.description = f"{name} {label}"
        return control

    def button(self, name: str, action: Any, style: str = "") -> widgets.Button:
        """Return a button with its tooltip and what it does."""
        widget = button(self.words, name, style)
        widget.on_click(lambda _: action())
        return widget

    def generation(self) -> dict[str, Any]:
        """Return the fields of `generate` for the sampling controls."""
        sampled = ("temperature", "top_p", "top_k")
        on = self.sampling["do_sample"].value
        return {name: setting.value for name, setting in self.sampling.items() if on or name not in sampled}

    def load(self) -> None:
        """Load the model with the chosen adapters in the background."""
        self.begin(self.load_now, self.model.value.strip(), tuple(self.adapters.value))

    def ask(self) -> None:
        """Ask every column the question, one after the other."""
        question = self.question.value.strip()
        if question and self.loaded and self.idle.is_set():
            self.question.value = ""
            self.begin(self.ask_now, question, *self.loaded)

    def begin(self, action: Any, *given: Any) -> None:
        """Start a task in a thread, unless one is running."""
        if not self.idle.is_set():
            return
        self.left.clear()
        self.load_button.disabled = self.send.disabled = True
        self.stop.disabled = False
        self.work.begin(action, *given)

    def ended(self) -> None:
        """Enable the controls again."""
        self.load_button.disabled, self.stop.disabled = False, True
        self.send.disabled = self.loaded is None
        # One primary action at a time: load, then ask.
        self.load_button.button_style = "" if self.loaded else "success"

    def source(self, name: str, chosen: Sequence[str]) -> dict[str, Any]:
        """Return revision and cache folder of a base: those that an adapter's run had, or the recipe of the page."""
        recipes = [*map(folders.trained_with, chosen), self.recipe]
        return next(filter(None, (models.source_in(keys, name) for keys in recipes)), {})

    def load_now(self, name: str, chosen: Sequence[str]) -> None:
        """Load the model, and every adapter under a name of its own."""
        self.say("chat_loading", model=name)
        self.loaded = None
        source = self.source(name, chosen)
        base = Path(models.fetch(name, **source))
        adapters = [folders.weights_for(one, base, name) for one in chosen]
        if whole := next((one.folder for one in adapters if not one.is_adapter), None):
            # Its base would have to be a second model in memory.
            raise fail("model_no_adapter", where=str(whole), files=saved_weights.ADAPTER_CONFIG)
        if merged := next((one for one in chosen if len(folders.chain(one)) > 1), None):
            # The base in the first column would have other adapters merged into it.
            raise fail("serve_adapters", where=str(merged), reason=say("serve_adapters_base"))
        loaded = chat.load(name, chosen[0] if chosen else None, **source)
        self.names, self.systems = {BASE: BASE}, {}
        for number, weights in enumerate(adapters):
            label = label_of(weights.folder)
            label = label if label not in self.names else f"{label} ({number + 1})"
            self.systems[label] = chat.system_turn(None, weights.folder)
            self.names[label] = "default" if number == 0 else f"adapter_{number}"
            if number and isinstance(loaded[0], PeftModel):
                loaded[0].load_adapter(weights.folder, adapter_name=self.names[label])
        self.loaded = loaded
        self.forget()
        self.say("chat_ready", model=name, adapters=len(adapters))

    def ask_now(self, question: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Generate the answers of all columns."""
        for column in self.names:
            if self.left.is_set():
                break
            self.say("chat_answering", name=self.title(column))
            self.answer(column, question, model, tokenizer)
        self.say("chat_ready", model=self.model.value.strip(), adapters=len(self.names) - 1)

    def answer(self, column: str, question: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Stream one column's answer."""
        history = self.histories[column]
        history.append({"role": "user", "content": question})
        if isinstance(model, PeftModel) and column != BASE:
            model.set_adapter(self.names[column], inference_mode=True)
        system = self.system.value.strip()
        own = [{"role": "system", "content": system}] if system else self.systems.get(column, [])
        messages = [*own, *history]
        written, drawn = "", 0.0
        pieces = chat.stream(model, tokenizer, messages, adapter=column != BASE, **self.generation())
        try:
            for piece in pieces:
                written += piece
                if time.monotonic() - drawn >= REDRAW_SECONDS:
                    drawn = time.monotonic()
                    self.draw(column, written)
                if self.left.is_set():
                    break
        finally:
            pieces.close()
            history.append({"role": "assistant", "content": written.strip()})
            self.draw(column)

    def draw(self, column: str, writing: str | None = None) -> None:
        """Show a column: its conversation, and the answer that is being written."""
        turns = list(self.histories[column])
        turns += [{"role": "assistant", "content": writing}] if writing is not None else []
        shown = [f"<h2>{html.escape(self.title(column))}</h2>"]
        for turn in turns:
            who = "ft-user" if turn["role"] == "user" else "ft-assistant"
            shown.append(f'<div class="ft-turn {who}">{html.escape(turn["content"])}</div>')
        self.columns[column].value = "".join(shown)

    def title(self, column: str) -> str:
        """Return the heading of a column."""
        return column or self.words("chat_base")

    def forget(self) -> None:
        """Restart all conversations."""
        self.histories = {column: [] for column in self.names}
        before, self.columns = self.columns, {column: widgets.HTML() for column in self.names}
        self.hint.layout.display = "none" if self.names else ""
        self.table.children = tuple(self.columns.values())
        for widget in before.values():
            close(widget)
        for column in self.columns:
            self.draw(column)

    def say(self, name: str, /, **values: object) -> None:
        """Show a text of the table next to the buttons."""
        colour = ' class="ft-bad"' if name == "chat_failed" else ""
        self.status.value = (
            f'<span{colour} role="status" data-state="{name}">{html.escape(self.words(name, **values))}</span>'
        )


def label_of(folder: Path) -> str:
    """Return the label of a run, adapter or checkpoint folder.

    >>> label_of(Path("runs/one/adapter")), label_of(Path("runs/one/checkpoint-10"))
    ('one', 'one/checkpoint-10')
    """
    if folder.name.startswith(saved_weights.PREFIX):
        return f"{folder.parent.name}/{folder.name}"
    return folder.parent.name if folder.name == saved_weights.ADAPTER else folder.name


def with_checkpoints(runs: Sequence[Path]) -> list[Path]:
    """Return runs, and after them the checkpoints with an adapter that they hold."""
    checkpoints = [path for run in runs for path in saved_weights.checkpoints(run)]
    return [*runs, *(path for path in checkpoints if (path / saved_weights.ADAPTER_CONFIG).is_file())]


def tuned(runs: Path, *more: str) -> list[Path]:
    """Return the run folders that hold an adapter, of a finished run or in a checkpoint, the newest first.

    Args:
        more: patterns, relative to the run folder, of other files that make a run count.
    """
    patterns = (
        f"{saved_weights.ADAPTER}/{saved_weights.ADAPTER_CONFIG}",
        f"{saved_weights.PREFIX}*/{saved_weights.ADAPTER_CONFIG}",
        *more,
    )
    run_folders = {path.parents[1] for pattern in patterns for path in runs.glob(f"*/{pattern}")}
    return [*folders.newest_first(run_folders)]
