"""The training panel without a browser: start, stop, go on, processes found again, earlier runs, the headless way."""

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
import torch
from safetensors.torch import load_file
from waiting import until

from ftlab import manifests
from ftlab.apps import course
from ftlab.apps.board import controls, curves, estimates, training_job, validation
from ftlab.apps.board.data_panel import DataPanel
from ftlab.apps.board.train_panel import TrainPanel
from ftlab.apps.board.train_view import command
from ftlab.apps.board.words import Words
from ftlab.apps.notebooks import METADATA
from ftlab.errors import LANGUAGES, LabError
from ftlab.recipe import read as recipes
from ftlab.runs import build, callbacks, train
from ftlab.runs import folder as folders

PNG = b"\x89PNG"


def state(panel):
    """Return the name of what the panel says beside its buttons."""
    return re.search(r'data-state="(\w+)"', panel.view.status.value).group(1)


def shown(widget):
    """Return the text of an HTML widget."""
    return html.unescape(re.sub(r"<[^>]+>", "", widget.value))


def run(panel):
    """Press Start and wait for the end."""
    panel.view.start.click()
    assert panel.job and panel.view.start.disabled and not panel.view.stop.disabled
    panel.wait()


def stop_at(panel, step, monkeypatch):
    """Press Start, then Stop once the log has reached a step; the training waits there, however slow this thread is."""
    on_log, logged, clicked = callbacks.Log.on_log, threading.Event(), threading.Event()

    def pausing(self, args, state, control, **options):
        on_log(self, args, state, control, **options)
        if state.global_step == step:
            logged.set()
            clicked.wait()

    monkeypatch.setattr(callbacks.Log, "on_log", pausing)
    panel.view.start.click()
    assert logged.wait(600)
    panel.view.stop.click()
    clicked.set()
    panel.wait()
    monkeypatch.setattr(callbacks.Log, "on_log", on_log)


@pytest.fixture
def slow_recipe(tiny_recipe):
    """A recipe that is long enough to be stopped."""
    return tiny_recipe | {"max_steps": 2000, "save_steps": 5000, "lr_scheduler_type": "constant"}


def test_start_draws_trains_and_says_so(tiny_recipe):
    panel = TrainPanel(tiny_recipe | {"plot_loss": True})
    before = panel.view.plot.value
    run(panel)
    assert state(panel) == "done" and panel.view.plot.value != before and bytes(panel.view.plot.value).startswith(PNG)
    assert [row["step"] for row in panel.rows] == [1, 2, 3, 4, 5, 6]
    assert (panel.folder() / "adapter").is_dir() and (panel.folder() / "loss.png").is_file()
    assert not panel.view.start.disabled and panel.view.stop.disabled
    run(panel)
    assert state(panel) == "reused"
    panel.view.fresh.value = True
    run(panel)
    assert state(panel) == "done" and not panel.view.fresh.value


def test_a_stopped_and_continued_run_is_the_uninterrupted_one(slow_recipe, tmp_path, monkeypatch):
    whole = TrainPanel(slow_recipe | {"max_steps": 12, "output_dir": str(tmp_path / "whole")})
    run(whole)
    parts = TrainPanel(slow_recipe | {"max_steps": 12, "output_dir": str(tmp_path / "parts")})
    stop_at(parts, 5, monkeypatch)
    assert state(parts) == "stopped", shown(parts.view.status)
    stopped = folders.last_step(parts.rows)
    assert stopped in (5, 6) and (parts.folder() / f"checkpoint-{stopped}").is_dir()
    assert parts.view.start.description == "Continue" and not parts.view.start.disabled
    run(parts)
    assert state(parts) == "done"
    assert [row["loss"] for row in parts.rows] == [row["loss"] for row in whole.rows]
    one, other = (load_file(panel.folder() / "adapter" / "adapter_model.safetensors") for panel in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_stop_while_it_is_still_loading(slow_recipe, monkeypatch):
    """Even before the training has made its folder: the panel asks again, here until the model is loaded."""
    train_now, load_now, clicked = train.train, build.load_model, threading.Event()

    def late(*given, **options):
        clicked.wait()
        return train_now(*given, **options)

    def asked_again(*given, **options):
        until(lambda: (panel.folder() / "STOP").exists())
        return load_now(*given, **options)

    monkeypatch.setattr(train, "train", late)
    monkeypatch.setattr(build, "load_model", asked_again)
    panel = TrainPanel(slow_recipe)
    panel.view.start.click()
    panel.view.stop.click()
    assert not panel.folder().exists()
    clicked.set()
    panel.wait()
    assert state(panel) == "stopped" and folders.last_step(panel.rows) <= 3
    assert not (panel.folder() / "STOP").exists()


def test_a_failed_training_is_said_and_can_be_mended(tiny_recipe, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps([{"instruction": "What?", "output": ""}]))
    panel = TrainPanel(tiny_recipe | {"dataset": str(broken)}, lang="zh")
    run(panel)
    assert state(panel) == "failed" and "broken.json" in shown(panel.view.status)
    assert re.search(r"[\u4e00-\u9fff]", shown(panel.view.status))
    panel.form.controls["dataset"].value = tiny_recipe["dataset"]
    run(panel)
    assert state(panel) == "done"


def test_another_run_in_the_folder_blocks_start_and_a_free_folder_is_offered(tiny_recipe):
    run(TrainPanel(tiny_recipe))
    panel = TrainPanel(tiny_recipe | {"lora_rank": 8})
    assert panel.view.start.disabled and "lora_rank: 4 -> 8" in shown(panel.view.folder_message)
    panel.view.new_folder.click()
    assert panel.folder().name == "run-2" and not panel.view.start.disabled
    assert not shown(panel.view.folder_message) and panel.view.new_folder.layout.display == "none"


def test_a_folder_of_somebody_else_blocks_start(tiny_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    panel = TrainPanel(tiny_recipe)
    assert panel.view.start.disabled and "thesis.txt" in shown(panel.view.folder_message)
    panel.start()
    assert panel.job is None and os.listdir(tmp_path / "run") == ["thesis.txt"]


def test_wrong_fields_start_nothing(tiny_recipe, tmp_path):
    panel = TrainPanel(tiny_recipe)
    panel.form.controls["max_steps"].value = "ten; touch x"
    assert panel.view.start.disabled
    panel.view.start.click()
    assert panel.job is None and not (tmp_path / "run").exists()
    assert shown(panel.view.status) == "check: max_steps"
    panel.form.controls["max_steps"].value = "3"
    panel.form.lines.value = "lora_rank: 8"
    assert shown(panel.view.status) == "check: Any other key"


def test_earlier_runs_open_again_and_curves_are_compared(tiny_recipe, tmp_path):
    one = TrainPanel(tiny_recipe | {"output_dir": str(tmp_path / "runs" / "one")})
    run(one)
    two = TrainPanel(tiny_recipe | {"output_dir": str(tmp_path / "runs" / "two"), "lora_rank": 8})
    assert [folder for _, folder in two.view.earlier.options] == [None, tmp_path / "runs" / "one"]
    run(two)
    alone = two.view.plot.value
    two.view.compare.value = tmp_path / "runs" / "one"
    assert two.view.plot.value != alone
    two.view.compare.value = None
    assert two.view.plot.value == alone
    two.view.earlier.value = tmp_path / "runs" / "one"
    two.view.open.click()
    assert two.form.recipe() == recipes.load(tmp_path / "runs" / "one" / "recipe.yaml")
    assert two.rows == one.rows and state(two) == "finished"


def test_a_run_is_extended_in_a_folder_of_its_own(tiny_recipe, tmp_path):
    one = tmp_path / "runs" / "one"
    panel = TrainPanel(tiny_recipe | {"output_dir": str(one)})
    run(panel)
    first = panel.view.readouts.value
    panel.view.extend.click()
    assert panel.folder() == one, "no run is selected"
    panel.view.earlier.value = one
    first_run = folders.read_recipe(one) | {"add_tokens": "<tool>", "init_lora_weights": "olora"}
    (one / folders.RECIPE).write_text(controls.yaml_lines(first_run), encoding="utf-8")
    panel.view.extend.click()
    made = panel.form.recipe()
    assert (made.adapter_name_or_path, made.output_dir) == (str(one), str(tmp_path / "runs" / "one-2"))
    assert panel.view.readouts.value.split("dd")[1] == first.split("dd")[1], "the same weights are trained"
    assert not panel.view.start.disabled and "lora_target: all" in panel.view.command.value
    shutil.rmtree(one)
    panel.view.extend.click()
    assert state(panel) == "failed"


@pytest.mark.slow
def test_a_process_outlives_its_panel_and_is_found_again(slow_recipe):
    panel = TrainPanel(slow_recipe, mode="process")
    panel.view.start.click()
    pid = panel.job.pid
    until(lambda: folders.read_log(panel.folder()))
    again = TrainPanel(slow_recipe, mode="process")
    assert again.job and again.job.pid == pid and again.view.start.disabled
    until(lambda: state(again) in ("running", "done"))
    again.view.stop.click()
    again.wait()
    panel.wait()
    steps = [row["step"] for row in again.rows]
    assert state(again) == "stopped" and steps == list(range(1, len(steps) + 1))
    assert training_job.living(again.folder()) is None and again.view.start.description == "Continue"


def test_a_number_that_another_process_got_is_not_taken_for_the_training(tmp_path):
    (tmp_path / folders.PANEL_JOB).write_text(json.dumps({"pid": os.getpid(), "created": 1.0}))
    assert training_job.living(tmp_path) is None
    for text in ("", "[]", "{", '{"pid": "x"}'):
        (tmp_path / folders.PANEL_JOB).write_text(text)
        assert training_job.living(tmp_path) is None


def test_a_training_is_found_again_after_the_clock_was_set(tmp_path):
    """psutil adds the time of the boot, which the system derives from its clock."""
    about = {"pid": os.getpid(), "created": psutil.Process().create_time() + 30}
    (tmp_path / folders.PANEL_JOB).write_text(json.dumps(about))
    job = training_job.living(tmp_path)
    assert job and job.pid == os.getpid() and job.alive()


def test_a_running_training_is_not_taken_for_ended_when_the_clock_is_set(tiny_recipe, monkeypatch):
    job = training_job.InProcess.start(recipes.load(tiny_recipe), tiny_recipe, False, "en")
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    assert job.alive()
    job.child.kill()
    job.child.wait()
    assert not job.alive()


def test_a_process_that_fails_leaves_its_last_words(tiny_recipe, tmp_path):
    made = recipes.load(tiny_recipe)
    broken = tiny_recipe | {"dataset": str(tmp_path / "gone.json")}
    job = training_job.InProcess.start(made, broken, False, "en")
    until(lambda: not job.alive())
    assert "gone.json" in job.problem()


def test_a_panel_made_again_finds_the_training_in_its_own_kernel(slow_recipe):
    first = TrainPanel(slow_recipe)
    first.view.start.click()
    second = TrainPanel(slow_recipe)
    assert second.job is first.job and second.view.start.disabled
    second.view.stop.click()
    first.wait(), second.wait()
    assert not training_job.THREADS


def test_headless_show_trains_and_leaves_a_picture(tiny_recipe, monkeypatch, capsys):
    displayed = []
    monkeypatch.setenv("FTLAB_HEADLESS", "1")
    monkeypatch.setattr("ftlab.apps.board.train_panel.display", displayed.append)
    panel = TrainPanel(tiny_recipe | {"plot_loss": True})
    panel.show()
    (picture,) = displayed
    assert picture.data.startswith(PNG) and (panel.folder() / "loss.png").is_file()
    assert "ftlab train run.yaml" in capsys.readouterr().out
    for _ in range(2):
        other = TrainPanel(tiny_recipe | {"lora_rank": 8})
        other.show()
        assert other.folder().name == "run-2" and other.rows, "beside the other recipe's run, and the same place again"
    with pytest.raises(LabError, match="lora_alpha"):
        TrainPanel(tiny_recipe | {"lora_alpha": 10**9}).show()


@pytest.mark.slow
def test_under_papermill_the_panel_trains_and_the_notebook_stays_readable(tiny_recipe, tmp_path, monkeypatch):
    """The parameters are the controls' initial values; the executed notebook holds a picture and no widget."""
    monkeypatch.setenv("FTLAB_HEADLESS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    sources = [
        "max_steps = 3",
        "from ftlab.apps.board.train_panel import TrainPanel",
        f"panel = TrainPanel({tiny_recipe!r} | {{'max_steps': max_steps}})\npanel.show()",
        "assert panel.rows[-1]['step'] == max_steps == 4 and panel.job is None",
    ]
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), tmp_path / "panel.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "panel.ipynb", tmp_path / "done.ipynb", {"max_steps": 4}, cwd=tmp_path, execution_timeout=600
    )
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in data for data in shown)
    assert not any(data.get("text/plain", "").startswith("VBox") for data in shown), "the panel itself is not in it"
    course.strip_widgets(tmp_path / "done.ipynb")
    assert "widgets" not in nbformat.read(tmp_path / "done.ipynb", as_version=4).metadata


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_panel_speaks_both_languages(tiny_recipe, lang):
    panel = TrainPanel(tiny_recipe, lang=lang)
    expected = {"en": "trainable parameters", "zh": "可训练参数"}
    assert expected[lang] in shown(panel.view.readouts)
    panel.form.controls["max_steps"].value = "x"
    chinese = re.search(r"[\u4e00-\u9fff]", shown(panel.form.messages["max_steps"])) is not None
    assert chinese == (lang == "zh")


def test_the_command_runs_as_it_is_shown(tiny_recipe, tmp_path, monkeypatch):
    name = "it's a run; really"
    panel = TrainPanel(tiny_recipe)
    text = shown(panel.view.command)
    shell = text.replace("ftlab train", f"{shlex.quote(sys.executable)} -m ftlab recipe check")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert recipes.load(tmp_path / "run.yaml") == panel.form.recipe()
    values = {"output_dir": f"runs/{name}", "note": "a\nEOF\nb $(touch hacked)"}
    subprocess.run(
        ["bash", "-c", command(values, " fresh=true").replace("ftlab train", "true")], cwd=tmp_path, check=True
    )
    assert not (tmp_path / "hacked").exists() and f"{name}.yaml" in os.listdir(tmp_path)


def test_the_code_is_the_script_of_these_settings(tiny_recipe):
    panel = TrainPanel(tiny_recipe)
    panel.form.controls["lora_rank"].value = 16
    panel.view.write_code.click()
    assert "r=16" in shown(panel.view.code) and "SFTTrainer" in shown(panel.view.code)


def test_tokens_and_steps_are_those_of_the_training(tiny_recipe):
    values = tiny_recipe | {
        "max_steps": -1,
        "num_train_epochs": 2.0,
        "gradient_accumulation_steps": 2,
        "save_steps": 50,
    }
    made = recipes.load(values)
    found = estimates.readouts(made)
    done = train.train(made)
    assert found.steps == folders.last_step(folders.read_log(done.folder))
    rows = train.dataset.splits(made, train.load_tokenizer(made, made.model_name_or_path))[0]
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    assert found.tokens_per_step == pytest.approx(4 * mean, rel=0.02)
    assert found.needed_bytes and found.memory_bytes > found.needed_bytes


def test_joined_texts_that_are_longer_than_a_row_are_wrapped_in_the_estimate_too(tiny_recipe, tmp_path):
    (tmp_path / "long.json").write_text(json.dumps([{"text": "word " * 40}] * 8))
    keys = {"stage": "pt", "dataset": str(tmp_path / "long.json"), "cutoff_len": 32, "max_steps": -1}
    made = recipes.load(tiny_recipe | keys | {"num_train_epochs": 1.0, "save_strategy": "no"})
    assert estimates.readouts(made).steps == folders.last_step(folders.read_log(train.train(made).folder)) > 20


def test_minutes_are_those_of_an_earlier_run_like_it_on_this_machine(tiny_recipe, tmp_path):
    made = recipes.load(tiny_recipe | {"output_dir": str(tmp_path / "next"), "max_steps": 60})
    assert estimates.readouts(made).seconds is None, "no run, no guess"
    done = train.train(recipes.load(tiny_recipe))
    found = estimates.readouts(made)
    assert found.pace.run == "run" and found.seconds == pytest.approx(10 * done.metrics["train_seconds"])
    assert "measured in run" in shown(TrainPanel(recipes.plain(made)).view.readouts)
    for change in ({"finetuning_type": "full"}, {"stage": "pt"}, {"gradient_checkpointing": True}):
        assert estimates.readouts(recipes.load(recipes.plain(made) | change)).seconds is None, change
    manifest = manifests.read_manifest(done.folder) | {"machine": "another one"}
    manifests.write_json(done.folder / manifests.MANIFEST, manifest)
    (done.folder / folders.METRICS).touch()
    assert estimates.readouts(made).seconds is None, "measured elsewhere"


def test_what_is_not_here_yet_is_not_fetched(tiny_recipe):
    panel = TrainPanel(tiny_recipe | {"model_name_or_path": "qwen2.5-7b"})
    assert panel.form.recipe() is not None
    text = shown(panel.view.readouts)
    assert "available once" in text and "GiB" in text
    assert "not been downloaded" in shown(DataPanel(tiny_recipe["dataset"], model="qwen2.5-7b").caption)


def test_a_slider_s_move_is_shown_at_once(tiny_recipe, monkeypatch):
    """Before the assignment returns, without tokenizing an example again."""
    panel = TrainPanel(tiny_recipe)
    monkeypatch.setattr(estimates, "sequences", lambda *_: pytest.fail("it tokenizes again"))
    panel.form.controls["lora_rank"].value = 64
    assert "lora_rank: 64" in shown(panel.view.command)


def test_a_half_written_log_line_is_left_for_the_next_look(tmp_path):
    (tmp_path / "train_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n[1]\n{"step": 2, "lo')
    assert folders.read_log(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert folders.read_log(tmp_path / "nowhere") == []


def test_a_long_log_is_thinned_for_the_picture():
    rows = [{"step": i, "loss": 1.0} for i in range(20_000)] + [{"step": 20_000, "eval_loss": 2.0}]
    few = curves.thinned(rows)
    assert len(few) < 2 * curves.POINTS and few[-1] == rows[-1]
    assert curves.picture({"run": rows}).startswith(PNG)
    assert curves.picture({}).startswith(PNG)


def test_the_words_of_a_plot_are_beside_it_in_the_reader_s_language(monkeypatch):
    texts = []
    monkeypatch.setattr("matplotlib.text.Text.draw", lambda text, renderer: texts.append(text.get_text()))
    logs = {"<b>运行": [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}], "other": [{"step": 1, "loss": 1.0}]}
    picture, legend = curves.picture_and_legend(logs, Words("zh"))
    assert picture.startswith(PNG) and not any(map(str.isalpha, "".join(texts))), "numbers only"
    assert "优化器步数" in legend and "&lt;b&gt;运行, 验证损失" in legend and "<b>运行" not in legend
    assert len(set(re.findall("background: (#\\w+)", legend))) == 3
    _, alone = curves.picture_and_legend({"run": logs["other"]}, Words("en"))
    assert "training loss" in alone and "optimizer steps" in alone and "validation" not in alone
    curves.picture(logs)
    assert "optimizer step" in texts


def test_board_and_trainer_judge_a_folder_alike(tiny_recipe, tiny_rows, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text((tiny_rows / "sft.json").read_text())
    model = shutil.copytree(tiny_recipe["model_name_or_path"], tmp_path / "model")
    values = tiny_recipe | {"dataset": str(rows), "model_name_or_path": str(model)}
    made = recipes.load(values)
    assert validation.state(made).name == "new"
    train.train(made)
    assert validation.state(made).name == "finished" and train.train(made).reused
    other = made.model_copy(update={"lora_rank": 8})
    rows.write_text(rows.read_text().replace("It is 1.", "It is one."))
    for changed, says in ((other, "lora_rank: 4 -> 8"), (made, "data")):
        assert validation.state(changed) == ("other", says)
        with pytest.raises(LabError, match=says):
            train.train(changed)
    rows.write_text((tiny_rows / "sft.json").read_text())
    assert validation.state(made).name == "finished"
    # The template is part of the model.
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    assert validation.state(made).name == "other"
    with pytest.raises(LabError, match="model"):
        train.train(made)


def test_a_finished_run_whose_weights_changed_is_not_finished(tiny_recipe):
    done = train.train(recipes.load(tiny_recipe))
    weights = done.weights / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert validation.state(recipes.load(tiny_recipe)) == ("unfinished", "6")
    assert not train.train(recipes.load(tiny_recipe)).reused


@pytest.mark.parametrize("name", ["runs/" + "x" * 300, "~nobody-here/x"])
def test_a_folder_that_cannot_be_is_said_and_can_be_corrected(tiny_recipe, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    panel = TrainPanel(tiny_recipe | {"output_dir": "runs/tiny"}, lang="zh")
    panel.form.controls["output_dir"].value = name
    assert panel.view.start.disabled and "路径" in shown(panel.form.messages["output_dir"])
    panel.view.new_folder.click()
    panel.draw()
    panel.form.controls["output_dir"].value = "runs/tiny"
    assert not panel.view.start.disabled


def test_a_page_does_not_wait_for_its_estimates(tiny_recipe, monkeypatch):
    """The first ones are made in a thread, and made again for a field that changes meanwhile."""
    import_ends, estimated, estimate = threading.Event(), [], estimates.readouts

    def slow(recipe):
        assert import_ends.wait(60)
        estimated.append(recipe.training["per_device_train_batch_size"])
        return estimate(recipe)

    monkeypatch.setattr(estimates, "readouts", slow)
    panel = TrainPanel(tiny_recipe | {"per_device_train_batch_size": 2}, mode="process")
    assert "…" in shown(panel.view.readouts) and not panel.view.start.disabled
    panel.form.controls["per_device_train_batch_size"].value = 4
    assert "per_device_train_batch_size: 4\n" in html.unescape(panel.view.command.value)
    import_ends.set()
    until(lambda: estimated == [2, 4] and "…" not in shown(panel.view.readouts))
    panel.form.controls["per_device_train_batch_size"].value = 8
    assert estimated == [2, 4, 8], "from then on at once"


def test_an_error_in_the_first_estimates_is_shown(tiny_recipe, monkeypatch):
    def broken(recipe):
        raise RuntimeError("no estimate")

    monkeypatch.setattr(estimates, "readouts", broken)
    panel = TrainPanel(tiny_recipe, mode="process")
    until(lambda: "RuntimeError: no estimate" in shown(panel.view.status))
