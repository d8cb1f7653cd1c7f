"""Lessons' instant experiments in JupyterLab: a control that moves draws another picture."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
import tiny
from drive import CHROMIUM, browser, finished, run_all, shot, until
from lab import TOKEN, lab

from ftlab import embedded, models
from ftlab.apps import lesson_files, notebooks

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium fonts-noto-cjk"),
]
# 00 and 03 have the training panel, which test_board_browser.py drives. Each lesson takes half a minute: these two in
# `make test`, the others in `make test-slow`.
QUICK, TRAINING = ("02", "06"), ("00", "03")
INSTANT = [
    pytest.param(lesson, id=lesson.name, marks=[] if lesson.number in QUICK else [pytest.mark.lengthy])
    for lesson in lesson_files.lessons()
    if lesson.number not in TRAINING
]


@pytest.fixture(scope="module")
def course_folder(tmp_path_factory) -> Path:
    """A folder with the course's data, and a model that is small enough to wait for."""
    embedded.fetch()
    folder = tmp_path_factory.mktemp("course")
    for name in ("data", "benchmarks"):  # lesson 05 reads the rates that were tried
        shutil.copytree(ROOT / name, folder / name)
    tiny.make_small_model(models.fetch("smollm2-135m"), folder / "model")
    return folder


@pytest.fixture(scope="module")
def address(course_folder, tmp_path_factory):
    """JupyterLab over that folder; its kernels find this very ftlab."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.delenv("FTLAB_HEADLESS", raising=False)
        with lab(course_folder, tmp_path_factory.mktemp("private")) as served:
            yield served


def up_to_the_experiment(lesson: lesson_files.Lesson, folder: Path) -> str:
    """Put a lesson, as far as its experiment and in its smallest size, into the folder."""
    made = notebooks.edition(lesson, "en")
    last = next(place for place, cell in enumerate(made.cells) if "experiment.show(" in cell.source)
    made.cells = made.cells[: last + 1]
    (parameters,) = [cell for cell in made.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += f"\nPROFILE, model_name = 'smoke', {str(folder / 'model')!r}\n"
    nbformat.write(made, folder / f"{lesson.name}.ipynb")
    return f"{lesson.name}.ipynb"


def move_controls(page) -> None:
    """Click each slider near its end, or choose another entry; one alone may change nothing for a tiny model."""
    box = page.locator(".widget-vbox:has(> .ft-picture)").last
    sliders = box.locator(".noUi-target").all()
    for slider in sliders:
        slider.scroll_into_view_if_needed()
        place = slider.bounding_box()
        page.mouse.click(place["x"] + place["width"] * 0.9, place["y"] + place["height"] / 2)
    if not sliders:
        box.locator("select").first.select_option(index=1)


@pytest.mark.parametrize("lesson", INSTANT)
def test_a_control_draws_another_picture(lesson, course_folder, address):
    name = up_to_the_experiment(lesson, course_folder)
    with browser() as page:
        page.goto(f"{address}/doc/tree/{name}?token={TOKEN}")
        run_all(page)
        until(lambda: finished(page), "every cell of the lesson has run")
        picture = page.locator(".ft-picture img").last
        until(picture.count, "the experiment draws")
        picture.scroll_into_view_if_needed()
        before = picture.get_attribute("src")
        move_controls(page)
        until(lambda: picture.count() and picture.get_attribute("src") != before, "it draws again")
        shot(page, f"experiment_{lesson.number}", ".ft-picture")
