"""`ftlab course export --complete`: lessons as one notebook, and the recipes in a zip file."""

import ast
import re
import zipfile
from collections import Counter

import nbformat
import pytest

from ftlab.apps import cli, complete, lesson_files


@pytest.fixture(scope="module", params=lesson_files.LANGUAGES)
def whole(request):
    lessons = lesson_files.lessons(complete.THREAD)
    return request.param, complete.joined(lessons, request.param)


def test_the_whole_is_a_valid_notebook_with_one_setup_and_one_profile(whole):
    _, notebook = whole
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells[:4]] == ["title", "setup", "parameters", "01-fresh"]
    assert max(Counter(cell.id for cell in notebook.cells).values()) == 1
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("lesson_setup.enter" in cell.source for cell in code) == 1
    assert sum(bool(re.search(r"^PROFILE =", cell.source, re.MULTILINE)) for cell in code) == 1
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]
    for cell in code:
        ast.parse(cell.source)


def test_every_part_has_its_cells_but_the_exercises(whole):
    _, notebook = whole
    for number in complete.THREAD:
        ids = {cell.id for cell in notebook.cells if cell.id.startswith(f"{number}-")}
        assert {f"{number}-{name}" for name in ("title", "imports", "parameters", "profile", "checkpoint")} <= ids
        assert not [name for name in ids if "exercise" in name]


def test_no_link_leads_to_a_lesson_that_is_not_beside_it(whole):
    language, notebook = whole
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert ".ipynb)" not in prose
    assert lesson_files.title(lesson_files.lessons(["08"])[0], language) in prose


def test_the_verb_writes_both_files_and_never_over_one(tmp_path, capsys):
    file = tmp_path / "here" / "all.ipynb"
    assert cli.main(["course", "export", "--complete", "--out", str(file)]) == 0
    before = file.read_bytes()
    assert len(nbformat.read(file, as_version=4).cells) > 200
    with zipfile.ZipFile(tmp_path / "here" / "all-recipes.zip") as packed:
        there = {path.relative_to(lesson_files.carried()).as_posix() for path in recipes()}
        assert set(packed.namelist()) == there
    assert cli.main(["course", "export", "--out", str(file)]) == 2
    assert "may have your work in it" in capsys.readouterr().err and file.read_bytes() == before
    file.unlink()
    assert cli.main(["course", "export", "03", "--out", str(file)]) == 2 and not file.exists()


def recipes():
    return [path for path in (lesson_files.carried() / "recipes").rglob("*") if path.is_file()]


def test_lessons_can_be_chosen_and_a_contradiction_is_refused(tmp_path):
    file = tmp_path / "two.ipynb"
    assert cli.main(["course", "export", "8", "--lang", "zh", "--out", str(file)]) == 0
    parts = {cell.id[:2] for cell in nbformat.read(file, as_version=4).cells if cell.id[0].isdigit()}
    assert parts == {"08"}
    assert cli.main(["course", "export", "8", "--complete", "--out", str(tmp_path / "no.ipynb")]) == 2
    assert cli.main(["course", "export", "77", "--out", str(tmp_path / "no.ipynb")]) == 2
    assert not (tmp_path / "no.ipynb").exists()


def test_a_part_begins_with_the_profile_and_no_name_of_the_part_before():
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    cells = ['PROFILE = "smoke"', "import json\nmodel = 1\ndef answer(): return model", complete.FRESH, "left = dir()"]
    assert all(shell.run_cell(cell).success for cell in cells)
    assert shell.user_ns["PROFILE"] == "smoke" and not {"json", "model", "answer"} & set(shell.user_ns["left"])
    assert shell.run_cell(complete.FRESH).success and shell.run_cell("In, Out, get_ipython").success
