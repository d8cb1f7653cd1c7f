"""Recipes: what a YAML file becomes, and every way it can be wrong in one line with its place."""

import pytest
from peft import LoraConfig

from ftlab.errors import LabError
from ftlab.runs import fields, recipe

GOOD = {"model_name_or_path": "smollm2-135m", "dataset": "identity_en", "output_dir": "runs/x"}


def write(folder, text: str):
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def yaml_of(**extra: object) -> str:
    return "".join(f"{key}: {value}\n" for key, value in (GOOD | extra).items())


def test_llama_factory_keys_become_library_objects():
    made = recipe.load(GOOD | {"lora_rank": 4, "lora_target": "q_proj,v_proj", "cutoff_len": 99, "learning_rate": 1e-4})
    config = LoraConfig(**fields.lora_settings(made))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"q_proj", "v_proj"})
    assert made.training == {"learning_rate": 1e-4} and made.cutoff_len == 99


def test_all_means_every_linear_layer():
    assert fields.lora_settings(recipe.load(GOOD))["target_modules"] == "all-linear"


def test_numbers_are_read_as_yaml_1_2_does(tmp_path):
    made = recipe.load(write(tmp_path, yaml_of(learning_rate="1e-4", run_name="no")))
    assert made.training == {"learning_rate": 1e-4, "run_name": "no"}


def test_overrides_win(tmp_path):
    made = recipe.load(write(tmp_path, yaml_of(learning_rate="1e-4")), ["learning_rate=0.5", "lora_rank=2"])
    assert made.training["learning_rate"] == 0.5 and made.lora_rank == 2


def test_dropped_keys_are_translated_and_said(capsys):
    made = recipe.load(GOOD | {"warmup_ratio": 0.1, "overwrite_output_dir": True})
    assert made.training == {"warmup_steps": 0.1} and made.overwrite_output_dir
    assert "warmup_ratio is now warmup_steps: 0.1" in capsys.readouterr().out


def test_a_recipe_survives_the_way_to_yaml_and_back(tmp_path):
    made = recipe.load(GOOD | {"dataset_substitutions": {"name": "Lumi"}, "max_steps": 3, "val_size": 0.1})
    recipe.write(made, tmp_path / "r.yaml")
    assert recipe.load(tmp_path / "r.yaml") == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (yaml_of(lora_rnak=4), r"r\.yaml:4: `lora_rnak` is no key.*\n.*lora_rank"),
        (yaml_of(lora_rank="big"), r"r\.yaml:4: `lora_rank` cannot be 'big'"),
        (yaml_of(lora_rank="1.5"), r"r\.yaml:4: `lora_rank` cannot be 1\.5"),
        (yaml_of(lora_rank=0), r"greater than or equal to 1"),
        (yaml_of(stage="ppoo"), r"`stage` cannot be 'ppoo'"),
        ("dataset: a\noutput_dir: b\n", r"does not say `model_name_or_path`"),
        (yaml_of() + "dataset: again\n", r"r\.yaml:4: .*twice"),
        ("a: &x 1\nb: *x\n", r"r\.yaml:2: .*aliases"),
        ("a: !!python/object:os.system x\n", r"r\.yaml:1: .*tags"),
        ("a: [1\nb: 2\n", r"r\.yaml:2: .*cannot be read"),
        ("- a\n- b\n", r"no list of `key: value`"),
        ("", r"no list of `key: value`"),
    ],
)
def test_a_bad_recipe_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(LabError, match=message) as error:
        recipe.load(write(tmp_path, text))
    assert error.value.exit_code == 2 and error.value.fix


def test_environment_variables_are_not_read(tmp_path):
    made = recipe.load(write(tmp_path, yaml_of(run_name="${oc.env:HOME}")))
    assert made.training["run_name"] == "${oc.env:HOME}"


def test_a_missing_file_and_a_bare_override_are_said(tmp_path):
    with pytest.raises(LabError, match="no such recipe"):
        recipe.load(tmp_path / "none.yaml")
    with pytest.raises(LabError, match="key=value"):
        recipe.load(GOOD, ["learning_rate"])
