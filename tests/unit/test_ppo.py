"""PPO against numbers computed by hand, and end to end on a tiny model; reward functions that misbehave."""

import functools
import json
import math
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ftlab import tokens
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import REWARDED
from ftlab.runs import ppo, rewards, train

EOS = 7
ONES = torch.ones(1, 3)


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers])


# Masking


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([1, 2, EOS, EOS, 3], [1, 1, 1, 0, 0]),
        ([1, 2, 3, 4, 5], [1, 1, 1, 1, 1]),
        ([EOS, EOS, EOS, EOS, EOS], [1, 0, 0, 0, 0]),
        ([1, 9, 2, EOS, 1], [1, 1, 0, 0, 0]),
    ],
    ids=["padding is the end token too", "never ended", "ended at once", "another end token"],
)
def test_tokens_after_the_first_end_token_are_masked(ids, mask):
    assert ppo.completion_mask(torch.tensor([ids]), [EOS, 9]).tolist() == [mask]


def test_what_is_masked_changes_nothing():
    mask = torch.tensor([[1, 1, 0, 0]])
    results = []
    for junk in (0.0, 5.0):
        rewards_, values = row(0.1, 1.0, junk, junk), row(0.3, 0.4, junk, junk)
        advantages = ppo.gae(rewards_, values, mask, 0.9, 0.8)
        logps, old = row(-1.0, -2.0, -junk, junk), row(-1.1, -1.9, junk, -junk)
        results.append(
            [
                advantages[:, :2],
                ppo.whiten(advantages, mask),
                ppo.policy_loss(logps, old, advantages, mask, 0.2),
                ppo.value_loss(values + junk * (1 - mask), values, advantages + values, mask, 0.2),
                ppo.masked_mean(logps, mask),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_score_falls_on_the_last_token_that_counts():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    kl = torch.tensor([[0.5, 0.0, -1.0], [2.0, 1.0, 9.0]])
    found = ppo.token_rewards(torch.tensor([1.0, 3.0]), kl, mask, kl_coef=0.1)
    assert torch.allclose(found, torch.tensor([[-0.05, 0.0, 1.1], [-0.2, 2.9, 0.0]]))


# Advantages and value targets


def test_advantages_by_hand():
    # Backwards: 1 - 0.3 = 0.7; then 0 + 0.9 * 0.3 - 0.4 = -0.13, plus 0.9 * 0.5 * 0.7 = 0.315; and so on.
    found = ppo.gae(row(0.0, 0.0, 1.0), row(0.5, 0.4, 0.3), ONES, gamma=0.9, lam=0.5)
    assert found[0].tolist() == pytest.approx([-0.14 + 0.45 * 0.185, -0.13 + 0.315, 0.7], abs=1e-6)


def test_at_lambda_1_the_value_target_is_the_discounted_sum_of_rewards():
    rewards_, values = row(-0.1, 0.2, 1.0), row(0.5, -0.4, 0.3)
    returns = ppo.gae(rewards_, values, ONES, gamma=0.5, lam=1.0) + values
    assert returns[0].tolist() == pytest.approx([-0.1 + 0.5 * (0.2 + 0.5), 0.2 + 0.5, 1.0], abs=1e-6)


def test_at_lambda_0_the_value_target_is_one_step_ahead():
    rewards_, values = row(-0.1, 0.2, 1.0), row(0.5, -0.4, 0.3)
    returns = ppo.gae(rewards_, values, ONES, gamma=0.5, lam=0.0) + values
    assert returns[0].tolist() == pytest.approx([-0.1 - 0.2, 0.2 + 0.15, 1.0], abs=1e-6)


def test_a_short_completion_ends_where_its_mask_ends():
    both = torch.tensor([[0.1, 1.0, 9.0], [0.1, 1.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    found = ppo.gae(both, torch.tensor([[0.2, 0.3, 8.0], [0.2, 0.3, 0.0]]), mask, 1.0, 0.95)
    assert torch.equal(found[0], found[1]) and found[0, 1] == pytest.approx(0.7) and found[0, 2] == 0


def test_whitened_advantages():
    found = ppo.whiten(row(1.0, 3.0, 99.0), torch.tensor([[1, 1, 0]]))
    assert found[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-4)
    assert ppo.whiten(torch.ones(1, 3), ONES).tolist() == [[0.0, 0.0, 0.0]]


# Losses


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "pulls"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 2.0, -2.4, False),
        (0.5, 2.0, -1.0, True),
        (1.5, -2.0, 3.0, True),
        (0.5, -2.0, 1.6, False),
    ],
    ids=["not moved", "good, far enough up", "good, went down", "bad, went up", "bad, far enough down"],
)
def test_the_clipped_loss_by_hand(ratio, advantage, loss, pulls):
    old = torch.tensor([[-1.0]])
    logps = (old + math.log(ratio)).requires_grad_()
    found = ppo.policy_loss(logps, old, torch.tensor([[advantage]]), torch.ones(1, 1), 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-5) and bool(logps.grad.abs().sum() > 0) is pulls
    if pulls:
        # A step against the gradient makes a good token likelier and a bad one less likely.
        assert (logps.grad.item() < 0) is (advantage > 0)


@pytest.mark.parametrize(
    ("value", "loss"), [(0.1, 0.5 * 0.9**2), (0.5, 0.5 * 0.8**2), (2.0, 0.5 * 1.0**2)], ids=["near", "clipped", "past"]
)
def test_the_clipped_value_loss_by_hand(value, loss):
    one = torch.ones(1, 1)
    assert ppo.value_loss(value * one, 0 * one, one, one, 0.2).item() == pytest.approx(loss, abs=1e-6)


def test_the_sign_of_kl():
    likelier, rarer = ppo.kl_penalty(row(-1.0, -3.0), row(-2.0, -2.0), "k1")[0].tolist()
    assert (likelier, rarer) == (1.0, -1.0)
    assert ppo.token_rewards(torch.zeros(1), row(likelier), torch.ones(1, 1).long(), 0.1).item() == pytest.approx(-0.1)
    k3 = ppo.kl_penalty(row(-1.0, -3.0, -2.0), row(-2.0, -2.0, -2.0), "k3")[0].tolist()
    assert k3 == pytest.approx([math.exp(-1), math.exp(1) - 2, 0.0], abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_average_to_the_kl(estimator):
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (policy * (policy / reference).log()).sum()
    found = (policy * ppo.kl_penalty(policy.log(), reference.log(), estimator)).sum()
    assert found.item() == pytest.approx(exact.item(), abs=1e-6)


# End to end


QUESTIONS = [{"prompt": [{"role": "user", "content": f"Say {i}."}], "answer": str(i)} for i in range(12)]
SHARED = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 2,
    "max_steps": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def count_letters(completions, **_):
    """Reward letters: half of what a random model writes are none."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(letter.isalpha() for letter in text) / 8 for text in texts]


@pytest.fixture
def build(tiny_model_dir, tmp_path):
    """Return a function that makes a PPO trainer of a tiny model."""

    def made(reward=count_letters, rows=QUESTIONS, lora_dropout=0.0, **settings):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=lora_dropout, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        args = ppo.PPOConfig(output_dir=str(tmp_path / "run"), **SHARED | settings)
        return ppo.PPOTrainer(model, args, reward, Dataset.from_list(rows), tiny.make_tokenizer())

    return made


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("settings", [{}, {"kl_estimator": "k3"}, {"gradient_checkpointing": True}], ids=str)
def test_every_trainable_weight_changes_and_no_frozen_one(build, settings):
    trainer = build(**settings)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {"value_head.weight", "value_head.bias"} <= changed


def test_a_batch_is_written_once_and_used_for_every_epoch(build):
    asked = []

    def note(prompts, completions, answer, **_):
        asked.append(answer)
        return [0.0, 1.0]

    build(note, num_ppo_epochs=3, max_steps=6).train()
    # Two accumulated batches of two prompts, and the next two after three optimizer steps.
    assert len(asked) == 4 and len({number for batch in asked for number in batch}) == 8


def test_before_the_first_step_policy_and_reference_are_one(build):
    log = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            log.append(dict(logs))

    trainer = build()
    trainer.add_callback(Keep())
    trainer.train()
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[0]["clip_ratio"] == 0
    # Whitened advantages add up to 0 while every ratio is 1: no loss, and yet a gradient.
    assert log[0]["policy_loss"] == pytest.approx(0, abs=1e-5) and log[0]["grad_norm"] > 1e-3
    assert log[2]["kl"] > 0 and {"reward", "entropy", "length", "value_loss"} <= set(log[0])


def test_dropout_is_off_while_ppo_trains(build):
    trainer = build(lora_dropout=0.5)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    batch = trainer._prepare_inputs(QUESTIONS[:4])
    assert trainer.model.training
    ids, mask, length = batch["input_ids"], batch["attention_mask"], batch["mask"].shape[1]
    now = ppo.read_answers(trainer.model, ids, mask, length, trainer.args.temperature)
    assert torch.allclose(now.logps, batch["logps"], atol=1e-5)


def test_a_completion_without_an_end_token_pays_the_penalty(build):
    trainer = build(lambda completions, **_: [1.0] * len(completions), missing_eos_penalty=0.25)
    # Nothing ends a completion, then every token does.
    for eos_token_ids, expected in (([], 0.75), (list(range(len(trainer.processing_class))), 1.0)):
        trainer.eos_token_ids = eos_token_ids
        trainer.rollout(QUESTIONS[:2])
        assert trainer.seen["reward"][-1] == pytest.approx(expected)


def test_rewards_are_weighted_and_logged_one_by_one(build):
    def always(completions, **_):
        return [0.5] * len(completions)

    def never_paid(completions, **_):
        return [3.0] * len(completions)

    trainer = build([always, never_paid], reward_weights=[2.0, 0.0])
    trainer.rollout(QUESTIONS[:2])
    seen = {name: values[-1] for name, values in trainer.seen.items()}
    assert seen["reward"] == 1.0
    assert (seen["rewards/always/mean"], seen["rewards/never_paid/mean"]) == (0.5, 3.0)


def test_left_padding_changes_no_number(build):
    trainer = build()
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    torch.nn.init.normal_(model.value_head.weight)
    ids = torch.tensor([tokenizer("Say a longer thing").input_ids])
    padding = torch.full((1, 5), tokenizer.pad_token_id)
    with torch.no_grad():
        plain = ppo.read_answers(model, ids, torch.ones_like(ids), 4, 0.7)
        mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], 1)
        padded = ppo.read_answers(model, torch.cat([padding, ids], 1), mask, 4, 0.7)
        # Against the plain definition: position t predicts token t + 1.
        logits = model(input_ids=ids).logits[:, :-1] / 0.7
    expected = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -4:]
    assert torch.allclose(plain.logps, expected, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, padded, strict=True))


def test_it_learns_what_is_rewarded(build):
    trainer = build(
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=12,
        gradient_accumulation_steps=1,
        max_steps=40,
        kl_coef=0.0,
    )
    # A random model is so unsure that no small change of its hidden states would show.
    trainer.model.get_output_embeddings().weight.data *= 10
    trainer.train()
    seen = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.3


def test_a_resumed_run_ends_with_the_same_weights(build):
    build(save_strategy="steps", save_steps=2, max_steps=8).train()
    whole, again = build(max_steps=8), build(max_steps=8)
    whole.train()
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir) / "checkpoint-4"))
    for name, weight in weights(whole).items():
        assert torch.allclose(weight, weights(again)[name], atol=1e-6), name


# Refusals


def nan_once(completions, **_):
    return [math.nan] + [1.0] * (len(completions) - 1)


def too_few(completions, **_):
    return [1.0]


def crashing(completions, **_):
    return [1 / 0 for _ in completions]


def none_at_all(completions, **_):
    return [None for _ in completions]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (nan_once, "nan_once: the reward function returned nan for the completion"),
        (too_few, "too_few: the reward function returned 1 reward for 2 completions"),
        (crashing, "crashing: the reward function raised ZeroDivisionError: division by zero"),
        (none_at_all, "none_at_all: the reward function returned None"),
        (functools.partial(too_few, weight=1), "too_few: "),
    ],
    ids=["nan", "wrong length", "raises", "None", "partial"],
)
def test_a_bad_reward_function_is_refused_by_name_and_the_weights_stay(build, reward, message):
    calls = []

    def good_then_bad(**given):
        calls.append(1)
        return count_letters(**given) if len(calls) <= 2 else reward(**given)

    good_then_bad.__name__ = rewards.name_of(reward)
    trainer = build(good_then_bad, max_steps=20)
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            kept["weights"] = weights(trainer)

    trainer.add_callback(Keep())
    with pytest.raises(LabError, match="fix:") as caught:
        trainer.train()
    assert str(caught.value).startswith(message) and caught.value.exit_code == 1
    assert trainer.state.global_step == 2
    assert all(torch.equal(weight, kept["weights"][name]) for name, weight in weights(trainer).items())


def test_too_few_prompts_and_a_model_without_adapter_are_refused(build, tiny_model_dir):
    with pytest.raises(LabError, match="a batch needs 4 prompts, but there are only 3"):
        build(rows=QUESTIONS[:3])
    bare = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with pytest.raises(LabError, match="LlamaForCausalLM has no adapter"):
        ppo.PPOTrainer(bare, ppo.PPOConfig(use_cpu=True), count_letters, Dataset.from_list(QUESTIONS), None)


def test_virtual_tokens_are_refused_because_padding_moves_them(tiny_model_dir):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    ids, padding = torch.arange(40, 50)[None], torch.zeros(1, 6, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], 1)
    # The positions that `read_answers` gives are not looked at.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -10:]
        padded = model(input_ids=torch.cat([padding, ids], 1), attention_mask=mask, position_ids=positions)
    assert (alone - padded.logits[:, -10:]).abs().max() > 1e-4
    with pytest.raises(LabError, match="PROMPT_TUNING puts virtual tokens before the padding"):
        ppo.PPOTrainer(model, ppo.PPOConfig(use_cpu=True), count_letters, Dataset.from_list(QUESTIONS), None)


# Rewards


def test_short_answer():
    texts = ["Oslo", "Oslo.", "It is Oslo.", "The capital of Norway is Oslo, a fine old city.", "Bergen", "osloer", ""]
    found = rewards.short_answer([[{"role": "assistant", "content": text}] for text in texts], ["Oslo"] * 7)
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.3, 0.0, 0.0, 0.0])
    assert rewards.exact_answer(["Oslo", " Oslo\n", "Oslo."], ["Oslo"] * 3) == [1.0, 1.0, 0.0]


def test_rewards_read_chinese_signs_and_what_follows_a_thought():
    # Words of Chinese have no spaces around them, and a long answer is more than one word.
    chinese = ["首都是北京。", "北京", "这个问题很简单，中国的首都当然就是北京啦！", "首都是南京。"]
    assert rewards.short_answer(chinese, ["北京"] * 4) == pytest.approx([1.0, 1.0, 0.3, 0.0])
    assert rewards.short_answer(["-5", "4.5", "It is 5.", "1,005"], ["5"] * 4) == [0.0, 0.0, 1.0, 0.0]
    thoughts = [
        "<think>Oslo or Bergen? I have to think about it.</think>\n\nOslo",
        "<think>Oslo?</think>No",
    ]
    assert rewards.short_answer(thoughts, ["Oslo"] * 2) == [1.0, 0.0]
    assert rewards.exact_answer(thoughts, ["Oslo", "<think>hm</think>No"]) == [1.0, 1.0]


# As stages of a recipe


@pytest.fixture
def rl_recipe(tiny_recipe):
    """The keys of a recipe that learns from a reward, in seconds."""
    return tiny_recipe | {"reward_funcs": "short_answer", "max_new_tokens": 8, "ppo_epochs": 2, "num_generations": 2}


@pytest.mark.parametrize("stage", REWARDED)
def test_the_stage_runs_and_leaves_an_adapter(rl_recipe, stage):
    run = train.train(recipes.load(rl_recipe | {"stage": stage}))
    assert (run.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (run.folder / "checkpoint-6" / ppo.VALUE_HEAD).is_file() is (stage == "ppo")
    again = train.train(recipes.load(rl_recipe | {"stage": stage}))
    assert again.reused
    with pytest.raises(LabError, match="max_new_tokens: 8 -> 9"):
        train.train(recipes.load(rl_recipe | {"stage": stage, "max_new_tokens": 9}))


@pytest.mark.parametrize("stage", REWARDED)
def test_a_reward_model_of_stage_rm_scores(tiny_recipe, tiny_rows, rl_recipe, tmp_path, stage):
    keys = {"stage": "rm", "dataset": str(tiny_rows / "preference.json"), "output_dir": str(tmp_path / "judge")}
    judge = train.train(recipes.load(tiny_recipe | keys)).folder
    # The keys of LLaMA-Factory's PPO example.
    keys = {"stage": stage, "reward_model": str(judge), "reward_model_type": "lora", "top_k": 0, "top_p": 0.9}
    keys |= {"max_steps": 2, "ppo_score_norm": True}
    run = train.train(recipes.load(rl_recipe | keys))
    assert list(run.weights.glob("adapter_model.safetensors"))
    with pytest.raises(LabError, match="the reward model cannot be loaded"):
        train.train(recipes.load(rl_recipe | keys | {"reward_model": str(tmp_path), "output_dir": str(tmp_path / "x")}))


@pytest.mark.parametrize("stage", REWARDED)
def test_a_language_model_is_no_reward_model(tiny_recipe, rl_recipe, tmp_path, stage):
    tuned = train.train(recipes.load(tiny_recipe | {"output_dir": str(tmp_path / "tuned"), "max_steps": 1}))
    base = str(tiny_recipe["model_name_or_path"])
    for judge, said in ((base, "score.weight"), (str(tuned.folder), r"of a language model \(CAUSAL_LM\)")):
        asked = {"stage": stage, "reward_model": judge, "reward_funcs": None, "output_dir": str(tmp_path / "x")}
        with pytest.raises(LabError, match=f"the reward model cannot be loaded: .*{said}") as error:
            train.train(recipes.load(rl_recipe | asked))
        assert error.value.exit_code == 2 and not (tmp_path / "x").exists()
        with pytest.raises(LabError) as checked:
            train.check(recipes.load(rl_recipe | asked))
        assert str(checked.value) == str(error.value)


@pytest.mark.parametrize("stage", REWARDED)
def test_a_bad_reward_keeps_the_last_checkpoint(rl_recipe, stage, monkeypatch):
    calls = []

    def breaks(completions, **_):
        calls.append(1)
        return [float(i) if len(calls) < 3 else math.nan for i, _ in enumerate(completions)]

    good = rewards.BUILT_IN["short_answer"]
    monkeypatch.setitem(rewards.BUILT_IN, "short_answer", breaks)
    with pytest.raises(LabError, match="breaks: the reward function returned nan"):
        train.train(recipes.load(rl_recipe | {"stage": stage, "max_steps": 12}))
    monkeypatch.setitem(rewards.BUILT_IN, "short_answer", good)
    run = train.train(recipes.load(rl_recipe | {"stage": stage, "max_steps": 12}))
    assert run.metrics["resumed_from_step"] >= 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reward_funcs": None}, "needs `reward_funcs` or `reward_model`"),
        ({"reward_funcs": "short_anser"}, "`reward_funcs` has no `short_anser`; there are exact_answer, short_answer"),
        ({"finetuning_type": "full"}, "`finetuning_type: lora`"),
        ({"val_size": 0.5}, "does not support"),
        ({"reward_model_type": "api"}, "a reward is a function here"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_keys_that_cannot_be_served_are_refused(rl_recipe, keys, message):
    values = {name: value for name, value in (rl_recipe | {"stage": "ppo"} | keys).items() if value is not None}
    with pytest.raises(LabError, match=message):
        recipes.load(values)


@pytest.mark.parametrize("stage", REWARDED)
def test_examples_with_tools_are_refused_where_the_model_would_not_see_them(rl_recipe, tmp_path, stage):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    (tmp_path / "tools.jsonl").write_text(json.dumps(row | {"tools": [tool]}) + "\n")
    with pytest.raises(LabError, match=f"tools, which are not shown to the model in stage {stage}"):
        train.train(recipes.load(rl_recipe | {"stage": stage, "dataset": str(tmp_path / "tools.jsonl")}))


def message(role, content, **more):
    return {"role": role, "content": content} | more


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHATML


@pytest.mark.parametrize("stage", REWARDED)
def test_the_stage_asks_in_the_tokens_of_chat(rl_recipe, tiny_model_dir, tmp_path, stage, monkeypatch):
    # A system turn that the template refuses begins the question; a thought and a call that it does not know are text.
    call = {"function": {"name": "look_up", "arguments": {"city": "Oslo"}}}
    turns = [
        [message("system", "Be brief."), message("user", "Hi")],
        [message("user", "Hi"), message("assistant", "Yes", reasoning_content="Hm."), message("user", "Why?")],
        [message("user", "Hi"), message("assistant", "", tool_calls=[call]), message("tool", "Snow")],
    ]
    rows = [{"messages": [*before, message("assistant", "It is 1.")]} for before in turns]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / "chat_template.jinja").write_text(REFUSES_SYSTEM)
    tokenizer = AutoTokenizer.from_pretrained(model)
    seen = set()
    kind = type(AutoModelForCausalLM.from_pretrained(model))
    generate = kind.generate

    def watched(self, *args, input_ids, **options):
        seen.update(tokenizer.batch_decode(input_ids))
        return generate(self, *args, input_ids=input_ids, **options)

    monkeypatch.setattr(kind, "generate", watched)
    keys = {"model_name_or_path": str(model), "dataset": str(tmp_path / "rows.jsonl"), "max_steps": 3}
    train.train(recipes.load(rl_recipe | keys | {"stage": stage}))
    asked = {tokenizer.decode(tokens.prompt(tokenizer, before)) for before in turns}
    padding = tokenizer.pad_token
    assert {strip(text, padding) for text in seen} == asked


def strip(text: str, padding: str) -> str:
    """Return a prompt without the padding before it."""
    return strip(text.removeprefix(padding), padding) if text.startswith(padding) else text
