"""An instant experiment: a picture that is drawn again whenever a control changes."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from ftlab.apps import course


def show(draw: Callable[..., None], **controls: Any) -> None:
    """Show controls and what `draw` makes of their values; where nobody looks (FTLAB_HEADLESS=1), draw once.

    Args:
        draw: takes the controls' values by name, draws with matplotlib and prints; should take less than 0.5 s.
        controls: name -> a widget, or what `ipywidgets.interact` makes one of: (low, high, step), a list of choices,
            a number, True or False.
    """
    made = {name: widget(name, control) for name, control in controls.items()}
    if course.headless():
        draw(**{name: control.value for name, control in made.items()})
    else:
        picture = widgets.interactive_output(draw, made)
        display(widgets.VBox([*made.values(), picture.add_class("ft-picture")]))


def widget(name: str, control: Any) -> widgets.Widget:
    """Return the control that a value stands for, labelled with its name."""
    made = widgets.interactive.widget_from_abbrev(control)
    made.description, made.style = name, {"description_width": "12em"}
    made.layout.width = "30em"
    if hasattr(made, "continuous_update"):
        # A slider that is dragged draws where it is let go, not at every pixel on the way.
        made.continuous_update = False
    return made.add_class(f"ft-{name}")
