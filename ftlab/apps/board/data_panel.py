"""The data panel: page through a set as the model sees it, what is trained on in green, and every problem of it."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ftlab import embedded, errors, tokens
from ftlab.apps.board import estimates
from ftlab.apps.board.named_widgets import button, field
from ftlab.apps.board.words import Words
from ftlab.data import check, registry
from ftlab.data.dataset_info import INFO, read_info
from ftlab.data.encoding import Encoding, shown
from ftlab.errors import LabError

# Rows that are rendered for the lengths; more would make the page wait.
MEASURED = 500


class DataPanel:
    """A data set to look at.

    Args:
        name: a name in dataset_info.json, or a file.
        dataset_dir: the folder of dataset_info.json.
        model: whose tokenizer and chat template.
        cutoff_len: tokens kept of a row.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    Attributes:
        rows: the good rows of the set.
    """

    def __init__(
        self,
        name: str = "",
        dataset_dir: str | Path = "data",
        model: str = embedded.NAME,
        cutoff_len: int = 1024,
        lang: str | None = None,
    ) -> None:
        self.words, self.dataset_dir = Words(lang), Path(dataset_dir)
        self.rows: list[dict[str, Any]] = []
        self.tokenizer: Any = None
        known = registered(self.dataset_dir)
        self.name = field(self.words, "data_set", widgets.Combobox(value=name or next(iter(known), ""), options=known))
        self.model = field(self.words, "data_model", widgets.Text(value=model))
        self.cutoff = field(self.words, "data_cutoff", widgets.BoundedIntText(value=cutoff_len, min=8, max=2**20))
        self.row = field(self.words, "data_row", widgets.BoundedIntText(value=1, min=1, max=1))
        self.before, self.next, self.check = (
            button(self.words, name) for name in ("data_before", "data_next", "data_check")
        )
        self.caption, self.shown = widgets.HTML(), widgets.HTML().add_class("ft-tokens")
        self.lengths, self.report = widgets.HTML(), widgets.HTML().add_class("ft-report")
        self.before.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.check.on_click(lambda _: self.look_for_problems())
        for widget in (self.name, self.model, self.cutoff):
            widget.continuous_update = False
            widget.observe(lambda _: self.load(), names="value")
        self.row.observe(lambda _: self.show_row(), names="value")
        self.box = widgets.VBox(
            [
                widgets.HBox([self.name, self.model, self.cutoff], layout={"flex_flow": "row wrap"}),
                widgets.HBox([self.row, self.before, self.next, self.check]),
                self.caption,
                self.shown,
                self.lengths,
                self.report,
            ]
        ).add_class("ftlab-data")
        self.load()

    def load(self) -> None:
        """Read the set, and show its first row and its lengths."""
        self.rows, self.tokenizer, self.report.value, self.lengths.value = [], None, "", ""
        try:
            with errors.speaking(self.words.lang):
                name, place = self.name.value.strip(), estimates.local_folder(self.model.value.strip())
                if place is None or registry.find(name, self.dataset_dir)[1] is None:
                    # Showing data does not justify downloading gigabytes.
                    self.say_bad(self.words("data_not_here", name=name if place else self.model.value))
                    return
                self.tokenizer = estimates.tokenizer_of(place)
                self.rows = registry.rows_of(name, self.dataset_dir)
                measured = [example for row in self.rows[:MEASURED] for example in self.encoded(row)]
        except (LabError, OSError, ValueError, KeyError) as error:
            self.rows = []
            self.say_bad(error)
            return
        if not self.rows:
            self.caption.value, self.shown.value = html.escape(self.words("data_empty")), ""
            return
        heading = html.escape(self.words("data_lengths", rows=len(self.rows[:MEASURED])))
        self.lengths.value = f"<b>{heading}</b>{pre(tokens.summary(self.tokenizer, measured))}"
        self.row.max, self.row.value = len(self.rows), 1
        self.show_row()

    def encoded(self, row: dict[str, Any]) -> list[dict[str, list[int]]]:
        """Return the training examples of a row as ids and labels; of a pair, the chosen side and the rejected one."""
        return shown(self.tokenizer, row, Encoding(cutoff_len=self.cutoff.value))

    def show_row(self) -> None:
        """Show the row whose number stands in the field."""
        if not self.rows:
            return
        try:
            with errors.speaking(self.words.lang):
                made = self.encoded(self.rows[self.row.value - 1])
        except (LabError, ValueError) as error:
            self.say_bad(error)
            return
        count = sum(len(one["input_ids"]) for one in made)
        trained = sum(label != tokens.IGNORED for one in made for label in one["labels"])
        said = self.words("data_caption", row=self.row.value, rows=len(self.rows), tokens=count, trained=trained)
        self.caption.value = html.escape(said)
        coloured = [tokens.to_html(tokens.tokens(self.tokenizer, one["input_ids"], one["labels"])) for one in made]
        self.shown.value = "<hr>".join(coloured)

    def step(self, by: int) -> None:
        """Go to the next row, or to the one before."""
        self.row.value = min(max(1, self.row.value + by), self.row.max)

    def look_for_problems(self) -> None:
        """Check the whole set and show the report."""
        if self.tokenizer is None:
            return
        try:
            with errors.speaking(self.words.lang):
                report = check.check(
                    self.name.value.strip(),
                    self.dataset_dir,
                    cutoff_len=self.cutoff.value,
                    tokenizer=self.tokenizer,
                )
        except (LabError, OSError, ValueError) as error:
            self.report.value = pre(str(error))
            return
        self.report.value = pre(str(report))

    def say_bad(self, error: Exception | str) -> None:
        """Show why there is nothing to show."""
        text = html.escape(self.words("data_bad", reason=error))
        self.caption.value, self.shown.value = f'<span style="color:#b00020">{text}</span>', ""


def registered(dataset_dir: Path) -> Sequence[str]:
    """Return the names of a folder's dataset_info.json, () where there is none that can be read."""
    try:
        return tuple(read_info(dataset_dir)) if (dataset_dir / INFO).is_file() else ()
    except LabError:
        return ()


def pre(text: str) -> str:
    """Return text escaped for HTML."""
    return f'<pre style="font:12px/1.3 monospace;white-space:pre-wrap">{html.escape(text)}</pre>'
