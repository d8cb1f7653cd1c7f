"""Files of other frameworks as recipes: hand-made pairs, every key accounted for, and what is refused."""

import json
from pathlib import Path

import pytest

from ftlab.apps import cli
from ftlab.errors import LabError
from ftlab.recipe import coming_from, foreign_files, from_frameworks, strict_yaml, to_frameworks
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


def accounted(source: foreign_files.Source, where: str) -> None:
    """Assert that every key of a file is mapped to keys of a recipe, or is in a note, with none left over."""
    values, places, notes = from_frameworks.translate(source, where)
    said = "\n".join(notes)
    given = {name: value for name, value in source.values.items() if value is not None}
    for name, value in given.items():
        alone, note = from_frameworks.comes_to(name, value, given, source.framework)
        assert set(alone) <= set(values), name
        assert alone or note in said, name
        assert alone or f"{name}: " in said, name
    assert set(places) <= set(values)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_every_key_is_mapped_or_reported(path):
    source = foreign_files.recognize(path)
    if source.framework is not foreign_files.OWN:
        accounted(source, str(path))


READ = [
    ({"base_model": "m", "optimizer": "muon"}, {"use_muon": True}),
    ({"base_model": "m", "tokens": ["<a>", "<b>"]}, {"add_tokens": "<a>,<b>"}),
    ({"model": "m", "dataset": ["a.json"], "new_special_tokens": ["<a>"]}, {"add_tokens": "<a>"}),
    ({"base_model": "m", "revision_of_model": "v2"}, {"model_revision": "v2"}),
    (
        {"base_model": "m", "hub_model_id": "me/it", "hub_revision": "v2"},
        {"hub_model_id": "me/it", "push_to_hub": True, "hub_revision": "v2"},
    ),
    ({"model": "m", "dataset": ["a.json"], "model_revision": "v2"}, {"model_revision": "v2"}),
    ({"base_model": "m", "optimizer": "adamw_8bit"}, {"optim": "adamw_8bit"}),
    ({"base_model": "m", "rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": "linear"}),
    ({"base_model": "m", "peft_init_lora_weights": "olora", "adapter": "lora"}, {"init_lora_weights": "olora"}),
    ({"model": "m", "dataset": ["a.json"], "rope_scaling": "yarn"}, {"rope_scaling": "yarn"}),
    ({"model": "m", "dataset": ["a.json"], "optimizer": "muon"}, {"use_muon": True}),
    (
        {"model": "m", "dataset": ["a.json"], "tuner_type": "vera", "vera_rank": 64},
        {"finetuning_type": "vera", "peft_config": {"r": 64, "vera_dropout": 0.0, "d_initial": 0.1}},
    ),
    (
        {"model": "m", "dataset": ["a.json"], "tuner_type": "fourierft", "fourier_n_frequency": 500},
        {"finetuning_type": "fourierft", "peft_config": {"n_frequency": 500, "scaling": 300.0}},
    ),
]


@pytest.mark.parametrize(("given", "wanted"), READ, ids=lambda part: str(part)[:60])
def test_a_method_of_another_framework_is_that_of_a_recipe(given, wanted):
    source = foreign_files.mapping(given, {})
    values, _, notes = from_frameworks.translate(source, "file")
    assert {name: values.get(name) for name in wanted} == wanted
    made, _ = recipes.read(values)
    assert not [key for key in ("lora_rank", "lora_alpha") if key in values and made.finetuning_type != "lora"]
    if isinstance(given.get("rope_scaling"), dict):
        assert any("rounded up, and not 2.0" in note for note in notes)


@pytest.mark.parametrize("framework", ["swift", "axolotl"])
@pytest.mark.parametrize("keys", [{"use_muon": True}, {"init_lora_weights": "olora"}, {"model_revision": "v2"}])
def test_what_both_have_comes_back(keys, framework, tmp_path):
    made = recipes.load({"model_name_or_path": "smollm2-135m", "dataset": "identity_en", "output_dir": "o"} | keys)
    path = tmp_path / ("shown.sh" if framework == "swift" else "shown.yml")
    path.write_text(to_frameworks.show(made, framework))
    back, _ = recipes.read(path)
    assert all(getattr(back, name) == value for name, value in keys.items())


def test_a_field_of_a_tuner_that_is_not_used_is_said():
    source = foreign_files.mapping({"model": "m", "dataset": ["a.json"], "vera_rank": 64}, {})
    values, _, notes = from_frameworks.translate(source, "file")
    assert "peft_config" not in values and any("vera_rank" in note and "tuner_type: vera" in note for note in notes)


# Parts that axolotl's own examples are put together from.
ADAPTERS = (
    {},
    {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "lora_fan_in_fan_out": None},
    {"adapter": "qlora", "load_in_4bit": True, "lora_r": 32, "lora_alpha": 16, "lora_target_modules": ["q_proj"]},
    {"adapter": "lora", "load_in_8bit": True, "lora_r": 16, "lora_alpha": 32, "lora_modules_to_save": ["lm_head"]},
)
SETS = (
    {"datasets": [{"path": "org/rows", "type": "alpaca"}]},
    {"datasets": [{"path": "org/chats", "type": "chat_template", "roles_to_train": ["assistant"], "split": "train"}]},
    {"datasets": [{"path": "org/text", "type": "completion", "field": "text"}]},
    {"datasets": [{"path": "org/pairs", "type": "chat_template.default", "split": "train"}], "rl": "dpo"},
    {"pretraining_dataset": [{"path": "org/web", "type": "pretrain"}], "max_steps": 100},
)
OTHERS = (
    {"bf16": "auto", "fp16": None, "tf32": False, "flash_attention": True, "wandb_project": None,
     "xformers_attention": None},
    {"bf16": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "sdp_attention": True, "debug": None,
     "special_tokens": {"bos_token": "<s>", "pad_token": "<pad>"}, "evals_per_epoch": 4, "eval_table_size": None},
    {"deepspeed": "zero3", "plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rms_norm": True,
     "lr_scheduler": "constant", "group_by_length": False, "hub_model_id": "me/it", "save_first_step": True},
)  # fmt: skip


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_sixty_shapes_of_axolotl_are_accounted_for(adapter, sets, others):
    given = {
        "base_model": "org/base",
        "strict": False,
        "learning_rate": 2e-4,
        "val_set_size": 0.0,
        **adapter,
        **sets,
        **others,
    }
    source = foreign_files.mapping(given, {})
    assert source.framework is foreign_files.AXOLOTL
    accounted(source, "shape.yml")
    values, _, _ = from_frameworks.translate(source, "shape.yml")
    assert recipes.load(values).finetuning_type == ("lora" if adapter else "full")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.yml",
            "base_model: m\nrelora: true\nlora_rr: 3\n",
            r"axolotl: 2 keys.*\n.*a\.yml:2: relora.*\n.*lora_r",
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
        ("b.yaml", "top.model_path: m\ntrain.extra_args: '{'\n", r"b\.yaml:2: invalid YAML"),
        ("c.yaml", "compute_environment: LOCAL_MACHINE\n", "a configuration of accelerate"),
        ("p.json", '{"peft_type": "IA3", "base_model_name_or_path": "m"}', "fields in `peft_config`"),
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
    assert any("strings become turns of a chat" in note for note in notes)


def test_defaults_of_theirs_are_listed():
    _, notes = recipes.read(GOLDEN / "swift_pt.sh")
    assert any("ms-swift's defaults apply" in note and "weight_decay: 0.1" in note for note in notes)


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


def test_a_script_that_loads_its_model_again_is_read_as_it_first_says(tmp_path):
    text = """
from unsloth import FastLanguageModel
model, tokenizer = FastLanguageModel.from_pretrained("org/base", max_seq_length=512, **more)
model = FastLanguageModel.get_peft_model(model, r=RANK)
if False:
    model, tokenizer = FastLanguageModel.from_pretrained("lora_model")
"""
    (tmp_path / "u.py").write_text(text, encoding="utf-8")
    source = foreign_files.recognize(tmp_path / "u.py")
    assert source.values == {"model_name": "org/base", "max_seq_length": 512}
    assert set(source.computed) == {"**more", "r", "model_name"}


@pytest.mark.parametrize(
    "line",
    [
        "pip install trl && git clone https://example.org/axolotl",
        "nohup swift sft --model m --dataset a.json > log.txt 2>&1 &",
        "swift sft --model m --dataset a.json | tee log.txt",
        "uv run swift sft --model m --dataset a.json",
        "cd there && swift sft --model m --dataset a.json && echo done",
        "swift sft --model m --dataset a.json; echo done",
        "swift sft --model m --dataset a.json || exit 1",
        "export A=a && swift sft --model m --dataset $A.json",
        "python -m swift.cli.sft --model m --dataset a.json",
    ],
)
def test_words_of_the_shell_are_not_settings(tmp_path, line):
    text = f"pip install ms-swift\ncd swift\n{line}\n"
    if line.startswith("pip"):
        with pytest.raises(LabError, match="no training command"):
            foreign_files.command(text, "s.sh")
    else:
        assert foreign_files.command(text, "s.sh").values == {"model": "m", "dataset": "a.json"}


def test_a_sign_inside_a_word_is_not_a_comment():
    text = (
        "# swift sft --model n \\\n\nswift sft --model m \\\n --dataset a.json#500 \\\n --learning_rate 1e-3 # fast\n"
    )
    assert foreign_files.command(text, "s.sh").values == {"model": "m", "dataset": "a.json#500", "learning_rate": 1e-3}


def test_all_keys_that_a_recipe_cannot_have_are_named(tmp_path):
    path = tmp_path / "axolotl.yaml"
    wrong = [f"made_up_key_number_{n}" for n in range(40)]
    path.write_text("base_model: m\nadapter: lora\n" + "".join(f"{name}: 1\n" for name in wrong))
    with pytest.raises(LabError) as error:
        recipes.read(path)
    assert [line.split(": ")[1] for line in error.value.what.splitlines()[1:]] == wrong


def test_options_behind_a_comment_are_refused():
    text = "swift sft --model m --dataset a.json \\\n # --lora_rank 4 \\\n --learning_rate 1e-3\n"
    with pytest.raises(LabError, match="ends the command before --learning_rate"):
        foreign_files.command(text, "s.sh")


def from_text(tmp_path, name, text):
    """Return the recipe of a file of another framework, and its notes."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    return recipes.read(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "accumulated"),
    [
        ("NPROC_PER_NODE=4 swift sft --model m --dataset a.json", 4),
        ("swift sft --model m --dataset a.json", 16),
        ("NPROC_PER_NODE=4 swift sft --model m --dataset a.json --per_device_train_batch_size 3", 2),
        ("torchrun --nproc_per_node=4 finetune.py --base_model m --data_path a.json", 8),
    ],
)
def test_a_step_counts_the_examples_of_all_processes(tmp_path, line, accumulated):
    assert from_text(tmp_path, "s.sh", line)[0].training["gradient_accumulation_steps"] == accumulated


@pytest.mark.parametrize(
    ("options", "evaluated"),
    [
        ("--split_dataset_ratio 0.01 --eval_steps 50", {"eval_strategy": "steps", "eval_steps": 50}),
        ("--split_dataset_ratio 0.01 --save_steps 70", {"eval_strategy": "steps", "eval_steps": 70}),
        ("--val_dataset b.json --save_strategy epoch", {"eval_strategy": "epoch"}),
        ("--val_dataset b.json", {"eval_strategy": "steps", "eval_steps": 500}),
        ("", {}),
    ],
)
def test_swift_evaluates_when_it_saves(tmp_path, options, evaluated):
    recipe, _ = from_text(tmp_path, "s.sh", f"swift sft --model m --dataset a.json {options}")
    assert {name: value for name, value in recipe.training.items() if name.startswith("eval")} == evaluated


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("", {"save_strategy": "epoch"}),
        ("saves_per_epoch: 1", {"save_strategy": "epoch"}),
        ("saves_per_epoch: 0", {"save_strategy": "epoch"}),
        ("saves_per_epoch: 2", {"save_strategy": "steps", "save_steps": 0.5}),
        ("save_steps: 50\nsave_strategy: epoch", {"save_strategy": "steps", "save_steps": 50}),
        ("evals_per_epoch: 4", {"save_strategy": "epoch"}),
        ("val_set_size: 0.0\neval_steps: 20", {"save_strategy": "epoch"}),
        (
            "val_set_size: 0.1\nevals_per_epoch: 4",
            {"save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 0.25},
        ),
        ("val_set_size: 0.1\nevals_per_epoch: 1", {"save_strategy": "epoch"}),
    ],
)
def test_axolotl_saves_every_epoch_and_evaluates_what_it_holds_out(tmp_path, lines, kept):
    text = f"base_model: m\ndatasets: [{{path: a.json, type: alpaca}}]\nnum_epochs: 1\n{lines}\n"
    recipe, notes = from_text(tmp_path, "a.yml", text)
    read = {name: value for name, value in recipe.training.items() if name.startswith(("eval_", "save_s"))}
    assert read == kept
    assert any("no validation set" in note for note in notes) is ("eval" in lines and "0.1" not in lines)


@pytest.mark.parametrize(
    ("lines", "steps"),
    [("", 0.03), ("max_steps: 200", 6), ("max_steps: 20000", 100), ("warmup_steps: 1", 2), ("warmup_ratio: 0.1", 0.1)],
)
def test_axolotl_warms_up_for_three_percent_and_a_hundred_steps_at_most(tmp_path, lines, steps):
    text = f"base_model: m\ndatasets: [{{path: a.json, type: alpaca}}]\n{lines}\n"
    assert from_text(tmp_path, "a.yml", text)[0].training["warmup_steps"] == steps


def test_swift_says_what_whole_weights_are_kept_in(tmp_path):
    for option, said in (("", True), ("--torch_dtype bfloat16", False)):
        command = f"swift sft --model m --dataset a.json --tuner_type full {option}"
        recipe, notes = from_text(tmp_path, "s.sh", command)
        assert any("here they are float32" in note for note in notes) is said
        assert recipe.pure_bf16 is not said


def test_axolotl_packs_raw_text_only_where_it_is_told_to(tmp_path):
    for line, packs in (("", False), ("sample_packing: true", True)):
        text = f"base_model: m\ndatasets: [{{path: a.jsonl, type: completion}}]\n{line}\n"
        recipe, _ = from_text(tmp_path, "a.yml", text)
        assert recipe.stage == "pt" and recipe.packs is packs


def test_simpo_of_axolotl_needs_its_sft_loss_off(tmp_path):
    text = "base_model: m\nrl: simpo\ndatasets: [{path: a.json, type: chatml.argilla}]\n"
    for line in ("", "cpo_alpha: 0.5\n"):
        with pytest.raises(LabError, match="cpo_alpha"):
            from_text(tmp_path, "a.yml", text + line)
    assert from_text(tmp_path, "a.yml", text + "cpo_alpha: 0.0\n")[0].stage == "simpo"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("torchrun --nproc_per_node=$N --nnodes 2 src/train.py", ["--nproc_per_node=$N", "--nnodes 2"]),
        ("FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 llamafactory-cli train", ["NNODES=2"]),
        ("torchrun --nproc_per_node 2 --nnodes 1 src/train.py", []),
        ("llamafactory-cli train", []),
    ],
)
def test_processes_that_only_a_shell_or_several_machines_know_are_said(tmp_path, line, named):
    text = f"{line} --stage sft --model_name_or_path m --dataset identity_en --output_dir o"
    _, notes = from_text(tmp_path, "s.sh", text)
    assert all(any(name in note for note in notes) for name in named)
    assert any("several machines" in note for note in notes) is bool(named)


def test_a_default_is_computed_from_what_the_file_says(tmp_path):
    recipe, _ = from_text(tmp_path, "s.sh", "python finetune.py --base_model m --micro_batch_size 8")
    assert recipe.training["gradient_accumulation_steps"] == 128 // 8
    # Without `data_path` the script has one, and with it what it always does.
    assert (recipe.dataset, recipe.quantization_bit, recipe.training["warmup_steps"]) == (
        "yahma/alpaca-cleaned",
        8,
        100,
    )


def test_swift_holds_nothing_out_where_it_evaluates_nothing(tmp_path):
    line = "swift sft --model m --dataset a.json --split_dataset_ratio 0.1 --eval_strategy no"
    recipe, notes = from_text(tmp_path, "s.sh", line)
    assert recipe.val_size == 0 and any("nothing is held out" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "mark", "model"),
    [("s.sh", "\\", "m"), ("s.cmd", "^", r"D:\models\m"), ("s.bat", "^", r"D:\models\m"), ("s.ps1", "`", r"D:\m")],
)
def test_a_command_is_read_as_its_shell_reads_it(tmp_path, name, mark, model):
    lines = ["llamafactory-cli train", f"--stage sft --model_name_or_path {model}", "--dataset a.json --output_dir o"]
    recipe, _ = from_text(tmp_path, name, f" {mark}\r\n  ".join(lines) + "\r\n")
    found = (recipe.stage, recipe.model_name_or_path, recipe.dataset, recipe.output_dir)
    assert found == ("sft", model, "a.json", "o")


def test_trl_smooths_the_labels_of_its_robust_loss_alone(tmp_path):
    line = "trl dpo --model_name_or_path m --dataset_name a.json --label_smoothing 0.1"
    recipe, notes = from_text(tmp_path, "s.sh", f"{line}\n")
    assert recipe.dpo_label_smoothing == 0 and "only `robust` reads it in TRL" in str(notes)
    assert from_text(tmp_path, "s.sh", f"{line} --loss_type robust\n")[0].dpo_label_smoothing == 0.1


def test_null_is_a_length_to_trl(tmp_path):
    text = "model_name_or_path: m\ndataset_name: a.json\nuse_peft: true\n"
    recipe, notes = from_text(tmp_path, "t.yaml", text + "max_length: null\n")
    assert recipe.cutoff_len == 2048 and any("max_length: null: TRL cuts nothing" in note for note in notes)
    assert from_text(tmp_path, "t.yaml", text)[0].cutoff_len == 1024


def test_a_switch_is_turned_off_in_the_way_of_argparse(tmp_path):
    line = "trl dpo --model_name_or_path m --dataset_name a.json --no_remove_unused_columns --no_bf16"
    assert from_text(tmp_path, "s.sh", line)[0].training["bf16"] is False


@pytest.mark.parametrize(
    ("call", "rate"),
    [("SFTTrainer(args=TrainingArguments())", 5e-5), ("SFTConfig()", 2e-5), ("DPOConfig()", 1e-6)],
)
def test_a_script_has_the_learning_rate_of_its_config(tmp_path, call, rate):
    text = (
        f"model, tokenizer = FastLanguageModel.from_pretrained('m')\nload_dataset('json', data_files='a.json')\n{call}"
    )
    assert from_text(tmp_path, "u.py", text)[0].training["learning_rate"] == rate


@pytest.mark.parametrize(
    ("lines", "wanted", "said"),
    [
        ("excess_length_strategy: drop", {}, "above `sequence_len` are cut"),
        ("optim_args: {eps: 1.0e-8}", {"optim_args": "eps=1e-08"}, ""),
        (
            "lr_scheduler: cosine\ncosine_min_lr_ratio: 0.1",
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            "",
        ),
        ("bf16: true", {"bf16": True}, "pure_bf16=true"),
        ("bf16: auto", {}, "pure_bf16=true"),
    ],
)
def test_a_key_of_axolotl_means_what_it_means_there(tmp_path, lines, wanted, said):
    text = f"base_model: m\ndatasets: [{{path: a.json, type: alpaca}}]\n{lines}\n"
    recipe, notes = from_text(tmp_path, "a.yml", text)
    assert {name: recipe.training.get(name) for name in wanted} == wanted
    assert any(said in note for note in notes)


def test_a_gptq_base_of_axolotl_is_read_as_any_other_model(tmp_path):
    text = "base_model: m\ndatasets: [{path: a.json, type: alpaca}]\nadapter: lora\ngptq: true\n"
    recipe, notes = from_text(tmp_path, "a.yml", text)
    assert recipe.finetuning_type == "lora" and recipe.quantization_bit is None
    assert any(note.startswith("gptq: true is ignored") for note in notes)


def test_full_bfloat16_of_axolotl_is_that_of_the_weights(tmp_path):
    text = "base_model: m\ndatasets: [{path: a.json, type: alpaca}]\nbf16: full\n"
    assert from_text(tmp_path, "a.yml", text)[0].pure_bf16
    lora = from_text(tmp_path, "a.yml", f"{text}adapter: lora\n")[0]
    assert not lora.pure_bf16 and lora.training["bf16"] is True


def test_the_turns_of_axolotl_are_those_of_the_column_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    named = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    Path("both.jsonl").write_text(json.dumps({"conversations": turns, "messages": named}))
    Path("one.jsonl").write_text(json.dumps({"conversations": turns}))
    text = "base_model: m\ndatasets: [{{path: {}.jsonl, type: chat_template, field_messages: {}}}]\n"
    for path, column in (("both", "messages"), ("one", "conversations")):
        assert from_text(tmp_path, "a.yml", text.format(path, column))[0].dataset == f"{path}.jsonl"
    with pytest.raises(LabError, match=r"`field_messages: conversations`: of both\.jsonl ftlab reads openai"):
        from_text(tmp_path, "a.yml", text.format("both", "conversations"))


def test_the_last_end_of_axolotl_is_said_to_be_every_end(tmp_path):
    text = "base_model: m\ndatasets: [{{path: a.json, type: chat_template, train_on_eos: {}}}]\n"
    said = [any("train_on_eos" in note for note in from_text(tmp_path, "a.yml", text.format(one))[1])
            for one in ("turn", "last")]  # fmt: skip
    assert said == [False, True]


def test_swift_is_said_to_drop_what_is_too_long_here_cut(tmp_path):
    line = "swift sft --model m --dataset a.json --max_length 512"
    assert any("swift drops examples" in note for note in from_text(tmp_path, "s.sh", line)[1])
    right = from_text(tmp_path, "s.sh", f"{line} --truncation_strategy right")[1]
    assert not any("swift drops examples" in note for note in right)


def test_no_role_to_train_on_is_another_run(tmp_path):
    text = "base_model: m\ndatasets: [{path: a.json, type: chat_template, roles_to_train: []}]\n"
    with pytest.raises(LabError, match="roles_to_train"):
        from_text(tmp_path, "a.yml", text)


def test_a_command_behind_another_is_one_of_its_own():
    text = "swift sft --model m --dataset 'a;b.json' && swift export --adapters out --merge_lora true"
    with pytest.raises(LabError, match="several training commands"):
        foreign_files.command(text, "s.sh")
    assert foreign_files.command(text.partition(" &&")[0], "s.sh").values["dataset"] == "a;b.json"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--rlhf_type grpo --reward_funcs exact_answer --teacher_model t", "a teacher in `stage: gkd` alone"),
        ("--rlhf_type gkd", "needs a `teacher_model`"),
        ("--rlhf_type gkd --teacher_model t --seq_kd true", "seq_kd"),
        ("--rlhf_type gkd --teacher_model t --sft_alpha 0.1", "without an SFT loss"),
        ("--rlhf_type gkd --teacher_model t --gkd_logits_topk 20", "the whole vocabulary"),
        ("--rlhf_type gkd --teacher_model t --teacher_model_revision v2", "that of both"),
    ],
)
def test_a_distillation_of_swift_that_a_recipe_cannot_have_is_refused(more, said, tmp_path):
    with pytest.raises(LabError, match=said):
        from_text(tmp_path, "s.sh", f"swift rlhf --model m --dataset a.json {more}\n")


def test_swift_divides_by_the_temperature_in_the_divergence_too(tmp_path):
    line = "swift rlhf --rlhf_type gkd --model m --teacher_model t --dataset a.json --temperature"
    assert any("divergence" in note for note in from_text(tmp_path, "s.sh", f"{line} 0.5\n")[1])
    assert not any("divergence" in note for note in from_text(tmp_path, "s.sh", f"{line} 1.0\n")[1])


def test_a_length_of_answers_is_not_one_of_completions(tmp_path):
    line = "--model_name_or_path m --dataset_name a.json --max_completion_length 64"
    with pytest.raises(LabError, match="cut as a whole"):
        from_text(tmp_path, "s.sh", f"trl dpo {line}")
    grpo = from_text(tmp_path, "s.sh", f"trl grpo {line} --reward_funcs exact_answer --beta 0.1")[0]
    assert grpo.max_new_tokens == 64


def test_old_names_of_llama_factory_are_read(tmp_path):
    text = "python src/train_bash.py --stage dpo --model_name_or_path m --dataset preference_en --output_dir o"
    recipe, notes = from_text(tmp_path, "s.sh", f"{text} --dpo_beta 0.2 --dpo_loss ipo --dpo_ftx 1.0 --dev_ratio 0.1")
    assert (recipe.pref_beta, recipe.pref_loss, recipe.pref_ftx, recipe.val_size) == (0.2, "ipo", 1.0, 0.1)
    assert any("dpo_beta is now pref_beta" in note for note in notes)


def test_alpaca_lora_keeps_its_best_checkpoint(tmp_path):
    line = "python finetune.py --base_model m --data_path a.json --val_set_size"
    assert from_text(tmp_path, "s.sh", f"{line} 9")[0].training["load_best_model_at_end"] is True
    assert "load_best_model_at_end" not in from_text(tmp_path, "s.sh", f"{line} 0")[0].training


def test_swift_packs_raw_text_only_where_it_is_told_to(tmp_path):
    for options, packs in (("", False), ("--packing true", True)):
        recipe, _ = from_text(tmp_path, "s.sh", f"swift pt --model m --dataset a.jsonl {options}")
        assert recipe.stage == "pt" and recipe.packs is packs


def test_several_trackers_are_joined():
    given = {"wandb_project": "p", "use_tensorboard": True}
    source = foreign_files.Source(foreign_files.AXOLOTL, given, {})
    assert from_frameworks.translate(source, "")[0]["report_to"] == ["wandb", "tensorboard"]


def test_a_secret_is_refused_unseen(tmp_path):
    (tmp_path / "s.sh").write_text("swift sft --model m --dataset a.json --swanlab_token abcdef", encoding="utf-8")
    with pytest.raises(LabError, match=r"swanlab_token: \*\*\*") as error:
        recipes.read(tmp_path / "s.sh")
    assert "abcdef" not in str(error.value)


@pytest.mark.parametrize(("verb", "said"), [("sft", True), ("dpo", False), ("kto", False)])
def test_what_the_loss_of_sft_counts_is_said_of_sft_alone(tmp_path, verb, said):
    (tmp_path / "run.sh").write_text(f"trl {verb} --model_name_or_path a/b --dataset_name c/d --output_dir o\n")
    _, notes = recipes.read(tmp_path / "run.sh")
    assert any("train_on_prompt=true" in note for note in notes) == said
