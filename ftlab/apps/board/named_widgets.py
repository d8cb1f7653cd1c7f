"""Buttons, fields and rows with labels from words.toml and the classes that board.css styles."""

import html
from functools import cache
from pathlib import Path

import ipywidgets as widgets

from ftlab.apps.board.words import Words

STYLE = Path(__file__).with_name("voila") / "templates" / "ftlab" / "board.css"


def button(words: Words, name: str, style: str = "", icon: str = "") -> widgets.Button:
    """Return a button as wide as its label, with its tooltip."""
    widget = widgets.Button(
        description=words(name), tooltip=words.tip(name), button_style=style, icon=icon, layout={"width": "auto"}
    )
    return widget.add_class(f"ft-{name}")


def field(words: Words, name: str, widget: widgets.Widget) -> widgets.Widget:
    """Give a control its label and tooltip, and return it."""
    widget.tooltip = words.tip(name)
    return labelled(widget, words(name)).add_class(f"ft-{name}")


def labelled(widget: widgets.Widget, text: str) -> widgets.Widget:
    """Put a label above a control, make it fill its container, and return it."""
    # Not a new style object: the one that it replaces would not be closed.
    widget.description, widget.style.description_width = text, "initial"
    widget.layout.width = "auto"
    return widget.add_class("ft-field")


def row(*parts: widgets.Widget) -> widgets.HBox:
    """Return controls side by side, on as many lines as they need."""
    return widgets.HBox(parts).add_class("ft-row")


def actions(*parts: widgets.Widget) -> widgets.HBox:
    """Return the row of buttons and progress, which is always visible on the page."""
    return widgets.HBox(parts).add_class("ft-actions")


def heading(text: str) -> widgets.HTML:
    """Return the heading of a group."""
    return widgets.HTML(f"<h3>{html.escape(text)}</h3>")


def help_of(text: str, label: str) -> widgets.HTML:
    """Return a `?` that opens a text."""
    summary = f'<summary aria-label="{html.escape(label)}">?</summary><p>{html.escape(text)}</p>'
    return widgets.HTML(f"<details>{summary}</details>").add_class("ft-help")


def bad(text: str) -> str:
    """Return a sentence that says what is wrong, as HTML; "" for none."""
    return f'<span class="ft-bad">{html.escape(text)}</span>' if text else ""


def empty(text: str) -> str:
    """Return the HTML of an empty state, which says what to do."""
    return f'<div class="ft-empty">{html.escape(text)}</div>'


def pre(text: str) -> str:
    """Return text escaped for HTML, its lines as they are."""
    # Text that scrolls must be reachable by keyboard.
    return f'<pre tabindex="0">{html.escape(text)}</pre>'


def close(widget: widgets.Widget) -> None:
    """Close a widget and its children, in the kernel and in the browser; its traits stay readable."""
    widget.close()
    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, tuple | list) else (value,):
            # Only if still open: a widget may be in two containers.
            if isinstance(part, widgets.Widget) and part.comm is not None:
                close(part)


@cache
def stylesheet() -> str:
    """Return board.css."""
    return STYLE.read_text(encoding="utf-8")


def styled(panel: widgets.Widget) -> widgets.VBox:
    """Return a panel with the stylesheet, for a notebook; the page of `ftlab board` has it."""
    return widgets.VBox([widgets.HTML(f"<style>{stylesheet()}</style>"), panel]).add_class("ftlab")
