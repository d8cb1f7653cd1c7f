"""`ftlab course start`: the course in a folder of the learner's, whose changes are never lost."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from test_course import SOURCE

from ftlab.apps import cli, course_start, lesson_files, notebooks
from ftlab.errors import LabError

LESSON = "notebooks/00_test.ipynb"


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A package that carries a course of one lesson and one data set."""
    package = tmp_path / "package"
    (package / "notebooks" / "source").mkdir(parents=True)
    write_lesson(package, "A test lesson")
    for name in ("data/rows.json", "recipes/sft.yaml", "constraints.txt", "benchmarks/methods.json"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(f"{name} of version 1")
    monkeypatch.setattr(lesson_files, "carried", lambda: package)
    monkeypatch.setattr(course_start, "__version__", "2.0")
    # An installed package has no checkout around it.
    monkeypatch.setattr(notebooks, "root", lambda: pytest.fail("there is no course here yet"))
    return package


def write_lesson(package: Path, heading: str, answer: int = 0) -> None:
    source = SOURCE.replace("A test lesson", heading)
    text = source.format(digest=notebooks.digest(f"# 07 · {heading}"), answer=answer)
    (package / "notebooks" / "source" / "00_test.py").write_text(text, encoding="utf-8")


def test_a_new_folder_gets_both_editions_data_and_recipes(carried, tmp_path):
    written, kept = course_start.lay_out(tmp_path / "mine")
    english, chinese = LESSON, "notebooks/zh/00_test.ipynb"
    rest = [
        "benchmarks/methods.json",
        "constraints.txt",
        "data/rows.json",
        "notebooks/source/00_test.py",
        "recipes/sft.yaml",
    ]
    assert sorted(written) == sorted([english, chinese, *rest]) and kept == {}
    assert nbformat.read(tmp_path / "mine" / chinese, as_version=4).cells[0].source == "# 07 · 测试课"
    assert not list((tmp_path / "mine").rglob("partial-*"))


def test_the_same_version_again_writes_nothing(carried, tmp_path):
    course_start.lay_out(tmp_path / "mine")
    assert course_start.lay_out(tmp_path / "mine") == ([], {})


def test_a_new_version_renews_what_was_not_changed(carried, tmp_path):
    course_start.lay_out(tmp_path / "mine")
    (carried / "data" / "rows.json").write_text("version 2")
    assert course_start.lay_out(tmp_path / "mine") == (["data/rows.json"], {})
    assert (tmp_path / "mine" / "data" / "rows.json").read_text() == "version 2"


def test_a_changed_lesson_is_kept_and_the_new_version_lies_beside_it(carried, tmp_path):
    mine = tmp_path / "mine"
    course_start.lay_out(mine)
    (mine / LESSON).write_text("my answers")
    write_lesson(carried, "A better lesson")
    _, kept = course_start.lay_out(mine)
    assert kept == {LESSON: "notebooks/00_test.v2.0.ipynb"}
    assert (mine / LESSON).read_text() == "my answers"
    assert "A better lesson" in (mine / kept[LESSON]).read_text(encoding="utf-8")
    # Also the next time: what was kept once has not become the old version.
    course_start.lay_out(mine)
    assert (mine / LESSON).read_text() == "my answers"


def add_a_cell(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("mine = 1", id="mine"))
    nbformat.write(notebook, path)


def run_a_cell(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cell = notebooks.code_cells(notebook)[0]
    cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(notebook, path)


def drop_a_cell(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    del notebook.cells[-1]
    nbformat.write(notebook, path)


def link_to_my_own(path: Path) -> None:
    own = path.parents[2] / "elsewhere.ipynb"
    own.write_text("mine")
    path.unlink()
    path.symlink_to(own)


EDITS = {
    "a cell added": (LESSON, add_a_cell),
    "a cell run": (LESSON, run_a_cell),
    "a cell removed": (LESSON, drop_a_cell),
    "the Chinese edition": ("notebooks/zh/00_test.ipynb", add_a_cell),
    "a broken file": (LESSON, lambda path: path.write_text("{")),
    "an emptied file": (LESSON, lambda path: path.write_bytes(b"")),
    "a link": (LESSON, link_to_my_own),
    "one byte": ("data/rows.json", lambda path: path.write_bytes(path.read_bytes() + b" ")),
    "line ends": ("recipes/sft.yaml", lambda path: path.write_bytes(path.read_bytes() + b"\r\n")),
    "the source": ("notebooks/source/00_test.py", lambda path: path.write_text("# mine", encoding="utf-8")),
    "a file without suffix rules": ("constraints.txt", lambda path: path.write_text("mine==1")),
}


@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_is_lost_over_three_upgrades(carried, tmp_path, monkeypatch, edit):
    mine, (name, change) = tmp_path / "mine", EDITS[edit]
    course_start.lay_out(mine)
    change(mine / name)
    wanted = {name: (mine / name).read_bytes()}
    # The version's number stays the same at the last one, as between two commits.
    for answer, (version, heading) in enumerate([("3.0", "Better"), ("4.0", "Better still"), ("4.0", "Best")], start=1):
        monkeypatch.setattr(course_start, "__version__", version)
        write_lesson(carried, heading, answer)
        for other in ("data/rows.json", "recipes/sft.yaml", "constraints.txt"):
            (carried / other).write_text(f"{other}: {heading}")
        _, kept = course_start.lay_out(mine)
        assert {one: (mine / one).read_bytes() for one in wanted} == wanted
        assert kept[name] not in wanted
        # The learner works on in the file that was put beside.
        edited = mine / kept[name]
        edited.write_text(f"my answers to {heading}")
        wanted[kept[name]] = edited.read_bytes()
    assert len(wanted) == 4


def test_a_file_of_the_learners_own_is_never_replaced(carried, tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "rows.json").write_text("my rows")
    _, kept = course_start.lay_out(tmp_path / "mine")
    assert kept == {"data/rows.json": "data/rows.v2.0.json"}
    assert (tmp_path / "mine" / "data" / "rows.json").read_text() == "my rows"


@pytest.mark.parametrize("record", ["", "{", "[]", '{"files": 3}'])
def test_a_lost_record_counts_every_different_file_as_changed(carried, tmp_path, record):
    mine = tmp_path / "mine"
    course_start.lay_out(mine)
    (mine / course_start.LAID_OUT).write_text(record)
    (carried / "data" / "rows.json").write_text("version 2")
    assert course_start.lay_out(mine)[1] == {"data/rows.json": "data/rows.v2.0.json"}
    assert json.loads((mine / course_start.LAID_OUT).read_text())["version"] == "2.0"


def test_a_file_in_the_place_of_the_folder_is_one_line(carried, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(LabError, match="not a folder"):
        course_start.lay_out(tmp_path / "mine")
    assert cli.main(["course", "start", str(tmp_path / "mine" / "below"), "--no-open"]) == 2


def test_a_changed_file_whose_new_version_is_the_old_one_is_left_alone(carried, tmp_path):
    course_start.lay_out(tmp_path / "mine")
    (tmp_path / "mine" / LESSON).write_text("my answers")
    assert course_start.lay_out(tmp_path / "mine") == ([], {})


def test_the_verb_names_what_it_kept(carried, tmp_path, capsys):
    mine = tmp_path / "mine"
    assert cli.main(["course", "start", str(mine), "--no-open"]) == 0
    (mine / LESSON).write_text("my answers")
    write_lesson(carried, "A better lesson")
    assert cli.main(["course", "start", str(mine), "--no-open"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{mine}: files written: 7" and third == f"{mine}: files written: 2"
    assert second.startswith(f"{LESSON} has your changes and is kept")


@pytest.mark.parametrize(("language", "place"), [("en", "notebooks"), ("zh", "notebooks/zh")])
def test_the_lab_opens_the_first_lesson_in_its_language(monkeypatch, tmp_path, language, place):
    seen = {}

    def run(command, **options):
        seen.update(options, command=command)
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(course_start.subprocess, "run", run)
    assert course_start.open_lab(tmp_path, language) == 0
    assert seen["command"][1:] == ["-m", "jupyterlab", str(tmp_path / place / "00_first_finetune.ipynb")]
    assert seen["env"]["FTLAB_LANG"] == language and seen["cwd"] == tmp_path


def test_every_file_that_a_lesson_reads_is_carried():
    for lesson in lesson_files.lessons():
        for name in re.findall(r'open\("((?!runs)\w+/[^"]+)"', lesson.source.read_text(encoding="utf-8")):
            assert name.startswith(course_start.PARTS), f"{lesson.name} reads {name}"
