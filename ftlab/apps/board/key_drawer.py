"""All keys of a recipe that have no field of their own: look one up, read what it does, set it."""

from collections.abc import Collection

import ipywidgets as widgets

from ftlab import errors
from ftlab.apps.board import controls
from ftlab.apps.board.named_widgets import bad, button, field, pre, row
from ftlab.apps.board.words import Words
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import strict_yaml
from ftlab.recipe.explain import explain


class KeyDrawer:
    """A list of keys, from the table that recipes are read by.

    Args:
        lines: the `key: value` lines that a key is set in.
        table: the keys that have a field.
    """

    def __init__(self, words: Words, lines: widgets.Textarea, table: Collection[str]) -> None:
        self.words, self.lines = words, lines
        names = sorted({*recipes.known()} - {*table})
        self.key = field(words, "any_key", widgets.Combobox(options=names, continuous_update=False))
        self.value = field(words, "any_value", widgets.Combobox(continuous_update=False))
        self.set = button(words, "set_key")
        self.about = widgets.HTML().add_class("ft-any_key-about")
        self.key.placeholder = words("any_key_count", count=len(names))
        self.key.observe(lambda _: self.explain(), names="value")
        self.set.on_click(lambda _: self.write())
        self.box = widgets.VBox([row(self.key, self.value, self.set), self.about, lines])

    def explain(self) -> None:
        """Show what the key means and takes, and suggest its values."""
        key = self.key.value.strip()
        self.about.value, self.value.options = "", ()
        if not key:
            return
        try:
            with errors.speaking(self.words.lang):
                self.about.value = pre(explain(key))
            if key in self.key.options:
                self.value.options = tuple(controls.write_text(one) for one in controls.choices(key) if one is not None)
        except LabError as error:
            self.about.value = bad(str(error))

    def write(self) -> None:
        """Put `key: value` into the lines; an empty value takes the key out of them."""
        key, text = self.key.value.strip(), self.value.value
        try:
            with errors.speaking(self.words.lang):
                explain(key)
                values = controls.read_lines(self.lines.value)
                if key in self.key.options:
                    value = controls.read_text(key, text)
                else:
                    value = strict_yaml.parse(text, key) if text.strip() else None
        except LabError as error:
            self.about.value = bad(str(error))
            return
        values.pop(key, None)
        self.lines.value = controls.yaml_lines(values | ({} if value is None else {key: value}))
