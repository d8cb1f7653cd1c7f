"""Settings as files, the drawer of all keys, runs beside each other, data that is uploaded and repaired."""

import json
import shutil
from datetime import datetime

import pytest
from ipywidgets import Textarea
from traitlets.utils.bunch import Bunch

from ftlab.apps.board import controls
from ftlab.apps.board.compare_panel import ComparePanel
from ftlab.apps.board.data_panel import DataPanel
from ftlab.apps.board.form import Form
from ftlab.apps.board.key_drawer import KeyDrawer
from ftlab.apps.board.settings_files import SettingsFiles
from ftlab.apps.board.words import Words
from ftlab.recipe import read as recipes
from ftlab.runs import folder as folders


@pytest.fixture
def form(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Form(tiny_recipe, Words("en"), roots=[tmp_path])


def test_settings_are_saved_and_loaded_again(form, tmp_path):
    files = SettingsFiles(Words("en"), form)
    form.controls["lora_rank"].value = 64
    files.file.value = "mine.yaml"
    files.save.click()
    assert "ftlab train mine.yaml" in files.said.value and files.file.options == ("mine.yaml",)
    form.controls["lora_rank"].value = 4
    files.load.click()
    assert form.controls["lora_rank"].value == 64 and "mine.yaml" in files.said.value
    files.file.value = "my own.yml"
    files.save.click()
    assert files.file.options == ("mine.yaml", "my own.yml") and "my own.yml" in files.said.value


@pytest.mark.parametrize("name", ["mine.txt", "../outside.yaml", "there.yaml", ""])
def test_settings_replace_nothing_and_stay_inside(form, tmp_path, name):
    (tmp_path / "there.yaml").write_text("kept")
    files = SettingsFiles(Words("en"), form)
    files.file.value = name
    files.save.click()
    assert "ft-bad" in files.said.value
    assert (tmp_path / "there.yaml").read_text() == "kept" and not (tmp_path.parent / "outside.yaml").exists()


def test_wrong_settings_are_neither_saved_nor_loaded(form, tmp_path):
    (tmp_path / "bad.yaml").write_text("lora_rnak: 8\n")
    files = SettingsFiles(Words("en"), form)
    files.file.value = "bad.yaml"
    files.load.click()
    assert "lora_rank" in files.said.value
    for name in ("", "gone.yaml"):
        files.file.value, files.said.value = name, ""
        files.load.click()
        assert "ft-bad" in files.said.value
    form.controls["max_steps"].value = "many"
    files.file.value = "new.yaml"
    files.save.click()
    assert "red" in files.said.value and not (tmp_path / "new.yaml").exists()


def test_every_key_without_a_field_is_in_the_drawer():
    lines = Textarea()
    drawer = KeyDrawer(Words("en"), lines, controls.FIELDS)
    assert {*drawer.key.options} == {*recipes.known()} - {*controls.FIELDS}
    for key in drawer.key.options:
        drawer.key.value = key
        assert key in drawer.about.value and "ft-bad" not in drawer.about.value
    drawer.key.value, drawer.value.value = "optim", "adafactor"
    assert "adafactor" in drawer.value.options
    drawer.set.click()
    drawer.key.value, drawer.value.value = "max_grad_norm", "0.5"
    drawer.set.click()
    assert controls.read_lines(lines.value) == {"optim": "adafactor", "max_grad_norm": 0.5}
    drawer.value.value = ""
    drawer.set.click()
    assert controls.read_lines(lines.value) == {"optim": "adafactor"}
    drawer.key.value, drawer.value.value = "disable_shuffling", "true"
    drawer.set.click()
    assert controls.read_lines(lines.value)["disable_shuffling"] is True, "a value, not a text"
    drawer.value.value = ""
    drawer.set.click()
    assert controls.read_lines(lines.value) == {"optim": "adafactor"}
    drawer.key.value = "max_grad_nrom"
    assert "max_grad_norm" in drawer.about.value
    drawer.set.click()
    assert controls.read_lines(lines.value) == {"optim": "adafactor"}


def run(folder, settings, losses):
    """Write a run folder."""
    folder.mkdir(parents=True)
    (folder / folders.RECIPE).write_text(controls.yaml_lines(settings))
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    (folder / folders.LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_beside_each_other(tmp_path):
    panel = ComparePanel(tmp_path, "en")
    assert "train first" in panel.table.value
    settings = {"model_name_or_path": "smollm2-135m", "dataset": "identity_en", "seed": 1, "lora_rank": 4}
    run(tmp_path / "one", settings | {"output_dir": "one", "lora_alpha": 8}, [3.0, 2.0])
    settings |= {"lora_rank": 8, "output_dir": "two", "default_system": "<td><img src=x onerror=alert(1)>"}
    run(tmp_path / "two", settings, [3.0, 2.5, 1.5])
    panel.refresh.click()
    assert {folder.name for folder in panel.chosen.value} == {"one", "two"}
    assert bytes(panel.plot.value).startswith(b"\x89PNG")
    shown = panel.table.value
    assert "lora_rank" in shown and "2.000" in shown and "1.500" in shown
    assert "seed" not in shown and "output_dir" not in shown and "<img" not in shown
    columns = [folder.name for folder in panel.chosen.value]
    lines = {line[0]: dict(zip(columns, line[1:], strict=True)) for line in panel.differences(panel.chosen.value)}
    assert lines["lora_alpha"] == {"one": "8", "two": "16"}, "the default counts, too"
    full = {"finetuning_type": "full", "output_dir": "full", "max_steps": 3}
    run(tmp_path / "full", {key: settings[key] for key in ("model_name_or_path", "dataset")} | full, [3.0])
    (tmp_path / "broken").mkdir()
    lines = {line[0]: line[1:] for line in panel.differences(tuple(tmp_path / name for name in ("one", "full")))}
    assert lines["lora_rank"] == ["4", "-"] and lines["lora_alpha"] == ["8", "-"] and lines["max_steps"] == ["-1", "3"]
    assert all(line[-1] == "-" for line in panel.differences((tmp_path / "two", tmp_path / "broken")))
    panel.chosen.value = ()
    assert "ft-empty" in panel.table.value


def test_a_run_that_is_deleted_while_it_is_compared_leaves_dashes(tmp_path):
    for name in ("one", "two"):
        run(tmp_path / name, {"dataset": "identity_en", "output_dir": name}, [3.0, 2.5])
    panel = ComparePanel(tmp_path, "en")
    assert panel.table.value.count("2.500") == 2
    shutil.rmtree(tmp_path / "one")
    panel.chosen.value = tuple(reversed(panel.chosen.value))
    assert "<td>-</td>" in panel.table.value and panel.table.value.count("2.500") == 1
    panel.refresh.click()
    assert [folder.name for folder in panel.chosen.value] == ["two"]
    shutil.rmtree(tmp_path / "two")
    panel.refresh.click()
    assert panel.chosen.value == () and panel.plot.layout.display == "none"


def test_one_of_something_is_not_many():
    words = Words("en")
    assert words("chat_ready", model="m", adapters=1) == "m with 1 adapter is ready"
    assert words("chat_ready", model="m", adapters=2) == "m with 2 adapters is ready"
    assert words("data_lengths", rows=1).startswith("lengths of 1 example,")
    assert words("answers_caption", shown=1, page=1, pages=1).startswith("1 example, page 1 of 1")
    assert Words("zh")("chat_ready", model="m", adapters=1) == "m 与 1 个适配器已就绪"


ROWS = [{"instruction": "Say hi.", "output": "Hi."}] * 2 + [{"instruction": "Say no.", "output": "No."}]


def test_a_file_is_uploaded_and_repaired(tmp_path, monkeypatch, tiny_model_dir):
    monkeypatch.chdir(tmp_path)
    panel = DataPanel("none.jsonl", tmp_path, str(tiny_model_dir), lang="en")
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    uploaded = Bunch(name="../my set.jsonl", type="", size=len(content), content=content, last_modified=datetime.now())
    panel.upload.value = [uploaded]
    assert panel.name.value == "uploads/my_set.jsonl" and len(panel.rows) == 3
    panel.upload.value = [Bunch(uploaded, content=b"other")]
    assert (tmp_path / "uploads" / "my_set.jsonl").read_bytes() == content and "ft-bad" in panel.caption.value
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["my_set.jsonl"]
    for name in ("...", ".json", "my set.exe", "../.."):
        panel.upload.value = [Bunch(uploaded, name=name)]
        assert "unsupported file type" in panel.caption.value and panel.name.value == "uploads/my_set.jsonl"
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["my_set.jsonl"]
    panel.load()
    panel.repair.click()
    assert panel.name.value == "my_set-repaired.jsonl" and len(panel.rows) == 2
    assert "duplicate" in panel.report.value


@pytest.mark.parametrize("name", ["数据 集.jsonl", "a,b.jsonl"])
def test_a_file_of_any_name_is_uploaded_and_shown(tmp_path, monkeypatch, tiny_model_dir, name):
    monkeypatch.chdir(tmp_path)
    panel = DataPanel("", tmp_path, str(tiny_model_dir), lang="en")
    for content, seen in ((json.dumps(ROWS[0]).encode(), 1), (b"", 0)):
        shutil.rmtree(tmp_path / "uploads", ignore_errors=True)
        panel.upload.value = [Bunch(name=name, type="", size=1, content=content, last_modified=datetime.now())]
        panel.load()
        assert len(panel.rows) == seen and ("the file is empty" in panel.caption.value) == (not seen)
    for one in (panel.check, panel.repair, panel.next):
        one.click()
        assert "the file is empty" in panel.report.value + panel.caption.value


def test_a_file_that_changes_while_it_is_shown(tmp_path, monkeypatch, tiny_model_dir):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    panel = DataPanel("mine.jsonl", tmp_path, str(tiny_model_dir), lang="en")
    path.write_text("not JSON\n")
    panel.next.click()
    assert "example 2 of 3" in panel.caption.value, "what was read is still shown"
    panel.check.click()
    assert "mine.jsonl:1: invalid JSON" in panel.report.value
    path.unlink()
    panel.check.click()
    assert "file not found" in panel.report.value


def test_placeholders_are_shown_filled(tmp_path, tiny_model_dir, capsys):
    path = tmp_path / "named.jsonl"
    path.write_text(json.dumps({"instruction": "Who are you?", "output": "I am {{name}}."}) + "\n")
    panel = DataPanel(str(path), tmp_path, str(tiny_model_dir), lang="en", substitutions={"name": "Zed"})
    assert ">Z<" in panel.shown.value and "{" not in panel.shown.value and not capsys.readouterr().out
    assert "placeholders" in DataPanel(str(path), tmp_path, str(tiny_model_dir), lang="en").report.value
