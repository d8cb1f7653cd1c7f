"""Batches for TRL's GKDTrainer, whose own collator would render and tokenize the examples a second time."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import pad

from ftlab.tokens import IGNORED


class Collator:
    """Pad examples, and their prompts for generation by model or teacher."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.padding = tokenizer.pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return (batch, seq_len) ids, mask and labels, and (batch, prompt_len) prompts, padded on the left.

        The prompt is everything before the first trained token.
        """
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        labels = [torch.tensor(example["labels"]) for example in examples]
        prompts = [row[: int((label != IGNORED).int().argmax())] for row, label in zip(ids, labels, strict=True)]
        return {
            "input_ids": pad(ids, self.padding),
            "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
            "labels": pad(labels, IGNORED),
            "prompts": pad(prompts, self.padding, padding_side="left"),
            "prompt_attention_mask": pad([torch.ones_like(row) for row in prompts], 0, padding_side="left"),
        }
