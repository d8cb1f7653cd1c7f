"""The panels in a real browser: in JupyterLab, and as the page that `ftlab board` serves.

Skipped only where there is no Chromium. Pictures of what was seen are kept in build/shots.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from drive import CHROMIUM, browser, enabled, plot, press, run_all, shot, slide, state, step, text, until, write
from lab import TOKEN, lab, private

from ftlab.apps.board import fields, jobs, past, serve
from ftlab.apps.notebooks import METADATA

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium fonts-noto-cjk"),
]
STEPS = 600


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder; kernels started from here find this very ftlab, and keep to a private cache."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    # Tests that run lessons leave it behind.
    monkeypatch.delenv("FTLAB_HEADLESS", raising=False)
    yield folder
    if left := jobs.living_under(folder / "runs"):
        psutil.Process(left.pid).kill()


@pytest.fixture
def values(tiny_recipe):
    """A recipe that trains for some seconds."""
    changed = {"output_dir": "runs/tiny", "max_steps": STEPS, "save_steps": 10_000, "lr_scheduler_type": "constant"}
    return tiny_recipe | changed | {"learning_rate": 1e-3}


@contextlib.contextmanager
def kept(page, name):
    """Keep a picture of what went wrong."""
    try:
        yield
    except BaseException:
        shot(page, f"{name}_failed")
        print("browser console:", page.problems[-5:])
        raise


def losses(folder):
    """Return the losses of a run's log; its steps have to be 1, 2, 3 ... without a gap."""
    rows = past.rows_in(folder)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "steps were lost or done twice"
    return [row["loss"] for row in rows]


def uninterrupted(values, path):
    """Train a recipe from its command, in a process that has as many threads as the kernel had."""
    path.write_text(fields.yaml_lines(values))
    subprocess.run([sys.executable, "-m", "ftlab", "train", str(path)], check=True, capture_output=True)


def turn_a_knob(page):
    """Click a slider's track: command and readouts follow."""
    before = text(page, "readouts")
    slide(page, "lora_rank", 0.75)
    until(lambda: "lora_rank: 64" in text(page, "command"), 10, "the command follows the slider")
    until(lambda: text(page, "readouts") != before, 10, "the readouts follow the slider")


def type_nonsense(page):
    """Wrong input is said beside its field, Start is off, and nothing is run."""
    for wrong in ("ten; touch hacked", "1000000000", "$(touch hacked)"):
        write(page, "max_steps", wrong)
        until(lambda: text(page, "bad-max_steps"), 10, "the field says what is wrong")
        until(lambda: not enabled(page, "start"), 10, "Start is off")
    write(page, "output_dir", "../../outside")
    until(lambda: text(page, "bad-output_dir"), 10, "a folder outside is refused")
    write(page, "max_steps", str(STEPS))
    write(page, "output_dir", "runs/tiny")
    until(lambda: enabled(page, "start"), 10, "Start is on again")


def test_jupyterlab(place, values, tmp_path):
    cells = [
        "from ftlab.apps.board.train_panel import TrainPanel",
        f"panel = TrainPanel({values!r}, lang='zh')\npanel.show()",
    ]
    made = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=METADATA), place / "knobs.ipynb")
    with lab(place, tmp_path / "private") as address, browser() as page, kept(page, "lab"):
        page.goto(f"{address}/doc/tree/knobs.ipynb?token={TOKEN}")
        run_all(page)
        until(lambda: page.locator("button.ft-start").count(), 90, "the panel is shown")
        page.locator(".ft-lora_rank").first.scroll_into_view_if_needed()
        turn_a_knob(page)
        type_nonsense(page)
        empty = plot(page)
        press(page, "start")
        until(lambda: step(page) >= 20, 60, "training is on its way")
        until(lambda: plot(page) != empty, 10, "the plot moves")
        shot(page, "lab_running")
        press(page, "stop")
        until(lambda: state(page) == "stopped", 30, "it stops")
        stopped = len(losses(place / "runs" / "tiny"))
        assert 20 <= stopped < STEPS and (place / "runs" / "tiny" / f"checkpoint-{stopped}").is_dir()
        shot(page, "lab_stopped")
        press(page, "start")
        until(lambda: state(page) == "done", 120, "it goes on to the end")
        shot(page, "lab_done")
    uninterrupted(values | {"output_dir": "runs/whole", "lora_rank": 64}, place / "whole.yaml")
    assert losses(place / "runs" / "tiny") == losses(place / "runs" / "whole"), "as if it had never been stopped"
    assert not list(place.rglob("hacked")) and not (place.parent / "outside").exists()


def kernels(served):
    """Return the kernels of a page's server."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    return [child for child in children if any("ipykernel" in word for word in child.cmdline())]


def opened(page, url):
    """Open the page and wait for its panels."""
    page.goto(url)
    until(lambda: page.locator("button.ft-start").count(), 120, "the panels are shown")


def test_the_page_of_ftlab_board(place, values, tmp_path):
    path = place / "tiny.yaml"
    path.write_text(fields.yaml_lines(values | {"max_steps": 20_000}))
    folder = place / "runs" / "tiny"
    with (
        serve.serving(str(path), lang="zh", environment=private(tmp_path / "private")) as served,
        browser() as page,
        kept(page, "page"),
    ):
        page.goto(served.url.split("?")[0])
        assert page.locator("button.ft-start").count() == 0 and not kernels(served), "nothing without the token"
        opened(page, served.url)
        assert page.locator(".jp-CodeCell .cm-editor, .jp-InputArea, .highlight").count() == 0, "no code is shown"
        assert [tab.text_content() for tab in page.locator(".ftlab-board .lm-TabBar-tab").all()] == [
            "数据",
            "训练",
            "对话",
        ]
        turn_a_knob(page)
        press(page, "start")
        until(lambda: step(page) >= 5, 90, "training is on its way")
        pid = json.loads((folder / jobs.JOB).read_text())["pid"]
        shot(page, "page_running")
        opened(page, served.url)
        until(lambda: step(page) >= 10, 60, "the page finds its training after a reload")
        assert "lora_rank: 64" in text(page, "command") and not enabled(page, "start")
        for kernel in kernels(served):
            kernel.kill()
        assert psutil.pid_exists(pid), "the training outlives the kernel"
        assert not page.problems, page.problems
        opened(page, served.url)
        # What the page said while its kernel died is about that.
        page.problems.clear()
        at = len(past.rows_in(folder))
        until(lambda: step(page) > at, 60, "the page finds its training after the kernel's death")
        shot(page, "page_attached")
        press(page, "stop")
        until(lambda: state(page) == "stopped", 60, "it stops")
        stopped = len(losses(folder))
        assert (folder / f"checkpoint-{stopped}").is_dir() and jobs.living(folder) is None
        page.get_by_role("tab", name="数据").click()
        until(lambda: page.locator(".ft-tokens span").count() > 10, 20, "a row is shown token by token")
        shot(page, "page_data")
        page.get_by_role("tab", name="对话").click()
        press(page, "chat_load")
        until(lambda: enabled(page, "chat_send"), 60, "the model is loaded")
        page.locator(".ft-chat_question textarea").fill("What is 1 plus 1?")
        page.locator(".ft-chat_question textarea").press("Tab")
        press(page, "chat_send")
        until(lambda: page.locator(".ft-turn").count() >= 2 and enabled(page, "chat_send"), 60, "it answers")
        shot(page, "page_chat")
        assert not page.problems, page.problems
