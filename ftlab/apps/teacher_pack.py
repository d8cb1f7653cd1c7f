"""Material for teachers, generated from the lessons: solutions, and the pictures as slides to show or print."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from ftlab.apps import lesson_files, notebooks
from ftlab.apps.lesson_files import Lesson
from ftlab.errors import fail, say, speaking

FOLD = re.compile(r"</?details>|<summary>.*?</summary>")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# One picture per printed page; in a browser they follow each other.
STYLE = """
@page { size: A4 landscape; margin: 15mm; }
body { font: 18px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; }
section { break-after: page; break-inside: avoid; margin-bottom: 4rem; }
h1 { font-size: 1rem; font-weight: normal; color: #555; } h2 { margin: 0 0 1rem; }
img { max-width: 100%; max-height: 75vh; }
"""


def write(folder: Path, numbers: list[str], language: str) -> list[Path]:
    """Write solutions.md and slides.html of lessons into `folder`; return the two paths.

    Raises:
        LabError: no such lesson; or one of the two files exists.
    """
    solutions, slides = paths = [folder / "solutions.md", folder / "slides.html"]
    for path in paths:
        if path.exists():
            raise fail("course_export_exists", where=str(path))
    lessons = lesson_files.lessons(numbers, lesson_files.carried())
    folder.mkdir(parents=True, exist_ok=True)
    solutions.write_text("\n\n".join(solutions_of(lesson, language) for lesson in lessons) + "\n", encoding="utf-8")
    pages = "\n".join(page for lesson in lessons for page in slides_of(lesson, language))
    with speaking(language):
        title = html.escape(say("teacher_slides"))
    slides.write_text(
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n{pages}\n</body></html>\n",
        encoding="utf-8",
    )
    return paths


def solutions_of(lesson: Lesson, language: str) -> str:
    """Return the exercises of a lesson and their solutions, unfolded, as Markdown."""
    texts = [f"# {lesson_files.title(lesson, language)}"]
    for cell in notebooks.edition(lesson, language).cells:
        if cell.id.startswith("exercise-") and cell.cell_type == "markdown":
            texts.append(FOLD.sub("", cell.source).strip())
    return "\n\n".join(texts)


def slides_of(lesson: Lesson, language: str) -> Iterator[str]:
    """Yield one HTML section for each picture of a lesson, under the heading that it has there."""
    title, heading = lesson_files.title(lesson, language), ""
    outputs = notebooks.kept_outputs(lesson, notebooks.edition(lesson, "en"))
    for cell in notebooks.edition(lesson, language).cells:
        if cell.cell_type == "markdown" and (headings := HEADING.findall(cell.source)):
            heading = headings[-1]
        for picture in pictures(outputs.get(cell.id, ([], None))[0]):
            name, about = html.escape(title), html.escape(heading)
            image = f'<img src="data:image/png;base64,{picture}" alt="{about}">'
            yield f"<section><h1>{name}</h1><h2>{about}</h2>{image}</section>"


def pictures(outputs: list[NotebookNode]) -> list[str]:
    """Return the PNGs of a cell's outputs, in base64."""
    images = [output.get("data", {}).get("image/png", "") for output in outputs]
    return [picture.replace("\n", "") for picture in images if picture]
