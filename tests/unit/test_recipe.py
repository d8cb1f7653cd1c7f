"""Recipes: what a YAML file becomes, and every way it can be wrong in one line with its place."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig
from trl import SFTConfig

from ftlab.device import Machine
from ftlab.errors import LabError
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes

CPU = Machine("cpu", "test", "bfloat16", 2, 2**34, "test")
GOOD = {"model_name_or_path": "smollm2-135m", "dataset": "identity_en", "output_dir": "runs/x"}


def write(folder, text: str):
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def yaml_of(**extra: object) -> str:
    return "".join(f"{key}: {value}\n" for key, value in (GOOD | extra).items())


def test_llama_factory_keys_become_library_objects():
    made = recipes.load(
        GOOD | {"lora_rank": 4, "lora_target": "q_proj,v_proj", "cutoff_len": 99, "learning_rate": 1e-4}
    )
    config = LoraConfig(**library_args.peft_settings(made))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"q_proj", "v_proj"})
    assert made.training == {"learning_rate": 1e-4} and made.cutoff_len == 99


def test_all_means_every_linear_layer():
    assert library_args.peft_settings(recipes.load(GOOD))["target_modules"] == "all-linear"


def test_numbers_are_read_as_yaml_1_2_does(tmp_path):
    made = recipes.load(write(tmp_path, yaml_of(learning_rate="1e-4", run_name="no")))
    assert made.training == {"learning_rate": 1e-4, "run_name": "no"}


def test_overrides_win(tmp_path):
    made = recipes.load(write(tmp_path, yaml_of(learning_rate="1e-4")), ["learning_rate=0.5", "lora_rank=2"])
    assert made.training["learning_rate"] == 0.5 and made.lora_rank == 2


def test_dropped_keys_are_translated_and_said(capsys):
    made = recipes.load(GOOD | {"warmup_ratio": 0.1, "overwrite_output_dir": True})
    assert made.training == {"warmup_steps": 0.1} and made.overwrite_output_dir
    assert "warmup_ratio is now warmup_steps: 0.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "counts", "said"),
    [
        ({"warmup_ratio": 0.5, "warmup_steps": 0}, 0.5, "warmup_ratio is now warmup_steps: 0.5"),
        ({"warmup_steps": 0, "warmup_ratio": 0.5}, 0.5, "warmup_ratio is now warmup_steps: 0.5"),
        ({"warmup_ratio": 0.5, "warmup_steps": 7}, 7, "warmup_ratio: 0.5 is overridden by warmup_steps: 7"),
        ({"warmup_ratio": 0.0, "warmup_steps": 7}, 7, "warmup_ratio: 0.0 is overridden by warmup_steps: 7"),
        ({"warmup_ratio": 0.0}, 0.0, "warmup_ratio is now warmup_steps: 0.0"),
        ({"warmup_ratio": 1.0}, math.nextafter(1, 0), "all steps"),
        ({"warmup_ratio": 1}, math.nextafter(1, 0), "all steps"),
    ],
)
def test_the_note_on_warmup_says_what_counts(given, counts, said):
    made, notes = recipes.read(GOOD | given)
    assert made.training["warmup_steps"] == counts and len(notes) == 1 and said in notes[0]


@pytest.mark.parametrize("steps", [1, 7, 1000, 10**9])
def test_a_ratio_of_one_warms_up_over_all_steps(steps, tmp_path):
    made, _ = recipes.read(GOOD | {"warmup_ratio": 1.0})
    recipes.write(made, tmp_path / "r.yaml")
    again = recipes.load(tmp_path / "r.yaml")
    assert SFTConfig(output_dir=str(tmp_path), bf16=False, **again.training).get_warmup_steps(steps) == steps


@pytest.mark.parametrize(
    ("given", "packs", "said"),
    [
        ({"neat_packing": True}, True, "neat_packing is now packing: true"),
        ({"neat_packing": True, "packing": False}, True, "`packing: false` is overridden by it"),
        ({"packing": False, "neat_packing": True}, True, "`packing: false` is overridden by it"),
        ({"neat_packing": False, "packing": True}, True, "never attend to each other"),
        ({"neat_packing": False}, False, "never attend to each other"),
        ({"stage": "pt"}, True, ""),
        ({"stage": "pt", "packing": False}, False, ""),
    ],
)
def test_packing_is_what_the_notes_say(given, packs, said):
    made, notes = recipes.read(GOOD | given)
    assert library_args.training_settings(made, Path("x"), CPU)[0]["packing"] is packs
    assert len(notes) == bool(said) and all(said in note for note in notes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_seq_length": 512, "cutoff_len": 256}, r"`max_seq_length: 512` and `cutoff_len: 256`|remove one"),
        ({"max_length": 256}, "write `cutoff_len` or `max_new_tokens`"),
        ({"evaluation_strategy": "steps", "eval_strategy": "epoch"}, "remove one"),
        ({"disable_gradient_checkpointing": True, "gradient_checkpointing": True}, "remove one"),
        ({"gradient_checkpointing": True, "activation_checkpointing": False}, "remove one"),
        ({"group_by_length": True, "train_sampling_strategy": "random"}, "remove one"),
        ({"bf16": True, "fp16": True}, "both true"),
        ({"neat_packing": True, "stage": "pt"}, "pt joins texts"),
        ({"warmup_ratio": 5}, "from 0 to 1"),
        ({"warmup_ratio": "a tenth"}, "from 0 to 1"),
        ({"warmup_steps": 2.5}, "whole number"),
        ({"val_size": 2.5}, "whole number"),
        ({"disable_gradient_checkpointing": "maybe"}, "cannot be 'maybe'"),
        ({"adapter_name_or_path": "a,b", "quantization_bit": 4}, "rounds"),
        ({"adapter_name_or_path": ["a", "b"], "fsdp": True}, "is merged, which `fsdp`"),
        ({"adapter_name_or_path": "a", "create_new_adapter": True, "stage": "rm"}, "one adapter on its base"),
        ({"adapter_name_or_path": "a", "finetuning_type": "full"}, "merge it first"),
        ({"loraplus_lr_ratio": 16.0, "finetuning_type": "freeze"}, "needs `finetuning_type: lora`"),
    ],
)
def test_two_keys_that_disagree_are_refused(given, message):
    with pytest.raises(LabError, match=message) as error:
        recipes.read(GOOD | given)
    assert error.value.exit_code == 2 and error.value.fix


def test_two_names_of_one_value_are_one_key():
    assert recipes.read(GOOD | {"max_seq_length": 512, "cutoff_len": 512})[0].cutoff_len == 512


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"create_new_adapter": True}, "it needs an `adapter_name_or_path`"),
        ({"streaming": True}, "read from it as they are needed"),
        ({"buffer_size": 128}, "examples are shuffled as a whole"),
        ({"remove_unused_columns": False}, "remove_unused_columns: false is ignored: every stage gets the columns"),
        ({"resume_from_checkpoint": True}, "no checkpoint: training starts at step 1"),
        ({"include_for_metrics": ["loss"]}, "the loss alone"),
        ({"simpo_gamma": 1.0, "pref_beta": 0.3}, "it needs stage: simpo"),
        (
            {"lora_rank": 4, "finetuning_type": "full"},
            "lora_rank: 4 has no effect in this run: it needs finetuning_type",
        ),
        ({"max_steps": 3, "num_train_epochs": 2.0}, "num_train_epochs: 2.0 has no effect"),
        ({"stage": "ppo", "reward_funcs": "exact_answer", "top_k": 5}, "top_k: 5 has no effect in this run"),
    ],
)
def test_what_changes_nothing_is_said(given, said):
    assert any(said in note for note in recipes.read(GOOD | given)[1])


@pytest.mark.parametrize(
    ("given", "dtype", "said"),
    [
        ({"bf16": False}, "bfloat16", "bf16: false has no effect: this machine trains in bfloat16"),
        ({"bf16": True}, "float32", "bf16: true has no effect: this machine trains in float32"),
        ({"bf16": True}, "bfloat16", ""),
        ({"bf16": False}, "float32", ""),
        ({"fp16": True}, "bfloat16", "fp16: true has no effect"),
    ],
)
def test_a_number_format_that_the_machine_does_not_train_in_is_said(given, dtype, said):
    _, notes = library_args.training_settings(recipes.load(GOOD | given), Path("x"), replace(CPU, dtype=dtype))
    assert len(notes) == bool(said) and all(said in note for note in notes)


def test_an_unfinished_run_is_what_resuming_means(tmp_path):
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    _, notes = recipes.read(GOOD | {"resume_from_checkpoint": True, "output_dir": str(tmp_path / "run")})
    assert "an unfinished run is resumed without it" in notes[0]


def test_a_recipe_survives_the_way_to_yaml_and_back(tmp_path):
    made = recipes.load(GOOD | {"dataset_substitutions": {"name": "Lumi"}, "max_steps": 3, "val_size": 0.1})
    recipes.write(made, tmp_path / "r.yaml")
    assert recipes.load(tmp_path / "r.yaml") == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (yaml_of(lora_rnak=4), r"r\.yaml:4: unknown recipe key `lora_rnak`\n.*lora_rank"),
        (yaml_of(lora_rank="big"), r"r\.yaml:4: `lora_rank` cannot be 'big'"),
        (yaml_of(lora_rank="1.5"), r"r\.yaml:4: `lora_rank` cannot be 1\.5"),
        (yaml_of(lora_rank=0), r"greater than or equal to 1"),
        (yaml_of(stage="ppoo"), r"`stage` cannot be 'ppoo'"),
        ("dataset: a\noutput_dir: b\n", r"has no `model_name_or_path`"),
        (
            yaml_of() + "dataset: again\n",
            r"r\.yaml:4: `dataset` is set twice, first on line 2\n  fix: keep one of the two lines",
        ),
        ("a:\n  b: 1\n  b: 2\n", r"r\.yaml:3: `b` is set twice, first on line 2"),
        ("{a: 1, a: 2}\n", r"r\.yaml:1: `a` is set twice, first on line 1"),
        ('"a\\nb": 1\n"a\\nb": 2\n', r"r\.yaml:2: `a\\nb` is set twice, first on line 2"),
        ("a: &x 1\nb: *x\n", r"r\.yaml:2: aliases and tags .*\n  fix: write the value itself"),
        ("a: !!python/object:os.system x\n", r"r\.yaml:1: .*tags"),
        ("a: 1\n---\nb: 2\n", r"r\.yaml:2: a second YAML document .*\n  fix: a file holds one recipe"),
        ("a: [1\nb: 2\n", r"r\.yaml:2: invalid YAML"),
        ("a: 1\nstage：sft\nb: 2\n", r"r\.yaml:2: invalid YAML[^\n]*\n[^\n]*an ASCII colon"),
        ("a: 1\n\tb: 2\n", r"r\.yaml:2: invalid YAML[^\n]*\n[^\n]*spaces instead of tabs"),
        ("- a\n- b\n", r"not a list of `key: value`"),
        ("", r"not a list of `key: value`"),
    ],
)
def test_a_bad_recipe_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(LabError, match=message) as error:
        recipes.load(write(tmp_path, text))
    assert error.value.exit_code == 2 and error.value.fix


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: b: c\n", 1, "a second `: `"),
        ("a:1\nb: 2\n", 2, "no `: ` in the line above"),
        ("a: 1\n  b: 2\n", 2, "more indentation"),
        ("a: 1\nb\nc: 2\n", 2, "no `: ` in this line"),
        ("a: 1\n\tb: 2\n", 2, "a tab"),
        ("a: @x\n", 1, "begins with @ needs quotes"),
        ("a: , b\n", 1, "begins with , needs quotes"),
        ("a: 1\nb: 'x\nc: 2\n", 2, "an unclosed quote"),
        ("a: 'it's'\n", 1, "text after the closing quote"),
        ("a: [1, 2\nb: 3\n", 2, "an unmatched bracket"),
        ("a: {x: 1\nb: 3\n", 2, "an unmatched bracket"),
        ("a: [1]]\n", 1, "an unmatched bracket"),
        ("a: ]\n", 1, "an unmatched bracket"),
        ("a:\n  b: 1\n c: 2\n", 3, "its indentation or its `- `"),
        ("a: 1\n- b\n", 2, "its indentation or its `- `"),
        ("  a: 1\nb: 2\n", 2, "its indentation or its `- `"),
        ("a: 1\nb: - 2\n", 2, "`- ` begins a line"),
        ('a: "C:\\q"\n', 1, "use single quotes"),
        ("a: \x07\n", None, "cannot be printed"),
        ("a: 2026-13-45\n", None, "a date or time that does not exist"),
    ],
)
def test_what_is_wrong_with_yaml_is_said_in_the_users_words(tmp_path, text, line, said, monkeypatch):
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(LabError) as error:
        recipes.load(path)
    assert str(error.value).startswith(f"{path}:{line}: invalid YAML" if line else f"{path}: invalid YAML")
    assert said in str(error.value)
    monkeypatch.setenv("FTLAB_LANG", "zh")
    with pytest.raises(LabError) as error:
        recipes.load(path)
    assert not re.search("[a-z]{4}", str(error.value).removeprefix(str(path)))


def test_environment_variables_are_not_read(tmp_path):
    made = recipes.load(write(tmp_path, yaml_of(run_name="${oc.env:HOME}")))
    assert made.training["run_name"] == "${oc.env:HOME}"


def test_a_missing_file_and_a_bare_override_are_said(tmp_path):
    (tmp_path / "sft_lora.yaml").touch()
    for name, fix in (("sft_laro.yaml", "did you mean sft_lora.yaml?"), ("none.yaml", "check the path")):
        with pytest.raises(LabError, match=f"recipe not found\n  fix: {re.escape(fix)}"):
            recipes.load(tmp_path / name)
    with pytest.raises(LabError, match="key=value"):
        recipes.load(GOOD, ["learning_rate"])


@pytest.mark.parametrize(("text", "said"), [("042", "is 42 to YAML 1.2 and 34 to"), ("-017", "15 to"), ("089", "text")])
def test_a_leading_zero_is_refused_where_other_tools_read_another_number(tmp_path, text, said):
    path = tmp_path / "r.yaml"
    path.write_text(f"model_name_or_path: m\nseed: {text}\n")
    with pytest.raises(LabError) as refused:
        recipes.read(path)
    assert said in refused.value.what and refused.value.where == f"{path}:2"
    path.write_text("model_name_or_path: m\nseed: 0\nlearning_rate: 0.01\nrun_name: '042'\n")
    assert recipes.read(path)[0].training == {"seed": 0, "learning_rate": 0.01, "run_name": "042"}


def test_a_written_recipe_has_a_key_on_each_line_in_the_order_of_the_keys(tmp_path):
    given = {"seed": 7, "lora_rank": 4, "model_name_or_path": "m", "dataset_substitutions": {"name": "Ada"}}
    recipes.write(recipes.load(given), tmp_path / "r.yaml")
    lines = ["model_name_or_path: m", "lora_rank: 4", "dataset_substitutions:", "  name: Ada", "seed: 7"]
    assert (tmp_path / "r.yaml").read_text().splitlines() == lines
