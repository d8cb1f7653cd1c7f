"""`stage: rloo` against the leave-one-out advantages and the loss of arXiv:2402.14740, computed anew."""

from pathlib import Path

import pytest
import torch

from ftlab.recipe import read as recipes
from ftlab.runs import build, chat, rewards, train
from tests.resuming import weights_with_and_without_a_stop

BETA, GROUP = 0.3, 4
KEYS = {
    "stage": "rloo", "reward_funcs": "short_answer", "num_generations": GROUP, "per_device_train_batch_size": 8,
    "max_new_tokens": 6, "pref_beta": BETA, "temperature": 0.7, "learning_rate": 1e-2, "max_steps": 4,
}  # fmt: skip


def log_probabilities(model, batch):
    """Return the summed log-probability of each completion, (batch,), and of each of its tokens."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits / KEYS["temperature"]
    width = batch["completion_ids"].shape[1]
    chosen = logits[:, -width - 1 : -1].log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    return (chosen * batch["completion_mask"]).sum(1)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_its_advantages_and_loss_are_those_of_the_paper(shortcuts, tiny_recipe, monkeypatch):
    monkeypatch.setitem(rewards.BUILT_IN, "short_answer", lambda completions, **_: list(map(length, completions)))
    made = recipes.load(tiny_recipe | KEYS | {"shortcuts": shortcuts})
    job = train.prepare(made, Path(made.output_dir))
    torch.manual_seed(0)
    model = build.load_model(made, job.model_path, job.machine)
    chat.grow(model, job.tokenizer)
    # A random model is so unsure that a moved adapter would hardly show.
    model.get_output_embeddings().weight.data *= 10
    model = build.prepare_model(made, model, job.machine)
    trainer = build.build_trainer(made, model, job.args, job.tokenizer, job.datasets, [])
    for name, weight in trainer.model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(weight, std=0.1)
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        policy = log_probabilities(trainer.model, batch)
        with trainer.model.disable_adapter():
            reference = log_probabilities(trainer.model, batch)
    texts = job.tokenizer.batch_decode(
        [row[mask.bool()] for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)],
        skip_special_tokens=True,
    )
    assert (policy - reference).abs().max() > 0.1
    worth = torch.tensor([float(len(text)) for text in texts]) - BETA * (policy - reference)
    # TRL shuffles a batch after it has compared each completion with its group.
    asked = [
        tuple(row[mask.bool()].tolist()) for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ]
    for prompt in set(asked):
        own = [number for number, one in enumerate(asked) if one == prompt]
        assert len(own) == GROUP
        others = torch.stack([worth[[b for b in own if b != a]].mean() for a in own])
        assert torch.allclose(batch["advantages"][own], worth[own] - others, atol=1e-3)
    assert torch.allclose(batch["old_logps"], policy, atol=1e-4)
    # Away from the policy that wrote them, some ratios are outside of the clip.
    batch["old_logps"] = policy + torch.linspace(-0.5, 0.5, len(policy))
    ratio = (policy - batch["old_logps"]).exp()
    scored = batch["advantages"]
    loss = -torch.minimum(ratio * scored, ratio.clamp(0.8, 1.2) * scored).mean()
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(loss.item(), abs=1e-3)


def length(completion) -> float:
    return float(len(completion[0]["content"]))


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_a_stopped_run_resumes_to_the_same_weights(stage, tiny_recipe, tmp_path):
    keys = tiny_recipe | KEYS | {"stage": stage}
    whole, resumed = weights_with_and_without_a_stop(keys, tmp_path)
    assert whole == resumed
