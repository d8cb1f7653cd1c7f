"""The losses that lessons 10 to 12 write by hand equal TRL's, on a tiny model in 32-bit numbers."""

import json
from pathlib import Path

import lessons
import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from ftlab.recipe import library_args
from ftlab.recipe import read as recipes
from ftlab.runs import train

ROWS = [(f"What is {i}?", f"In short, it is {i}.", f"{i} is what it is" + "!" * i) for i in range(4)]
BETA = 0.3


def turn(role, text):
    return [{"role": role, "content": text}]


def pairs():
    return Dataset.from_list(
        [
            {"prompt": turn("user", q), "chosen": turn("assistant", c), "rejected": turn("assistant", r)}
            for q, c, r in ROWS
        ]
    )


def settings(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": 256,
    }


ADAPTER = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def build(tiny_model_dir, tmp_path):
    """Return a function that makes a trainer of a tiny model with a fresh adapter."""

    def made(trainer_class, args, dataset=None):
        torch.manual_seed(0)
        return trainer_class(
            AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
            args=args,
            train_dataset=dataset or pairs(),
            processing_class=tiny.make_tokenizer(),
            peft_config=ADAPTER,
        )

    return made


def batch_of(trainer):
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def library_loss(trainer, batch):
    """Return TRL's loss after the adapter was moved away from its start, which is the reference."""
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B.default" in name:
            parameter.data.normal_(std=0.1)
    trainer.model.eval()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(batch)).item()


def dpo_parts(trainer, batch):
    """Return the lesson's log-probabilities of the chosen and rejected sides under policy and reference."""
    (answer_log_probabilities,) = lessons.definitions("12_dpo", "answer_log_probabilities", torch=torch)
    with torch.no_grad():
        policy = answer_log_probabilities(trainer.model, batch)
        with trainer.model.disable_adapter():
            reference = answer_log_probabilities(trainer.model, batch)
    assert (policy - reference).abs().max() > 0.1
    return *policy.chunk(2), *reference.chunk(2)


def test_bradley_terry(tiny_model_dir, tmp_path):
    (bradley_terry_loss,) = lessons.definitions("10_reward_model", "bradley_terry_loss", torch=torch)
    assert bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5])).item() == pytest.approx(0.2014, abs=1e-4)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1, dtype=torch.float32)
    sides = [
        {s: turn("user", q) + turn("assistant", a) for s, a in (("chosen", c), ("rejected", r))} for q, c, r in ROWS
    ]
    trainer = RewardTrainer(
        model,
        RewardConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_list(sides),
        processing_class=tiny.make_tokenizer(),
    )
    batch = batch_of(trainer)
    theirs = library_loss(trainer, batch)
    with torch.no_grad():
        chosen, rejected = model(**batch).logits.squeeze(-1).chunk(2)
    assert theirs == pytest.approx(bradley_terry_loss(chosen, rejected).item(), abs=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_and_ipo(build, tmp_path, loss_type):
    dpo_loss, ipo_loss = lessons.definitions("12_dpo", "dpo_loss", "ipo_loss", torch=torch, F=F)
    args = DPOConfig(**settings(tmp_path), beta=BETA, loss_type=[loss_type])
    trainer = build(DPOTrainer, args)
    batch = batch_of(trainer)
    theirs = library_loss(trainer, batch)
    parts = dpo_parts(trainer, batch)
    lengths = batch["completion_mask"][:, 1:].sum(1).chunk(2)
    mine = dpo_loss(*parts, BETA) if loss_type == "sigmoid" else ipo_loss(*parts, *lengths, BETA)
    assert theirs == pytest.approx(mine.item(), abs=1e-5)


@pytest.mark.parametrize("pref_ftx", [0.0, 0.5])
def test_label_smoothing_of_a_recipe_expects_swapped_pairs(build, tmp_path, pref_ftx):
    smoothing = 0.2
    recipe = recipes.Recipe(
        model_name_or_path="m", stage="dpo", pref_beta=BETA, pref_ftx=pref_ftx, dpo_label_smoothing=smoothing
    )
    trainer = build(DPOTrainer, DPOConfig(**settings(tmp_path), **library_args.objective_settings(recipe)))
    batch = batch_of(trainer)
    theirs = library_loss(trainer, batch)
    policy_chosen, policy_rejected, chosen, rejected = dpo_parts(trainer, batch)
    margin = BETA * ((policy_chosen - chosen) - (policy_rejected - rejected))
    # cDPO (https://ericmitchell.ai/cdpo.pdf): each pair is swapped with probability e.
    smoothed = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    answers = batch["completion_mask"][:, 1:].chunk(2)[0].sum()
    assert theirs == pytest.approx((smoothed.mean() - pref_ftx * policy_chosen.sum() / answers).item(), abs=1e-5)
    assert (smoothed + F.logsigmoid(margin)).abs().max() > 0.01


def test_precomputed_reference_equals_the_disabled_adapter(build, tmp_path):
    losses = []
    for precompute in (False, True):
        args = DPOConfig(**settings(tmp_path), beta=BETA, precompute_ref_log_probs=precompute)
        trainer = build(DPOTrainer, args)
        batch = batch_of(trainer)
        losses.append(library_loss(trainer, batch))
        reference = torch.cat(dpo_parts(trainer, batch)[2:])
    stored = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    assert (stored - reference).abs().max() <= 1e-4 and losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_kto(build, tmp_path):
    answer_log_probabilities, kto_loss = lessons.definitions(
        "12_dpo", "answer_log_probabilities", "kto_loss", torch=torch, F=F
    )
    rated = [
        {"prompt": turn("user", q), "completion": turn("assistant", c if i % 2 else r), "label": bool(i % 2)}
        for i, (q, c, r) in enumerate(ROWS)
    ]
    args = KTOConfig(**settings(tmp_path), beta=BETA)
    trainer = build(KTOTrainer, args, Dataset.from_list(rated))
    batch = batch_of(trainer)
    theirs = library_loss(trainer, batch)
    # The KL estimate looks at answers that belong to other questions.
    mismatched = {key.removeprefix("KL_"): batch[key] for key in batch if key.startswith("KL_")}
    gains = []
    with torch.no_grad():
        for part in (batch, mismatched):
            policy_log_probability = answer_log_probabilities(trainer.model, part)
            with trainer.model.disable_adapter():
                gains.append(policy_log_probability - answer_log_probabilities(trainer.model, part))
    liked = torch.as_tensor(batch["label"], dtype=torch.bool)
    kl = gains[1].mean().clamp(min=0)
    assert theirs == pytest.approx(kto_loss(gains[0], liked, kl, BETA).item(), abs=1e-5)


@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_orpo_and_simpo(build, tmp_path, method):
    orpo_loss, simpo_loss = lessons.definitions("12_dpo", "orpo_loss", "simpo_loss", torch=torch, F=F)
    if method == "orpo":
        trainer_class, args = ORPOTrainer, ORPOConfig(**settings(tmp_path), beta=BETA)
    else:
        args = CPOConfig(**settings(tmp_path), beta=2.0, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5)
        trainer_class = CPOTrainer
    trainer = build(trainer_class, args)
    batch = batch_of(trainer)
    theirs = library_loss(trainer, batch)
    means, everything = [], None
    with torch.no_grad():
        for side in ("chosen", "rejected"):
            ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]
            logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            targets, answer = ids[:, 1:], batch[f"{side}_labels"][:, 1:] != -100
            each = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
            means.append((each * answer).sum(1) / answer.sum(1))
            if everything is None:
                # TRL's ORPO takes the plain loss over question and answer.
                everything = -(each * mask[:, 1:]).sum() / mask[:, 1:].sum()
    mine = orpo_loss(*means, everything, BETA) if method == "orpo" else simpo_loss(*means, 2.0, 0.5)
    assert theirs == pytest.approx(mine.item(), abs=1e-5)


def test_a_recipe_of_orpo_says_that_its_prompt_is_trained_too(tiny_recipe, tiny_rows, capsys):
    keys = {"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.1, "max_steps": 1, "per_device_train_batch_size": 1}
    row = json.loads((tiny_rows / "preference.json").read_text())[0]
    alone = Path(tiny_recipe["output_dir"]).with_name("one.json")
    alone.write_text(json.dumps([row]))
    loss = train.train(recipes.load(tiny_recipe | keys | {"dataset": str(alone)})).metrics["train_loss"]
    assert "TRL's ORPO trains the prompt of the chosen answer too" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tiny_recipe["model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe["model_name_or_path"])
    asked = tokenizer.encode(f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n")
    sides = []
    for side in ("chosen", "rejected"):
        ids = torch.tensor([asked + tokenizer.encode(f"{row[side]}<|im_end|>")])
        with torch.no_grad():
            logs = model(ids).logits[:, :-1].log_softmax(-1)
        sides.append(logs.gather(-1, ids[:, 1:, None])[0, :, 0])
    chosen, rejected = (each[len(asked) - 1 :].mean() for each in sides)
    odds = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    assert loss == pytest.approx((-sides[0].mean() - 0.1 * F.logsigmoid(odds)).item(), rel=1e-5)


def test_grpo(tiny_model_dir, tmp_path):
    group_advantages, grpo_loss, token_log_probabilities = lessons.definitions(
        "11_ppo_grpo",
        "group_advantages",
        "grpo_loss",
        "token_log_probabilities",
        torch=torch,
        temperature=0.7,
    )
    given = []

    def reward(completions, **_):
        given.extend(len(completion[0]["content"]) + 0.0 for completion in completions)
        return given

    common = settings(tmp_path) | {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6}
    del common["max_length"]
    torch.manual_seed(0)
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
        reward,
        GRPOConfig(**common, loss_type="grpo", num_iterations=2, beta=BETA, temperature=0.7),
        train_dataset=Dataset.from_list([{"prompt": turn("user", q)} for q, _, _ in ROWS]),
        processing_class=tiny.make_tokenizer(),
        peft_config=ADAPTER,
    )
    # A random model is so unsure that a moved adapter would hardly show.
    trainer.model.get_output_embeddings().weight.data *= 10
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    # The trainer shuffles a batch after it has compared each completion with its group.
    mine = group_advantages(torch.tensor(given), 4).sort().values
    assert torch.allclose(mine, batch["advantages"].sort().values, atol=1e-5) and mine.abs().max() > 0.5
    theirs = library_loss(trainer, batch)
    with torch.no_grad():
        policy = token_log_probabilities(trainer.model, batch)
        with trainer.model.disable_adapter():
            reference = token_log_probabilities(trainer.model, batch)
    old, mask = batch["old_per_token_logps"], batch["completion_mask"]
    assert ((policy - old).exp() - 1).abs().max() > 0.2, "nothing is clipped"
    loss = grpo_loss(policy, old, reference, batch["advantages"], mask, 0.2, BETA)
    assert theirs == pytest.approx(loss.item(), abs=1e-5)
