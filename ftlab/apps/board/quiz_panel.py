"""The quiz panel: a question, four answers, and why the right one is right."""

import html
import json
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets

from ftlab.apps import lesson_files
from ftlab.apps.board.named_widgets import actions, bad, button
from ftlab.apps.board.words import Words
from ftlab.errors import LabError, fail, reason_of


class Question(NamedTuple):
    """One question: its choices, which of them is right (from 0), why, and the lesson that shows it."""

    question: str
    choices: list[str]
    answer: int
    why: str
    lesson: str


class QuizPanel:
    """Questions from a JSON file, one at a time.

    Args:
        path: the file; None takes the course's own in the panel's language.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    Attributes:
        questions: of the file; [] if it cannot be read, which is reported.
        given: question number -> the choice that was checked first, from 0.
    """

    def __init__(self, path: str | Path | None = None, lang: str | None = None) -> None:
        self.words = Words(lang)
        self.given: dict[int, int] = {}
        self.at = 0
        self.question, self.verdict, self.score = (widgets.HTML() for _ in range(3))
        self.question.add_class("ft-quiz-question"), self.verdict.add_class("ft-quiz-verdict")
        self.choices = widgets.RadioButtons().add_class("ft-quiz-choices")
        self.before, self.check, self.next = (
            button(self.words, name, "success" if name == "quiz_check" else "")
            for name in ("quiz_before", "quiz_check", "quiz_next")
        )
        self.check.on_click(lambda _: self.answer())
        self.before.on_click(lambda _: self.go(-1))
        self.next.on_click(lambda _: self.go(1))
        self.choices.observe(lambda _: self.chosen(), names="value")
        buttons = actions(self.check, self.before, self.next, self.score)
        self.box = widgets.VBox([self.question, self.choices, self.verdict, buttons]).add_class("ftlab-quiz")
        try:
            self.questions = read_questions(Path(path) if path else course_file(self.words.lang))
        except LabError as error:
            self.questions = []
            self.verdict.value = bad(str(error))
        self.show()

    def take_over(self, before: "QuizPanel") -> None:
        """Continue at another panel's question, with its answer and score."""
        if len(self.questions) == len(before.questions):
            self.at, self.given = before.at, before.given
            self.show()
            self.choices.value = before.choices.value
            if before.verdict.value:
                self.answer()

    def go(self, by: int) -> None:
        """Go to the next question, or to the one before."""
        self.at = min(max(0, self.at + by), len(self.questions) - 1)
        self.show()

    def show(self) -> None:
        """Show the current question."""
        self.before.disabled, self.next.disabled = self.at == 0, self.at + 1 >= len(self.questions)
        self.check.disabled = True
        if not self.questions:
            return
        question = self.questions[self.at]
        heading = self.words("quiz_number", number=self.at + 1, total=len(self.questions))
        self.question.value = f"<small>{html.escape(heading)}</small><br><b>{html.escape(question.question)}</b>"
        self.verdict.value = ""
        self.choices.options = [(text, number) for number, text in enumerate(question.choices)]
        self.choices.value = self.given.get(self.at)
        if self.at in self.given:
            self.answer()
        self.tell_score()

    def chosen(self) -> None:
        """Allow an answer to be checked once one is chosen."""
        self.check.disabled = self.choices.value is None

    def answer(self) -> None:
        """Show whether the chosen answer is right, and why; the first try counts."""
        if self.choices.value is None or not self.questions:
            return
        question, number = self.questions[self.at], self.choices.value
        self.given.setdefault(self.at, number)
        right = number == question.answer
        name, colour = ("quiz_right", "ft-good") if right else ("quiz_wrong", "ft-bad")
        verdict = self.words(name, answer=question.choices[question.answer])
        why = f"{question.why} {self.words('quiz_lesson', lesson=question.lesson)}"
        self.verdict.value = f'<b class="{colour}">{html.escape(verdict)}</b><p>{html.escape(why)}</p>'
        self.tell_score()

    def tell_score(self) -> None:
        """Show how many first tries were right."""
        right = sum(number == self.questions[at].answer for at, number in self.given.items())
        self.score.value = html.escape(self.words("quiz_score", right=right, given=len(self.given)))


def course_file(lang: str) -> Path:
    """Return the course's questions in a language.

    Raises:
        LabError: the course's folder was not found.
    """
    return lesson_files.root() / "data" / f"quiz_{lang}.json"


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file: a list of {"question", "choices", "answer", "why", "lesson"}.

    Raises:
        LabError: it cannot be read, or a question is incomplete.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        questions = [Question(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise fail("quiz_broken", where=str(path), reason=reason_of(error)) from None
    for number, one in enumerate(questions, 1):
        texts = [one.question, one.why, one.lesson, *one.choices] if isinstance(one.choices, list) else [None]
        whole = all(isinstance(text, str) and text.strip() for text in texts) and len(set(one.choices)) > 1
        if not (whole and isinstance(one.answer, int) and 0 <= one.answer < len(one.choices)):
            raise fail("quiz_broken", where=f"{path}: {number}", reason="question, choices, answer, why, lesson")
    if not questions:
        raise fail("quiz_broken", where=str(path), reason="[]")
    return questions
