"""The answers of an evaluation, a page at a time: base beside tuned, the wrong ones first."""

import html
from itertools import takewhile

import ipywidgets as widgets

from ftlab.apps.board import train_view
from ftlab.apps.board.named_widgets import button, empty, field, heading, row
from ftlab.apps.board.words import Words
from ftlab.runs.predictions import Answered

PAGE = 10
# A filter's name in words.toml -> whether it shows an example, given which answers are right (base first).
FILTERS = {
    "answers_all": lambda right: True,
    "answers_wrong": lambda right: not right[-1],
    "answers_gained": lambda right: right == [False, True],
    "answers_lost": lambda right: right == [True, False],
}
COLUMNS = {"base": "answers_base", "tuned": "answers_tuned"}


class PredictionsTable:
    """Examples with the answers of one or two models.

    Attributes:
        answers: model -> its answers; only the finished ones if the evaluation was stopped.
        box: all of it, hidden while there are none.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.answers: dict[str, list[Answered]] = {}
        kinds = widgets.Dropdown(options=[(words(name), name) for name in FILTERS])
        self.kind = field(words, "answers_kind", kinds)
        self.page = field(words, "answers_page", widgets.BoundedIntText(value=1, min=1, max=1)).add_class("ft-short")
        self.before, self.next = button(words, "answers_before"), button(words, "answers_next")
        self.caption = widgets.HTML()
        self.table = widgets.HTML().add_class("ft-predictions")
        self.kind.observe(lambda _: self.turn_to(1), names="value")
        self.page.observe(lambda _: self.draw(), names="value")
        self.before.on_click(lambda _: self.turn_to(self.page.value - 1))
        self.next.on_click(lambda _: self.turn_to(self.page.value + 1))
        paged = row(self.kind, self.page, self.before, self.next)
        self.box = widgets.VBox([heading(words("group_answers")), paged, self.caption, self.table])
        self.show({})

    def show(self, answers: dict[str, list[Answered]]) -> None:
        """Show answers from their first page."""
        # As in the table of scores: base, then tuned, which is evaluated first.
        self.answers = {name: answers[name] for name in COLUMNS if answers.get(name)}
        self.box.layout.display = "" if self.answers else "none"
        self.turn_to(1)

    def rows(self) -> list[tuple[Answered, list[Answered | None]]]:
        """Return the examples that the filter shows, each with the answers of all models: wrong ones first."""
        by_number = [{one.number: one for one in answers} for answers in self.answers.values()]
        numbers = sorted({number for answers in by_number for number in answers})
        rows = [[answers.get(number) for answers in by_number] for number in numbers]
        lines = [(next(one for one in row if one), row) for row in rows]
        shown = [line for line in lines if FILTERS[self.kind.value](rights(line[1]))]
        return sorted(shown, key=lambda line: rights(line[1])[-1])

    def turn_to(self, page: int) -> None:
        """Show a page, or the nearest one that exists."""
        pages = max(1, -(-len(self.rows()) // PAGE))
        self.page.max = pages
        self.page.value = min(max(1, page), pages)
        self.draw()

    def draw(self) -> None:
        """Show the page with the number in the field."""
        rows, start = self.rows(), (self.page.value - 1) * PAGE
        self.before.disabled, self.next.disabled = self.page.value == 1, self.page.value == self.page.max
        caption = self.words("answers_caption", shown=len(rows), page=self.page.value, pages=self.page.max)
        self.caption.value = html.escape(caption)
        prompts = [one.prompt for answers in self.answers.values() for one in answers]
        start_cut, end_cut = common_lines(prompts), common_lines([one[::-1] for one in prompts])
        head = [self.words(name) for name in ("answers_number", "answers_prompt", "answers_expected")]
        head += [self.words(COLUMNS[name]) for name in self.answers]
        lines = [
            [
                str(one.number),
                cell(one.prompt[start_cut : len(one.prompt) - end_cut]),
                cell(one.expected),
                *map(self.answer, line),
            ]
            for one, line in rows[start : start + PAGE]
        ]
        self.table.value = train_view.grid(head, lines) if lines else empty(self.words("answers_none"))

    def answer(self, one: Answered | None) -> train_view.Cell:
        """Return the cell of an answer: whether it is right, and its text; a dash where it was not finished."""
        if one is None:
            return train_view.Cell("<td>-</td>")
        mark = self.words("answers_right" if one.right else "answers_not_right")
        kind = "ft-good" if one.right else "ft-bad"
        return cell(
            one.answer + ("" if one.whole or one.right else " ..."), f'<b class="{kind}">{html.escape(mark)}</b> '
        )


def rights(line: list[Answered | None]) -> list[bool]:
    """Return which of an example's answers are right, of those that there are."""
    return [one.right for one in line if one]


def cell(text: str, before: str = "") -> train_view.Cell:
    """Return a table cell with a text, in a box that scrolls if it is long."""
    return train_view.Cell(f'<td><div tabindex="0">{before}{html.escape(text.strip())}</div></td>')


def common_lines(texts: list[str]) -> int:
    """Return the number of characters in the whole lines that all texts begin with: for prompts, the system prompt.

    >>> common_lines(["system\\nA\\nuser\\nWhy?", "system\\nA\\nuser\\nWho?"])
    14
    """
    if len(set(texts)) < 2:
        return 0
    same = "".join(one for one, *_ in takewhile(lambda chars: len(set(chars)) == 1, zip(*set(texts), strict=False)))
    return same.rfind("\n") + 1
