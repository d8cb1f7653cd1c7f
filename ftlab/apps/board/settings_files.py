"""The settings of a form as YAML files: opened from a file, saved into a new one."""

import html
import shlex
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from ftlab import errors, manifests
from ftlab.apps.board import controls
from ftlab.apps.board.form import Form
from ftlab.apps.board.named_widgets import bad, button, field, row
from ftlab.apps.board.words import Words
from ftlab.errors import LabError, fail
from ftlab.recipe import strict_yaml

ENDINGS = (".yaml", ".yml")


class SettingsFiles:
    """A file's name and two buttons."""

    def __init__(self, words: Words, form: Form) -> None:
        self.words, self.form = words, form
        self.file = field(words, "settings_file", widgets.Combobox(continuous_update=False))
        self.load, self.save = button(words, "settings_load"), button(words, "settings_save")
        self.said = widgets.HTML().add_class("ft-settings-said")
        self.load.on_click(lambda _: self.attempt(self.open))
        self.save.on_click(lambda _: self.attempt(self.write))
        self.list_files()
        self.box = widgets.VBox([row(self.file, self.load, self.save), self.said])

    def list_files(self) -> None:
        """Offer the YAML files of the working folder and of `recipes`."""
        paths = [*Path().glob("*"), *Path("recipes").glob("**/*")]
        self.file.options = tuple(str(path) for path in sorted(paths) if path.suffix in ENDINGS)

    def attempt(self, action: Callable[[Path], str]) -> None:
        """Open or save, and show the outcome."""
        try:
            with errors.speaking(self.words.lang):
                self.said.value = html.escape(action(Path(self.file.value.strip())))
        except (LabError, OSError) as error:
            self.said.value = bad(str(error))

    def open(self, path: Path) -> str:
        """Put a file's keys into the fields, and return what was translated.

        Raises:
            LabError: it is not a recipe, or has an unknown key.
        """
        notes = self.form.load(strict_yaml.read(path)[0])
        return " ".join([self.words("settings_loaded", file=path), *notes])

    def write(self, path: Path) -> str:
        """Write the fields into a new file.

        Raises:
            LabError: a field is wrong, the name is not a YAML file's or leads outside, or the file exists.
        """
        if self.form.recipe() is None:
            raise fail("board_settings_wrong", where=str(path))
        if path.suffix not in ENDINGS or not path.resolve().is_relative_to(Path.cwd()):
            raise fail("board_settings_name", where=str(path))
        if path.exists():
            raise fail("board_settings_exists", where=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        manifests.write_text(path, controls.yaml_lines(self.form.written()))
        self.list_files()
        return self.words("settings_saved", file=shlex.quote(str(path)))
