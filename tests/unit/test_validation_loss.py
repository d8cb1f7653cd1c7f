"""The validation loss is a mean over tokens whatever the batch size, and the best step is the one that is kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab import tokens
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.runs import metric_names, train

# Answers of 1 to 50 characters: a mean of the means of batches would be another number.
ROWS = [{"instruction": f"Question {i}", "output": "abcdefghij" * (i % 6) + str(i)} for i in range(10)]


def log_of(run):
    return [json.loads(line) for line in (run.folder / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture
def validated(tiny_recipe, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    own = {"eval_dataset": str(tmp_path / "rows.json"), "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    return tiny_recipe | own | {"learning_rate": 0.0, "finetuning_type": "full", "save_strategy": "no"}


def expected(model_path):
    """Return loss and accuracy per token of ROWS, each example alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)
    loss, right, count = 0.0, 0, 0
    for row in ROWS:
        turns = [("user", row["instruction"]), ("assistant", row["output"])]
        (one,) = tokens.encode(tokenizer, {"messages": [{"role": role, "content": text} for role, text in turns]})
        with torch.no_grad():
            logits = model(torch.tensor([one["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(one["labels"][1:])
        answer = labels != -100
        loss += torch.nn.functional.cross_entropy(logits[answer], labels[answer], reduction="sum").item()
        right += (logits[answer].argmax(-1) == labels[answer]).sum().item()
        count += answer.sum().item()
    return loss / count, right / count


@pytest.mark.parametrize(
    "keys", [{"per_device_eval_batch_size": 3}, {"per_device_eval_batch_size": 1}, {"packing": True}]
)
def test_the_validation_loss_is_the_mean_over_tokens(validated, keys):
    (row,) = [row for row in log_of(train.train(recipes.load(validated | keys))) if "eval_loss" in row]
    loss, accuracy = expected(validated["model_name_or_path"])
    assert row["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert row["eval_mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_validation_loss_of_another_loss_is_a_mean_over_tokens_too(validated):
    eaft = {"use_eaft_loss": True, "eaft_alpha": 0.0, "per_device_eval_batch_size": 3}
    (row,) = [row for row in log_of(train.train(recipes.load(validated | eaft))) if "eval_loss" in row]
    assert row["eval_loss"] == pytest.approx(expected(validated["model_name_or_path"])[0], rel=1e-5)


BEST = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}


def test_early_stopping_keeps_the_most_accurate_step_where_accuracy_is_the_metric(validated):
    keys = BEST | {"early_stopping_steps": 3, "metric_for_best_model": "mean_token_accuracy"}
    run = train.train(recipes.load(validated | keys | {"learning_rate": 3e-3, "max_steps": 6}))
    found = {row["step"]: row["eval_mean_token_accuracy"] for row in log_of(run) if "eval_loss" in row}
    best = max(found, key=lambda step: (found[step], -step))
    assert found[best] > min(found.values())
    kept, there = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (run.weights, run.folder / f"checkpoint-{best}")
    )
    assert all(torch.equal(weight, there[name]) for name, weight in kept.items())


def test_a_best_step_without_a_checkpoint_is_said(validated, capsys):
    keys = BEST | {"save_steps": 4, "max_steps": 4, "learning_rate": 0.5}
    run = train.train(recipes.load(validated | keys))
    losses = {row["step"]: row["eval_loss"] for row in log_of(run) if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    said = f"the best loss was at step {best}, which has no checkpoint: the weights are those of step 4"
    assert best < 4 and said in capsys.readouterr().out
    train.train(recipes.load(validated | BEST | {"max_steps": 2, "output_dir": f"{run.folder}-2"}))
    assert "has no checkpoint" not in capsys.readouterr().out


def test_a_metric_that_no_evaluation_has_is_named_before_training(validated):
    recipe = recipes.load(validated | BEST | {"metric_for_best_model": "accuracy"})
    for start in (train.check, train.train):
        with pytest.raises(LabError, match="no `accuracy`") as caught:
            start(recipe)
        assert caught.value.where == "metric_for_best_model" and "loss, mean_token_accuracy" in caught.value.fix
        assert caught.value.exit_code == 2
    assert not Path(validated["output_dir"]).exists()


STAGES = {
    "pt": ("text", {}),
    "sft": ("sft", {}),
    "gkd": ("sft", {}),
    "rm": ("preference", {}),
    "dpo": ("preference", {}),
    "orpo": ("preference", {}),
    "simpo": ("preference", {}),
    "kto": ("kto", {}),
    "grpo": ("sft", {"reward_funcs": "short_answer", "num_generations": 2, "max_new_tokens": 2}),
    "rloo": ("sft", {"reward_funcs": "short_answer", "num_generations": 2, "max_new_tokens": 2}),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_metric_of_an_evaluation_can_be_asked_for(tiny_recipe, tiny_rows, tiny_mixture_dir, stage):
    name, keys = STAGES[stage]
    rows = str(tiny_rows / f"{name}.json")
    # A mixture also has a balancing loss. Without an evaluation nobody looks for the metric.
    own = {"dataset": rows, "eval_dataset": rows, "max_steps": 1, "stage": stage, "save_strategy": "no"}
    own |= {"model_name_or_path": str(tiny_mixture_dir), "eval_strategy": "steps", "eval_steps": 1}
    own |= {"teacher_model": str(tiny_mixture_dir)} if stage == "gkd" else {}
    own |= {"moe_aux_loss_coef": 0.01} if stage == "sft" else {}
    (row,) = [row for row in log_of(train.train(recipes.load(tiny_recipe | own | keys))) if "eval_loss" in row]
    measured = {name.removeprefix("eval_") for name in row if name.startswith("eval_")}
    assert {"loss", "runtime"} < measured
    for metric in measured:
        args = SimpleNamespace(metric_for_best_model=metric, eval_strategy="steps")
        metric_names.require_metric(stage, args)
    with pytest.raises(LabError, match="no `nonsense`"):
        metric_names.require_metric(stage, SimpleNamespace(metric_for_best_model="nonsense", eval_strategy="steps"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"early_stopping_steps": 1}, "`early_stopping_steps` compares evaluations: set `eval_strategy`"),
        ({"load_best_model_at_end": True}, "`load_best_model_at_end` compares evaluations: set `eval_strategy`"),
        ({"early_stopping_steps": 1, "eval_strategy": "epoch"}, "set `save_strategy: epoch` or best"),
    ],
)
def test_the_best_of_no_evaluations_is_refused(tiny_recipe, keys, said):
    with pytest.raises(LabError) as caught:
        train.check(recipes.load(tiny_recipe | keys))
    assert said in caught.value.what and caught.value.exit_code == 2


@pytest.mark.parametrize("keys", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}])
def test_a_run_of_no_steps_is_refused(tiny_recipe, keys):
    with pytest.raises(LabError, match="nothing would be trained"):
        recipes.load(tiny_recipe | keys)
    assert recipes.load(tiny_recipe | {"max_steps": 2, "num_train_epochs": 0}).training["max_steps"] == 2
