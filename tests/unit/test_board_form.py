"""The panel's fields: a recipe comes out as it went in, wrong input is said beside its field, no word is missing."""

import html
import re
from pathlib import Path
from string import Formatter

import ipywidgets as widgets
import pytest
import tiny

from ftlab import errors
from ftlab.apps.board import controls, validation
from ftlab.apps.board.form import Form
from ftlab.apps.board.words import Words, texts
from ftlab.errors import LANGUAGES, LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import strict_yaml

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "ftlab" / "apps" / "board"
TEMPLATES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.stem not in ("chat", "merge")]
LLAMA_FACTORY = """
model_name_or_path: smollm2-135m
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 12
lora_target: all
dataset: identity_en,alpaca_en_demo
template: default
cutoff_len: 1000
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""


@pytest.fixture
def form(tiny_recipe, tmp_path):
    return Form(tiny_recipe, Words("en"), roots=[tmp_path])


@pytest.fixture(scope="module")
def shared_form(tiny_model_dir, tiny_rows, tmp_path_factory):
    """A form for many tests, each of which leaves it as it was."""
    place = tmp_path_factory.mktemp("form")
    return Form(tiny.make_recipe(tiny_model_dir, tiny_rows, place / "run"), Words("en"), roots=[place])


def through_a_panel(values, tmp_path):
    """Return the recipe that `ftlab train` reads from the YAML that a panel shows."""
    form = Form(values, Words("en"))
    path = tmp_path / "shown.yaml"
    path.write_text(controls.yaml_lines(form.written()), encoding="utf-8")
    return form, recipes.load(path)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_a_recipe_comes_out_of_the_panel_as_it_went_in(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    values, _ = strict_yaml.read(path)
    form, back = through_a_panel(values, tmp_path)
    assert back.model_dump() == recipes.load(path).model_dump()
    assert form.recipe() == recipes.load(path), form.checked.messages


def test_a_llama_factory_yaml_opens_in_the_panel(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "lf.yaml"
    path.write_text(LLAMA_FACTORY)
    form, back = through_a_panel(strict_yaml.read(path)[0], tmp_path)
    assert back.model_dump() == recipes.load(path).model_dump()
    assert form.controls["lora_rank"].value == 12 and form.controls["warmup_steps"].value == "0.1"
    assert "bf16: true" in form.lines.value and "ddp_timeout" in form.lines.value


def test_every_control_reaches_the_recipe(form):
    """Each field is moved away from its default; the YAML then says so, and reads back."""
    moved = {"stage": "dpo", "finetuning_type": "full", "learning_rate": "3e-4", "lr_scheduler_type": "cosine"}
    for key, widget in form.controls.items():
        if key in ("model_name_or_path", "dataset", "output_dir", "dataset_dir", "adapter_name_or_path"):
            continue
        before = form.written()
        old = widget.value
        if controls.FIELDS[key].kind == "text":
            widget.value = moved.get(key, "text" if controls.is_text(key) else "0.25")
        else:
            widget.value = moved.get(key) or next(v for v in fields_values(widget) if v != old)
        assert form.written().get(key) != before.get(key), key
        assert strict_yaml.parse(controls.yaml_lines(form.written()), "") == form.written()
        widget.value = old
        assert form.written() == before, key


def fields_values(widget):
    return [option[1] for option in widget.options]


def test_a_key_that_is_left_out_is_shown_so(form):
    for key in ("quantization_bit", "gradient_checkpointing"):
        assert form.controls[key].label == "-" and key not in form.written()
        form.controls[key].index = 1
        assert form.written()[key] in (4, False)
        form.controls[key].index = 0
        assert form.controls[key].label == "-" and form.written().get(key) is None


def test_a_value_between_the_stops_gets_its_own_stop(tiny_recipe, tmp_path):
    form = Form(tiny_recipe | {"lora_rank": 5}, Words("en"), roots=[tmp_path])
    assert form.controls["lora_rank"].value == 5 and form.recipe().lora_rank == 5
    assert [value for _, value in form.controls["lora_rank"].options][:5] == [1, 2, 4, 5, 8]


BAD = {
    "model_name_or_path": ["", "no-such-model", "./nowhere", "x; rm -rf ~", "$(id)", "org/name; ls", "1000000000"],
    "dataset": ["", "no_such_set", "../../etc/passwd", "a; rm -rf ~", "/etc/passwd", "1000000000"],
    "output_dir": ["", "/etc/ftlab", "../../outside", "runs/x; rm -rf ~", "runs/$(id)", "runs/`id`", "runs/a\nb", "."],
    "learning_rate": ["fast", "1e9", "-1", ".nan", ".inf", "[1]", "{", "1; ls", "true", "1_0"],
    "max_steps": ["many", "1000000000", "1.5", "-7", "1e9", "ten; ls", "!!python/object:os.system x"],
    "lora_alpha": ["1000000000", "0", "x"],
    "lora_dropout": ["1", "-0.1", "1000000000", "x"],
    "val_size": ["-1", "1000000000", "half"],
    "max_samples": ["0", "1000000000", "all"],
    "num_train_epochs": ["-1", "1000000000", "x"],
    "lr_scheduler_type": ["cosin", "1000000000", "$(id)"],
    "seed": ["-1", "x", "4294967296", "1.5"],
    "logging_steps": ["0", "x", "1000000000"],
    "save_total_limit": ["0", "1000000000"],
    "eval_steps": ["0", "x", "1000000000"],
    "early_stopping_steps": ["0", "1000000000"],
    "adapter_name_or_path": ["nowhere", "x; ls"],
    "template": ["no_such_template", "$(id)"],
    "eval_dataset": ["no_such_set"],
    "lines": [
        "max_stepz: 3",
        "learning_rate: 1",
        "just text",
        "- a list",
        "a: [",
        "weight: !!python/name:os.x y",
        "a:\n a: 1",
    ],
}


# Names that no file can have: too long in bytes, and the home of nobody.
IMPOSSIBLE = ("runs/" + "x" * 300, "很" * 86, "~nobody-here/x")
for key in ("model_name_or_path", "dataset", "output_dir", "adapter_name_or_path", "eval_dataset"):
    BAD[key] += IMPOSSIBLE


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in BAD.items() for text in texts])
def test_bad_input_is_said_beside_its_field(shared_form, key, text):
    form = shared_form
    assert form.recipe() is not None, form.checked.messages
    field = form.lines if key == "lines" else form.controls[key]
    before, field.value = field.value, text
    try:
        assert form.recipe() is None
        assert form.checked.messages.get(key), form.checked.messages
        assert form.messages[key].value and form.messages[key].layout.display != "none"
    finally:
        field.value = before


def test_a_message_goes_when_the_field_is_mended_and_is_never_markup(form):
    old = form.controls["max_steps"].value
    form.controls["max_steps"].value = "<b>x</b>"
    assert "&lt;b&gt;" in form.messages["max_steps"].value
    form.controls["max_steps"].value = old
    assert form.recipe() is not None and not form.messages["max_steps"].value


def test_keys_that_contradict_each_other(form):
    form.controls["train_on_prompt"].value = form.controls["mask_history"].value = True
    assert form.recipe() is None and "mask_history" in form.checked.messages[validation.ALL]


def cells(box):
    """Return the fields inside a box, however deep."""
    inside = [one for part in getattr(box, "children", ()) for one in cells(part)]
    return inside + ([box] if "ft-cell" in box._dom_classes else [])


def test_at_most_twelve_are_in_sight_and_visible_chooses_them(tiny_recipe, tmp_path):
    form = Form(tiny_recipe, Words("en"), roots=[tmp_path])
    seen, _, folded = form.box.children
    headings = [part for part in seen.children if isinstance(part, widgets.HTML)]
    assert len(cells(seen)) == controls.MOST_VISIBLE == 12 and len(headings) == 3
    assert len(cells(seen)) + len(cells(folded)) == len(controls.FIELDS)
    few = Form(tiny_recipe, Words("en"), visible=("lora_rank", "lora_alpha"), roots=[tmp_path])
    assert len(cells(few.box.children[0])) == 2 == len(cells(few.box.children[0].children[0])), "no heading for two"
    assert len(cells(few.box)) == len(controls.FIELDS)
    with pytest.raises(LabError, match="no_such_key"):
        Form(tiny_recipe, Words("en"), visible=("no_such_key",))
    with pytest.raises(LabError, match="13"):
        Form(tiny_recipe, Words("en"), visible=tuple(controls.FIELDS)[:13])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_labels_carry_their_key_and_tell_what_happens(tiny_recipe, tmp_path, lang):
    form = Form(tiny_recipe, Words(lang), roots=[tmp_path])
    for key in controls.FIELDS:
        control, about, _ = form.cell(key).children
        assert f"<code>{key}</code>" in re.sub("</?span>", "", control.description)
        assert html.escape(form.words.tip(key)) in about.value
        assert len(form.controls[key].tooltip) > 10
        assert (re.search(r"[\u4e00-\u9fff]", form.words.tip(key)) is not None) == (lang == "zh")


def sources():
    """Return the code of the panels."""
    return "".join(path.read_text() for path in BOARD.glob("*.py") if path.name != "words.py").replace("'", '"')


def faults(entries, code):
    """Return what is wrong with a table of words, for the code that says them."""
    found = []
    for name, entry in entries.items():
        found += [] if f'"{name}"' in code else [f"{name} is said nowhere"]
        for kind in ("", "tip_"):
            texts = [entry.get(f"{kind}{lang}") for lang in LANGUAGES]
            found += [f"{name}: {kind} lacks a language"] if any(texts) and not all(texts) else []
            differ = len({frozenset(placeholders(text)) for text in texts if text}) > 1
            found += [f"{name}: placeholders differ"] if differ else []
        known = {f"{kind}{lang}" for kind in ("", "tip_") for lang in LANGUAGES}
        found += [] if entry.get("en") and set(entry) <= known else [f"{name}: {sorted(set(entry) - known)}"]
    tables = (controls.FIELDS, controls.EVALUATED, controls.EXPORTED, controls.SIZED)
    keys = {key for table in tables for key in table}
    found += [key for key in keys if not {"en", "zh", "tip_en", "tip_zh"} <= set(entries.get(key, ()))]
    found += [name for name in re.findall(r'words(?:\.tip)?\(\s*"(\w+)"', code) if name not in entries]
    tips = re.findall(r'words\.tip\(\s*"(\w+)"', code)
    return found + [f"{name}: no tooltip" for name in tips if "tip_en" not in entries.get(name, ())]


def test_no_word_is_missing_and_none_is_left_over():
    assert not faults(texts(), sources())


@pytest.mark.parametrize("name", ["lora_rank", "stop", "evaluate_start", "export_disk", "bad_numbers", "quiz_right"])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_missing_string_is_found(name, lang):
    entries = {key: dict(entry) for key, entry in texts().items()}
    assert not faults(entries, sources())
    del entries[name][lang]
    assert any(name in fault for fault in faults(entries, sources()))
    entries[name][lang] = "{nobody_fills_this}"
    assert any(name in fault for fault in faults(entries, sources()))


def placeholders(text):
    return [name for _, name, _, _ in Formatter().parse(text) if name]


def test_the_language_is_the_parameter_s_or_the_environment_s(monkeypatch):
    assert Words().lang == "en"
    monkeypatch.setenv("FTLAB_LANG", "zh")
    assert Words()("stop") == "停止" and Words("en")("stop") == "Stop"
    with errors.speaking("en"):
        assert errors.language() == "en"
    with pytest.raises(LabError, match="fr"):
        Words("fr")
