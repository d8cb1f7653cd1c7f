"""The memory panel: what training needs by method, batch size and length, and the GPU that it fits on."""

import html
import re
from typing import Any

import ipywidgets as widgets

from ftlab import device, embedded, errors
from ftlab.apps.board import estimates, train_view
from ftlab.apps.board.controls import SIZED
from ftlab.apps.board.form import Form, message, show_message
from ftlab.apps.board.named_widgets import field, row
from ftlab.apps.board.words import Words
from ftlab.memory import Needs
from ftlab.recipe import memory_needs
from ftlab.recipe.keys import Recipe

# More values would make the table hard to read.
MOST_VALUES = 5


class MemoryPanel:
    """The table of `ftlab memory` for several batches and lengths at once.

    Args:
        source: the keys of a recipe, of which those with a field here are taken.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    Attributes:
        found: (method, rows, tokens) -> needs, of the table that is shown; empty while something is wrong.
    """

    def __init__(self, source: dict[str, Any] | None = None, lang: str | None = None) -> None:
        self.words = Words(lang)
        self.found: dict[tuple[str, int, int], Needs] = {}
        preset = source or {}
        values = {key: preset[key] for key in SIZED if preset.get(key) is not None}
        values.setdefault("model_name_or_path", embedded.NAME)
        with errors.speaking(self.words.lang):
            self.form = Form(values, self.words, table=SIZED)
        self.machine = widgets.Dropdown(
            options=[(self.words("this_machine"), ""), *((name, name) for name in memory_needs.GPUS)]
        )
        self.batches = widgets.Text(value="1, 4, 16", continuous_update=False)
        self.lengths = widgets.Text(value="512, 2048, 8192", continuous_update=False)
        self.messages = {name: message(name) for name in ("sized_batches", "sized_lengths")}
        cells = {"sized_for": self.machine, "sized_batches": self.batches, "sized_lengths": self.lengths}
        for name, widget in cells.items():
            field(self.words, name, widget).observe(lambda _: self.changed(), names="value")
        self.table = widgets.HTML().add_class("ft-sized-table")
        inputs = row(self.machine, *(widgets.VBox([cells[name], said]) for name, said in self.messages.items()))
        self.box = widgets.VBox([self.form.box, inputs, self.table]).add_class("ftlab-memory")
        self.form.watchers.append(self.changed)
        self.changed()

    def take_over(self, before: "MemoryPanel") -> None:
        """Show another panel's settings."""
        self.form.take_over(before.form)
        self.machine.value = before.machine.value
        self.batches.value, self.lengths.value = before.batches.value, before.lengths.value

    def changed(self) -> None:
        """Compute the table for the fields; nothing is shown while something is wrong."""
        recipe = self.form.recipe()
        batches = self.numbers("sized_batches", self.batches, 1, 4096)
        lengths = self.numbers("sized_lengths", self.lengths, 8, 2**20)
        self.found, self.table.value = {}, ""
        if not (recipe and batches and lengths):
            return
        place = estimates.folder_of(recipe)
        if estimates.decoder_of(recipe, place) is None:
            self.table.value = html.escape(self.words("unknown"))
            return
        machine = memory_needs.gpu(self.machine.value) if self.machine.value else device.describe()
        self.found = memory_needs.grid(recipe, machine, batches, lengths)
        self.table.value = self.shown(recipe, machine, batches, lengths)

    def numbers(self, name: str, field: widgets.Text, least: int, most: int) -> list[int]:
        """Return the whole numbers of a field, [] with a message next to it if they are invalid."""
        parts = [part.strip() for part in field.value.split(",")]
        plain = len(parts) <= MOST_VALUES and all(re.fullmatch("[0-9]{1,8}", part) for part in parts)
        values = sorted({int(part) for part in parts}) if plain else []
        good = plain and all(least <= one <= most for one in values)
        said = "" if good else self.words("bad_numbers", least=least, most=f"{most:,}", count=MOST_VALUES)
        show_message(self.messages[name], said)
        return values if good else []

    def shown(self, recipe: Recipe, machine: device.Machine, batches: list[int], lengths: list[int]) -> str:
        """Return the table: a line per method and batch, a column per length, green where it fits."""
        room = machine.memory_bytes - memory_needs.RESERVED_BYTES
        head = [self.words("sized_method"), self.words("sized_rows")]
        head += [self.words("sized_tokens", length=f"{length:,}") for length in lengths]
        rows = []
        for name in memory_needs.METHODS:
            for batch in batches:
                cells = [self.found.get((name, batch, length)) for length in lengths]
                if any(cells):
                    label = name if batch == batches[0] else ""
                    rows.append([label, str(batch), *(self.cell(one, room) for one in cells)])
        room_said = self.words(
            "sized_room", room=train_view.gib(int(room)), machine=machine.name, model=recipe.model_name_or_path
        )
        return f"<p>{html.escape(room_said)}</p>" + train_view.grid(head, rows)

    def cell(self, needs: Needs | None, room: float) -> str:
        """Return one cell: the peak, green where it fits, and the smallest GPU, or how many GPUs, it fits on."""
        if needs is None:
            return "-"
        fits = "ft-good" if needs.peak <= room else "ft-bad"
        gpu = html.escape(memory_needs.smallest_gpu(needs))
        return train_view.Cell(f'<td><b class="{fits}">{train_view.gib(needs.peak)}</b> <small>{gpu}</small></td>')
