"""The report card: how many exercises of each lesson are passed, as text or as a page to print."""

import datetime
import html
from pathlib import Path

from ftlab.apps import lesson_files
from ftlab.apps.lesson_files import Lesson
from ftlab.checks import Verdict
from ftlab.errors import fail, language, say

Results = list[tuple[Lesson, list[Verdict]]]
STYLE = """
@page { size: A4; margin: 20mm; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 44rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ccc; text-align: left; font-weight: normal; }
td { text-align: right; white-space: nowrap; }
tr:last-child > * { font-weight: bold; border-bottom: none; }
"""


def rows(results: Results) -> list[tuple[str, list[Verdict]]]:
    """Return (title, verdicts) of each lesson, and of all of them at the end, in the user's language."""
    lessons = [(lesson_files.title(lesson, language()), verdicts) for lesson, verdicts in results]
    return [*lessons, (say("course_total"), [verdict for _, verdicts in lessons for verdict in verdicts])]


def passed(verdicts: list[Verdict]) -> int:
    """Return how many exercises are passed."""
    return sum(verdict.passed for verdict in verdicts)


def as_text(results: Results) -> str:
    """Return the card as a text table."""
    lines = [f"{passed(verdicts):>3}/{len(verdicts):<3} {title}" for title, verdicts in rows(results)]
    return "\n".join([say("course_report_card"), *lines])


def as_page(results: Results) -> str:
    """Return the card as an HTML page with today's date, one mark for each exercise."""
    title = html.escape(say("course_report_card"))
    *lessons, (everything, verdicts) = rows(results)
    lines = [
        f"<tr><th>{html.escape(name)}</th><td>{''.join('✓' if one.passed else '·' for one in each)}</td>"
        f"<td>{passed(each)}/{len(each)}</td></tr>"
        for name, each in lessons
    ]
    total = f"<tr><th>{html.escape(everything)}</th><td></td><td>{passed(verdicts)}/{len(verdicts)}</td></tr>"
    return (
        f'<!doctype html>\n<html lang="{language()}"><head><meta charset="utf-8"><title>ftlab: {title}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>ftlab: {title}</h1>\n<p>{datetime.date.today().isoformat()}</p>\n"
        "<table>\n" + "\n".join([*lines, total]) + "\n</table>\n</body></html>\n"
    )


def refuse_existing(path: Path) -> None:
    """Refuse to overwrite a file; called before the exercises are checked, which takes minutes.

    Raises:
        LabError: it exists.
    """
    if path.exists():
        raise fail("course_export_exists", where=str(path))


def write_page(results: Results, path: Path) -> None:
    """Write the card to a new file.

    Raises:
        LabError: the file exists.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_page(results), encoding="utf-8")
