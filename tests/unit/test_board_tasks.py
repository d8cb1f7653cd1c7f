"""The panels for evaluation, export, memory and the quiz, without a browser: what they show is what the verbs give."""

import html
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import psutil
import pytest
from waiting import until

from ftlab import device, system_errors
from ftlab.apps.board import controls, page
from ftlab.apps.board.background import Work
from ftlab.apps.board.compare_panel import ComparePanel
from ftlab.apps.board.evaluate_panel import EvaluatePanel
from ftlab.apps.board.export_panel import ExportPanel
from ftlab.apps.board.memory_panel import MemoryPanel
from ftlab.apps.board.predictions_table import PredictionsTable
from ftlab.apps.board.quiz_panel import QuizPanel, course_file, read_questions
from ftlab.apps.board.words import Words, texts
from ftlab.apps.quick_imports import NO_COMPILER
from ftlab.errors import LANGUAGES, LabError
from ftlab.recipe import memory_needs, strict_yaml
from ftlab.recipe import read as recipes
from ftlab.runs import chat, evaluation, export, gguf, greedy, train
from ftlab.runs import folder as folders
from ftlab.runs.predictions import Answered

ROOT = Path(__file__).parents[2]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def shown(widget):
    """Return the text of an HTML widget."""
    return html.unescape(re.sub(r"<[^>]+>", " ", widget.value))


def state(panel):
    """Return the name of what a task says beside its button."""
    return re.search(r'data-state="(\w+)"', panel.task.status.value).group(1)


def run(panel):
    """Press the button and wait for the end."""
    panel.task.start.click()
    assert panel.task.start.disabled, "one thing at a time"
    assert panel.task.idle.wait(600)


@pytest.fixture
def trained(tiny_recipe, tmp_path):
    """The keys of a recipe that has been trained, and the folder of its run beside others."""
    values = tiny_recipe | {"output_dir": str(tmp_path / "runs" / "one")}
    train.train(recipes.load(values), quiet=True)
    return values


@pytest.fixture
def evaluating(trained, tiny_rows):
    values = trained | {"eval_dataset": str(tiny_rows / "sft.json"), "adapter_name_or_path": trained["output_dir"]}
    return EvaluatePanel(values, Path(trained["output_dir"]).parent)


def test_before_and_after_are_what_the_verb_gives(evaluating):
    assert evaluating.task.form.controls["adapter_name_or_path"].options == (
        evaluating.task.form.written()["adapter_name_or_path"],
    )
    run(evaluating)
    assert state(evaluating) == "worked" and not evaluating.task.start.disabled, shown(evaluating.task.status)
    again = evaluation.score(recipes.load(evaluating.task.form.written()))
    assert evaluating.found == again and again["base"]["loss"] > again["tuned"]["loss"]
    text = shown(evaluating.task.result)
    for row in again.values():
        assert (
            f"{row['loss']:.3f}" in text and f"{row['perplexity']:.3f}" in text and f"{row['exact_match']:.0%}" in text
        )
    assert f"{again['tuned']['loss'] - again['base']['loss']:+.3f}" in text


def test_only_the_figures_that_are_ticked_are_worked_out(evaluating):
    evaluating.figures["exact_match"].value = False
    run(evaluating)
    assert set(evaluating.found["tuned"]) == {"loss", "perplexity", "rows", "intervals"}
    assert "exact" not in shown(evaluating.task.result)
    evaluating.figures["loss"].value = False
    assert evaluating.task.start.disabled and "no metric" in shown(evaluating.task.form.messages["all"])
    evaluating.figures["exact_match"].value = True
    assert not evaluating.task.start.disabled and not shown(evaluating.task.form.messages["all"]).strip()


def test_other_figures_are_ticked_and_stand_in_the_command(evaluating):
    usual = evaluating.task.command.value
    assert "eval_figures" not in usual
    for name in ("accuracy", "contains", "bleu", "rouge"):
        evaluating.figures[name].value = True
    run(evaluating)
    assert "eval_figures: loss,accuracy,exact_match,contains,bleu,rouge" in shown(evaluating.task.command)
    text, scores = shown(evaluating.task.result), evaluating.found["tuned"]
    for name, style in (("token_accuracy", ".0%"), ("contains", ".0%"), ("bleu-4", ".1f"), ("rouge-l", ".1f")):
        interval = scores["intervals"][name]
        ends = "-".join(format(interval[end], style) for end in ("low", "high"))
        assert f"{scores[name]:{style}} ({ends})" in text and interval["n"] == 12
    assert "token accuracy" in text and "McNemar" in text and "newly wrong" in text


def test_a_figure_that_the_set_has_nothing_for_is_said(evaluating):
    evaluating.figures["json"].value = True
    run(evaluating)
    assert state(evaluating) == "failed" and "compare for json" in shown(evaluating.task.status)


def test_stop_ends_an_evaluation_without_scores(evaluating, monkeypatch):
    seen = []
    read = greedy.check

    def press(model, examples, pad, advance):
        """Press Stop once the pass is under way and its progress has been said."""

        def told(done):
            advance(done)
            evaluating.task.say_far("0:07")
            seen.append(shown(evaluating.task.status))
            evaluating.task.stop.click()

        return read(model, examples, pad, told)

    monkeypatch.setattr(greedy, "check", press)
    assert evaluating.task.stop.disabled
    evaluating.task.start.click()
    assert evaluating.task.idle.wait(600)
    assert state(evaluating) == "task_stopped" and "stopped before the end" in shown(evaluating.task.status)
    assert evaluating.predictions.answers == {} and evaluating.predictions.box.layout.display == "none"
    assert re.search(r"0:07 \.\.\. \d+% of this pass, 0:\d\d left", seen[0])
    assert evaluating.found == {} and evaluating.task.stop.disabled and not evaluating.task.start.disabled


def test_what_is_under_way_is_said_from_the_start(evaluating, monkeypatch):
    said, load, encode, read = [], chat.load, evaluation.held_out, greedy.check

    def telling(work):
        """Return work that first notes what the panel says."""

        def told(*given, **named):
            evaluating.task.say_far("0:01")
            said.append(shown(evaluating.task.status).strip())
            return work(*given, **named)

        return told

    def layer_by_layer(model, examples, pad, advance):
        """Note what is said before each layer of the first batch."""
        layers = model.get_base_model().model.layers
        hooks = [layer.register_forward_pre_hook(telling(lambda *_: None)) for layer in layers]
        found = read(model, examples, pad, advance)
        for hook in hooks:
            hook.remove()
        return found

    monkeypatch.setattr(chat, "load", telling(load))
    monkeypatch.setattr(evaluation, "held_out", telling(encode))
    monkeypatch.setattr(greedy, "check", layer_by_layer)
    run(evaluating)
    assert said[:2] == ["loading the model, 0:01 ...", "preparing the examples, 0:01 ..."]
    shares = [int(found[1]) for one in said if (found := re.search(r"(\d+)% of this pass, 0:\d\d left", one))]
    assert any(0 < share < 50 for share in shares), "within a batch"
    assert state(evaluating) == "worked"


def test_the_answers_are_those_that_were_scored(evaluating):
    table = evaluating.predictions
    assert table.box.layout.display == "none"
    run(evaluating)
    assert table.box.layout.display == "" and list(table.answers) == ["base", "tuned"]
    for name, answers in table.answers.items():
        assert [one.number for one in answers] == list(range(1, 13))
        assert sum(one.right for one in answers) / 12 == evaluating.found[name]["exact_match"]
        assert all(one.right == (one.answer == one.expected) for one in answers)
    first = table.answers["tuned"][0]
    assert first.expected in shown(table.table) and first.prompt.splitlines()[-2] in shown(table.table)
    assert "12 examples, page 1 of 2" in shown(table.caption)


def test_answers_stand_in_pages_base_beside_tuned_wrong_ones_first():
    table = PredictionsTable(Words("en"))
    right = {"base": [n % 3 == 0 for n in range(1, 25)], "tuned": [n % 4 != 0 for n in range(1, 25)]}
    asked = [f"system\nBe brief.\nuser\nQuestion {n}?\nassistant" for n in range(1, 25)]
    answers = {
        name: [
            Answered(n, prompt, f"<{n}>", f"{name} {n}", True, hit)
            for n, (prompt, hit) in enumerate(zip(asked, hits, strict=True), 1)
        ]
        for name, hits in right.items()
    }
    # The tuned model is evaluated first.
    table.show({"tuned": answers["tuned"], "base": answers["base"]})
    numbers = [line[0].number for line in table.rows()]
    assert numbers[:6] == [4, 8, 12, 16, 20, 24] and numbers[6:] == [n for n in range(1, 25) if n % 4]
    assert table.page.max == 3 and table.before.disabled and not table.next.disabled
    assert table.table.value.count("<tr>") == 11 and "24 examples, page 1 of 3" in shown(table.caption)
    assert re.search(r"Question 4\? +<4> +✗ +base 4 +✗ +tuned 4", shown(table.table))
    assert "Be brief" not in table.table.value and "assistant" not in table.table.value
    table.next.click()
    table.next.click()
    assert table.table.value.count("<tr>") == 5 and table.next.disabled and "Question 23" in table.table.value
    for kind, count in (("answers_wrong", 6), ("answers_gained", 12), ("answers_lost", 2)):
        table.kind.value = kind
        assert len(table.rows()) == count and table.page.value == 1
    table.kind.value = "answers_all"
    table.show(answers | {"base": answers["base"][:6]})
    assert table.table.value.count("<td>-</td>") == 5, "of a pass that was stopped"
    table.kind.value = "answers_lost"
    table.show({"base": answers["base"][:2]})
    assert "<tr>" not in table.table.value and "No example" in shown(table.table)


def test_what_was_answered_before_a_stop_is_shown(evaluating, monkeypatch):
    passes, write = [], greedy.write

    def press(model, pad, prompts, answers, left, advance):
        """Press Stop in the second pass, when one of the base's answers has had a token."""

        def told(done):
            if len(passes) == 2:
                evaluating.task.stop.click()
            advance(done)

        passes.append(pad)
        return write(model, pad, prompts, answers, left, told)

    monkeypatch.setattr(greedy, "write", press)
    for name in ("contains", "rouge"):
        evaluating.figures[name].value = True
    run(evaluating)
    assert state(evaluating) == "task_stopped" and len(passes) == 2 and evaluating.found == {}
    answers = evaluating.predictions.answers
    assert len(answers["tuned"]) == 12 and len(answers.get("base", [])) < 12
    assert "12 examples" in shown(evaluating.predictions.caption)
    assert evaluating.task.bar.layout.display == "none"


def test_scores_of_the_other_language_are_said_in_this_one(evaluating):
    run(evaluating)
    assert "newly right" in shown(evaluating.task.result)
    panel = EvaluatePanel(evaluating.task.form.written(), evaluating.runs, lang="zh")
    panel.take_over(evaluating)
    said = shown(panel.task.result)
    assert "新答对" in said and "newly right" not in said and panel.found == evaluating.found


def test_answers_are_never_markup(evaluating):
    one = Answered(1, "user\n<b>why</b>", "<i>so</i>", "<script>alert(1)</script>", False, False)
    evaluating.predictions.show({"base": [one]})
    value = evaluating.predictions.table.value
    assert "&lt;b&gt;why" in value and "&lt;script&gt;" in value and "<i>" not in value and " ...</div>" in value


def test_without_an_adapter_the_base_alone_is_scored(evaluating):
    evaluating.task.form.controls["adapter_name_or_path"].value = ""
    assert "only the base" in shown(evaluating.task.before)
    run(evaluating)
    assert set(evaluating.found) == {"base"}


BAD_EVALUATIONS = {
    "model_name_or_path": ["", "no-such-model", "x; rm -rf ~"],
    "adapter_name_or_path": ["nowhere", "$(id)", "/etc"],
    "eval_dataset": ["", "no_such_set", "../../etc/passwd", "a; ls", "1000000000"],
    "max_samples": ["0", "-1", "many", "1000000000", "1.5"],
    "template": ["no_such_template"],
}


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in BAD_EVALUATIONS.items() for text in texts])
def test_bad_input_of_an_evaluation_is_said_beside_its_field(tiny_model_dir, tiny_rows, key, text):
    values = {"model_name_or_path": str(tiny_model_dir), "eval_dataset": str(tiny_rows / "sft.json")}
    panel = EvaluatePanel(values)
    assert not panel.task.start.disabled, panel.task.form.checked.messages
    panel.task.form.controls[key].value = text
    assert panel.task.start.disabled and shown(panel.task.form.messages[key]).strip()
    panel.task.start.click()
    assert panel.task.idle.is_set() and not panel.found


def test_what_goes_wrong_while_it_works_is_said(tiny_model_dir, tiny_rows):
    values = {"model_name_or_path": str(tiny_model_dir), "eval_dataset": str(tiny_rows / "preference.json")}
    panel = EvaluatePanel(values, lang="zh")
    run(panel)
    assert state(panel) == "failed" and CHINESE.search(shown(panel.task.status)) and not panel.task.start.disabled


@pytest.mark.parametrize("kind", [ExportPanel, EvaluatePanel])
def test_a_model_that_is_deleted_before_the_start_is_said(tiny_model_dir, tiny_rows, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    values = {"model_name_or_path": "model", "eval_dataset": str(tiny_rows / "sft.json"), "export_dir": "out"}
    panel = kind(values, "runs", "en")
    shutil.rmtree(tmp_path / "model")
    run(panel)
    assert state(panel) == "failed" and "unknown model" in shown(panel.task.status)


def test_a_panel_whose_end_of_work_fails_can_start_again():
    def ended():
        raise OSError("the folder is gone")

    work = Work("en", failed=lambda reason: None, ended=ended)
    with pytest.raises(OSError, match="gone"):
        work.run(lambda: None, ())
    assert work.idle.is_set()


def test_a_folder_that_is_deleted_while_it_is_looked_at_is_said(exporting):
    def gone(made):
        raise FileNotFoundError(2, "No such file or directory", "adapter")

    task = exporting.task
    task.look = gone
    task.offer(False)
    assert task.start.disabled and "No such file" in shown(task.form.messages[task.blamed])


def test_runs_that_are_deleted_while_they_are_listed_are_left_out(tmp_path):
    for name, changed in (("old", 1), ("new", 2)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed, changed))
    listed = folders.newest_first(tmp_path / name for name in ("old", "deleted", "new"))
    assert list(listed.items()) == [(tmp_path / "new", 2.0), (tmp_path / "old", 1.0)]


@pytest.fixture
def exporting(trained):
    return ExportPanel(trained | {"adapter_name_or_path": trained["output_dir"]}, Path(trained["output_dir"]).parent)


def test_an_export_is_verified_and_then_said_to_be_in_its_folder(exporting, tmp_path):
    before = shown(exporting.task.before)
    assert "disk" in before and "memory" in before and "GiB" in before
    run(exporting)
    assert state(exporting) == "exported", shown(exporting.task.status)
    done, text = exporting.done, shown(exporting.task.result)
    assert done.folder == tmp_path / "runs" / "merged" and (done.folder / "model.safetensors").is_file()
    assert f"{done.merge_difference:.1e}" in text and f"{done.total_difference:.1e}" in text and "100%" in text
    said = exporting.task.form.messages["export_dir"]
    assert exporting.task.start.disabled and "The export is in this folder" in said.value and "ft-bad" not in said.value
    exporting.task.form.controls["export_dtype"].value = "float16"
    assert state(exporting) == "exported" and "ft-bad" not in said.value and exporting.task.start.disabled
    exporting.task.form.controls["export_dir"].value = str(tmp_path / "runs" / "again")
    assert not exporting.task.start.disabled and not shown(said).strip() and state(exporting) == "ready"
    (tmp_path / "runs" / "again").mkdir()
    (tmp_path / "runs" / "again" / "notes.txt").touch()
    exporting.task.changed()
    assert exporting.task.start.disabled and "not empty" in said.value and "ft-bad" in said.value, (
        "somebody else's files"
    )
    exporting.task.form.controls["export_dir"].value = str(done.folder)
    shutil.rmtree(done.folder)
    exporting.task.changed()
    assert not exporting.task.start.disabled and state(exporting) == "ready", "the export was deleted"


def test_an_export_is_still_said_in_the_other_language(exporting, tmp_path):
    run(exporting)
    assert f"exported to {tmp_path / 'runs' / 'merged'} in 0:" in shown(exporting.task.status)
    other = ExportPanel({}, tmp_path / "runs", "zh")
    other.take_over(exporting)
    assert state(other) == "exported" and f"已导出到 {tmp_path / 'runs' / 'merged'}" in shown(other.task.status)
    assert "已导出到这个文件夹" in other.task.form.messages["export_dir"].value
    other.task.form.controls["export_dir"].value = ""
    assert state(other) == "wrong", "until something is changed"


@pytest.mark.parametrize(
    ("owner", "stage"), [(chat, "with_adapter"), (export, "answers"), (export, "model_card"), (gguf, "write")]
)
def test_stop_ends_an_export_and_leaves_nothing(exporting, tmp_path, monkeypatch, owner, stage):
    ask, calls = getattr(owner, stage), []

    def press(*given, **named):
        """Press Stop as this stage begins."""
        calls.append(stage)
        exporting.task.stop.click()
        return ask(*given, **named)

    monkeypatch.setattr(owner, stage, press)
    exporting.task.form.controls["export_gguf"].value = "q8_0"
    before = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert exporting.task.stop.disabled
    run(exporting)
    assert calls and state(exporting) == ("exported" if stage == "model_card" else "task_stopped")
    if stage == "model_card":
        # All that is left is to rename the folder: that is done.
        assert (tmp_path / "runs" / "merged" / "README.md").is_file()
        return
    assert "nothing was written" in shown(exporting.task.status) and exporting.done is None
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before
    assert exporting.task.stop.disabled and not exporting.task.start.disabled


def test_a_format_changes_what_the_disk_has_to_take(exporting):
    found = []
    for dtype, kind in (("float32", ""), ("float16", ""), ("float16", "q8_0")):
        exporting.task.form.controls["export_dtype"].value = dtype
        exporting.task.form.controls["export_gguf"].value = kind
        made = exporting.task.form.recipe()
        found.append(export.disk_bytes(10**9, getattr(export.torch, dtype), made) - export.SMALL_FILES)
    assert found == [4 * 10**9, 2 * 10**9, 3_070_000_000]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(exporting, monkeypatch):
    monkeypatch.setattr(system_errors, "free_bytes", lambda target: 1000)
    exporting.task.form.controls["export_size"].value = 10
    assert exporting.task.start.disabled and "MB" in shown(exporting.task.form.messages["export_dir"])


BAD_EXPORTS = {
    "model_name_or_path": ["", "no-such-model"],
    "adapter_name_or_path": ["nowhere", "x; ls"],
    "export_dir": ["", "/etc/ftlab", "../../outside", "runs/$(id)", "runs/x; rm -rf ~", "."],
}


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in BAD_EXPORTS.items() for text in texts])
def test_bad_input_of_an_export_is_said_beside_its_field(tiny_model_dir, tmp_path, key, text):
    panel = ExportPanel({"model_name_or_path": str(tiny_model_dir)}, tmp_path / "runs", "zh")
    assert not panel.task.start.disabled, panel.task.form.checked.messages
    panel.task.form.controls[key].value = text
    assert panel.task.start.disabled and CHINESE.search(shown(panel.task.form.messages[key]))


def test_the_commands_are_those_of_the_verbs(evaluating, exporting, tmp_path):
    for panel, verb in ((evaluating, "eval"), (exporting, "export")):
        text = shown(panel.task.command)
        assert f"ftlab {verb} " in text
        (tmp_path / "shown.yaml").write_text(text.split("EOF'\n")[1].split("\nEOF")[0])
        assert recipes.load(tmp_path / "shown.yaml") == panel.task.form.recipe()
        assert strict_yaml.read(tmp_path / "shown.yaml")[0] == panel.task.form.written()


def test_the_table_is_that_of_the_memory_report():
    panel = MemoryPanel({"model_name_or_path": "qwen2.5-7b", "lora_rank": 16})
    panel.machine.value, panel.batches.value, panel.lengths.value = "24 GB", "1, 4", "512, 2048"
    assert len(panel.found) == len(memory_needs.METHODS) * 4
    keys = {"model_name_or_path": "qwen2.5-7b", "lora_rank": 16, "per_device_train_batch_size": 4, "cutoff_len": 2048}
    for name, method in memory_needs.METHODS.items():
        one = memory_needs.needs(recipes.load(keys | method), memory_needs.gpu("24 GB"))
        assert panel.found[name, 4, 2048] == one
        assert memory_needs.smallest_gpu(one) in shown(panel.table)
    room = 24 * memory_needs.GIB - memory_needs.RESERVED_BYTES
    fits = sum(found.peak <= room for found in panel.found.values())
    assert 0 < fits < len(panel.found) and panel.table.value.count("ft-good") == fits


def test_the_machine_decides_too():
    panel = MemoryPanel({"model_name_or_path": "smollm2-135m"})
    here = panel.found
    assert here["lora", 1, 512] == memory_needs.needs(
        recipes.load({"model_name_or_path": "smollm2-135m", "per_device_train_batch_size": 1, "cutoff_len": 512}),
        device.describe(),
    )
    panel.machine.value = "T4 16 GB"
    assert panel.found != here and memory_needs.gpu("T4 16 GB").dtype == "float16"


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many", "1;2", "1000000000", "1,2,3,4,5,6", "1,,2", "²"])
def test_bad_numbers_are_said_beside_their_field(text):
    panel = MemoryPanel(lang="zh")
    for name, field in (("sized_batches", panel.batches), ("sized_lengths", panel.lengths)):
        good, field.value = field.value, text
        assert CHINESE.search(shown(panel.messages[name])) and not panel.found and not panel.table.value
        field.value = good
        assert not shown(panel.messages[name]).strip() and panel.found
    panel.form.controls["model_name_or_path"].value = "no-such-model"
    assert not panel.found and shown(panel.form.messages["model_name_or_path"])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_question_is_answered_and_explained(lang):
    panel = QuizPanel(lang=lang)
    assert len(panel.questions) >= 12
    assert len({one.question for one in panel.questions}) == len(panel.questions)
    for number, one in enumerate(panel.questions):
        assert panel.at == number and panel.check.disabled and not panel.verdict.value
        panel.choices.value = (one.answer + number % 2) % len(one.choices)
        panel.check.click()
        assert one.why in shown(panel.verdict) and one.choices[one.answer] in shown(panel.verdict)
        right = texts()["quiz_right"][lang].split("{")[0]
        assert (right in shown(panel.verdict)) == (number % 2 == 0)
        panel.choices.value = one.answer
        panel.check.click()
        panel.next.click()
    right = (len(panel.questions) + 1) // 2
    assert str(right) in shown(panel.score) and panel.next.disabled, "only the first try counts"
    panel.before.click()
    assert panel.at == len(panel.questions) - 2


def test_every_question_names_a_lesson():
    there = {path.name[:2] for path in (ROOT / "notebooks").rglob("[0-9]*.py")}
    assert {one.lesson for one in read_questions(course_file("en"))} <= there


def test_both_languages_ask_the_same():
    english, chinese = (read_questions(course_file(lang)) for lang in LANGUAGES)
    assert [(one.answer, one.lesson, len(one.choices)) for one in english] == [
        (one.answer, one.lesson, len(one.choices)) for one in chinese
    ]
    assert not any(CHINESE.search(one.question + one.why) for one in english)
    assert all(CHINESE.search(one.question) and CHINESE.search(one.why) for one in chinese)


GOOD = {"question": "<b>?</b>", "choices": ["a", "<i>b</i>"], "answer": 0, "why": "<u>so</u>", "lesson": "03"}


CHANGES = [{"answer": 2}, {"choices": ["a", "a"]}, {"why": " "}, {"more": 1}, {"choices": "ab"}]
BROKEN = ["", "{", "[]", "[1]", "{}", *(json.dumps([GOOD | change]) for change in CHANGES)]


@pytest.mark.parametrize("text", BROKEN)
def test_questions_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "quiz.json").write_text(text)
    with pytest.raises(LabError, match=r"quiz\.json"):
        read_questions(tmp_path / "quiz.json")
    panel = QuizPanel(tmp_path / "quiz.json")
    assert "quiz.json" in shown(panel.verdict) and panel.check.disabled and panel.next.disabled
    with pytest.raises(LabError):
        read_questions(tmp_path / "nothing.json")


def test_questions_are_never_markup(tmp_path):
    (tmp_path / "quiz.json").write_text(json.dumps([GOOD]))
    panel = QuizPanel(tmp_path / "quiz.json")
    panel.choices.value = 1
    panel.check.click()
    assert "&lt;b&gt;" in panel.question.value and "<u>so" not in panel.verdict.value


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_page_has_every_panel_in_its_language(tiny_recipe, tmp_path, monkeypatch, lang):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(tiny_recipe | {"output_dir": "runs/tiny"}))
    board = page.Board("tiny.yaml", lang=lang)
    titles = {
        "en": ("Data", "Train", "Evaluate", "Compare", "Chat", "Export", "Memory", "Learn"),
        "zh": ("数据", "训练", "评测", "对比", "对话", "导出", "内存", "学习"),
    }
    assert board.tabs.titles == titles[lang] and board.tabs.selected_index == 1 and list(board.panels) == ["tab_train"]
    board.train.form.controls["lora_rank"].value = 64
    for number in range(len(page.STEPS)):
        board.tabs.selected_index = number
        assert board.tabs.children[number].children, "a panel is made when it is opened"
    assert board.panels["tab_memory"].form.controls["lora_rank"].value == 64, "with the settings of the train tab"
    board.panels["tab_chat"].system.value = "Be brief."
    board.panels["tab_chat"].question.value = "Why?"
    board.panels["tab_export"].task.form.controls["export_gguf"].value = "q8_0"
    board.panels["tab_memory"].batches.value = "2"
    quiz = board.panels["tab_learn"]
    quiz.choices.value = quiz.questions[0].answer
    quiz.check.click()
    quiz.next.click()
    board.train.form.controls["max_steps"].value = "ten"
    board.language.click()
    assert board.train.form.controls["max_steps"].value == "ten", "what cannot be read is kept, too"
    other = {"en": "zh", "zh": "en"}[lang]
    assert board.tabs.titles == titles[other] and board.tabs.selected_index == 7
    assert board.train.words.lang == other and board.train.form.controls["lora_rank"].value == 64
    board.tabs.selected_index = 4
    chatting = board.panels["tab_chat"]
    assert (chatting.system.value, chatting.question.value) == ("Be brief.", "Why?")
    for name in ("tab_export", "tab_memory"):
        board.tabs.selected_index = list(page.STEPS).index(name)
    assert board.panels["tab_export"].task.form.controls["export_gguf"].value == "q8_0"
    assert board.panels["tab_memory"].batches.value == "2"
    assert board.panels["tab_learn"].at == 1 and board.panels["tab_learn"].given == quiz.given != {}


@pytest.mark.parametrize(("value", "left"), [("1", None), ("4", "4")])
def test_trainings_do_not_get_the_one_arena_of_the_server(tmp_path, monkeypatch, value, left):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "display", lambda shown: None)
    monkeypatch.setenv("MALLOC_ARENA_MAX", value)
    page.show()
    assert os.environ.get("MALLOC_ARENA_MAX") == left


def test_an_answer_is_still_there_in_the_other_language():
    left, other = QuizPanel(lang="en"), QuizPanel(lang="zh")
    right = left.questions[0].answer
    wrong = 0 if right else 1
    left.choices.value = wrong
    other.take_over(left)
    assert other.choices.value == wrong and not other.verdict.value and not other.check.disabled, "not checked yet"
    left.check.click()
    left.choices.value = right
    left.check.click()
    other.take_over(left)
    assert other.choices.value == right and other.questions[0].why in shown(other.verdict)
    assert other.score.value == "首次作答 1 题，答对 0 题"
    other.next.click()
    assert other.choices.value is None and not other.verdict.value
    other.before.click()
    assert other.choices.value == wrong and other.questions[0].why in shown(other.verdict), "the answer that counts"


def test_the_compared_runs_are_still_chosen_in_the_other_language(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / folders.RECIPE).write_text("model_name_or_path: smollm2-135m\n")
        (tmp_path / name / folders.LOG).write_text('{"step": 1, "loss": 2.0}\n')
    left, other = ComparePanel(tmp_path, "en"), ComparePanel(tmp_path, "zh")
    left.chosen.value = (tmp_path / "a",)
    assert len(other.chosen.value) == 2
    other.take_over(left)
    assert other.chosen.value == (tmp_path / "a",)
    left.chosen.value = ()
    other.take_over(left)
    assert other.chosen.value == ()


def test_a_panel_that_cannot_be_made_says_why(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(tiny_recipe | {"output_dir": "runs/tiny"}))
    board = page.Board("tiny.yaml", lang="en")
    monkeypatch.setitem(page.STEPS, "tab_learn", lambda values, lang: values["nothing"])
    board.tabs.selected_index = 7
    assert "KeyError" in board.tabs.children[7].children[0].value and "tab_learn" not in board.panels


def test_the_first_panel_that_imports_torch_does_not_load_its_compiler(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(tiny_recipe | {"output_dir": "runs/tiny"}))
    board, seen = page.Board("tiny.yaml", lang="en"), []

    def panel(values, lang):
        """Return a panel, and note whether functions are compiled while it is imported."""
        seen.append(os.environ.get(NO_COMPILER))
        return SimpleNamespace(box=ipywidgets.HTML())

    for name in ("tab_memory", "tab_learn"):
        monkeypatch.setitem(page.STEPS, name, panel)
    with monkeypatch.context() as before:
        before.delitem(sys.modules, "torch")
        board.tabs.selected_index = 7
    board.tabs.selected_index = 6
    assert seen == ["1", os.environ.get(NO_COMPILER)]


def test_the_language_waits_for_work(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(tiny_recipe | {"output_dir": "runs/tiny"}))
    board = page.Board("tiny.yaml", lang="en")
    board.tabs.selected_index = list(page.STEPS).index("tab_evaluate")
    board.panels["tab_evaluate"].task.idle.clear()
    board.language.click()
    assert board.words.lang == "en" and "ended" in shown(board.notice)
    assert "model_name" not in shown(board.notice) and board.train.form.values()["dataset"] in shown(board.facts)
    board.train.form.controls["lora_rank"].value = 64
    assert not shown(board.notice) and board.notice.layout.display == "none"


def test_the_panels_of_a_language_that_was_left_are_closed(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(tiny_recipe | {"output_dir": "runs/tiny"}))
    monkeypatch.setattr(ipywidgets.widgets.widget, "_instances", {})
    board = page.Board("tiny.yaml", lang="en")

    def open_all():
        """Open every step; return how many widgets are open in the kernel."""
        for number in range(len(page.STEPS)):
            board.tabs.selected_index = number
        return len(ipywidgets.widgets.widget._instances)

    opened = open_all()
    for _ in range(2):
        board.language.click()
        assert open_all() == opened > 500


def test_a_training_that_was_told_to_stop_is_not_said_to_have_broken_off(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = tiny_recipe | {"output_dir": "runs/tiny", "max_steps": 5000, "save_steps": 5000}
    (tmp_path / "tiny.yaml").write_text(controls.yaml_lines(values))
    board = page.Board("tiny.yaml", lang="en")
    board.train.view.start.click()
    # Until it has taken its first step, a stop would be asked for again.
    until(lambda: folders.read_log(tmp_path / "runs" / "tiny"))
    # It must not end before the language is another.
    process = psutil.Process(board.train.job.pid)
    process.suspend()
    board.train.view.stop.click()
    board.language.click()
    assert 'data-state="stopping"' in board.train.view.status.value and board.train.view.stop.disabled
    process.resume()
    board.train.wait()
    assert 'data-state="stopped"' in board.train.view.status.value
