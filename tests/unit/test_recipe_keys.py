"""Every key that a recipe accepts changes what is built from it, or is said to change nothing, or is refused."""

import contextlib
import json
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from ftlab import device, models
from ftlab.errors import LabError
from ftlab.recipe import keys, library_args, templates, to_script, translated_keys
from ftlab.recipe import read as recipes
from ftlab.recipe.explain import explain
from ftlab.runs import (
    build,
    chat,
    dataset,
    evaluation,
    export,
    gptq,
    launch,
    losses,
    ray_workers,
    reference,
    rewards,
    targets,
    train,
)

CPU = device.Machine("cpu", "test", "bfloat16", 2, 2**34, "test")
GPU = device.Machine("cuda", "test", "float16", 2, 2**34, "test")
PAIRS, PROMPTS = {"stage": "dpo", "dataset": "preference"}, {"stage": "grpo", "reward_funcs": "exact_answer"}
TAUGHT = {"stage": "gkd", "teacher_model": "./teacher"}
FREEZE, EVAL = {"finetuning_type": "freeze"}, {"val_size": 0.25, "eval_strategy": "steps"}
MIXED = {"dataset": "sft,long", "mix_strategy": "interleave_over"}
# Every key of Recipe: a value that is not its default, and the keys beside which it counts.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "model_name_or_path": ("other", {}),
    "adapter_name_or_path": ("nowhere", {}),
    "create_new_adapter": (True, {"adapter_name_or_path": "nowhere"}),
    "model_revision": ("v2", {}),
    "cache_dir": ("kept", {}),
    "tokenized_path": ("kept", {}),
    "trust_remote_code": (True, {}),
    "template": ("llama3", {}),
    "allow_other_template": (True, {"template": "default"}),
    "enable_thinking": (False, {}),
    "add_tokens": ("plus", {}),
    "default_system": ("Be kind.", {}),
    "flash_attn": ("disabled", {"cutoff_len": 1024}),
    "rope_scaling": ("linear", {}),
    "device_map": ("cpu", {}),
    "max_memory": ({"cpu": "4GiB"}, {}),
    "offload_folder": ("elsewhere", {"max_memory": {"cpu": "4GiB"}}),
    "quantization_bit": (4, {}),
    "quantization_method": ("hqq", {}),
    "quantization_type": ("fp4", {"quantization_bit": 4}),
    "double_quantization": (False, {"quantization_bit": 4}),
    "stage": ("pt", {}),
    "do_train": (False, {}),
    "finetuning_type": ("full", {}),
    "peft_config": ({"oft_block_size": 8}, {"finetuning_type": "oft"}),
    "lora_rank": (5, {}),
    "lora_alpha": (5, {}),
    "lora_dropout": (0.1, {}),
    "lora_target": ("q_proj", {}),
    "additional_target": ("lm_head", {}),
    "use_rslora": (True, {}),
    "use_dora": (True, {}),
    "pissa_init": (True, {}),
    "pissa_iter": (4, {"pissa_init": True}),
    "init_lora_weights": ("olora", {}),
    "loraplus_lr_ratio": (16.0, {}),
    "freeze_trainable_layers": (1, FREEZE),
    "freeze_trainable_modules": ("mlp", FREEZE),
    "freeze_extra_modules": ("lm_head", FREEZE),
    "use_llama_pro": (True, FREEZE | {"freeze_trainable_layers": -1}),
    "pure_bf16": (True, {"finetuning_type": "full"}),
    "use_muon": (True, {}),
    "use_dft_loss": (True, {}),
    "use_asft_loss": (True, {}),
    "asft_alpha": (0.5, {"use_asft_loss": True}),
    "use_eaft_loss": (True, {}),
    "eaft_alpha": (0.5, {"use_eaft_loss": True}),
    "moe_aux_loss_coef": (0.0, {}),
    "moe_aux_loss_per_layer": (True, {}),
    "pref_beta": (0.3, PAIRS),
    "pref_loss": ("ipo", PAIRS),
    "ref_model": ("./nowhere", PAIRS),
    "ref_model_adapters": ("nowhere", PAIRS),
    "pref_ftx": (0.5, PAIRS),
    "dpo_label_smoothing": (0.1, PAIRS),
    "ld_alpha": (0.5, PAIRS),
    "simpo_gamma": (1.0, PAIRS | {"stage": "simpo"}),
    "kto_chosen_weight": (2.0, {"stage": "kto", "dataset": "kto"}),
    "kto_rejected_weight": (2.0, {"stage": "kto", "dataset": "kto"}),
    "teacher_model": ("./nowhere", TAUGHT),
    "lmbda": (0.1, TAUGHT),
    "beta": (0.1, TAUGHT),
    "seq_kd": (True, TAUGHT),
    "reward_funcs": ("short_answer", PROMPTS),
    "reward_model": ("nowhere", PROMPTS),
    "num_generations": (4, PROMPTS),
    "ppo_epochs": (2, PROMPTS | {"stage": "ppo"}),
    "dataset": ("long", {}),
    "eval_dataset": ("long", {}),
    "dataset_dir": ("elsewhere", {"dataset": "named"}),
    "dataset_substitutions": ({"who": "Lumi"}, {"dataset": "placeholder"}),
    "max_samples": (3, {}),
    "on_bad_rows": ("drop", {"dataset": "bad"}),
    "mix_strategy": ("interleave_over", {"dataset": "sft,long"}),
    "interleave_probs": ("0.9,0.1", MIXED),
    "val_size": (0.25, {}),
    "cutoff_len": (40, {}),
    "packing": (True, {}),
    "train_on_prompt": (True, {}),
    "mask_history": (True, {"dataset": "long"}),
    "output_dir": ("elsewhere", {}),
    "nproc_per_node": (2, {}),
    "use_ray": (True, {}),
    "ray_num_workers": (2, {"use_ray": True}),
    "ray_init_kwargs": ({"address": "auto"}, {"use_ray": True}),
    "ray_storage_path": ("elsewhere", {"use_ray": True}),
    "resources_per_worker": ({"CPU": 2}, {"use_ray": True}),
    "placement_strategy": ("SPREAD", {"use_ray": True}),
    "early_stopping_steps": (2, EVAL),
    "shortcuts": (False, {}),
    "overwrite_output_dir": (True, {}),
    "eval_figures": ("bleu", {}),
    "tasks": ("general_mcq", {}),
    "predict_with_generate": (True, {}),
    "compute_accuracy": (True, {}),
    "plot_loss": (False, {}),
    "infer_backend": ("static", {}),
    "infer_dtype": ("float16", {}),
    "do_sample": (False, {}),
    "temperature": (0.5, {}),
    "top_p": (0.5, {}),
    "top_k": (5, {}),
    "max_new_tokens": (5, {}),
    "repetition_penalty": (1.5, {}),
    "num_beams": (2, {}),
    "export_dir": ("elsewhere", {}),
    "export_size": (2, {}),
    "export_device": ("auto", {}),
    "export_dtype": ("float16", {}),
    "export_gguf": ("f16", {}),
    "export_quantization_bit": (4, {}),
    "export_quantization_dataset": ("texts.json", {"export_quantization_bit": 4}),
    "export_quantization_nsamples": (2, {"export_quantization_bit": 4}),
    "export_quantization_maxlen": (8, {"export_quantization_bit": 4}),
    "export_legacy_format": (True, {}),
}
# Of TrainingArguments' fields those whose value cannot be made from their type.
TRAINING_VALUES: dict[str, Any] = {
    "deepspeed": {"stage": 2}, "fsdp": True, "fsdp_config": {"min_num_params": 1},
    "debug": "underflow_overflow", "disable_tqdm": False,
    "accelerator_config": {"split_batches": True}, "lr_scheduler_kwargs": {"num_cycles": 2}, "seed": 7,
    "liger_kernel_config": {"rope": True}, "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "activation_checkpointing_kwargs": {"use_reentrant": True}, "include_num_input_tokens_seen": "all",
    "optim_target_modules": ["q_proj"], "parallelism_config": None,
    "warmup_steps": 3, "adam_beta1": 0.5, "adam_beta2": 0.5,
}  # fmt: skip
# Handed to ftlab's own rotation and resumption instead of Trainer's: tests/unit/test_checkpoint.py, test_targets.py.
HANDED_ON = ("save_total_limit", "resume_from_checkpoint")


@pytest.fixture
def base(tiny_recipe, tiny_rows, tmp_path, monkeypatch) -> dict[str, Any]:
    """Return a recipe in a folder with a data set for each kind of key."""
    monkeypatch.chdir(tmp_path)
    talk = [{"from": who, "value": f"{who} {i}"} for i in range(2) for who in ("human", "gpt")]
    sets: dict[str, Any] = {
        "long": [{"conversations": [*talk, {"from": "human", "value": f"{i}"}, {"from": "gpt", "value": "ok"}]}
                 for i in range(6)],
        "placeholder": [{"instruction": "Who are you?", "output": f"I am {{{{who}}}}, {i}."} for i in range(3)],
        "bad": [{"instruction": f"Hi {i}?", "output": "Yes." if i else 7} for i in range(4)],
    }  # fmt: skip
    for name, content in sets.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for path in tiny_rows.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
        entry = {"named": {"file_name": f"../{'sft' if folder == 'data' else 'long'}.json"}}
        entry["named"] |= {"formatting": "sharegpt"} if folder == "elsewhere" else {}
        (tmp_path / folder / "dataset_info.json").write_text(json.dumps(entry))
    kept = {name: value for name, value in tiny_recipe.items() if name not in ("lora_rank", "cutoff_len", "plot_loss")}
    return kept | {"dataset": "sft", "output_dir": "run"}


def paths(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys with its data sets as files of the working folder."""
    named = {
        key: ",".join(name if name == "named" else f"./{name}.json" for name in values[key].split(","))
        for key in ("dataset", "eval_dataset")
        if values.get(key)
    }
    return values | named


class Spy:
    """A recipe that remembers which of its keys were read."""

    def __init__(self, made: recipes.Recipe) -> None:
        self.made, self.read = made, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.made, name)


def settings(made: recipes.Recipe) -> Any:
    """Return what the libraries' config objects are given, on a CPU and on a T4."""
    found: list[Any] = [library_args.TRAINERS[made.objective]]
    for machine in (CPU, GPU):
        found += [
            library_args.training_settings(made, Path(made.output_dir or ""), machine),
            library_args.model_settings(made, machine),
        ]
        found.append(library_args.plan(made, machine, "llama"))
        found += [library_args.quantization_settings(made, machine)] if made.quantization_bit else []
    return [*found, library_args.peft_settings(made)] if made.adapts else [*found, made.finetuning_type]


def trained_layers(made: recipes.Recipe) -> Any:
    """Return the names of the weights that stay trainable, where layers are frozen."""
    if made.finetuning_type != "freeze":
        return None
    model = build.skeleton(made, made.model_name_or_path)
    targets.require(made, model)
    build.freeze(made, model)
    return [name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad]


def answers(made: recipes.Recipe) -> Any:
    """Return how `ftlab chat` answers, and what rewards an answer."""
    found = [chat.generation_of(made), chat.options_of(made), chat.engine_of(made), made.default_system]
    return (
        [*found, rewards.functions(made, made.model_name_or_path, "float32")] if made.stage in keys.REWARDED else found
    )


def examples(made: recipes.Recipe) -> Any:
    """Return a digest of every training example and every validation example."""
    tokenizer = train.load_tokenizer(made, made.model_name_or_path)
    templates.apply(made.template, tokenizer, made.allow_other_template, made.enable_thinking)
    return dataset.digests(dataset.splits(made, tokenizer))


def run_of(made: recipes.Recipe) -> Any:
    """Return what `ftlab train` would refuse."""
    if made.adapter_name_or_path:
        build.weights_of(made.adapter_name_or_path)
    if made.second_model:
        reference.folder_of(made, made.model_name_or_path)
    return train.require_training(made)


def started(made: recipes.Recipe) -> Any:
    """Return how many processes `ftlab train` starts, and what Ray is told where it starts them."""
    ray = (ray_workers.connection(made), ray_workers.scaling(made), made.ray_storage_path)
    return ray if ray_workers.asked(made) else launch.to_start(made)


def scored(made: recipes.Recipe) -> Any:
    """Return the figures and the benchmarks of `ftlab eval`."""
    return evaluation.figures_of(made, False), library_args.names(made.tasks or "")


def merged(made: recipes.Recipe) -> list[str]:
    """Return the adapters that are merged into the base before training."""
    return build.merged_before(made)


def loss_of(made: recipes.Recipe) -> Any:
    """Return the losses of three labels, where TRL has no such loss."""
    logits = torch.linspace(-1, 1, 90).sin().view(3, 30)
    labels = torch.tensor([0, 1, 2])
    return losses.per_token(made, logits, labels, lambda: 2 * logits).tolist() if made.own_loss else None


PARTS = (settings, trained_layers, answers, run_of, merged, loss_of, started, scored, examples)


def effect(before: dict[str, Any], name: str, value: Any) -> str:
    """Return what a key does to a recipe: "refused", "noted", the part that it changes, or "" for nothing."""
    old, old_notes = recipes.read(paths(before))
    try:
        made, notes = recipes.read(paths(before | {name: value}))
    except LabError as error:
        assert name in str(error), f"{name} is refused without being named: {error}"
        return "refused"
    if any(name in note for note in notes if note not in old_notes):
        return "noted"
    for part in PARTS:
        first, second = outcome(part, old), outcome(part, made)
        if first != second:
            return part.__name__
    return ""


def outcome(part: Any, made: recipes.Recipe) -> Any:
    """Return what a part comes to, or the error that refuses it."""
    try:
        return part(made)
    except LabError as error:
        return str(error)


def test_every_key_has_a_value_here():
    """Somebody who adds a key says here what it changes."""
    assert set(VALUES) == set(keys.Recipe.model_fields) - {"training"}


# These are read by one function each, which is run once and watched.
WATCHED = (
    "plot_loss",
    "tokenized_path",
    "moe_aux_loss_per_layer",
    "loraplus_lr_ratio",
    "use_muon",
    "use_asft_loss",
    "asft_alpha",
    "use_eaft_loss",
    "eaft_alpha",
    "export_dir",
    "export_size",
    "export_device",
    "export_dtype",
    "export_gguf",
    "export_quantization_bit",
    "export_quantization_dataset",
    "export_quantization_nsamples",
    "export_quantization_maxlen",
)


@pytest.mark.parametrize("name", [name for name in VALUES if name not in WATCHED])
def test_every_key_changes_what_is_built_or_is_said_not_to(name, base):
    value, beside = VALUES[name]
    if beside.get("quantization_bit"):
        pytest.importorskip("bitsandbytes")
    assert effect(base | beside, name, value), f"{name}: {value!r} is accepted and changes nothing"


def test_keys_of_the_last_steps_are_read_by_them(base, tmp_path, monkeypatch):
    made = recipes.read(
        paths(base | {"max_steps": 1, "loraplus_lr_ratio": 4.0, "export_dir": "out", "export_gguf": None})
    )[0]
    watched = Spy(made)
    done = train.train(watched)
    with contextlib.suppress(LabError):
        adapter = {"adapter_name_or_path": str(done.folder), "export_gguf": "f16"}
        seen = Spy(made.model_copy(update=adapter))
        export.export(seen)
    read = watched.read | seen.read
    monkeypatch.setattr(gptq.packages, "require", lambda *_: None)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "What is one plus two?"}')
    quantized = {"export_quantization_bit": 4, "export_quantization_dataset": str(texts)}
    seen = Spy(made.model_copy(update=quantized))
    folder = Path(made.model_name_or_path)
    # Without the packages it ends after it has read its keys.
    with contextlib.suppress(LabError, ImportError):
        gptq.quantize(seen, folder, models.load_tokenizer(folder), gptq.texts_for(seen))
    read |= seen.read
    for loss in ("asft", "eaft"):
        watched = Spy(made.model_copy(update={f"use_{loss}_loss": True, "loraplus_lr_ratio": None, "output_dir": loss}))
        train.train(watched)
        read |= watched.read
    assert set(WATCHED) <= read


@pytest.mark.parametrize("name", sorted(set(keys.TRAINING_HINTS) - set(HANDED_ON)))
def test_every_field_of_training_arguments_counts_or_is_said_not_to(name, base):
    value = TRAINING_VALUES[name] if name in TRAINING_VALUES else other_value(name)
    assert value is None or effect(base, name, value), f"{name}: {value!r} is accepted and changes nothing"


def other_value(name: str) -> Any:
    """Return a value of a field's type that is not its default."""
    default = build.TrainingArguments.__dataclass_fields__[name].default
    if choices := recipes.choices_of(name):
        return next(choice for choice in choices if choice != getattr(default, "value", default))
    hint = keys.TRAINING_HINTS[name]
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_args(hint) else (hint,)
    if bool in kinds:
        return default is not True
    for kind, made in ((int, 3), (float, 0.5), (str, "other")):
        if kind in kinds:
            return made
    return ["loss"]


@pytest.mark.parametrize(
    "name", [*translated_keys.RENAMED, *translated_keys.DROPPED, *translated_keys.OUT_OF_REACH, *recipes.RESOLVED]
)
def test_every_translated_key_is_said_or_refused(name, base):
    value: Any = 3 if translated_keys.ASKS_NOTHING.get(name) is True else True
    if (
        name in translated_keys.RENAMED
        and translated_keys.RENAMED[name][0] in keys.TRAINING_HINTS | keys.Recipe.model_fields
    ):
        value = {
            "evaluation_strategy": "epoch",
            "max_seq_length": 64,
            "per_gpu_train_batch_size": 3,
            "num_layer_trainable": 3,
            "name_module_trainable": "mlp",
            "dpo_beta": 0.2,
            "kto_beta": 0.2,
            "orpo_beta": 0.2,
            "dpo_loss": "ipo",
            "dpo_ftx": 0.5,
            "checkpoint_dir": "none",
            "dev_ratio": 0.5,
            "prompt_template": "qwen",
            "neft_alpha": 5.0,
        }.get(name, True)
    # `fsdp` keeps its name, and changes a setting.
    ways = ("settings",) if name == "fsdp" else ("noted", "refused")
    assert effect(base, name, 0.5 if name == "warmup_ratio" else value) in ways


# The keys of LLaMA-Factory 0.9.5's argument classes, by name; three of its `eval`, which it has no more, are left out.
LLAMAFACTORY = (Path(__file__).parent / "llamafactory_keys.txt").read_text().split()


@pytest.mark.parametrize("name", LLAMAFACTORY)
def test_every_key_of_llamafactory_is_known(name):
    """It runs, or is refused or dropped with a reason; "unknown key" would send its users to look for a typo."""
    assert explain(name).startswith(name)


def test_a_value_that_asks_for_nothing_is_never_refused(base):
    for name in translated_keys.OUT_OF_REACH:
        recipes.read(base | {name: translated_keys.ASKS_NOTHING.get(name, False)})
    for name in translated_keys.ASKS_NOTHING:
        with pytest.raises(LabError, match=name):
            recipes.read(base | {name: 3})


def test_a_secret_is_refused_and_not_shown(base):
    for name in ("ms_hub_token", "om_hub_token", "swanlab_api_key", "hub_token"):
        with pytest.raises(LabError, match=name) as refused:
            recipes.read(base | {name: "s3cret"})
        assert "s3cret" not in str(refused.value)


def test_galore_and_apollo_are_optimizers_of_transformers(base):
    galore = {"use_galore": True, "galore_rank": 32, "galore_scale": 0.5, "galore_target": "q_proj,v_proj"}
    made, notes = recipes.read(base | {"finetuning_type": "full"} | galore)
    assert made.training["optim"] == "galore_adamw" and made.training["optim_args"] == "rank=32,scale=0.5"
    assert made.training["optim_target_modules"] == ["q_proj", "v_proj"]
    assert len([note for note in notes if "galore" in note]) == 1, notes
    apollo = {"use_apollo": True, "apollo_rank": 8, "apollo_update_interval": 50, "apollo_layerwise": True}
    made, _ = recipes.read(base | {"finetuning_type": "full"} | apollo)
    assert made.training["optim"] == "apollo_adamw_layerwise"
    assert made.training["optim_args"] == "rank=8,update_proj_gap=50"
    assert made.training["optim_target_modules"] == "all-linear"
    with pytest.raises(LabError, match="apollo_scale_front"):
        recipes.read(base | {"finetuning_type": "full", "apollo_scale_front": True} | apollo)
    _, notes = recipes.read(base | {"galore_rank": 32})
    assert any("only has an effect with use_galore" in note for note in notes)


METHODS = ("lora", "full", "freeze", "oft", "prompt_tuning")
STAGES = {
    "pt": {"dataset": "text"}, "sft": {"dataset": "long"}, "rm": {"dataset": "preference"},
    "dpo": {"dataset": "preference"},
    "kto": {"dataset": "kto"}, "orpo": {"dataset": "preference"}, "simpo": {"dataset": "preference"},
    "ppo": {"reward_funcs": "exact_answer"}, "grpo": {"reward_funcs": "exact_answer"},
    "rloo": {"reward_funcs": "exact_answer"},
    "gkd": {"teacher_model": "./teacher"},
}  # fmt: skip
CONDITIONAL = sorted({name for condition in keys.CONDITIONS for name in condition.names} & set(VALUES))
# It counts while a mixture is trained: tests/unit/test_mixture_recipes.py.
CONDITIONAL.remove("moe_aux_loss_per_layer")
# Two layers cannot be told from two at equal distances: tests/unit/test_peft_methods.py.
CONDITIONAL.remove("use_llama_pro")


def test_an_adam_setting_that_an_optimizer_does_not_get_is_said(base, tmp_path):
    values = {"adam_beta1": (0.5, 0.6), "adam_beta2": (0.5, 0.6), "adam_epsilon": (0.1, 0.2)}
    compared = []
    for optim in (one.value for one in OptimizerNames):
        recipe = recipes.load(base | dict.fromkeys(values, 0.5) | {"optim": optim})
        said = [name for name, *_ in keys.ineffective(recipe)]
        settings = {"output_dir": str(tmp_path), "report_to": "none", "optim": optim}
        # An optimizer of a package that is not installed cannot be asked.
        with contextlib.suppress(ImportError, ValueError, AttributeError):
            for name, pair in values.items():
                one, other = (
                    repr(Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(**settings, **{name: value})))
                    for value in pair
                )
                assert (one == other) == (name in said), (optim, name)
            compared.append(optim)
    assert {"adamw_torch", "adafactor", "sgd", "rmsprop", "lion_8bit", "paged_lion_32bit", "ademamix"} <= {*compared}


ORDERED = ("kto", *keys.REWARDED)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("name", "value", "counts_in"),
    [
        ("label_smoothing_factor", 0.1, ("pt", "sft")),
        ("data_seed", 7, tuple(stage for stage in STAGES if stage not in ORDERED)),
        ("train_sampling_strategy", "group_by_length", ("pt", "sft", "gkd")),
        ("train_sampling_strategy", "batch_rebalance", ("pt", "sft", "gkd")),
        ("train_sampling_strategy", "sequential", tuple(STAGES)),
        ("default_system", "Be kind.", tuple(stage for stage in STAGES if stage != "pt")),
    ],
)
def test_an_argument_is_said_to_need_a_stage_that_reads_it(stage, name, value, counts_in, base):
    if value in keys.BY_LENGTH and stage in ("rm", *keys.PREFERENCES):
        with pytest.raises(LabError, match=f"`train_sampling_strategy: {value}` .* `stage: {stage}`"):
            recipes.load(base | STAGES[stage] | {"stage": stage, name: value})
        return
    recipe = recipes.load(base | STAGES[stage] | {"stage": stage, name: value})
    assert (name in [said for said, *_ in keys.ineffective(recipe)]) == (stage not in counts_in)


def test_label_smoothing_is_said_to_have_no_effect_on_dft(base):
    recipe = recipes.load(base | {"use_dft_loss": True, "label_smoothing_factor": 0.1})
    assert "label_smoothing_factor" in [name for name, *_ in keys.ineffective(recipe)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_in_every_stage_and_method_a_key_counts_or_is_said_not_to(stage, method, base):
    """A key that counts in some runs only: where it is not said to be without effect, something built differs."""
    if stage == "ppo" and method != "lora":
        return
    before = base | STAGES[stage] | {"stage": stage, "finetuning_type": method}
    if method == "prompt_tuning":
        if stage in ("orpo", "simpo", "rm", *keys.GROUPED, "gkd"):
            return
        before |= {"packing": False}
    for name in CONDITIONAL:
        # Rewards are refused without a source, and one that is there already is not another one.
        value = VALUES[name][0] if name != "reward_funcs" else "exact_answer,short_answer"
        assert effect(before, name, value), f"{name}: {value!r} changes nothing in {stage}, {method}"


def test_the_script_reads_every_key_that_the_examples_depend_on(base):
    made = Spy(recipes.read(paths(base))[0])
    tokenizer = train.load_tokenizer(made, made.model_name_or_path)
    made.read.clear()
    dataset.splits(made, tokenizer)
    known = made.read & set(keys.Recipe.model_fields) - {"model_name_or_path", "training"}
    assert known <= set(to_script.DATA), known - set(to_script.DATA)
