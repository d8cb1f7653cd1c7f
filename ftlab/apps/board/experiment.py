"""An instant experiment: a picture that is drawn again whenever a control changes."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from ftlab.apps import course


def show(draw: Callable[..., None], **controls: Any) -> None:
    """Show controls and what `draw` draws for their values; headless (FTLAB_HEADLESS=1), draw once.

    Args:
        draw: takes the controls' values by name, draws with matplotlib and prints; should take less than 0.5 s.
        controls: name -> a widget, or what `ipywidgets.interact` makes one of: (low, high, step), a list of choices,
            a number, True or False.
    """
    children = {name: widget(name, control) for name, control in controls.items()}
    if course.headless():
        draw(**{name: control.value for name, control in children.items()})
    else:
        picture = widgets.interactive_output(draw, children)
        display(widgets.VBox([*children.values(), picture.add_class("ft-picture")]))


def widget(name: str, control: Any) -> widgets.Widget:
    """Return the control for a value, labelled with its name."""
    control_widget = widgets.interactive.widget_from_abbrev(control)
    control_widget.description, control_widget.style = name, {"description_width": "12em"}
    control_widget.layout.width = "30em"
    if hasattr(control_widget, "continuous_update"):
        # Draw when a slider is released, not at every pixel while it is dragged.
        control_widget.continuous_update = False
    return control_widget.add_class(f"ft-{name}")
