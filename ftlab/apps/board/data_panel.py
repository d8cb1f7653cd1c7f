"""The data panel: page through a data set as the model sees it, trained tokens in green, and its problems."""

import contextlib
import html
import io
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ipywidgets as widgets

from ftlab import embedded, errors, manifests, models, tokens
from ftlab.apps.board import estimates
from ftlab.apps.board.controls import NAMES
from ftlab.apps.board.named_widgets import actions, bad, button, empty, field, pre, row
from ftlab.apps.board.words import Words
from ftlab.data import check, registry
from ftlab.data.convert import filled
from ftlab.data.encoding import Encoding, shown
from ftlab.data.read import SUFFIXES
from ftlab.errors import LabError, fail

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
        substitutions: name -> text for `{{name}}` placeholders.
        recipe: keys of the recipe that names the model.
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
        substitutions: dict[str, str] | None = None,
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.words, self.dataset_dir, self.substitutions = Words(lang), Path(dataset_dir), substitutions
        self.recipe = recipe
        self.rows: list[dict[str, Any]] = []
        self.tokenizer: Any = None
        known = estimates.registered(self.dataset_dir)
        self.name = field(self.words, "data_set", widgets.Combobox(value=name or next(iter(known), ""), options=known))
        self.model = field(self.words, "data_model", widgets.Combobox(value=model, options=NAMES))
        self.cutoff = field(self.words, "data_cutoff", widgets.BoundedIntText(value=cutoff_len, min=8, max=2**20))
        self.row = field(self.words, "data_row", widgets.BoundedIntText(value=1, min=1, max=1)).add_class("ft-short")
        self.before, self.next, self.repair = (
            button(self.words, name) for name in ("data_before", "data_next", "data_repair")
        )
        self.check = button(self.words, "data_check", "success")
        self.upload = widgets.FileUpload(
            accept=",".join(SUFFIXES), description=self.words("data_upload"), tooltip=self.words.tip("data_upload")
        ).add_class("ft-data_upload")
        self.upload.layout.width = "auto"
        self.caption, self.shown = widgets.HTML(), widgets.HTML().add_class("ft-tokens")
        self.lengths, self.report = widgets.HTML(), widgets.HTML().add_class("ft-report")
        self.before.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.check.on_click(lambda _: self.look_for_problems())
        self.repair.on_click(lambda _: self.look_for_problems(self.repaired()))
        self.upload.observe(lambda _: self.keep_uploaded(), names="value")
        for widget in (self.name, self.model, self.cutoff):
            widget.continuous_update = False
            widget.observe(lambda _: self.load(), names="value")
        self.row.observe(lambda _: self.show_row(), names="value")
        paged = row(self.row, self.before, self.next)
        beside = widgets.VBox([self.lengths, self.report])
        self.box = widgets.VBox(
            [
                row(self.name, self.model, self.cutoff, self.upload),
                widgets.Box([widgets.VBox([paged, self.caption, self.shown]), beside]).add_class("ft-columns"),
                actions(self.check, self.repair),
            ]
        ).add_class("ftlab-data")
        self.load()

    def take_over(self, before: "DataPanel") -> None:
        """Show another panel's data set at the same example."""
        self.name.value, self.model.value = before.name.value, before.model.value
        self.cutoff.value = before.cutoff.value
        self.row.value = before.row.value

    def load(self) -> None:
        """Read the set, and show its first row and its lengths."""
        self.rows, self.tokenizer, self.report.value, self.lengths.value = [], None, "", ""
        try:
            with errors.speaking(self.words.lang):
                name, model = self.name.value.strip(), self.model.value.strip()
                place = estimates.local_folder(model, **models.source_in(self.recipe, model))
                if place is None or registry.find(name, self.dataset_dir)[1] is None:
                    # Showing data does not justify downloading gigabytes.
                    self.say_bad(self.words("data_not_here", name=name if place else self.model.value))
                    return
                self.tokenizer = estimates.tokenizer_of(place)
                with contextlib.redirect_stdout(io.StringIO()) as notes:
                    self.rows = registry.rows_of(name, self.dataset_dir)
                # With substitutions, placeholders have their values: a note that they need some would mislead.
                if notes.getvalue() and self.substitutions is None:
                    self.report.value = pre(notes.getvalue())
                measured = [example for row in self.rows[:MEASURED] for example in self.encoded(row)]
        except (LabError, OSError, ValueError, KeyError) as error:
            self.rows = []
            self.say_bad(error)
            return
        if not self.rows:
            self.caption.value, self.shown.value = empty(self.words("data_empty")), ""
            return
        heading = html.escape(self.words("data_lengths", rows=len(self.rows[:MEASURED])))
        with errors.speaking(self.words.lang):
            self.lengths.value = f"<b>{heading}</b>{pre(tokens.summary(self.tokenizer, measured))}"
        self.row.max, self.row.value = len(self.rows), 1
        self.show_row()

    def encoded(self, row: dict[str, Any]) -> list[dict[str, list[int]]]:
        """Return the training examples of a row as ids and labels; of a pair, the chosen side and the rejected one."""
        row = row if self.substitutions is None else filled(row, self.substitutions, self.name.value)
        return shown(self.tokenizer, row, Encoding(cutoff_len=self.cutoff.value))

    def show_row(self) -> None:
        """Show the row whose number stands in the field."""
        if not self.rows:
            return
        try:
            with errors.speaking(self.words.lang):
                examples = self.encoded(self.rows[self.row.value - 1])
        except (LabError, ValueError) as error:
            self.say_bad(error)
            return
        count = sum(len(one["input_ids"]) for one in examples)
        trained = sum(label != tokens.IGNORED for one in examples for label in one["labels"])
        caption = self.words("data_caption", row=self.row.value, rows=len(self.rows), tokens=count, trained=trained)
        self.caption.value = html.escape(caption)
        coloured = [tokens.to_html(tokens.tokens(self.tokenizer, one["input_ids"], one["labels"])) for one in examples]
        self.shown.value = "<hr>".join(coloured)

    def step(self, by: int) -> None:
        """Go to the next row, or to the one before."""
        self.row.value = min(max(1, self.row.value + by), self.row.max)

    def repaired(self) -> Path:
        """Return the first free file that a repaired copy can be written to, next to where the user works."""
        stem = Path(self.name.value.strip()).stem
        tries = (Path(f"{stem}-repaired{number or ''}.jsonl") for number in count())
        return next(path for path in tries if not path.exists())

    def keep_uploaded(self) -> None:
        """Write an uploaded file into `uploads` and show it."""
        for one in self.upload.value:
            try:
                with errors.speaking(self.words.lang):
                    target = uploaded(one.name, one.content)
            except (LabError, OSError) as error:
                self.say_bad(error)
                return
            self.name.value = str(target)

    def look_for_problems(self, fix_to: Path | None = None) -> None:
        """Check the whole set and show the report.

        Args:
            fix_to: write the usable examples there, and show that file.
        """
        if self.tokenizer is None:
            return
        try:
            with errors.speaking(self.words.lang):
                report = check.check(
                    self.name.value.strip(),
                    self.dataset_dir,
                    cutoff_len=self.cutoff.value,
                    tokenizer=self.tokenizer,
                    fix_to=fix_to,
                )
        except (LabError, OSError, ValueError) as error:
            self.report.value = pre(str(error))
            return
        if fix_to:
            self.name.value = str(fix_to)
        self.report.value = pre(str(report))

    def say_bad(self, error: Exception | str) -> None:
        """Show an error in place of the data."""
        self.caption.value, self.shown.value = bad(self.words("data_bad", reason=error)), ""


def uploaded(name: str, content: memoryview) -> Path:
    """Write a file that a browser sent into `uploads`, and return its path.

    Raises:
        LabError: a type that is not read as data, or another file has this name.
    """
    target = Path("uploads") / re.sub(r"[^\w.-]", "_", Path(name).name).lstrip(".")
    # The browser's list of types is a suggestion, and a name of dots alone leaves none.
    if target.suffix.lower() not in SUFFIXES:
        raise fail("data_suffix", where=name, suffixes=" ".join(SUFFIXES))
    if target.exists() and target.read_bytes() != bytes(content):
        raise fail("data_fix_exists", where=str(target))
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(manifests.PARTIAL + target.name)
    partial.write_bytes(content)
    partial.replace(target)
    return target
