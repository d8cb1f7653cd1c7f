"""Two answers, pick the better one: your own preferences as a data set."""

import html
from typing import Any

import ipywidgets as widgets

from ftlab.apps.board.words import Words
from ftlab.runs.preferences import LEFT, RIGHT, SKIP, Labels


def panel(labels: Labels, lang: str | None = None) -> widgets.VBox:
    """Return a widget to label the pairs: a button under each answer, or type 1, 2 or 0 (skip) into the field below.

    Args:
        lang: "en" or "zh"; None takes FTLAB_LANG.
    """
    words = Words(lang)
    question, progress = widgets.HTML(), widgets.Label()
    texts = [widgets.Textarea(disabled=True, layout={"width": "96%", "height": "7em"}) for _ in range(2)]
    buttons = [
        widgets.Button(description=words("label_this", number=side + 1), button_style="success") for side in range(2)
    ]
    skip = widgets.Button(description=words("label_neither"))
    keys = widgets.Text(placeholder=words("label_keys"), continuous_update=True, layout={"width": "10em"})

    def show() -> None:
        progress.value = words("label_progress", done=len(labels.preferences()), left=len(labels.rows))
        asked, *answers = labels.rows[0] if labels.rows else (words("label_last"), "", "")
        question.value = f"<b>{html.escape(asked)}</b>"
        for text, answer in zip(texts, answers, strict=True):
            text.value = answer
        for control in (*buttons, skip, keys):
            control.disabled = not labels.rows

    def picked(side: int) -> None:
        if labels.rows:
            labels.pick(side)
            show()

    def typed(change: dict[str, Any]) -> None:
        key = change["new"].strip()[-1:]
        if key in ("0", "1", "2"):
            keys.value = ""
            picked(int(key) - 1)

    for side, button in enumerate((*buttons, skip)):
        button.on_click(lambda _, side=(LEFT, RIGHT, SKIP)[side]: picked(side))
    keys.observe(typed, names="value")
    show()
    half = {"width": "50%"}
    columns = [widgets.VBox(column, layout=half) for column in zip(texts, buttons, strict=True)]
    below = widgets.HBox([keys, skip, progress])
    return widgets.VBox([question, widgets.HBox(columns), below]).add_class("ftlab-label")
