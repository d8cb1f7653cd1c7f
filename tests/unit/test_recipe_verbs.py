"""Every template in recipes/ is run on a tiny model, or checked for a card; eval and chat take recipes too."""

import io
import json
from pathlib import Path

import pytest

from ftlab import device
from ftlab.apps import cli
from ftlab.data import registry
from ftlab.errors import LabError
from ftlab.recipe import library_args, machine_defaults
from ftlab.recipe import read as recipes
from ftlab.recipe.explain import explain
from ftlab.runs import build, chat, evaluation, export, folder, train

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
BIG = sorted(path.stem for path in (ROOT / "recipes" / "7b").glob("*.yaml"))
TRAINED = [name for name in TEMPLATES if name not in ("merge", "chat")]
CARD = device.Machine("cuda", "a card", "bfloat16", 8, 24 * 2**30, "fast there")


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """The templates name data sets as a learner finds them: from the project's folder."""
    monkeypatch.chdir(ROOT)


def tiny_values(name: str, model: Path, output_dir: Path) -> list[str]:
    """Return what makes a template small: another model, one step, few short rows."""
    sizes = ["max_steps=1", "max_samples=16", "per_device_train_batch_size=2", "cutoff_len=512"]
    # GRPO's batch is a whole number of groups, and completions of a random model never end.
    sizes += ["num_generations=2", "max_new_tokens=8"]
    sizes += [f"teacher_model={model}"] if name == "gkd" else []
    return [f"model_name_or_path={model}", f"output_dir={output_dir}", *sizes]


def test_both_folders_have_the_same_templates():
    assert TEMPLATES == BIG and len(TEMPLATES) >= 10


@pytest.mark.parametrize("name", TRAINED)
def test_a_template_trains(name, tiny_model_dir, tiny_mixture_dir, tmp_path):
    values = tiny_values(name, tiny_mixture_dir if name == "moe" else tiny_model_dir, tmp_path / "run")
    run = train.train(recipes.load(ROOT / "recipes" / f"{name}.yaml", values))
    assert not run.reused and list(run.weights.glob("*.safetensors"))


@pytest.mark.parametrize("folder", ["recipes", "recipes/7b"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_right_and_its_settings_can_be_built(name, folder, monkeypatch, tmp_path):
    path = ROOT / folder / f"{name}.yaml"
    assert recipes.check(path) == []
    made = recipes.load(path)
    if name not in ("merge", "chat"):
        values, _ = library_args.training_settings(made, tmp_path, CARD)
        assert values["output_dir"] and library_args.lora_settings(made)["r"] == made.lora_rank
        assert build.training_args(made, tmp_path, device.describe())[0].learning_rate > 0


@pytest.mark.parametrize("folder", ["recipes", "recipes/7b"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_template_holds_examples_out_or_says_why_not(name, folder):
    made = recipes.load(ROOT / folder / f"{name}.yaml")
    if made.eval_dataset:
        asked, trained = (
            {
                str(row.get("messages", row.get("prompt")))
                for row in registry.load(names, substitutions={"name": "a", "author": "b"})
            }
            for names in (made.eval_dataset, made.dataset)
        )
        assert asked and not asked & trained
    else:
        assert "# no eval_dataset: " in (ROOT / folder / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in TRAINED if name.startswith("sft")])
def test_a_supervised_template_mixes_general_examples(name):
    """What it doesn't see it forgets; `python -m benchmarks harm` measures how much."""
    assert "general_en" in library_args.names(recipes.load(ROOT / "recipes" / f"{name}.yaml").dataset)
    # Those of the embedded model would teach a bigger one its mistakes.
    assert "alpaca_en_demo" in library_args.names(recipes.load(ROOT / "recipes/7b" / f"{name}.yaml").dataset)


def test_a_template_merges(tiny_model_dir, tiny_recipe, tmp_path):
    run = train.train(recipes.load(tiny_recipe))
    values = [
        f"model_name_or_path={tiny_model_dir}",
        f"adapter_name_or_path={run.folder}",
        f"export_dir={tmp_path / 'm'}",
    ]
    assert export.export(recipes.load(ROOT / "recipes" / "merge.yaml", values)).greedy_equal_share == 1


def test_eval_scores_base_and_adapter_and_writes_them(tiny_recipe, capsys):
    run = train.train(recipes.load(tiny_recipe | {"max_steps": 30}))
    found = evaluation.score(recipes.load(tiny_recipe | {"max_steps": 30}))
    assert found["tuned"]["loss"] < found["base"]["loss"] and found["base"]["rows"] == 12
    assert json.loads((run.folder / folder.SCORES).read_text()) == found
    assert "perplexity" in evaluation.scores_table(found) and "to score held-out examples" in capsys.readouterr().out
    # What eval left does not make the folder somebody else's.
    assert train.train(recipes.load(tiny_recipe | {"max_steps": 30})).reused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "dpo"}, "has no answers"),
        ({"dataset": None}, "has no"),
        ({"adapter_name_or_path": "nowhere"}, "not an adapter"),
    ],
)
def test_eval_refuses_in_one_line(tiny_recipe, keys, message):
    values = {name: value for name, value in (tiny_recipe | keys).items() if value is not None}
    with pytest.raises(LabError, match=message) as error:
        evaluation.score(recipes.load(values))
    assert error.value.exit_code == 2


def test_chat_takes_a_recipe(tiny_recipe, tiny_model_dir, tmp_path, monkeypatch, capsys):
    run = train.train(recipes.load(tiny_recipe))
    values = [f"model_name_or_path={tiny_model_dir}", f"adapter_name_or_path={run.folder}", "max_new_tokens=4"]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    asked: list[dict] = []
    monkeypatch.setattr(chat, "stream", lambda model, tokenizer, messages, **given: asked.append(given) or iter("yes"))
    assert cli.main(["chat", str(ROOT / "recipes" / "chat.yaml"), *values]) == 0
    assert asked[0]["temperature"] == 0.7 and asked[0]["max_new_tokens"] == 4 and "yes" in capsys.readouterr().out


def test_chat_refuses_what_does_not_belong_together(capsys):
    assert cli.main(["chat", "recipes/chat.yaml", "--adapter", "x"]) == 2
    assert cli.main(["chat", "smollm2-135m", "temperture=1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_default_that_the_machine_decides_is_told_with_its_reason():
    cpu = device.Machine("cpu", "test", "bfloat16", 2, 2**34, "test")
    # Under both of its names.
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        assert machine_defaults.here(name, cpu).startswith("  on this machine: False; memory is not what is short")
        assert machine_defaults.here(name, CARD).startswith("  on this machine: True; memory is what is short")
    assert machine_defaults.here("bf16", CARD).startswith("  on this machine: True")
    assert machine_defaults.here("lora_rank", cpu) == ""
    for name in machine_defaults.REASONS:
        assert explain(name)
