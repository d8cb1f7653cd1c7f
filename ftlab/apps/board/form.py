"""The fields of a recipe as widgets: a few visible, the rest collapsed, every other key in free-text lines."""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ftlab import errors
from ftlab.apps.board import controls, validation
from ftlab.apps.board.controls import FIELDS, GROUPS, MOST_VISIBLE, Field
from ftlab.apps.board.key_drawer import KeyDrawer
from ftlab.apps.board.named_widgets import bad, heading, help_of, labelled
from ftlab.apps.board.words import Words
from ftlab.errors import LabError, fail
from ftlab.recipe import hub_token
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import Recipe

# Up to this many visible keys need no headings.
UNHEADED = 6
# The list's entry for a key that is left out: ipywidgets takes None for no selection, and shows nothing.
LEFT_OUT = ""


class Form:
    """The controls of a recipe, and what is wrong with their values.

    Args:
        visible: the keys shown, at most 12; the first of `table` by default.
        roots: the folders that may be written to.
        table: the keys that have a control.
    Attributes:
        controls: key -> its widget.
        lines: the text area for all other keys.
        box: all of it, to be shown.
        checked: recipe and messages for the current values.
        right: the last valid keys.
    """

    def __init__(
        self,
        values: dict[str, Any],
        words: Words,
        visible: Sequence[str] = (),
        roots: Sequence[Path] = (),
        table: Mapping[str, Field] = FIELDS,
    ):
        self.table = table
        visible = tuple(visible) or tuple(table)[:MOST_VISIBLE]
        strange = [key for key in visible if key not in table]
        if strange or len(visible) > MOST_VISIBLE:
            reason = f"{', '.join(strange)}" if strange else f"{len(visible)} > {MOST_VISIBLE}"
            raise fail("board_visible", where="visible", reason=reason, most=MOST_VISIBLE, known=", ".join(table))
        self.words, self.roots = words, tuple(roots) or (Path.cwd(),)
        self.given: set[str] = set()
        self.controls = {key: control(key, table[key], words).add_class(f"ft-{key}") for key in table}
        self.messages = {key: message(key) for key in (*table, validation.LINES, validation.ALL)}
        self.lines = labelled(widgets.Textarea(rows=4, continuous_update=False), words("lines"))
        self.lines.tooltip = words.tip("group_lines")
        self.lines.add_class("ft-lines")
        self.watchers: list[Callable[[], None]] = []
        self.quiet = False
        self.load(values)
        for widget in (*self.controls.values(), self.lines):
            widget.observe(lambda _: self.changed(), names="value")
        self.box = widgets.VBox([self.in_sight(visible), self.messages[validation.ALL], self.folded(visible)])

    def in_sight(self, visible: Sequence[str]) -> widgets.VBox:
        """Return the visible controls, under headings where there are many."""
        headed = self.table is FIELDS and len(visible) > UNHEADED
        groups = grouped(visible) if headed else {"": list(visible)}
        parts: list[widgets.Widget] = []
        for name, members in groups.items():
            parts += [heading(self.words(name))] if name else []
            parts.append(self.fields(members))
        return widgets.VBox(parts)

    def fields(self, keys: Sequence[str]) -> widgets.Box:
        """Return controls side by side, as many as fit on a line."""
        return widgets.Box([self.cell(key) for key in keys]).add_class("ft-fields")

    def folded(self, visible: Sequence[str]) -> widgets.Accordion:
        """Return the other controls in collapsed groups, and the drawer of all other keys."""
        groups = grouped([key for key in self.table if key not in visible])
        drawer = widgets.VBox([KeyDrawer(self.words, self.lines, self.table).box, self.messages[validation.LINES]])
        accordion = widgets.Accordion([*map(self.fields, groups.values()), drawer])
        titles = [self.words("more", group=self.words(name or "group_data")) for name in groups]
        accordion.titles = (*titles, self.words("group_lines"))
        return accordion.add_class("ft-more")

    def cell(self, key: str) -> widgets.VBox:
        """Return one control with its name and key, its help behind `?`, and its message below."""
        about = help_of(self.words.tip(key), self.words("help"))
        return widgets.VBox([self.controls[key], about, self.messages[key]]).add_class("ft-cell")

    def load(self, values: dict[str, Any]) -> list[str]:
        """Put the keys of a recipe, or of a LLaMA-Factory YAML, into the fields; return the notes of the translation.

        Raises:
            LabError: an unknown key.
        """
        recipe, notes = recipes.read(dict(values))
        plain = recipes.plain(recipe)
        # Explicit keys stay explicit, even at their defaults.
        plain |= {key: value for key, value in values.items() if key in self.table and key not in plain}
        plain = {key: value for key, value in plain.items() if value is not None}
        self.given = set(plain)
        self.right, self.quiet = {key: value for key, value in values.items() if key != hub_token.KEY}, True
        try:
            for key, widget in self.controls.items():
                put(widget, self.table[key], plain.get(key, controls.default(key)), key in plain)
            self.lines.value = controls.yaml_lines({key: plain[key] for key in plain if key not in self.table})
        finally:
            self.quiet = False
        self.changed()
        return notes

    def values(self) -> dict[str, Any]:
        """Return key -> current value of the fields; a LabError for text that cannot be parsed."""
        result: dict[str, Any] = {}
        for key, widget in self.controls.items():
            value = self.value(key, widget)
            if value is not None and (key in self.given or value != controls.default(key)):
                result[key] = value
        return result

    def value(self, key: str, widget: widgets.Widget) -> Any:
        """Return the value of one control."""
        if self.table[key].kind == "choice":
            return None if widget.value == LEFT_OUT else widget.value
        if self.table[key].kind == "slider":
            return widget.value
        try:
            return controls.read_text(key, widget.value)
        except LabError as error:
            return error

    def changed(self) -> None:
        """Check the current values, show messages next to the fields, and notify the listeners."""
        if self.quiet:
            return
        with errors.speaking(self.words.lang):
            self.checked = self.check()
        if self.checked.recipe:
            self.right = self.written()
        for key in self.messages:
            self.tell(key, self.checked.messages.get(key, ""))
        for watcher in self.watchers:
            watcher()

    def tell(self, key: str, text: str) -> None:
        """Show the problem of a key next to its field, "" if there is none."""
        show_message(self.messages[key], text)

    def note(self, key: str, text: str) -> None:
        """Show something about a key next to its field that is not a problem."""
        place = self.messages[key]
        place.value, place.layout.display = html.escape(text), ""

    def check(self) -> validation.Checked:
        """Check all fields and the free lines together."""
        values = self.values()
        try:
            lines = controls.read_lines(self.lines.value)
        except LabError as error:
            return validation.Checked(None, {validation.LINES: validation.short(error)}, [])
        if twice := [key for key in lines if key in self.table]:
            return validation.Checked(None, {validation.LINES: self.words("bad_twice", keys=", ".join(twice))}, [])
        checked = validation.check_fields(values | lines, self.words, self.roots, self.table)
        beside = {key if key in self.messages else validation.LINES: text for key, text in checked.messages.items()}
        return checked._replace(messages=beside)

    def written(self) -> dict[str, Any]:
        """Return the keys to write into a YAML file; the fields must be valid."""
        return self.values() | controls.read_lines(self.lines.value)

    def take_over(self, before: "Form") -> None:
        """Copy the values of another form of the same table, invalid ones included."""
        self.quiet, self.given = True, set(before.given)
        for key, field in self.table.items():
            value = before.controls[key].value
            if field.kind == "text":
                self.controls[key].value = value
            else:
                put(self.controls[key], field, None if value == LEFT_OUT else value, True)
        self.lines.value = before.lines.value
        self.quiet = False
        self.changed()

    def named(self, keys: Iterable[str]) -> str:
        """Return what has messages, as labelled on the page: keys, the drawer of all other keys, or all fields."""
        others = {validation.LINES: "group_lines", validation.ALL: "wrong_together"}
        return ", ".join(self.words(others[key]) if key in others else key for key in keys)

    def recipe(self) -> Recipe | None:
        """Return the recipe of the fields, None while something is wrong."""
        return self.checked.recipe


def grouped(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the keys of each group, in the groups' order; those of no group first, under ""."""
    known = {key for members in GROUPS.values() for key in members}
    groups = {"": [key for key in keys if key not in known]}
    groups |= {name: [key for key in keys if key in members] for name, members in GROUPS.items()}
    return {name: members for name, members in groups.items() if members}


def control(key: str, field: Field, words: Words) -> widgets.Widget:
    """Return the widget of one key, at its default."""
    tip = words.tip(key)
    if field.kind == "slider":
        widget = widgets.SelectionSlider(options=stops(field, controls.default(key)), tooltip=tip)
    elif field.kind == "choice":
        nothing = (words("nothing"), LEFT_OUT)
        options = [nothing if one is None else (controls.write_text(one), one) for one in controls.choices(key)]
        widget = widgets.Dropdown(options=options, tooltip=tip)
    else:
        shown = controls.write_text(controls.default(key))
        hint = words("default_value", value=shown) if shown else ""
        widget = widgets.Combobox(placeholder=hint, tooltip=tip, continuous_update=False)
        widget.options = tuple(field.options)
    widget.description_allow_html = True
    # A narrow column breaks a key between its words; ipywidgets lets no <wbr> through.
    parts = "".join(f"<span>{part}</span>" for part in re.findall("[^_]+_?", key))
    return labelled(widget, f"{html.escape(words(key))} <code>{parts}</code>")


def stops(field: Field, value: Any) -> list[tuple[str, Any]]:
    """Return the stops of a slider, including its current value."""
    return [(str(one), one) for one in sorted({*field.options, value})]


def put(widget: widgets.Widget, field: Field, value: Any, given: bool) -> None:
    """Show a value in a control; a text field without a value stays empty."""
    if field.kind == "slider":
        widget.options = stops(field, value)
        widget.value = value
    elif field.kind == "choice":
        widget.value = LEFT_OUT if value is None else value
    else:
        widget.value = controls.write_text(value) if given else ""


def message(key: str) -> widgets.HTML:
    """Return the widget for the message of a key."""
    return widgets.HTML(layout={"display": "none"}).add_class(f"ft-bad-{key}")


def show_message(place: widgets.HTML, text: str) -> None:
    """Show a message in its widget, or hide the widget."""
    place.value = bad(text)
    place.layout.display = "" if text else "none"
