"""What a recipe is answered, to the letter: every refusal with its fix, every note, every explanation."""

import json
import re

import pytest

from ftlab import errors
from ftlab.data import registry
from ftlab.errors import LabError
from ftlab.recipe import explain, keys, translated_keys
from ftlab.recipe import read as recipes
from ftlab.recipe.training_fields import FIELDS

GOOD = {"model_name_or_path": "smollm2-135m", "dataset": "identity_en", "output_dir": "runs/x"}
LISTED = "docs/recipes.md lists the keys; every field of `transformers.TrainingArguments` is a key too"
TYPE = "use a value of the right type"
RANGE = "choose a value within the range"
LARGE = "it must be between -1099511627776 and 1099511627776"
SHARE = "it must be a share of all steps, from 0 to 1"
TWO_NAMES = "are two names of one setting, with different values"


@pytest.mark.parametrize(
    ("keys", "what", "fix"),
    [
        ({"lora_rnak": 8}, "unknown recipe key `lora_rnak`", "did you mean lora_rank?"),
        ({"quant_bit": 4}, "unknown recipe key `quant_bit`", LISTED),
        ({"training": {}}, "unknown recipe key `training`", LISTED),
        ({"x" * 80: 1}, f"unknown recipe key `{'x' * 56}...`", LISTED),
        ({"lora_rank": "x"}, "`lora_rank` cannot be 'x': input should be a valid integer", TYPE),
        ({"lora_rank": 8.0}, "`lora_rank` cannot be 8.0: input should be a valid integer", "write `lora_rank: 8`"),
        ({"learning_rate": "1e-4"}, "`learning_rate` cannot be '1e-4': input should be a valid number",
         "write `learning_rate: 1e-4`"),
        ({"seed": "16"}, "`seed` cannot be '16': input should be a valid integer", "write `seed: 16`"),
        ({"quantization_bit": "4"}, "`quantization_bit` cannot be '4': input should be 4 or 8",
         "write `quantization_bit: 4`"),
        ({"bf16": "yes"}, "`bf16` cannot be 'yes': input should be a valid boolean", "write `bf16: true`"),
        ({"fp16": "off"}, "`fp16` cannot be 'off': input should be a valid boolean", "write `fp16: false`"),
        ({"quantization_type": "NF4"}, "`quantization_type` cannot be 'NF4': input should be 'nf4' or 'fp4'",
         "did you mean nf4?"),
        ({"pref_loss": "Hinge"},
         "`pref_loss` cannot be 'Hinge': input should be 'sigmoid', 'hinge', 'ipo', 'robust', 'orpo' or 'simpo'",
         "did you mean hinge?"),
        ({"eval_strategy": False}, "`eval_strategy` cannot be false: input should be an instance of IntervalStrategy",
         "use one of: no, steps, epoch"),
        ({"finetuning_type": "qlora"}, "`finetuning_type: 'qlora'` is not supported",
         "write `finetuning_type: lora` and `quantization_bit: 4`"),
        ({"plot_loss": 1}, "`plot_loss` cannot be 1: input should be a valid boolean", "write `plot_loss: true`"),
        ({"use_galore": "yes"}, "`use_galore` cannot be 'yes': true or false", "write `use_galore: true`"),
        ({"lora_target": 3}, "`lora_target` cannot be 3: input should be a valid string", 'write `lora_target: "3"`'),
        ({"lora_dropout": 1}, "`lora_dropout` cannot be 1: input should be less than 1", RANGE),
        ({"learning_rate": float("nan")}, "`learning_rate` cannot be nan: not a finite number", RANGE),
        ({"learning_rate": -1}, "`learning_rate` cannot be -1: it must be at least 0", RANGE),
        ({"max_samples": 10**30}, f"`max_samples` cannot be {10**30}: {LARGE}", RANGE),
        ({"lora_rank": 0}, "`lora_rank` cannot be 0: input should be greater than or equal to 1", RANGE),
        ({"seed": 2**33}, "`seed` cannot be 8589934592: it must be at most 4.29497e+09", RANGE),
        ({"neftune_noise_alpha": -1.0}, "`neftune_noise_alpha` cannot be -1.0: it must be at least 0", RANGE),
        ({"label_smoothing_factor": 2.0}, "`label_smoothing_factor` cannot be 2.0: it must be at most 1", RANGE),
        ({"adam_epsilon": -1.0}, "`adam_epsilon` cannot be -1.0: it must be at least 0", RANGE),
        ({"max_steps": True}, "`max_steps` cannot be true: input should be a valid integer", TYPE),
        (
            {"learning_rate": "a" * 59},
            f"`learning_rate` cannot be '{'a' * 56}...: input should be a valid number",
            TYPE,
        ),
        (
            {"learning_rate": "a" * 58},
            f"`learning_rate` cannot be '{'a' * 58}': input should be a valid number",
            TYPE,
        ),
        ({"optim": "adamw_torchh"}, "`optim` cannot be 'adamw_torchh'", "did you mean adamw_torch, adamw_torch_xla?"),
        ({"eval_strategy": "xx"}, "`eval_strategy` cannot be 'xx'", "use one of: no, steps, epoch"),
        ({"warmup_ratio": 2}, f"`warmup_ratio` cannot be 2: {SHARE}", RANGE),
        ({"warmup_ratio": True}, f"`warmup_ratio` cannot be true: {SHARE}", RANGE),
        ({"warmup_ratio": "x"}, f"`warmup_ratio` cannot be 'x': {SHARE}", RANGE),
        ({"warmup_ratio": -0.1}, f"`warmup_ratio` cannot be -0.1: {SHARE}", RANGE),
        (
            {"warmup_steps": 1.5},
            "`warmup_steps` cannot be 1.5: from 1 on it is a number of steps, which must be a whole number",
            TYPE,
        ),
        (
            {"neat_packing": True, "stage": "pt"},
            "conflicting keys: `neat_packing` is for `stage: sft`: pt joins texts",
            "remove or change one of them",
        ),
        (
            {"bf16": True, "fp16": True},
            "conflicting keys: `bf16` and `fp16` are both true",
            "remove or change one of them",
        ),
        (
            {"pissa_init": True, "use_dora": True},
            "conflicting keys: `pissa_init` and `use_dora` cannot be combined",
            "remove or change one of them",
        ),
        (
            {"gradient_checkpointing": True, "activation_checkpointing": False},
            f"`gradient_checkpointing: true` and `activation_checkpointing: false` {TWO_NAMES}",
            "remove one of them",
        ),
        (
            {"gradient_checkpointing_kwargs": {"a": 1}, "activation_checkpointing_kwargs": {"a": 2}},
            "`gradient_checkpointing_kwargs: {'a': 1}` and `activation_checkpointing_kwargs: {'a': 2}` " + TWO_NAMES,
            "remove one of them",
        ),
        (
            {"cutoff_len": 64, "max_seq_length": 32},
            f"`max_seq_length: 32` and `cutoff_len: 64` {TWO_NAMES}",
            "remove one of them",
        ),
        (
            {"no_cuda": False, "use_cpu": True},
            f"`use_cpu: true` and `no_cuda: false` {TWO_NAMES}",
            "remove one of them",
        ),
        (
            {"use_unsloth": True},
            "`use_unsloth: true` is not supported",
            "Unsloth needs a CUDA GPU and its own build; remove the key",
        ),
        (
            {"init_lora_weights": "pissa"},
            "`init_lora_weights: 'pissa'` is not supported",
            "write `pissa_init: true`",
        ),
        (
            {"hub_token": "x"},
            "`hub_token` is not supported",
            "set HF_TOKEN in the environment: a recipe is copied into the run folder",
        ),
        (
            {"model_name_or_path": None},
            "the recipe has no `model_name_or_path`",
            "add a line `model_name_or_path: ...`",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_and_its_fix(tmp_path, keys, what, fix):
    with pytest.raises(LabError) as error:
        recipes.read(GOOD | keys)
    assert (error.value.what, error.value.fix, error.value.where) == (what, fix, "")
    # The same from a file, with the place of the key; where the key is missing, or of two keys, that of the file.
    path = tmp_path / "r.yaml"
    values = {name: value for name, value in (GOOD | keys).items() if value is not None}
    text = "".join(f"{name}: {yaml(value)}\n" for name, value in values.items())
    path.write_text(text)
    with pytest.raises(LabError) as error:
        recipes.read(path)
    places = {f"{path}:{number}" for number, name in enumerate(values, 1) if name in keys} | {str(path)}
    assert error.value.what == what and error.value.where in places


def yaml(value: object) -> str:
    """Return a value as YAML writes it."""
    plain = json.dumps(value) if isinstance(value, bool | str) else str(value)
    return plain if isinstance(value, str) else plain.replace("nan", ".nan")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("lora_rank: x", ":4"), ("learning_rate: -1", ":4"), ("bf16: true\nfp16: true", ":5"),
        ("cutoff_len: 64\nmax_seq_length: 32", ":5"), ("warmup_steps: 1.5", ":4"), ("warmup_ratio: 2", ":4"),
        ("pissa_init: true\nuse_dora: true", ""), ("use_unsloth: true", ":4"), ("nothing_known: 1", ":4"),
        ("neat_packing: true\nstage: pt", ":4"), ("learning_rate: .nan", ":4"),
        ("activation_checkpointing: true\ngradient_checkpointing: false", ":5"), ("create_new_adapter: x", ":4"),
    ],
)  # fmt: skip
def test_the_place_of_a_refusal_is_the_line_of_its_key(tmp_path, line, place):
    path = tmp_path / "r.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in GOOD.items()) + line + "\n")
    with pytest.raises(LabError) as error:
        recipes.read(path)
    assert error.value.where == f"{path}{place}"


def test_an_override_is_its_own_place(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in GOOD.items()))
    for override, where in (("lora_rank=x", "lora_rank=x"), ("=1", "=1"), ("lora_rank", "lora_rank")):
        with pytest.raises(LabError) as error:
            recipes.read(path, [override])
        assert error.value.where == where
    made, _ = recipes.read(GOOD | {"lr_scheduler_kwargs": {"a": 1}}, ["lr_scheduler_kwargs.b=2", "lora_rank=3"])
    assert made.training["lr_scheduler_kwargs"] == {"a": 1, "b": 2} and made.lora_rank == 3
    made, _ = recipes.read(GOOD, ["lr_scheduler_kwargs.b=2", "run_name=a=b"])
    assert made.training == {"lr_scheduler_kwargs": {"b": 2}, "run_name": "a=b"}


ALL_STEPS = 0.9999999999999999


@pytest.mark.parametrize(
    ("keys", "notes", "values"),
    [
        ({"warmup_ratio": 0.1}, ["warmup_ratio is now warmup_steps: 0.1 (below 1 it is a share of all steps)"],
         {"warmup_steps": 0.1}),
        ({"warmup_ratio": 1},
         [f"warmup_ratio is now warmup_steps: {ALL_STEPS} (the largest share below 1: all steps)"],
         {"warmup_steps": ALL_STEPS}),
        ({"warmup_ratio": 0}, ["warmup_ratio is now warmup_steps: 0 (below 1 it is a share of all steps)"],
         {"warmup_steps": 0}),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, ["warmup_ratio: 0.1 is overridden by warmup_steps: 5"],
         {"warmup_steps": 5}),
        ({"warmup_ratio": 0.1, "warmup_steps": 0},
         ["warmup_ratio is now warmup_steps: 0.1 (below 1 it is a share of all steps)"], {"warmup_steps": 0.1}),
        ({"warmup_steps": 2.0}, [], {"warmup_steps": 2.0}),
        ({"neat_packing": True}, ["neat_packing is now packing: true (packed examples never attend to each other)"],
         {"packing": True}),
        ({"neat_packing": False},
         ["neat_packing: false is ignored: packed examples never attend to each other"], {}),
        ({"neat_packing": True, "packing": False},
         ["neat_packing is now packing: true (packed examples never attend to each other; `packing: false` is "
          "overridden by it)"], {"packing": True}),
        ({"resume_from_checkpoint": True},
         ["resume_from_checkpoint: true is ignored: runs/x has no checkpoint: training starts at step 1"], {}),
        ({"resume_from_checkpoint": "runs/x/checkpoint-2"}, [], {"resume_from_checkpoint": "runs/x/checkpoint-2"}),
        ({"overwrite_output_dir": True},
         ["overwrite_output_dir: true replaces another recipe's run in output_dir; this recipe's own is resumed or "
          "reused (fresh=true starts over)"], {"overwrite_output_dir": True}),
        ({"trust_remote_code": True},
         ["trust_remote_code: true lets the model's own code run on this machine; remove it unless the model needs it"],
         {"trust_remote_code": True}),
        ({"preprocessing_num_workers": 16},
         ["preprocessing_num_workers: 16 is ignored: examples are encoded in one process"], {}),
        ({"use_unsloth": False}, [], {}),
        ({"evaluation_strategy": "no"},
         ["evaluation_strategy is now eval_strategy: 'no' (transformers renamed it)"], {"eval_strategy": "no"}),
        ({"max_seq_length": 64, "cutoff_len": 64},
         ["max_seq_length is now cutoff_len: 64 (trl calls it max_length now)"], {"cutoff_len": 64}),
        ({"group_by_length": True},
         ["group_by_length is now train_sampling_strategy: 'group_by_length' (true is now group_by_length)"],
         {"train_sampling_strategy": "group_by_length"}),
        ({"pref_beta": 0.5},
         ["pref_beta: 0.5 has no effect in this run: it needs stage: dpo, kto, orpo, simpo, ppo, grpo or rloo"],
         {"pref_beta": 0.5}),
        ({"lora_target": ["q_proj", "v_proj"]}, [], {"lora_target": "q_proj,v_proj"}),
        ({"cutoff_len": None}, [], {}),
    ],
    ids=str,
)  # fmt: skip
def test_notes_and_values(keys, notes, values, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe, said = recipes.read(GOOD | keys)
    assert said == notes
    assert {name: value for name, value in recipes.plain(recipe).items() if GOOD.get(name) != value} == values


def test_a_checkpoint_that_is_there_is_resumed_without_being_asked(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    _, (note,) = recipes.read(GOOD | {"output_dir": str(tmp_path), "resume_from_checkpoint": True})
    assert note == "resume_from_checkpoint: true is ignored: an unfinished run is resumed without it"


def test_every_data_set_of_a_recipe_is_looked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "find", lambda name, folder: asked.append((name, str(folder))))
    notes = recipes.check(GOOD | {"dataset": "a, b", "eval_dataset": "c", "dataset_dir": "sets", "warmup_ratio": 0.1})
    assert asked == [("a", "sets"), ("b", "sets"), ("c", "sets")] and len(notes) == 1


def test_what_is_printed_is_each_note(capsys):
    recipes.load(GOOD | {"use_unsloth": False, "neat_packing": False})
    assert capsys.readouterr().out.count("\n") == 1


EXPLAINED = {
    "lora_rank": "rank of the two matrices\n  type: int; default 8; at least 1\n  becomes: LoraConfig.r",
    "lora_alpha": "their product is scaled by alpha / r; null: 2 r\n  type: int | null; default null; at least 1\n"
    "  becomes: LoraConfig.lora_alpha",
    "lora_dropout": "fraction of their inputs set to 0\n  type: float; default 0.0; at least 0, below 1\n"
    "  becomes: LoraConfig.lora_dropout",
    "stage": "pt: raw text; sft: answers; rm: reward model; dpo, kto, orpo, simpo: preferences; "
    "ppo, grpo, rloo: rewards; gkd: a teacher's probabilities\n"
    "  type: pt | sft | rm | dpo | kto | orpo | simpo | ppo | grpo | rloo | gkd; default 'sft'\n"
    "  becomes: SFT/Reward/DPO/KTO/ORPO/CPO/GRPO/RLOO/GKDTrainer, ftlab's PPOTrainer",
    "pref_beta": "how far the model may move from its reference; ppo, grpo, rloo: coefficient of the KL penalty\n"
    "  type: float; default 0.1; above 0\n  becomes: beta, PPOConfig.kl_coef",
    "plot_loss": "write loss.png\n  type: bool; default true\n  becomes: matplotlib",
    "model_name_or_path": "catalogue name, local folder or hub id\n  type: str; required; not empty\n"
    "  becomes: from_pretrained(...)",
    "warmup_ratio": "now warmup_steps below 1: a share of all steps; warmup_steps above 0 counts instead",
    "neat_packing": "true: packing: true; packed examples never attend to each other",
    "max_seq_length": "now cutoff_len (trl calls it max_length now)\ncutoff_len: maximum tokens of an example\n"
    "  type: int; default 2048; at least 8\n  becomes: max_length",
    "use_unsloth": "Unsloth needs a CUDA GPU and its own build; remove the key",
    "preprocessing_num_workers": "read and dropped; examples are encoded in one process",
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_an_explanation(name):
    assert explain.explain(name) == f"{name}: {EXPLAINED[name]}"


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("learning_rate", "\n  type: float; default 5e-05; from 0 to 1e+06\n"),
        ("eval_strategy", "\n  type: IntervalStrategy | str; default 'no'\n  one of: no, steps, epoch\n"),
        ("disable_tqdm", "\n  type: bool | null; default null\n"),
        ("report_to", "\n  type: null | str | list[str]; default 'none'\n"),
    ],
)
def test_a_trainer_s_field_is_explained_in_its_library_s_words(name, end):
    said = explain.explain(name)
    meaning = FIELDS[name].meaning
    assert said == f"{name}: {meaning}{end}  becomes: transformers.TrainingArguments.{name}" and len(meaning) > 20


def test_only_what_is_known_is_explained():
    for name in ("lora_rnak", "training"):
        with pytest.raises(LabError, match=f"unknown recipe key `{name}`"):
            explain.explain(name)


@pytest.mark.parametrize("name", recipes.TRAINING_RANGES)
def test_both_ends_of_a_range_are_inside(name):
    low, high = recipes.TRAINING_RANGES[name]
    assert recipes.in_range(name, low) and recipes.in_range(name, high) and not recipes.in_range(name, float("nan"))
    assert not recipes.in_range(name, low - 1e-3) and not recipes.in_range(name, high * 1.01)


def test_a_number_of_thousands_of_digits_is_told_as_one(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(f"max_steps: {'9' * 5000}\n", encoding="utf-8")
    with pytest.raises(LabError, match="invalid YAML: a number has too many digits"):
        recipes.load(path)


def test_every_reason_of_a_key_is_a_message():
    tables = [translated_keys.DROPPED, translated_keys.OUT_OF_REACH, keys.REFUSED_TRAINING]
    for name, message in ((name, message) for table in tables for name, message in table.items()):
        assert "{" not in translated_keys.reason(message, name), name
    plain = [message for _, message in translated_keys.RENAMED.values()]
    plain += [*translated_keys.ELSEWHERE.values(), *explain.RESOLVED_MEANING.values()]
    assert set(plain) <= errors.messages().keys()
    # `stage: dpo` names a key and its value, in every language.
    assert all(
        condition.needs in errors.messages() or re.fullmatch(r"\w+(: [\w-]+)?", condition.needs)
        for condition in keys.CONDITIONS
    )


def test_notes_and_refusals_are_chinese_throughout(monkeypatch):
    monkeypatch.setenv("FTLAB_LANG", "zh")
    given = {"model_name_or_path": "m", "overwrite_cache": True, "dpo_beta": 0.2, "eval_delay": 1}
    assert recipes.read(given)[1] == [
        "overwrite_cache: true 被忽略：文件一变，样本就会重新编码",
        "dpo_beta 已改名，按 pref_beta: 0.2 处理（LLaMA-Factory 改了名）",
        "pref_beta: 0.2 对本次运行没有作用：它需要 stage: dpo、kto、orpo、simpo、ppo、grpo 或 rloo",
        "eval_delay: 1 对本次运行没有作用：它需要 eval_strategy",
    ]
    with pytest.raises(LabError, match="解决办法：Unsloth 需要 CUDA GPU 和专门的安装；请删除这个键"):
        recipes.read({"model_name_or_path": "m", "use_unsloth": True})
