"""PPO for language models: the adapter is the policy, the model without it the reference, with a value head on top.

Policy and value head share the model, so the value loss trains the adapter too; `vf_coef` keeps its share small. TRL's
former PPOTrainer trained a separate value model, with twice the memory.

One step: generate completions for a batch of prompts, score them, estimate for every token how much better it was than
expected (its advantage), then move the policy a bounded distance towards the better tokens, several times.

Sources: Schulman et al. 2017, arXiv:1707.06347 (PPO); Schulman et al. 2016, arXiv:1506.02438 (advantages); Ziegler et
al. 2019, arXiv:1909.08593 (the KL term in the reward); Schulman 2020, "Approximating KL divergence" (k1, k3). Setting
names are those of TRL's former PPOConfig. Taught in notebooks/11_ppo_grpo.ipynb.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl.trainer.utils import disable_dropout_in_model

from ftlab import tokens
from ftlab.errors import fail
from ftlab.evaluate import pad_left
from ftlab.runs.rewards import Reward, checked

VALUE_HEAD = "value_head.safetensors"
# Hidden states are scaled to this length before the value head: one step of AdamW at 1e-3 then moves a value by a few
# hundredths. Unscaled, with lengths in the hundreds, it would jump by more than the rewards themselves.
HIDDEN_LENGTH = 5.0


@dataclass
class PPOConfig(TrainingArguments):
    """The settings of PPO, in addition to those of every Trainer.

    A batch is `per_device_train_batch_size` x `gradient_accumulation_steps` prompts; each is answered once and then
    used for `num_ppo_epochs` optimizer steps. Advantages are whitened over `per_device_train_batch_size` prompts: with
    accumulation each part of a batch has its own mean and variance, which makes small parts noisier.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "AdamW's; an adapter wants ten times full training's"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rewards need the rows' other columns"})
    max_completion_length: int = field(default=64, metadata={"help": "tokens per completion, at most"})
    temperature: float = field(default=1.0, metadata={"help": "of sampling, and of every log-probability"})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "one per reward function; None: all 1"})
    missing_eos_penalty: float = field(default=0.0, metadata={"help": "taken from the score of a cut completion"})
    num_ppo_epochs: int = field(default=4, metadata={"help": "optimizer steps per batch of completions"})
    kl_coef: float = field(default=0.05, metadata={"help": "price of one nat of distance from the reference"})
    kl_estimator: str = field(default="k1", metadata={"help": "k1: log ratio; k3: never negative, less noisy"})
    cliprange: float = field(default=0.2, metadata={"help": "a probability may change by this share per batch"})
    cliprange_value: float = field(default=0.2, metadata={"help": "a value may move this far per batch"})
    vf_coef: float = field(default=0.1, metadata={"help": "weight of the value head's loss"})
    gamma: float = field(default=1.0, metadata={"help": "worth of a reward one token later"})
    lam: float = field(default=0.9, metadata={"help": "1: trust the rewards seen; 0: trust the value head"})


def completion_mask(completion_ids: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Return 1 for every token up to and including the first end token, 0 after it: shape (B, C), as the ids."""
    ends = torch.isin(completion_ids, torch.tensor(eos_token_ids, device=completion_ids.device))
    return (ends.cumsum(1) - ends.long() == 0).long()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` (B, C) where `mask` is 1."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def kl_penalty(logps: Tensor, ref_logps: Tensor, estimator: str) -> Tensor:
    """Return an estimate, per sampled token, of KL(policy || reference) in nats, shape (B, C).

    k1 is the log ratio: unbiased, but below 0 for a token that is less likely under the policy than the reference.
    k3 is unbiased too, never below 0, and has less variance.
    """
    log_ratio = logps - ref_logps
    return log_ratio if estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return the reward of every token (B, C): minus its KL penalty, plus the score (B,) at the last one."""
    rewards = -kl_coef * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantage estimates, shape (B, C): how much better each token was than expected.

    `values[:, t]` is the value head's prediction before token t; after the last token it is 0.
    Source: arXiv:1506.02438, equation 16.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    later = next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        td_error = rewards[:, t] + gamma * next_value - values[:, t]
        later = (td_error + gamma * lam * later) * mask[:, t]
        advantages[:, t], next_value = later, values[:, t]
    return advantages


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return advantages of mean 0 and variance 1 over the tokens where `mask` is 1, and 0 elsewhere."""
    mean = masked_mean(advantages, mask)
    variance = masked_mean((advantages - mean) ** 2, mask)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Tensor:
    """Return PPO's clipped loss: moving a probability further than `cliprange` gains nothing.

    Source: arXiv:1707.06347, equation 7.
    """
    ratio = torch.exp(logps - old_logps)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return masked_mean(torch.maximum(-advantages * ratio, -advantages * clipped), mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> Tensor:
    """Return the clipped value loss: half the squared error, the larger of a value's own and of its clipped one."""
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask)


class Reading(NamedTuple):
    """One forward pass's outputs for every completion token, each (B, C): log-probability, value, entropy in nats."""

    logps: Tensor
    values: Tensor
    entropies: Tensor


def read_answers(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, length: int, temperature: float
) -> Reading:
    """Evaluate the last `length` tokens of rows (B, P + C) with policy and value head in one pass.

    Logits and hidden state at a position belong to the token after it, so both are taken one position earlier.
    """
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        # Prompts are padded on the left: a row's first token is still at position 0.
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=length + 1,
        output_hidden_states=True,
        use_cache=False,
    )
    log_probabilities = (output.logits[:, :-1].float() / temperature).log_softmax(-1)
    hidden = output.hidden_states[-1][:, -length - 1 : -1]
    return Reading(
        log_probabilities.gather(-1, input_ids[:, -length:, None]).squeeze(-1),
        model.value_head(HIDDEN_LENGTH * nn.functional.normalize(hidden.float(), dim=-1)).squeeze(-1),
        -(log_probabilities.exp() * log_probabilities).sum(-1),
    )


def add_value_head(model: PeftModel) -> None:
    """Add a value head to a model: one float32 number per position from its normalized hidden state, initially 0."""
    embedding = model.get_input_embeddings().weight
    model.value_head = nn.Linear(embedding.shape[1], 1, device=embedding.device, dtype=torch.float32)
    nn.init.zeros_(model.value_head.weight)
    nn.init.zeros_(model.value_head.bias)


class Batches(Sampler[int]):
    """Sample `size` rows, repeat them `times` times, then the next; with `shuffle` in a new order every epoch."""

    def __init__(self, rows: int, size: int, times: int, seed: int, shuffle: bool = True) -> None:
        self.rows, self.size, self.times, self.seed, self.shuffle, self.epoch = rows, size, times, seed, shuffle, 0

    def __len__(self) -> int:
        return self.rows // self.size * self.size * self.times

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order; Trainer calls it, also when a run resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.rows))
        if self.shuffle:
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, self.rows - self.size + 1, self.size):
            yield from order[start : start + self.size] * self.times


class PPOTrainer(Trainer):
    """Trainer whose batches are prompts and whose loss is PPO's.

    Args:
        model: a PeftModel; its adapter is trained, the model with the adapter off is the reference.
        reward_funcs: functions as for TRL's GRPOTrainer; their rewards are weighted and summed.
        train_dataset: rows with `prompt`, a text or a list of messages; other columns go to the reward functions.
    Raises:
        LabError: fewer prompts than a batch has, a model without adapter or with virtual tokens, several processes,
            or, while training, a reward function that raises, or returns too few or invalid numbers. The weights
            are then those of the last whole step.
    """

    def __init__(
        self,
        model: PeftModel,
        args: PPOConfig,
        reward_funcs: Reward | list[Reward],
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if not isinstance(model, PeftModel):
            raise fail("ppo_adapter", where="model", found=type(model).__name__)
        # With these PEFT counts padding as positions in training, but not in chat.
        if (kind := model.active_peft_config.peft_type.value) in ("PROMPT_TUNING", "P_TUNING"):
            raise fail("ppo_virtual_tokens", where="model", kind=kind)
        if args.world_size > 1:
            raise fail("ppo_processes", where="world_size", processes=args.world_size)
        needed = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if len(train_dataset) < needed:
            raise fail("ppo_prompts", where="train_dataset", rows=len(train_dataset), needed=needed)
        # With dropout the ratio would not be 1 before the first update: rollout and training would disagree.
        disable_dropout_in_model(model)
        add_value_head(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=list,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        # The loss is a mean over the batch's own tokens: Trainer must divide by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.reward_funcs = [checked(f) for f in (reward_funcs if isinstance(reward_funcs, list) else [reward_funcs])]
        self.rollouts: dict[int, dict[str, Tensor]] = {}
        self.micro_batch = 0
        self.seen: dict[str, list[float]] = defaultdict(list)
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.eos_token_ids = sorted({processing_class.eos_token_id, *ends} - {None})
        self.generation = GenerationConfig(
            do_sample=True,
            temperature=args.temperature,
            # Sample from the whole distribution, to which the log-probabilities belong.
            top_k=0,
            top_p=1.0,
            max_new_tokens=args.max_completion_length,
            # Trainer's own passes need no cache and may have disabled it in the model's configuration.
            use_cache=True,
            eos_token_id=self.eos_token_ids,
            pad_token_id=processing_class.pad_token_id,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        """Return a sampler that repeats each batch of prompts once per PPO epoch."""
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        shuffle = self.args.train_sampling_strategy != "sequential"
        return Batches(len(self.train_dataset), size, self.args.num_ppo_epochs, self.args.seed, shuffle)

    def _prepare_inputs(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the completions for a batch of prompts: generated in its first PPO epoch and then reused."""
        slot = self.micro_batch % self.args.gradient_accumulation_steps
        self.micro_batch += 1
        fresh = self.state.global_step % self.args.num_ppo_epochs == 0
        if fresh or slot not in self.rollouts:
            with torch.no_grad(), self.compute_loss_context_manager():
                self.rollouts[slot] = self.rollout(rows)
            self.model.train()
        return self.rollouts[slot]

    def rollout(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Generate and score a completion for every prompt, and compute the inputs of the loss, without gradients."""
        model = self.model.eval()
        prompts = [self.prompt_ids(row["prompt"]) for row in rows]
        prompt_ids = pad_left(prompts, self.processing_class.pad_token_id).to(model.device)
        prompt_mask = pad_left([[1] * len(ids) for ids in prompts], 0).to(model.device)
        input_ids = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask, generation_config=self.generation)
        completion_ids = input_ids[:, prompt_ids.shape[1] :]
        length, temperature = completion_ids.shape[1], self.args.temperature
        mask = completion_mask(completion_ids, self.eos_token_ids)
        attention_mask = torch.cat([prompt_mask, mask], dim=1)
        now = read_answers(model, input_ids, attention_mask, length, temperature)
        with model.disable_adapter():
            reference = read_answers(model, input_ids, attention_mask, length, temperature)
        ended = torch.isin(completion_ids, torch.tensor(self.eos_token_ids).to(mask.device)).any(1)
        scores = self.scores(rows, completion_ids, mask).to(model.device)
        scores -= self.args.missing_eos_penalty * ~ended
        kl = kl_penalty(now.logps, reference.logps, self.args.kl_estimator)
        rewards = token_rewards(scores, kl, mask, self.args.kl_coef)
        advantages = gae(rewards, now.values, mask, self.args.gamma, self.args.lam)
        self.note(
            reward=scores.mean(),
            reward_std=scores.std(correction=0),
            kl=masked_mean(kl_penalty(now.logps, reference.logps, "k3"), mask),
            entropy=masked_mean(now.entropies, mask),
            length=mask.sum(1).float().mean(),
            cut=(~ended).float().mean(),
        )
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mask": mask,
            "logps": now.logps,
            "values": now.values * mask,
            "advantages": whiten(advantages, mask),
            "returns": advantages + now.values * mask,
        }

    def prompt_ids(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        """Return the token ids of a prompt; a list of messages is rendered up to where the answer begins."""
        if isinstance(prompt, str):
            return self.processing_class(prompt).input_ids
        return tokens.prompt(self.processing_class, prompt)

    def scores(self, rows: list[dict[str, Any]], completion_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the weighted sum of all rewards of every completion, shape (B,), and record the mean of each."""
        kept = [ids[keep.bool()].tolist() for ids, keep in zip(completion_ids, mask, strict=True)]
        texts = self.processing_class.batch_decode(kept, skip_special_tokens=True)
        prompts = [row["prompt"] for row in rows]
        said = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        per_function = [
            function(prompts=prompts, completions=said, completion_ids=kept, trainer_state=self.state, **columns)
            for function in self.reward_funcs
        ]
        rewards = torch.tensor(per_function, dtype=torch.float32)  # (functions, B)
        for function, each in zip(self.reward_funcs, rewards, strict=True):
            self.note(**{f"rewards/{function.__name__}/mean": each.mean()})
        return torch.tensor(self.args.reward_weights or [1.0] * len(rewards)) @ rewards

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Return PPO's loss on a batch of completions: the policy's, and `vf_coef` times the value head's."""
        mask = inputs["mask"]
        now = read_answers(model, inputs["input_ids"], inputs["attention_mask"], mask.shape[1], self.args.temperature)
        policy = policy_loss(now.logps, inputs["logps"], inputs["advantages"], mask, self.args.cliprange)
        value = value_loss(now.values, inputs["values"], inputs["returns"], mask, self.args.cliprange_value)
        moved = (torch.exp(now.logps - inputs["logps"]) - 1).abs() > self.args.cliprange
        self.note(policy_loss=policy, value_loss=value, clip_ratio=masked_mean(moved.float(), mask))
        return policy + self.args.vf_coef * value

    def note(self, **numbers: Tensor) -> None:
        """Record numbers for the next log row, which shows their means."""
        for name, value in numbers.items():
            self.seen[name].append(value.item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means of the numbers recorded since the last row."""
        means = {name: sum(values) / len(values) for name, values in self.seen.items()}
        self.seen.clear()
        super().log(logs | means, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the adapter, and the value head in a separate file next to it."""
        super()._save(output_dir, state_dict)
        save_file(self.model.value_head.state_dict(), Path(output_dir or self.args.output_dir) / VALUE_HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load adapter and value head of a checkpoint."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.model.value_head.load_state_dict(load_file(Path(resume_from_checkpoint) / VALUE_HEAD))
