"""Files of other frameworks as recipes: hand-made pairs, every key accounted for, and what is refused."""

from pathlib import Path

import pytest

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import coming_from, foreign_files, from_frameworks, strict_yaml
from ftlab.recipe import read as recipes

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "from"
PAIRS = sorted(path for path in GOLDEN.iterdir() if not path.name.endswith(".recipe.yaml"))


def expected(path: Path) -> Path:
    """Return the recipe that a person wrote for a file."""
    return path.parent / f"{path.stem}.recipe.yaml"


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """The files name data sets from the project's folder."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_a_file_is_the_recipe_that_a_person_wrote_for_it(path):
    assert recipes.read(path)[0] == recipes.load(expected(path))


def test_there_are_thirty_pairs():
    assert len(PAIRS) >= 30 and all(expected(path).is_file() for path in PAIRS)
    assert {path.suffix for path in PAIRS} == {".yml", ".yaml", ".json", ".sh", ".py", ".ipynb"}


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_every_key_is_mapped_or_reported(path):
    source = foreign_files.recognized(path)
    if source is None or source.framework is foreign_files.OWN:
        pytest.skip("a recipe's own keys")
    values, places, notes = from_frameworks.translate(source, str(path))
    said = "\n".join(notes)
    given = {name: value for name, value in source.values.items() if value is not None}
    for name, value in given.items():
        alone, note = from_frameworks.comes_to(name, value, given, source.framework)
        assert set(alone) <= set(values) or f"{name}:" in said, name
        assert alone or note or f"{name}: " in said, name
    assert set(places) <= set(values)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.yml",
            "base_model: m\nrelora: true\nlora_rr: 3\n",
            r"2 of axolotl's keys.*\n.*a\.yml:2: relora.*\n.*lora_r",
        ),
        ("a.yml", "base_model: m\nadapter: ia3\n", "a recipe has lora, qlora and full"),
        ("a.yml", "base_model: m\ndatasets: [{path: a/b, type: input_output}]\n", "describe the columns"),
        ("a.yml", "base_model: m\nrl_beta: 0.1\ndpo_beta: 0.2\n", "two names of one setting"),
        ("a.yml", "base_model: m\ndatasets: [{type: alpaca}]\n", "it has another form"),
        ("s.yaml", "model: m\ndataset: [a.json]\nrlhf_type: simpo\n", "cpo_alpha"),
        ("s.sh", "swift sft --model m --dataset a:sub --target_regex x.*\n", r"the subset of a.*\n.*target_regex"),
        ("s.sh", "swift infer --model m\n", "`swift infer` does not train"),
        ("s.sh", "echo hello\n", "no training command"),
        ("s.sh", "swift sft --model m\nswift sft --model n\n", "several training commands"),
        ("s.sh", "swift sft --model $MODEL --dataset a.json\n", "only a shell knows"),
        ("s.sh", "swift sft --model 'm\n", "No closing quotation"),
        ("t.sh", "trl grpo --model_name_or_path m --dataset_name a.json --reward_funcs exact_answer\n", "penalty"),
        ("u.py", "print('no model')\n", "no FastLanguageModel"),
        ("u.py", "def broken(:\n", "cannot be read"),
        ("u.ipynb", "{}", "not a notebook"),
        ("c.yaml", "compute_environment: LOCAL_MACHINE\n", "a configuration of accelerate"),
        ("p.json", '{"peft_type": "IA3", "base_model_name_or_path": "m"}', "a recipe has LoRA"),
    ],
)
def test_what_a_recipe_cannot_have_is_refused_by_name(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=message) as error:
        recipes.read(tmp_path / name)
    assert error.value.exit_code == 2


def test_a_missing_script_is_said(tmp_path):
    with pytest.raises(LabError, match="recipe not found"):
        recipes.read(tmp_path / "none.sh")


@pytest.mark.parametrize("extra", [{"stage": "dpo"}, {}])
def test_a_yaml_of_trl_is_read_for_the_trainer_that_is_asked_for(tmp_path, extra):
    text = "model_name_or_path: m\ndataset_name: data/preference_en.jsonl\nuse_peft: false\n"
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    recipe, notes = recipes.read(tmp_path / "t.yaml", [f"{name}={value}" for name, value in extra.items()])
    rates = {"dpo": 1e-6, "sft": 2e-5}
    assert recipe.training["learning_rate"] == rates[recipe.stage]
    assert any("doesn't name its trainer" in note for note in notes) is not bool(extra)


def test_defaults_of_theirs_are_listed():
    _, notes = recipes.read(GOLDEN / "swift_pt.sh")
    assert any("ms-swift's own defaults" in note and "weight_decay: 0.1" in note for note in notes)


def test_an_override_counts_after_the_translation():
    assert recipes.read(GOLDEN / "axolotl_lora.yml", ["lora_rank=4"])[0].lora_rank == 4


def test_the_command_prints_a_recipe_or_writes_a_new_file(tmp_path, capsys):
    asked = ["recipe", "from", str(GOLDEN / "alpaca_lora.sh")]
    assert cli.main(asked) == 0
    printed = capsys.readouterr()
    assert "read as alpaca-lora's file" in printed.err
    out = tmp_path / "out.yaml"
    assert cli.main([*asked, "--as-yaml", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == printed.out
    assert recipes.load(out) == recipes.load(expected(GOLDEN / "alpaca_lora.sh"))
    before = out.read_bytes()
    assert cli.main([*asked, "--as-yaml", str(out)]) == 2 and out.read_bytes() == before
    assert strict_yaml.read(out)[0]["lora_rank"] == 16


def test_the_page_is_written_from_the_tables():
    assert coming_from.PAGE.read_text(encoding="utf-8") == coming_from.page(), "python -m ftlab.recipe.coming_from"


def test_no_key_stands_in_two_places_of_a_table():
    for framework, _ in coming_from.READ.values():
        places = [framework.read, framework.dropped, framework.refused]
        for name in {*framework.read, *framework.dropped, *framework.refused}:
            assert sum(name in place for place in places) == 1, (framework.title, name)
