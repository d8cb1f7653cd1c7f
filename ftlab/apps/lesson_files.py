"""The lessons: their numbers, names, titles and files. notebooks.py builds them."""

from dataclasses import dataclass
from pathlib import Path

from ftlab.errors import fail

LANGUAGES = {"en": "notebooks", "zh": "notebooks/zh"}


@dataclass(frozen=True)
class Lesson:
    """One lesson: its number ("03"), its name ("03_lora") and its text source."""

    number: str
    name: str
    source: Path

    def notebook(self, language: str = "en") -> Path:
        """Return the path of the notebook of this language edition."""
        return self.source.parents[2] / LANGUAGES[language] / f"{self.name}.ipynb"


def root() -> Path:
    """Return the folder of the course: the working directory or the nearest above it that holds notebooks/source."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[2]):
        if (folder / "notebooks" / "source").is_dir():
            return folder
    raise fail("course_no_root", where=str(Path.cwd()))


def carried() -> Path:
    """Return the folder with this version's lessons, data and recipes: in an installed package, else the checkout."""
    package = Path(__file__).parents[1]
    packed = package / "course"
    return packed if packed.is_dir() else package.parent


def lessons(numbers: list[str] | None = None, course: Path | None = None) -> list[Lesson]:
    """Return the lessons in teaching order, or those of `numbers` ("3", "03" and "03_lora" alike).

    Args:
        course: the folder that holds notebooks/source; by default `root()`.
    Raises:
        LabError: no lesson has one of these numbers.
    """
    sources = (course or root()) / "notebooks" / "source"
    all_lessons = [Lesson(path.stem[:2], path.stem, path) for path in sorted(sources.glob("[0-9]*.py"))]
    if not numbers:
        return all_lessons
    for number in numbers:
        if number[:2].zfill(2) not in {lesson.number for lesson in all_lessons}:
            raise fail("course_no_lesson", number=number, numbers=", ".join(lesson.number for lesson in all_lessons))
    wanted = {number[:2].zfill(2) for number in numbers}
    return [lesson for lesson in all_lessons if lesson.number in wanted]


def title(lesson: Lesson, language: str = "en") -> str:
    """Return the heading of a lesson: the first line of its first cell, or of that cell's Chinese twin."""
    source = lesson.source.read_text(encoding="utf-8")
    headings = [line.removeprefix("# # ") for line in source.splitlines() if line.startswith("# # ")]
    return headings[1] if language == "zh" else headings[0]
