"""The first cell of a lesson: it installs what is missing and nothing else, restarts at most once, finds the course."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pytest

from ftlab.apps import lesson_files, lesson_setup
from ftlab.errors import LabError

# What ftlab asks for, what this environment has of it, and the versions that the course was run with.
WANTED = ["oldlib>=2", "newlib>=1", "goodlib>=1", "extralib>=3; extra == 'course'", "docslib; extra == 'docs'"]
THERE = {"oldlib": "1.0", "goodlib": "1.5"}
PINS = "# every version\noldlib==2.4\nnewlib==1.1\ngoodlib==1.9\nextralib==3.0\nbehind-it==7\n"


def put(site: Path, name: str, version: str) -> None:
    """Install a package with one module of its name."""
    for old in site.glob(f"{name}-*.dist-info"):
        old.rename(site / f"gone-{old.name}.txt")
    (site / f"{name}.py").write_text("")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(name)


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A machine with other packages than the course's, and a pip that installs what its constraints say."""
    site, course, commands = tmp_path / "site", tmp_path / "carried", []
    site.mkdir()
    course.mkdir()
    (course / "constraints.txt").write_text(PINS)
    for name, version in THERE.items():
        put(site, name, version)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(metadata, "requires", lambda name: WANTED)
    monkeypatch.setattr(lesson_files, "carried", lambda: course)
    machine = SimpleNamespace(site=site, commands=commands, code=0)

    def pip(command, **_):
        pins = Path(command[command.index("-c") + 1]).read_text()
        commands.append((command[command.index("-c") + 2 :], pins))
        for name in [re.split("[>=]", word)[0] for word in commands[-1][0]]:
            put(site, name, re.search(f"{name}==(.+)", pins)[1])
        return SimpleNamespace(returncode=machine.code, stderr="a\nERROR: no such version\n")

    monkeypatch.setattr(subprocess, "run", pip)
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / lesson_setup.MARK).write_text("{}")
    monkeypatch.chdir(tmp_path / "work")
    return machine


def test_what_is_missing_or_too_old_is_installed_as_pinned_and_nothing_else(colab):
    lesson_setup.enter()
    ((words, pins),) = colab.commands
    assert sorted(words) == ["extralib>=3", "newlib>=1", "oldlib>=2"]
    assert "goodlib" not in pins and "oldlib==2.4" in pins and "behind-it==7" in pins
    lesson_setup.enter()
    assert len(colab.commands) == 1, "a second time there is nothing to do"


def test_a_replaced_package_that_is_loaded_restarts_the_kernel_once(colab, monkeypatch, capsys):
    asked = []
    kernel = SimpleNamespace(do_shutdown=lambda restart: asked.append(restart))
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(sys.modules, "oldlib", SimpleNamespace())
    lesson_setup.enter()
    said = capsys.readouterr().out
    assert asked == [True] and "oldlib: replaced" in said and "newlib" not in said.splitlines()[-1]
    lesson_setup.enter()
    assert asked == [True]


def test_pip_s_last_line_is_the_reason(colab):
    colab.code = 1
    with pytest.raises(LabError, match="pip could not install oldlib, newlib, extralib: ERROR: no such version"):
        lesson_setup.enter()


def test_ftlab_as_a_folder_on_the_path_installs_nothing(colab, monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    lesson_setup.enter()
    assert not colab.commands


def test_the_folder_is_one_above_then_the_checkout_then_one_laid_out(tmp_path, monkeypatch, capsys):
    below = tmp_path / "mine" / "notebooks" / "zh"
    below.mkdir(parents=True)
    (tmp_path / "mine" / "data").mkdir()
    (tmp_path / "mine" / lesson_setup.MARK).write_text("{}")
    monkeypatch.chdir(below)
    lesson_setup.enter()
    assert Path.cwd() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    lesson_setup.enter()
    assert Path.cwd() == lesson_files.root()


@pytest.mark.parametrize("disk", [False, True])
def test_without_a_checkout_the_course_is_laid_out_on_the_data_disk_if_there_is_one(tmp_path, monkeypatch, disk):
    checkout = lesson_files.carried()
    (tmp_path / "disk").mkdir()
    package = tmp_path / "package"
    package.mkdir()
    for name in ("notebooks", "data", "recipes", "constraints.txt", "benchmarks"):
        (package / name).symlink_to(checkout / name)
    monkeypatch.setattr(lesson_files, "carried", lambda: package)
    monkeypatch.setattr(lesson_setup, "DATA_DISK", tmp_path / ("disk" if disk else "none"))
    monkeypatch.setattr(lesson_files, "lessons", lambda *_, **__: [])
    monkeypatch.chdir(tmp_path)
    lesson_setup.enter()
    assert Path.cwd() == (tmp_path / "disk" if disk else tmp_path) / "ftlab-course"
    assert Path("data", "orders_train.jsonl").is_file() and Path("notebooks", "source").is_dir()
    edited = Path("data", "orders_train.jsonl")
    edited.write_text("mine")
    monkeypatch.chdir(tmp_path)
    lesson_setup.enter()
    assert Path("data", "orders_train.jsonl").read_text() == "mine"


def test_all_lessons_have_the_same_first_cell():
    cells = {
        next(cell.source for cell in jupytext.read(lesson.source).cells if cell.metadata.get("id") == "setup")
        for lesson in lesson_files.lessons()
    }
    (cell,) = cells
    assert "install -q --no-deps ftlab" in cell and "lesson_setup.enter()" in cell


def test_it_imports_nothing_that_a_fresh_kernel_lacks():
    code = "import sys; from ftlab.apps import lesson_setup; print({name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "transformers", "jupytext", "nbformat", "numpy", "yaml"):
        assert f"'{name}'" not in loaded
