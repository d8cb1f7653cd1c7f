"""Buttons and fields named by the table of words: label, tooltip, and the class by which a page finds them."""

import ipywidgets as widgets

from ftlab.apps.board.words import Words


def button(words: Words, name: str, style: str = "", icon: str = "") -> widgets.Button:
    """Return a button as wide as its label, with its tooltip."""
    made = widgets.Button(
        description=words(name), tooltip=words.tip(name), button_style=style, icon=icon, layout={"width": "auto"}
    )
    return made.add_class(f"ft-{name}")


def field(words: Words, name: str, widget: widgets.Widget) -> widgets.Widget:
    """Give a control its label and tooltip, and return it."""
    widget.description, widget.tooltip = words(name), words.tip(name)
    widget.style = {"description_width": "initial"}
    return widget.add_class(f"ft-{name}")
