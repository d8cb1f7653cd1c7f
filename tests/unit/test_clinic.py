"""Lesson 15's patients: a fault changes what it says alone, and its number separates it from a healthy run."""

import copy
import json
import math
from dataclasses import fields

import lessons
import pytest
import tiny
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.apps import clinic, diagnoses
from ftlab.errors import speaking

# Which part of a setup each fault changes.
CHANGES = {
    "prompt_trained": "args", "no_end": "end", "double_bos": "tokenizer", "wrong_template": "served_template",
    "merged_twice": "merges", "mean_of_means": "loss_per_token", "validation_leak": "train", "tenfold_rate": "args",
    "right_padding": "padding_side", "no_balance": "args", "frozen_experts": "frozen", "rounded_away": "args dtype",
}  # fmt: skip
ROWS = [
    {"prompt": f"What is {a} plus {b}, {'please' * (a % 3)}?", "answer": f"It is {'very surely ' * (b % 4)}{a + b}."}
    for a in range(6)
    for b in range(6)
]
PROBES = (
    "prompt_share", "end_share", "leading_repeats", "overlap", "loss_gap", "gradient_norm", "busiest_share",
    "changed_share", "update_size", "merge_factor", "prompt_agreement", "padding_agreement",
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tiny.make_model(tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Random weights this small give every token the same loss; a trained model does not.
    model.load_state_dict({name: 8 * weight for name, weight in model.state_dict().items()})
    return model, AutoTokenizer.from_pretrained(folder)


def setup_of(parts, fault="", seed=0):
    setup = clinic.healthy(seed, *parts, ROWS, max_steps=4, experts=fault in clinic.ON_EXPERTS)
    if fault:
        clinic.FAULTS[fault](setup)
    return setup


def described(setup):
    """Return what a setup holds, in values that can be compared."""
    kept = {field.name: getattr(setup, field.name) for field in fields(setup)}
    kept["tokenizer"] = json.loads(setup.tokenizer.backend_tokenizer.to_str())
    kept["model"] = {name: weight.tolist() for name, weight in setup.model.state_dict().items()}
    return kept


@pytest.mark.parametrize("fault", clinic.FAULTS)
def test_a_fault_changes_one_part_of_the_setup(parts, fault):
    sick = described(setup_of(parts, fault))
    well = described(clinic.healthy(0, *parts, ROWS, max_steps=4, experts=fault in clinic.ON_EXPERTS))
    assert " ".join(name for name in well if well[name] != sick[name]) == CHANGES[fault]


def test_a_fault_of_the_arguments_changes_one_argument(parts):
    changed = {}
    for fault in ("prompt_trained", "tenfold_rate", "no_balance", "rounded_away"):
        sick, well = (
            setup_of(parts, fault).args,
            clinic.healthy(0, *parts, ROWS, 4, experts=fault in clinic.ON_EXPERTS).args,
        )
        changed[fault] = {name for name in well if well[name] != sick[name]}
    assert changed == {
        "prompt_trained": {"completion_only_loss"}, "tenfold_rate": {"learning_rate"},
        "no_balance": {"router_aux_loss_coef"}, "rounded_away": {"learning_rate"},
    }  # fmt: skip


def test_a_seed_draws_the_order_and_the_settings(parts):
    assert sorted(clinic.order(0)) == sorted(clinic.FAULTS) == sorted(diagnoses.faults())
    assert clinic.order(0) == clinic.order(0) != clinic.order(1)
    rates = {clinic.healthy(seed, *parts, ROWS, 4).args["learning_rate"] for seed in range(4)}
    assert len(rates) == 4 and all("{{" not in row["answer"] for row in clinic.healthy(0, *parts, ROWS, 4).train)


def test_patients_come_in_the_order_of_the_round(parts):
    numbered = [number for number, _ in zip(range(1, 3), clinic.patients(0, *parts, ROWS, 1), strict=False)]
    assert numbered == [1, 2]
    (number, run), *_ = clinic.patients(3, *parts, ROWS[:20], 1)
    fault = clinic.order(3)[number - 1]
    assert run.examples == clinic.train(sick_of(parts, fault)).examples


def sick_of(parts, fault):
    setup = clinic.healthy(3, *parts, ROWS[:20], 1, experts=fault in clinic.ON_EXPERTS)
    clinic.FAULTS[fault](setup)
    return setup


def test_a_run_leaves_the_shared_model_as_it_was(parts):
    before = copy.deepcopy(parts[0].state_dict())
    run = clinic.train(setup_of(parts, "tenfold_rate"))
    assert all(torch.equal(before[name], weight) for name, weight in parts[0].state_dict().items())
    assert run.base is parts[0] and run.model("before") is not parts[0]
    served = run.model().state_dict()
    assert all(torch.equal(served[name], weight) for name, weight in run.after.items())
    assert any(not torch.equal(run.before[name], weight) for name, weight in run.after.items())


@pytest.fixture(scope="module")
def probes():
    given = {"torch": torch, "F": F, "math": math, "clinic": clinic}
    inner = ("adapter_updates", "norm_of")
    namespace = lessons.definitions("15_clinic", *PROBES, *inner, **given)
    return dict(zip(PROBES, namespace, strict=False))


def measured(probes, parts, fault, seed, experts):
    """Train a run, healthy where `fault` is empty; return its numbers."""
    # The router's balance takes more steps than the adapter's size.
    setup = clinic.healthy(seed, *parts, ROWS, 8 if experts else 4, experts=experts)
    if fault:
        clinic.FAULTS[fault](setup)
    run = clinic.train(setup)
    return {name: probe(run) for name, probe in probes.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_checklist_separates_every_fault_from_a_healthy_run(parts, probes, seed):
    bands_of, doctor = lessons.definitions("15_clinic", "bands_of", "doctor", math=math)
    well, experts = (measured(probes, parts, "", seed, experts) for experts in (False, True))
    bands = bands_of(well)
    assert doctor(well, bands) == doctor(experts, bands) == "healthy"
    for fault in clinic.FAULTS:
        numbers = measured(probes, parts, fault, seed, fault in clinic.ON_EXPERTS)
        assert diagnoses.named(doctor(numbers, bands)) == {fault}, numbers


SAID = {
    "prompt_trained": [
        "Prompt is trained on",
        "loss on the prompt tokens",
        "提示部分也参与训练",
        "没有屏蔽提示，提示也算进损失",
    ],
    "no_end": ["end of the answer missing", "no EOS", "the end token is not trained", "回答缺少结束标记"],
    "double_bos": ["double BOS", "two BOS tokens", "双 BOS", "开头的 token 重复"],
    "wrong_template": ["wrong chat template at inference", "prompt format differs", "推理模板不一致"],
    "merged_twice": ["the adapter was merged twice", "adapter on the wrong base", "适配器合并了两次"],
    "mean_of_means": ["gradient accumulation normalisation", "mean of means", "梯度累积的归一化不对"],
    "validation_leak": ["validation rows in training", "Data leak", "验证集泄漏"],
    "tenfold_rate": ["learning rate too high", "lr 10x", "LR is 10 times too large", "学习率过大", "学习率太高"],
    "right_padding": ["padded on the right", "padding_side", "右填充"],
    "no_balance": ["aux loss off", "no load balancing", "辅助损失没开"],
    "frozen_experts": ["experts frozen", "the experts are not trained", "专家被冻结"],
    "rounded_away": ["tiny rate in bf16 weights", "updates rounded away", "bfloat16 舍入", "学习率太小"],
}


@pytest.mark.parametrize("fault", clinic.FAULTS)
def test_synonyms_in_both_languages_name_one_fault(fault):
    for text in SAID[fault]:
        assert diagnoses.named(text) == {fault}, text
    for phrase in diagnoses.faults()[fault]["names"]:
        assert fault in diagnoses.named(phrase), phrase
    for phrase in diagnoses.faults()[fault]["fixes"]:
        assert fault in diagnoses.named(phrase, "fixes"), phrase


@pytest.mark.parametrize("answer", ["", ..., None, 3, "bad data", "the model is too small", "already fine", "训练"])
def test_what_names_no_fault_names_none(answer):
    assert not diagnoses.named(answer)


def truth(seed, texts):
    return {number: texts[fault][0] for number, fault in enumerate(clinic.order(seed), start=1)}


def test_guessing_scores_little_and_naming_everything_nothing():
    assert len(diagnoses.right(7, truth(7, SAID))) == 12
    for texts in SAID.values():
        assert len(diagnoses.right(7, dict.fromkeys(range(1, 13), texts[0]))) == 1
    everything = ", ".join(text for texts in SAID.values() for text in texts)
    assert not diagnoses.right(7, dict.fromkeys(range(1, 13), everything))
    assert len(diagnoses.right(8, truth(7, SAID))) <= 4


def test_a_wrong_name_is_sent_to_its_probe_then_told_what_it_says():
    diagnoses.misses.clear()
    number = clinic.order(7).index("no_end") + 1
    entry = diagnoses.faults()["no_end"]
    first, second = (diagnoses.report(7, {number: "double BOS"}, {}) for _ in range(2))
    assert first.startswith("0 of 12") and entry["probe_en"] in first and entry["how_en"] not in first
    assert entry["how_en"] in second and len(first.splitlines()) == 2
    with speaking("zh"):
        assert entry["probe_zh"] in diagnoses.report(7, {number: "模板"}, {})


@pytest.mark.parametrize("fault", clinic.FAULTS)
def test_a_hint_does_not_give_the_answer(fault):
    entry = diagnoses.faults()[fault]
    for kind in ("probe_en", "probe_zh"):
        assert fault not in diagnoses.named(entry[kind]) and entry[kind]


def test_a_fix_counts_where_the_fault_is_named():
    number = clinic.order(7).index("right_padding") + 1
    names = {number: "right padding"}
    assert diagnoses.report(7, names, {number: "pad on the left"}).startswith("1 of 12 faults named, 1 of")
    assert "what do you change?" in diagnoses.report(7, names, {number: "a bigger model"})
    assert diagnoses.report(7, {}, {number: "left"}).startswith("0 of 12 faults named, 0 of")
    assert len(diagnoses.report(7, {number: ...}, {}).splitlines()) == 1
