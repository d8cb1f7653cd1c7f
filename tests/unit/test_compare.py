"""`ftlab compare`: blind pairs, judges, the sign test and its power, and a preference set that DPO trains on."""

import json
import re

import numpy as np
import pytest

from ftlab import figures
from ftlab.apps import cli
from ftlab.apps.board import label_panel
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import compare, train
from ftlab.runs.preferences import LEFT, RIGHT, SKIP

ASKED = [f"What is {number}?" for number in range(12)]


@pytest.fixture
def answered(monkeypatch, tmp_path):
    """Return a function that makes the pile of two models without loading them: A answers at length, and once as B."""
    said = {
        "A": lambda i: "same" if i == 0 else f"A long answer, {i}.",
        "B": lambda i: "same" if i == 0 else f"{i}.",
        "trained on": lambda i: f"Another answer, {i}.",
    }
    monkeypatch.setattr(compare, "load_side", lambda name: compare.Side(name, None))
    monkeypatch.setattr(
        compare, "replies", lambda side, asked, most: [said[side.model](number) for number, _ in enumerate(asked)]
    )
    return lambda a="A", **options: compare.pile(a, "B", ASKED, "mine", tmp_path, **options)


def test_a_judge_picks_without_knowing_the_side(answered):
    compared = answered()
    lefts = [left.startswith("A long") for _, left, _ in compared.labels.rows]
    assert compared.equal == 1 and any(lefts) and not all(lefts)
    compared.labels.rate(compare.judge("longer"))
    outcome = compare.outcome(compared)
    assert outcome[:3] == (11, 0, 1) and outcome.p < 0.01 and outcome.more == 0
    assert "A was picked 11 times, B 0 times; 1 tie." in compare.report(outcome)


def test_comparisons_of_models_that_share_a_file_name_have_names_of_their_own():
    pairs = [("runs/a/adapter", "runs/b/adapter"), ("runs/a/adapter", "runs/c/adapter"), ("qwen2.5-7b", "qwen2.5-3b")]
    names = {compare.name_of(*pair, "longer") for pair in pairs}
    assert len(names) == 3 and "a-adapter_b-adapter_longer" in names
    assert compare.name_of("recipes/sft_lora.yaml", "../b", None) == "recipes-sft_lora_b_person"


def test_pairs_that_nobody_prefers_are_ties_and_pairs_still_to_come_are_not(answered):
    compared = answered()
    for side in (SKIP, LEFT, RIGHT):
        compared.labels.pick(side)
    outcome = compare.outcome(compared)
    assert (outcome.a + outcome.b, outcome.ties) == (2, 2)


def test_the_panel_of_a_comparison_is_the_labelling_panel(answered):
    compared = answered()
    box = label_panel.panel(compared.labels)
    for _ in ASKED[1:]:
        box.children[2].children[0].value = "1"
    assert sum(compare.outcome(compared)[:2]) == 11


def test_a_comparison_goes_on_where_a_person_left_it(answered, monkeypatch, capsys):
    typed = iter(["1", "?", "2", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    compared = answered()
    with pytest.raises(EOFError):
        compared.labels.rate(cli.at_keyboard)
    assert len(answered().labels.rows) == 9 and "A long answer" in capsys.readouterr().out


def test_picks_between_other_answers_do_not_count(answered):
    answered().labels.rate(compare.judge("shorter"))
    with pytest.raises(LabError, match="one of the models has changed"):
        answered("trained on")
    assert answered("trained on", fresh=True).labels.preferences() == []


@pytest.mark.parametrize("pairs", [200, 400])
def test_two_equal_models_differ_in_five_percent_of_tests(pairs):
    wins = np.random.default_rng(0).binomial(pairs, 0.5, 1000)
    assert 0.035 <= np.mean([figures.sign_test(n, pairs - n) <= 0.05 for n in wins.tolist()]) <= 0.065
    assert 0.035 <= figures.sign_test_power(pairs, 0.5) <= 0.065


@pytest.mark.parametrize("share", [0.55, 0.6, 0.7, 0.9, 0.3])
def test_the_pairs_that_are_named_have_the_power_that_is_named(share):
    pairs = figures.pairs_needed(share)
    wins = np.random.default_rng(0).binomial(pairs, share, 1000)
    counts, times = np.unique(wins, return_counts=True)
    shown = np.average([figures.sign_test(n, pairs - n) <= 0.05 for n in counts.tolist()], weights=times)
    assert figures.sign_test_power(pairs, share) >= 0.8 and shown == pytest.approx(
        figures.sign_test_power(pairs, share), abs=0.03
    )


def test_two_models_are_compared_from_the_command_line_and_dpo_trains_on_the_picks(
    tiny_recipe, tiny_model_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train.train(recipes.load(tiny_recipe | {"max_steps": 1}))
    given = iter(["Yes.", "A long answer."])
    monkeypatch.setattr(compare, "replies", lambda side, asked, most, said=given: [next(said)] * len(asked))
    asked = ["--dataset", tiny_recipe["dataset"], "--max-new-tokens", "8"]
    assert (
        cli.main(["compare", tiny_recipe["output_dir"], str(tiny_model_dir), *asked, "--judge", str(tiny_model_dir)])
        == 0
    )
    said = capsys.readouterr().out
    assert "sign test" in said and re.search(r"preferences saved as `[\w-]+-run_[\w-]+-tiny0_", said)
    (file,) = (tmp_path / "runs" / "compare").glob("*.jsonl")
    assert all(set(json.loads(line)) >= {"chosen", "rejected"} for line in file.read_text().splitlines())
    keys = {
        "stage": "dpo",
        "dataset": file.stem,
        "dataset_dir": "runs/compare",
        "output_dir": "runs/dpo",
        "max_steps": 1,
    }
    assert train.train(recipes.load(tiny_recipe | keys)).metrics["train_loss"] == pytest.approx(0.693, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nowhere.json"], "nowhere.json"),
        (["--dataset", "text.json"], "no question to ask both models"),
        (["--dataset", "sft.json", "--judge", "nobody"], "unknown model `nobody`"),
        (["--dataset", "sft.json", "--judge", ""], "not a model folder"),
        (["--dataset", "sft.json", "--judge"], "expected one argument"),
        (["--dataset", "sft.json", "--max-samples", "0"], "--max-samples"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tiny_rows, tiny_model_dir, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tiny_rows)
    assert cli.main(["compare", str(tiny_model_dir), str(tiny_model_dir), *arguments]) == 2
    assert message in capsys.readouterr().err
