"""The data panel and the chat panel without a browser: rows as the model sees them, answers side by side."""

import html
import itertools
import json
import re

import pytest

from ftlab import saved_weights
from ftlab.apps.board import controls, page
from ftlab.apps.board.chat_panel import BASE, ChatPanel
from ftlab.apps.board.data_panel import DataPanel
from ftlab.errors import LANGUAGES
from ftlab.recipe import read as recipes
from ftlab.runs import chat, train


def shown(widget):
    """Return the text of an HTML widget."""
    return html.unescape(re.sub(r"<[^>]+>", "", widget.value))


@pytest.fixture
def registered(tiny_rows, tmp_path):
    """A folder with a dataset_info.json over the tiny rows."""
    folder = tmp_path / "sets"
    folder.mkdir()
    info = {}
    for name in ("sft", "text", "preference", "kto"):
        (folder / f"{name}.json").write_bytes((tiny_rows / f"{name}.json").read_bytes())
        info[name] = {"file_name": f"{name}.json"}
    info["preference"]["ranking"] = True
    info["preference"]["columns"] = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    info["text"]["columns"] = {"prompt": "text"}
    info["kto"]["columns"] = {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_lengths_are_said_in_the_language_of_the_panel(registered, tiny_model_dir):
    panel = DataPanel("sft", registered, str(tiny_model_dir), lang="zh")
    said = shown(panel.lengths)
    assert "12 个训练样本" in said and "结束符结尾：100%" in said and "training" not in said and "turn end" not in said


@pytest.mark.parametrize("name", ["sft", "text", "preference", "kto"])
def test_rows_of_every_kind_are_shown_with_what_is_trained_on(registered, tiny_model_dir, name):
    panel = DataPanel(name, registered, str(tiny_model_dir))
    assert set(panel.name.options) == {"sft", "text", "preference", "kto"}
    assert "example 1 of 12" in shown(panel.caption), shown(panel.caption)
    assert "#b7e4c7" in panel.shown.value and "12 examples" in shown(panel.lengths)
    first = panel.shown.value
    panel.next.click()
    assert panel.shown.value != first and "example 2 of 12" in shown(panel.caption)
    panel.before.click()
    panel.before.click()
    assert panel.shown.value == first
    panel.check.click()
    assert "12" in shown(panel.report)


def test_problems_are_shown_and_a_set_that_is_not_there_is_said(registered, tiny_model_dir):
    (registered / "sft.json").write_text(json.dumps([{"instruction": "<b>x</b>", "output": ""}, {"output": "y"}]))
    panel = DataPanel("sft", registered, str(tiny_model_dir))
    panel.check.click()
    assert "sft.json" in shown(panel.report) and "<b>x" not in panel.report.value
    panel.name.value = "no_such_set; rm -rf ~"
    assert "cannot be shown" in shown(panel.caption) and not panel.shown.value
    panel.name.value = "text"
    assert "example 1 of 12" in shown(panel.caption)
    panel.model.value = "no-such-model"
    assert "cannot be shown" in shown(panel.caption)


def test_the_cut_is_applied(registered, tiny_model_dir):
    panel = DataPanel("sft", registered, str(tiny_model_dir), cutoff_len=16, lang="zh")
    assert "16 个 token" in shown(panel.caption)


@pytest.fixture
def two_runs(tiny_recipe, tmp_path):
    """A folder with two finished runs."""
    for name, seed in (("one", 1), ("two", 2)):
        changed = {"output_dir": str(tmp_path / "runs" / name), "seed": seed, "max_steps": 6 * seed}
        train.train(recipes.load(tiny_recipe | changed), quiet=True)
    return tmp_path / "runs"


def test_base_and_adapters_answer_side_by_side(two_runs, tiny_model_dir):
    panel = ChatPanel(str(tiny_model_dir), runs=two_runs)
    assert {label for label, _ in panel.adapters.options[:2]} == {"one", "two"}, "runs, then their checkpoints"
    panel.adapters.value = tuple(str(two_runs / name) for name in ("one", "two"))
    panel.sampling["max_new_tokens"].value = 8
    panel.system.value = "Be brief."
    assert panel.send.disabled
    panel.load_button.click()
    assert panel.idle.wait(600)
    assert "2 adapters" in shown(panel.status), shown(panel.status)
    for question in ("What is 1 plus 1?", "<script>alert(1)</script>"):
        panel.question.value = question
        panel.send.click()
        assert panel.idle.wait(600)
    assert sorted(panel.histories) == [BASE, "one", "two"] and len(panel.table.children) == 3
    answers = {name: [turn["content"] for turn in turns] for name, turns in panel.histories.items()}
    assert all(len(turns) == 4 for turns in answers.values())
    assert answers["one"] != answers[BASE] and answers["two"] != answers["one"], answers
    assert all("<script>" not in column.value for column in panel.columns.values())
    panel.clear.click()
    assert all(not turns for turns in panel.histories.values())


def test_the_sampling_fields_reach_generate_and_stop_ends_an_answer(tiny_model_dir, monkeypatch):
    panel = ChatPanel(str(tiny_model_dir), adapters=[])
    assert "temperature" not in panel.generation() and panel.generation()["do_sample"] is False
    panel.sampling["do_sample"].value = True
    panel.sampling["temperature"].value = 1.5
    assert panel.generation()["temperature"] == 1.5
    panel.sampling["max_new_tokens"].value = 1024
    panel.load_button.click()
    assert panel.idle.wait(600)
    monkeypatch.setattr(chat, "stream", lambda *_, **__: (piece for piece in itertools.repeat("one ")))
    panel.question.value = "Count."
    panel.send.click()
    panel.stop.click()
    assert panel.idle.wait(600) and not panel.send.disabled, "nothing else ends this answer"


def test_what_cannot_be_loaded_is_said(tmp_path):
    panel = ChatPanel("no-such-model", adapters=[tmp_path / "nothing"], lang="zh")
    panel.load_button.click()
    assert panel.idle.wait(600)
    assert 'data-state="chat_failed"' in panel.status.value and re.search(r"[\u4e00-\u9fff]", shown(panel.status))
    assert panel.send.disabled


def test_a_training_that_ends_on_the_page_can_be_talked_to(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(tiny_recipe | {"output_dir": "runs/tiny"}))
    board = page.Board("tiny.yaml", lang="zh")
    board.tabs.selected_index = list(page.STEPS).index("tab_chat")
    chatting = board.panels["tab_chat"]
    assert not chatting.adapters.options
    train.train(recipes.load(tiny_recipe | {"output_dir": "runs/tiny", "save_steps": 2}), quiet=True)
    for action in board.train.after:
        action()
    labels = [label for label, _ in chatting.adapters.options]
    kept = [path.name for path in saved_weights.checkpoints(tmp_path / "runs" / "tiny")]
    assert kept and labels == ["tiny", *(f"tiny/{name}" for name in kept)]
    chatting.adapters.value = tuple(place for _, place in chatting.adapters.options)
    chatting.load()
    assert chatting.idle.wait(120) and list(chatting.histories) == ["", *labels]
    for name in ("tab_evaluate", "tab_export"):
        board.tabs.selected_index = list(page.STEPS).index(name)
        assert board.panels[name].task.form.controls["adapter_name_or_path"].value == "runs/tiny"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_control_has_a_tooltip_in_the_panel_s_language(registered, tiny_model_dir, lang):
    chatting = ChatPanel(str(tiny_model_dir), adapters=[], lang=lang)
    looking = DataPanel("sft", registered, str(tiny_model_dir), lang=lang)
    controls = [*chatting.sampling.values(), chatting.model, chatting.send, looking.name, looking.check]
    for control in controls:
        assert (re.search(r"[\u4e00-\u9fff]", control.tooltip) is not None) == (lang == "zh")
