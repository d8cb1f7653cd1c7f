"""A number in a lesson's prose is one that the lesson computes, sets or cites."""

import re

import nbformat
import pytest

from ftlab.apps import lesson_files, notebooks

LESSONS = lesson_files.lessons()
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)*(?:e-?\d+)?(?!\w)")
# What is not a claim: code, addresses, formulas, papers and their years, lessons by number, confidence levels.
NO_CLAIM = re.compile(
    r"```.*?```|`[^`]*`|\]\([^)]*\)|\$[^$]*\$"
    r"|arXiv:[\d.]+|\b(?:19|20)\d\d\b|issue \d+|section [\d.]+|[\d.]+ 节"
    r"|\b0\d\b|\[(?:第 )?1\d\b|\b95% (?:confidence|置信)",
    re.DOTALL,
)
# Numbers that follow from the sentence itself.
DERIVED = {
    ("00", "plot-why"): {"100"},  # what 95% means
    ("03", "price-why"): {"25"},  # guessing among four choices
    ("04", "shares-why"): {"6.25"},  # one of sixteen levels, in percent
    ("10", "calibration-why"): {"80"},  # an example of a probability that is claimed
    ("13", "eight-why"): {"56", "560"},  # 8 x 7, in Chinese hundred millions
}


def told(notebook):
    """Return every number that the code or the outputs of a notebook contain."""
    texts = []
    for cell in notebooks.code_cells(notebook):
        texts.append(cell.source)
        for output in cell.outputs:
            shown = output.get("data", {})
            texts += [output.get("text", ""), *(shown.get(kind, "") for kind in ("text/plain", "text/html"))]
    return {number.replace(",", "") for text in texts for number in NUMBER.findall(text)}


def claimed(cell):
    """Return the numbers above nine that a prose cell claims; what an exercise assumes is not a claim."""
    if cell.id.startswith(("exercise", "title")):
        return set()
    numbers = {number.replace(",", "") for number in NUMBER.findall(NO_CLAIM.sub(" ", cell.source))}
    return {number for number in numbers if len(number.rstrip(",")) > 1}


@pytest.mark.parametrize("language", lesson_files.LANGUAGES)
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_every_number_in_prose_is_computed_set_or_cited(lesson, language):
    notebook = nbformat.read(lesson.notebook(language), as_version=4)
    known = told(notebook)
    unproven = {
        cell.id: missing
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        and (missing := claimed(cell) - known - DERIVED.get((lesson.name[:2], cell.id), set()))
    }
    assert not unproven


def test_a_number_that_nothing_computes_is_found():
    cell = nbformat.v4.new_markdown_cell("It loses 17% (arXiv:2210.01324, 2022), see [03](03_lora.ipynb).", id="read")
    assert claimed(cell) == {"17"}
