"""Several lessons as one notebook, to share or to run in one go: one setup, one profile, no exercises."""

import re
import zipfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ftlab.apps import lesson_files, notebooks
from ftlab.apps.lesson_files import Lesson
from ftlab.errors import fail, say, speaking

# From a raw file to a served model: data, LoRA, QLoRA, merge and export, inference.
THREAD = ["01", "03", "04", "08", "09"]
# Cells that the joint notebook has once, or not at all.
ONCE = ("setup-why", "setup", "next")
OTHER_LESSON = re.compile(r"\[([^\]]+)\]\((?:\.\./)?(?:zh/)?\d\d_\w+\.ipynb\)")
PROFILE_LINE = re.compile(r"^PROFILE = .*\n", re.MULTILINE)
# Lessons use the same names for different things, so each starts without those of the one before.
FRESH = 'get_ipython().run_line_magic("reset_selective", "-f ^(?!PROFILE$)")'


def export(file: Path, numbers: list[str], language: str) -> Path:
    """Write lessons as one notebook, and the recipes as a zip file next to it; return the path of the zip file.

    Raises:
        LabError: no such lesson; or one of the two files exists, which may be a notebook with somebody's work.
    """
    templates = file.with_name(f"{file.stem}-recipes.zip")
    for path in (file, templates):
        if path.exists():
            raise fail("course_export_exists", where=str(path))
    course = lesson_files.carried()
    notebook = joined(lesson_files.lessons(numbers or THREAD, course), language)
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)
    with zipfile.ZipFile(templates, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((course / "recipes").rglob("*.*")):
            packed.write(path, path.relative_to(course))
    return templates


def joined(lessons: list[Lesson], language: str) -> NotebookNode:
    """Return lessons as one notebook without outputs; the number of the lesson is put in front of each cell's id."""
    editions = [notebooks.edition(lesson, language) for lesson in lessons]
    titles = "\n".join(f"- {lesson_files.title(lesson, language)}" for lesson in lessons)
    with speaking(language):
        opening = nbformat.v4.new_markdown_cell(say("course_export_opening", lessons=titles), id="title")
    (setup,) = [cell for cell in editions[0].cells if cell.id == "setup"]
    profile = nbformat.v4.new_code_cell(
        'PROFILE = "cpu"  # smoke, cpu, t4 or a24g', id="parameters", metadata={"tags": ["parameters"]}
    )
    cells = [opening, setup, profile]
    for lesson, edition in zip(lessons, editions, strict=True):
        cells.append(nbformat.v4.new_code_cell(FRESH, id=f"{lesson.number}-fresh"))
        cells += [part(cell, lesson) for cell in edition.cells if kept(cell)]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebooks.METADATA)


def kept(cell: NotebookNode) -> bool:
    """Return False for exercises, and for cells that the joint notebook has once."""
    return cell.id not in ONCE and not cell.id.startswith("exercise-")


def part(cell: NotebookNode, lesson: Lesson) -> NotebookNode:
    """Return a lesson's cell for the joint notebook: PROFILE is set above, and links to other lessons are dropped."""
    cell.id = f"{lesson.number}-{cell.id}"
    if cell.cell_type == "markdown":
        cell.source = OTHER_LESSON.sub(r"\1", cell.source)
    elif cell.metadata.pop("tags", None) == ["parameters"]:
        cell.source = PROFILE_LINE.sub("", cell.source)
    return cell
