"""A recipe for other frameworks: golden files, LLaMA-Factory's read back, the TRL script trained beside it."""

import json
import os
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import load_dataset
from safetensors.torch import load_file

from ftlab import cpu, device
from ftlab.apps import cli
from ftlab.data import registry
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import to_frameworks, to_script, to_verl
from ftlab.recipe.keys import GROUPED, REWARDED
from ftlab.runs import train

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "show"
LORA = {
    "model_name_or_path": "org/base-7b",
    "dataset": "alpaca_en_demo",
    "output_dir": "runs/shown",
    "template": "qwen",
    "lora_rank": 16,
    "cutoff_len": 1024,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "val_size": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 100,
}
RECIPES = {
    "lora": LORA,
    "qlora": LORA | {"quantization_bit": 4, "use_dora": True, "lora_target": "q_proj,v_proj", "max_samples": 500},
    "chats": LORA | {"dataset": "tools_en", "train_on_prompt": True, "default_system": "Be brief."},
    "full": LORA | {"finetuning_type": "full", "stage": "pt", "dataset": "corpus_en", "pure_bf16": True},
    "dpo": LORA | {"stage": "dpo", "dataset": "preference_en", "pref_beta": 0.2, "pref_ftx": 0.5, "max_steps": 40},
    "simpo": LORA | {"stage": "simpo", "dataset": "preference_en", "simpo_gamma": 1.0, "early_stopping_steps": 3},
    "reward": LORA | {"stage": "rm", "dataset": "preference_en", "flash_attn": "fa2"},
}
ASKED = {name: value for name, value in LORA.items() if name not in ("val_size", "eval_strategy", "eval_steps")}
ASKED |= {"dataset": "facts_en", "reward_funcs": "short_answer,exact_answer", "temperature": 0.8, "max_steps": 40}
RECIPES["grpo"] = ASKED | {"stage": "grpo", "num_generations": 4, "max_new_tokens": 24, "pref_beta": 0.02}
RECIPES["rloo"] = RECIPES["grpo"] | {"stage": "rloo"}
RECIPES["gkd"] = LORA | {
    "stage": "gkd",
    "teacher_model": "org/teacher-70b",
    "lmbda": 0.3,
    "beta": 0.1,
    "max_new_tokens": 24,
}
RECIPES["gkd"] |= {"temperature": 0.8}
RECIPES["ppo"] = ASKED | {"stage": "ppo", "ppo_epochs": 2, "max_new_tokens": 24, "pref_beta": 0.02}
GROUP = {"reward_funcs": "short_answer", "num_generations": 2, "max_new_tokens": 8}
GPU = device.Machine("cuda", "a card", "bfloat16", 8, 24 * 2**30, "fast there")


def shown(name: str, framework: str) -> str:
    """Return what is printed, a refusal included."""
    made = recipes.load(RECIPES[name])
    try:
        scripts = {"trl": to_script.script, "verl": to_verl.script}
        return scripts[framework](made) if framework in scripts else to_frameworks.show(made, framework)
    except LabError as error:
        return f"{error}\n"


@pytest.mark.parametrize("framework", ["trl", "llamafactory", "verl", *to_frameworks.FRAMEWORKS])
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_is_the_golden_file(name, framework, monkeypatch):
    """`FTLAB_GOLDEN=write pytest tests/unit/test_show.py` writes the files anew: read the difference."""
    monkeypatch.setattr(device, "describe", lambda: GPU)
    monkeypatch.chdir(ROOT)
    path = GOLDEN / f"{name}.{framework}.txt"
    text = shown(name, framework)
    if os.environ.get("FTLAB_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in (*REWARDED, "gkd")])
def test_the_yaml_for_llama_factory_is_the_same_recipe(name, tmp_path):
    path = tmp_path / "lf.yaml"
    path.write_text(shown(name, "llamafactory"))
    given, back = recipes.load(RECIPES[name]), recipes.load(path)
    same = recipes.decisive(back) | {"lora_alpha": given.lora_alpha}
    if name == "simpo":
        # LLaMA-Factory has it as a loss of its stage dpo, and stops early in another way.
        same |= {"stage": "simpo", "pref_loss": given.pref_loss, "early_stopping_steps": given.early_stopping_steps}
    silent = to_frameworks.ONLY["lora"] if given.finetuning_type == "full" else set()
    expected = {key: value for key, value in recipes.decisive(given).items() if key not in silent}
    assert {key: same.get(key) for key in expected} == expected


@pytest.mark.parametrize("framework", ["swift", "axolotl"])
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("reward", "ppo", "rloo")])
def test_what_is_shown_for_another_framework_is_read_back(name, framework, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = recipes.load(RECIPES[name])
    if (name, framework) in (("grpo", "axolotl"), ("gkd", "axolotl")):
        # The first has rows of its own, in a test of its own.
        assert ("axolotl cannot do this" in shown(name, framework)) is (name == "gkd")
        return
    path = tmp_path / ("shown.sh" if framework == "swift" else "shown.yml")
    path.write_text(text := shown(name, framework))
    back = recipes.decisive(recipes.load(path))
    lost = {line.split(": ")[1] for line in text.splitlines() if line.startswith("# no equivalent")}
    # Files are named by their paths there, and what says nothing in this run is left out.
    silent = {"dataset", "dataset_dir", "template", *lost}
    silent |= to_frameworks.ONLY["lora"] if given.finetuning_type == "full" else set()
    expected = {key: value for key, value in recipes.decisive(given).items() if key not in silent}
    expected |= {"lora_alpha": 32} if given.finetuning_type == "lora" else {}
    assert {key: back.get(key) for key in expected} == expected
    assert Path(back["dataset"]).is_file()
    # Both have another default.
    assert back["adam_beta2"] == 0.999 if framework == "swift" else back["weight_decay"] == 0.0


def test_axolotl_is_given_rows_and_rewards(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"{n} + 1?", "output": f"{n + 1}"} for n in range(4)]
    (tmp_path / "facts.json").write_text(json.dumps(rows))
    keys = {"model_name_or_path": str(tiny_model_dir), "dataset": "facts.json", "default_system": "Be brief."}
    made = recipes.load(RECIPES["grpo"] | keys | {"template": None})
    path = tmp_path / "shown.sh"
    path.write_text(text := to_frameworks.show(made, "axolotl"))
    back = recipes.load(path)
    expected = {
        name: value for name, value in recipes.decisive(made).items() if name not in ("dataset", "default_system")
    }
    given = recipes.decisive(back)
    assert {name: given.get(name) for name in expected} == expected | {"lora_alpha": 32}
    (tmp_path / "shown-axolotl").mkdir()
    exec(re.search(r"python3 - <<'END'\n(.*?)\nEND\n", text, re.DOTALL)[1], {})
    written = [json.loads(line) for line in (tmp_path / back.dataset).read_text().splitlines()]
    system = {"role": "system", "content": "Be brief."}
    assert written[0]["prompt"] == [system, {"role": "user", "content": "0 + 1?"}] and written[0]["answer"] == "1"
    read = registry.rows_of(back.dataset)
    assert [row["messages"][-1]["content"] for row in read] == ["1", "2", "3", "4"] and len(read[0]["messages"]) == 3
    scored: dict = {}
    exec(re.search(r"cat > axolotl_rewards.py <<'END'\n(.*?)\nEND\n", text, re.DOTALL)[1], scored)
    completions = [[{"role": "assistant", "content": said}] for said in ("1", "It is 1", "2")]
    assert scored["exact_answer"](prompts=[], completions=completions, answer=["1"] * 3) == [1.0, 0.0, 0.0]
    with pytest.raises(LabError, match="axolotl cannot do this: reward_model"):
        to_frameworks.show(recipes.load(RECIPES["grpo"] | {"reward_model": "runs/reward"}), "axolotl")


def test_a_teacher_that_writes_is_not_for_swift(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(LabError, match="swift cannot do this: seq_kd: true"):
        to_frameworks.show(recipes.load(RECIPES["gkd"] | {"seq_kd": True}), "swift")
    named = to_frameworks.show(recipes.load(RECIPES["gkd"] | {"model_revision": "v2", "temperature": 1.0}), "swift")
    assert "--teacher_model_revision v2" in named and not named.startswith("#")


@pytest.mark.parametrize("framework", ["llamafactory", "swift", "axolotl"])
def test_a_share_of_warm_up_has_the_name_that_older_libraries_know(framework, tmp_path):
    given = recipes.load(LORA | {"warmup_steps": 0.1})
    path = tmp_path / ("shown.sh" if framework == "swift" else "shown.yml")
    path.write_text(text := to_frameworks.show(given, framework))
    assert "warmup_ratio" in text and "warmup_steps" not in text
    assert recipes.load(path).training["warmup_steps"] == 0.1


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_what_is_shown_for_verl_is_read_back_with_its_rows(name, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.json").write_text(
        json.dumps([{"instruction": f"{n} + 1?", "output": f"{n + 1}"} for n in range(4)])
    )
    made = recipes.load(
        RECIPES[name] | {"model_name_or_path": str(tiny_model_dir), "dataset": "facts.json"} | {"template": None}
    )
    path = tmp_path / "shown.sh"
    path.write_text(text := to_verl.script(made))
    rows = re.search(r"python3 - <<'END'\n(.*?)\nEND\n", text, re.DOTALL)
    rewards = re.search(r"cat > (\S+) <<'END'\n(.*?)\nEND\n", text, re.DOTALL)
    (tmp_path / "shown-verl").mkdir()
    exec(rows[1], {})
    back = recipes.load(path)
    # The rows are a file of their own there, and verl has no schedule for ftlab's default.
    other = ("dataset", "num_train_epochs")
    expected = {key: value for key, value in recipes.decisive(made).items() if key not in other}
    given = recipes.decisive(back)
    assert {key: given.get(key) for key in expected} == expected | {"lora_alpha": 32}
    read = [registry.rows_of(str(place)) for place in (tmp_path / back.dataset, tmp_path / "facts.json")]
    given, written = ([row["messages"] for row in part] for part in read)
    assert given == written and len(given) == 4
    (first, *_) = load_dataset("parquet", data_files=back.dataset, split="train")
    assert first["prompt"] == [{"role": "user", "content": "0 + 1?"}] and first["reward_model"]["ground_truth"] == "1"
    scored: dict = {}
    exec(rewards[2], scored)
    assert Path(rewards[1]).name == "short_answer+exact_answer.py"
    assert [scored["compute_score"]("ftlab", said, "1", {}) for said in ("1", "It is 1", "2")] == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"save_strategy": "epoch"}, "save_strategy: epoch"),
        ({"save_steps": 0.1}, "save_steps: 0.1"),
        ({"eval_strategy": "epoch", "val_size": 0.1}, "eval_strategy: epoch"),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "val_size": 0.1}, "eval_steps: 0.1"),
    ],
)
def test_verl_counts_steps_and_the_rest_is_said(keys, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = to_verl.script(recipes.load(RECIPES["grpo"] | keys))
    assert f"# no equivalent, so another run without it: {said}\n" in text
    assert "trainer.save_freq=500" in text and "trainer.test_freq=-1" in text


def test_llama_factory_mixes_what_validates_with_the_same_probabilities(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    mixed = {"dataset": "alpaca_en_demo,facts_en", "mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}
    both = {name: value for name, value in LORA.items() if name != "val_size"} | mixed
    one = to_frameworks.show(recipes.load(both | {"eval_dataset": "facts_en_eval"}), "llamafactory")
    assert "# no equivalent, so another run without it: eval_dataset: facts_en_eval\n" in one
    assert not [line for line in one.splitlines() if line.startswith("eval_")]
    two = to_frameworks.show(recipes.load(both | {"eval_dataset": "facts_en_eval,alpaca_en_demo"}), "llamafactory")
    assert "\neval_dataset: facts_en_eval,alpaca_en_demo\n" in two and "# no equivalent" not in two
    with pytest.raises(LabError, match="early_stopping_steps: 2 beside"):
        to_frameworks.show(
            recipes.load(both | {"eval_dataset": "facts_en_eval", "early_stopping_steps": 2}), "llamafactory"
        )


def test_a_strategy_without_validation_is_refused():
    with pytest.raises(LabError, match="eval_strategy"):
        to_frameworks.show(recipes.load({**LORA, "val_size": 0.0}), "swift")


def test_words_that_yaml_1_1_takes_for_booleans_are_quoted():
    shown = to_frameworks.show(recipes.load(LORA | {"save_strategy": "no"}), "axolotl")
    assert "save_strategy: 'no'\n" in shown and "eval_strategy: steps\n" in shown


@pytest.mark.parametrize("framework", ["llamafactory", *to_frameworks.FRAMEWORKS])
@pytest.mark.parametrize("name", ["chat", "merge"])
def test_a_recipe_without_training_is_refused(name, framework):
    with pytest.raises(LabError, match="would have nothing to train on"):
        to_frameworks.show(recipes.load(ROOT / "recipes" / f"{name}.yaml"), framework)


def test_swift_is_told_where_answers_and_labels_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert """--columns '{"chosen": "output", "rejected": "rejected_response"}'""" in shown("dpo", "swift")
    kto = recipes.load(LORA | {"stage": "kto", "dataset": "kto_en"})
    assert """--columns '{"kto_tag": "label"}'""" in to_frameworks.show(kto, "swift")
    assert "--columns" not in shown("lora", "swift") and "--cpo_alpha 0.0" in shown("simpo", "swift")


def test_axolotl_is_refused_what_it_wants_other_rows_for(monkeypatch):
    monkeypatch.chdir(ROOT)
    for stage, dataset in (("rm", "preference_en"), ("kto", "kto_en"), ("orpo", "preference_en")):
        with pytest.raises(LabError, match=f"{dataset} for `stage: {stage}`"):
            to_frameworks.show(recipes.load(LORA | {"stage": stage, "dataset": dataset}), "axolotl")


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ("sft", {}),
        ("sft", {"finetuning_type": "full", "learning_rate": 1e-3}),
        ("sft", {"loraplus_lr_ratio": 4.0, "use_rslora": True, "lora_target": "q_proj,v_proj", "val_size": 0.25}),
        ("sft", {"quantization_bit": 4}),
        ("sft", {"pissa_init": True, "additional_target": "embed_tokens"}),
        ("sft", {"early_stopping_steps": 1, "val_size": 0.25, "eval_strategy": "steps", "eval_steps": 2}),
        ("text", {"stage": "pt", "cutoff_len": 64}),
        ("preference", {"stage": "dpo", "pref_beta": 0.3}),
        ("preference", {"stage": "rm"}),
        ("preference", {"stage": "orpo"}),
        ("kto", {"stage": "kto"}),
        ("sft", GROUP | {"stage": "grpo"}),
        ("sft", GROUP | {"stage": "rloo"}),
        ("sft", {"shortcuts": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_the_trl_script_trains_the_same_run(tiny_recipe, tiny_rows, tmp_path, rows, keys):
    values = tiny_recipe | {"dataset": str(tiny_rows / f"{rows}.json"), "output_dir": str(tmp_path / "recipe")} | keys
    done = train.train(recipes.load(values))
    log = [json.loads(line) for line in (done.folder / "train_log.jsonl").read_text().splitlines()]
    path = tmp_path / "script.py"
    path.write_text(to_script.script(recipes.load(values | {"output_dir": str(tmp_path / "script")})))
    trained = runpy.run_path(str(path))
    cpu.undo()
    for name in ("loss", "reward"):
        history = [row[name] for row in trained["trainer"].state.log_history if name in row]
        assert history == pytest.approx([row[name] for row in log if name in row], rel=1e-4)
        assert bool(history) is (name == "loss" or keys.get("stage") in GROUPED)
    places = done.weights, tmp_path / "script" / done.weights.name
    ours, theirs = (load_file(next(place.glob("*model.safetensors"))) for place in places)
    assert {name: weight.shape for name, weight in ours.items()} == {name: w.shape for name, w in theirs.items()}


def test_the_command_prints_it_and_refuses_in_one_line(capsys):
    path = str(ROOT / "recipes" / "sft_lora.yaml")
    assert cli.main(["recipe", "show", path, "lora_rank=4", "--as", "axolotl"]) == 0
    assert "lora_r: 4" in capsys.readouterr().out
    assert cli.main(["recipe", "show", path, "finetuning_type=freeze", "--as", "trl"]) == 2
    assert "trl cannot do this" in capsys.readouterr().err


def test_what_alpaca_lora_cannot_read_is_refused():
    with pytest.raises(LabError, match="alpaca-lora cannot do this"):
        to_frameworks.show(recipes.load(LORA | {"dataset": "alpaca_en_demo,alpaca_zh_demo"}), "alpaca-lora")


def test_the_table_in_the_documentation_is_current():
    assert to_frameworks.key_table() in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["dataset", "output_dir"])
def test_a_script_needs_data_and_a_place(missing):
    with pytest.raises(LabError, match=f"has no `{missing}`"):
        to_script.script(recipes.load({key: value for key, value in LORA.items() if key != missing}))


def test_a_script_for_float16_puts_the_adapters_back_into_float32(monkeypatch):
    monkeypatch.chdir(ROOT)
    for dtype, lifted in (("float16", True), ("bfloat16", False)):
        monkeypatch.setattr(device, "describe", lambda dtype=dtype: replace(GPU, dtype=dtype))
        script = to_script.script(recipes.load(RECIPES["qlora"]))
        assert ("cpu.lift_adapters(model, device.describe())" in script) is lifted
        assert ("from ftlab import cpu, device\n" in script) is lifted


def test_a_script_goes_on_from_an_adapter(tiny_recipe, tmp_path):
    folder = train.train(recipes.load(tiny_recipe | {"max_steps": 1})).folder
    keys = {"adapter_name_or_path": str(folder), "output_dir": str(tmp_path / "next")}
    script = to_script.script(recipes.load(tiny_recipe | keys))
    assert "from peft import PeftModel\n" in script and "get_peft_model" not in script
    assert f"PeftModel.from_pretrained(\n    model,\n    {str(folder / 'adapter')!r},\n    is_trainable=True" in script
