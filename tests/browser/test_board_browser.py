"""The panels in a real browser: in JupyterLab, and as the page that `ftlab board` serves.

Skipped only where there is no Chromium. Pictures of what was seen are kept in build/shots.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from drive import (
    CHROMIUM,
    browser,
    enabled,
    finished,
    kept,
    opened,
    plot,
    press,
    run_all,
    shot,
    slide,
    state,
    step,
    text,
    until,
    write,
)
from lab import TOKEN, lab, private

from ftlab import embedded
from ftlab.apps import lesson_files, notebooks
from ftlab.apps.board import controls, training_job, voila_server
from ftlab.runs import folder as folders

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium fonts-noto-cjk"),
]


def losses(folder):
    """Return the losses of a run's log; its steps have to be 1, 2, 3 ... without a gap."""
    rows = folders.read_log(folder)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "steps were lost or done twice"
    return [row["loss"] for row in rows]


def uninterrupted(values, path):
    """Train a recipe from its command, in a process that has as many threads as the kernel had."""
    path.write_text(controls.yaml_lines(values))
    subprocess.run([sys.executable, "-m", "ftlab", "train", str(path)], check=True, capture_output=True)


def move_a_slider(page):
    """Click a slider's track: command and readouts follow."""
    until(lambda: "…" not in text(page, "readouts"), "the first estimates are shown")
    before = text(page, "readouts")
    slide(page, "lora_rank", 0.75)
    until(lambda: "lora_rank: 64" in text(page, "command"), "the command follows the slider")
    until(lambda: text(page, "readouts") != before, "the readouts follow the slider")


def type_nonsense(page, steps, folder):
    """Wrong input is said beside its field, Start is off, and nothing is run."""
    for wrong in ("ten; touch hacked", "1000000000", "$(touch hacked)"):
        write(page, "max_steps", wrong)
        until(lambda: text(page, "bad-max_steps"), "the field says what is wrong")
        until(lambda: not enabled(page, "start"), "Start is off")
    write(page, "output_dir", "../../outside")
    until(lambda: text(page, "bad-output_dir"), "a folder outside is refused")
    write(page, "max_steps", str(steps))
    write(page, "output_dir", folder)
    until(lambda: enabled(page, "start"), "Start is on again")


def lesson_in(place):
    """Put lesson 03 as a Chinese learner has it into a course folder, with the smallest profile."""
    (lesson,) = lesson_files.lessons(["03"])
    made = notebooks.edition(lesson, "zh")
    (parameters,) = [cell for cell in made.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = parameters.source.replace('PROFILE = "cpu"', 'PROFILE = "smoke"')
    assert 'PROFILE = "smoke"' in parameters.source
    (place / "notebooks" / "zh").mkdir(parents=True)
    nbformat.write(made, place / "notebooks" / "zh" / "03_lora.ipynb")
    shutil.copytree(ROOT / "data", place / "data")
    return "notebooks/zh/03_lora.ipynb"


@pytest.mark.notebook
def test_lesson_03_in_jupyterlab(place, tmp_path, monkeypatch):
    embedded.fetch()
    monkeypatch.setenv("FTLAB_LANG", "zh")
    name, folder, steps = lesson_in(place), place / "runs" / "03_experiment" / "run", 16
    with lab(place, tmp_path / "private") as address, browser() as page, kept(page, "lab"):
        page.goto(f"{address}/doc/tree/{name}?token={TOKEN}")
        run_all(page)
        until(lambda: finished(page), "every cell of the lesson has run")
        assert text(page, "readouts") and enabled(page, "start")
        move_a_slider(page)
        slide(page, "per_device_train_batch_size", 1 / 7)
        until(lambda: "per_device_train_batch_size: 2" in text(page, "command"), "two rows at a time")
        type_nonsense(page, steps, "runs/03_experiment/run")
        empty = plot(page)
        press(page, "start")
        until(lambda: step(page) >= 4, "training is on its way")
        until(lambda: plot(page) != empty, "the plot moves")
        shot(page, "lab_running", ".ft-plot")
        press(page, "stop")
        until(lambda: state(page) == "stopped", "it stops")
        stopped = len(losses(folder))
        assert 4 <= stopped < steps and (folder / f"checkpoint-{stopped}").is_dir()
        shot(page, "lab_stopped", ".ft-plot")
        press(page, "start")
        until(lambda: state(page) == "done", "it goes on to the end")
        shot(page, "lab_done", ".ft-plot")
        shot(page, "lab_settings", ".ft-lora_rank")
    values = folders.read_recipe(folder)
    assert (values["lora_rank"], values["max_steps"]) == (64, steps)
    uninterrupted(values | {"output_dir": "runs/whole"}, place / "whole.yaml")
    assert losses(folder) == losses(place / "runs" / "whole"), "as if it had never been stopped"
    assert not list(place.rglob("hacked")) and not (place.parent / "outside").exists()


def kernels(served):
    """Return the kernels of a page's server."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    return [child for child in children if any("ipykernel" in word for word in child.cmdline())]


def evaluate(page, rows):
    """Wrong input blocks the button; then the base is scored."""
    page.get_by_role("tab", name="评测").click()
    until(lambda: text(page, "bad-eval_dataset", ".ftlab-evaluate"), "a set has to be named")
    assert not enabled(page, "evaluate_start")
    write(page, "eval_dataset", rows, ".ftlab-evaluate")
    until(lambda: enabled(page, "evaluate_start"), "it can be evaluated")
    press(page, "evaluate_start")
    until(lambda: page.locator(".ft-evaluate_start-result td").count() > 2, "the scores are shown")
    shot(page, "page_evaluate")


def export(page, place):
    """The figures are there before, the verification after, and the folder is then said to hold it, not marked."""
    page.get_by_role("tab", name="导出").click()
    until(lambda: "GiB" in text(page, "export_start-before"), "what it takes")
    press(page, "export_start")
    until(lambda: page.locator(".ft-export_start-result td").count() > 2, "the verification is shown")
    assert (place / "runs" / "merged" / "model.safetensors").is_file()
    said = page.locator(".ftlab-export .ft-bad-export_dir:visible")
    until(lambda: said.count() and not enabled(page, "export_start"), "the folder has it")
    assert not said.locator(".ft-bad").count() and "已导出" in said.text_content()
    shot(page, "page_export")


def look_at_memory(page):
    """A wrong number empties the table, another machine fills it anew."""
    page.get_by_role("tab", name="内存").click()
    cells = page.locator(".ft-sized-table td")
    until(cells.count, "the table")
    full = cells.count()
    assert full > 10
    write(page, "sized_lengths", "512; ls")
    until(lambda: cells.count() == 0 and text(page, "bad-sized_lengths"), "the field says what is wrong")
    write(page, "sized_lengths", "512, 2048, 8192")
    until(lambda: cells.count() == full, "the table is back")
    write(page, "model_name_or_path", "qwen2.5-7b", ".ftlab-memory")
    page.locator(".ft-sized_for select").select_option("24 GB")
    until(lambda: "qwen2.5-7b" in text(page, "sized-table"), "another model")
    until(lambda: "24 GB 可用的" in text(page, "sized-table"), "another machine")
    shot(page, "page_memory")


def take_the_quiz(page):
    """An answer is judged and explained."""
    page.get_by_role("tab", name="学习").click()
    until(lambda: page.locator(".ft-quiz-choices input").count(), "a question")
    assert not enabled(page, "quiz_check")
    page.locator(".ft-quiz-choices input").first.check()
    until(lambda: enabled(page, "quiz_check"), "an answer can be checked")
    press(page, "quiz_check")
    until(lambda: len(text(page, "quiz-verdict")) > 40, "it is explained")
    shot(page, "page_quiz")


def test_the_page_of_ftlab_board(place, values, tmp_path):
    path = place / "tiny.yaml"
    path.write_text(controls.yaml_lines(values | {"max_steps": 20_000}))
    folder = place / "runs" / "tiny"
    with (
        voila_server.serving(str(path), lang="zh", environment=private(tmp_path / "private")) as served,
        browser() as page,
        kept(page, "page"),
    ):
        page.goto(served.url.split("?")[0])
        assert page.locator("button.ft-start").count() == 0 and not kernels(served), "nothing without the token"
        opened(page, served.url)
        assert page.locator(".jp-CodeCell .cm-editor, .jp-InputArea, .highlight").count() == 0, "no code is shown"
        titles = ["数据", "训练", "评测", "对比", "对话", "导出", "内存", "学习"]
        tabs = page.locator(".ftlab-board .lm-TabBar-tab")
        until(lambda: tabs.all_text_contents() == titles, "the steps in their order")
        move_a_slider(page)
        press(page, "start")
        until(lambda: step(page) >= 5, "training is on its way")
        pid = json.loads((folder / folders.PANEL_JOB).read_text())["pid"]
        shot(page, "page_running")
        opened(page, served.url)
        until(lambda: step(page) >= 10, "the page finds its training after a reload")
        assert "lora_rank: 64" in text(page, "command") and not enabled(page, "start")
        for kernel in kernels(served):
            kernel.kill()
        assert psutil.pid_exists(pid), "the training outlives the kernel"
        assert not page.problems, page.problems
        opened(page, served.url)
        # What the page said while its kernel died is about that.
        page.problems.clear()
        at = len(folders.read_log(folder))
        until(lambda: step(page) > at, "the page finds its training after the kernel's death")
        shot(page, "page_attached")
        press(page, "stop")
        until(lambda: state(page) == "stopped", "it stops")
        stopped = len(losses(folder))
        assert (folder / f"checkpoint-{stopped}").is_dir() and training_job.living(folder) is None
        page.get_by_role("tab", name="数据").click()
        until(lambda: page.locator(".ft-tokens span").count() > 10, "a row is shown token by token")
        shot(page, "page_data")
        page.get_by_role("tab", name="对话").click()
        press(page, "chat_load")
        until(lambda: enabled(page, "chat_send"), "the model is loaded")
        page.locator(".ft-chat_question textarea").fill("What is 1 plus 1?")
        page.locator(".ft-chat_question textarea").press("Tab")
        press(page, "chat_send")
        until(lambda: page.locator(".ft-turn").count() >= 2 and enabled(page, "chat_send"), "it answers")
        shot(page, "page_chat")
        evaluate(page, values["dataset"])
        export(page, place)
        look_at_memory(page)
        take_the_quiz(page)
        assert not page.problems, page.problems
