"""TRL's trainers for examples that `ftlab.data.encoding` and `ftlab.tokens` have tokenized.

SFTTrainer and RewardTrainer accept such examples. The others would render and tokenize a second time: those
of preferences by comparing token prefixes, GRPO's and RLOO's without a system turn or a tool call that their
template does not support. They would train on other tokens than those of `data check` and chat.
"""

from functools import cache
from typing import Any

from datasets import Dataset
from transformers import Trainer

from ftlab import tokens


@cache
def takes_ids(trainer_class: type[Trainer]) -> type[Trainer]:
    """Return a trainer class that accepts examples from `ftlab.data.encoding`; the same one if it already does.

    TRL has no setting for it, hence the methods' private names.
    """
    if hasattr(trainer_class, "tokenize_row"):
        return type(trainer_class.__name__, (trainer_class,), {"tokenize_row": pair_row})
    if trainer_class.__name__ in ("DPOTrainer", "KTOTrainer"):
        return type(trainer_class.__name__, (trainer_class,), {"_prepare_dataset": prepare})
    if hasattr(trainer_class, "_tokenize_prompts"):
        return type(trainer_class.__name__, (trainer_class,), {"_tokenize_prompts": prompt_ids})
    return trainer_class


def prepare(self: Any, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
    """Return the examples unchanged; KTO's with another answer of the batch, from which it estimates the KL."""
    if not getattr(self, "calculate_KL", False):
        return dataset

    def rotate(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        *others, last = batch["completion_ids"]
        return {"KL_completion_ids": [last, *others]}

    return dataset.map(rotate, batched=True, batch_size=args.per_device_train_batch_size)


def prompt_ids(self: Any, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
    """Return the token ids of prompts (lists of messages or plain texts), and None for images."""
    own = self.processing_class
    ids = [own(one).input_ids if isinstance(one, str) else tokens.prompt(own, one) for one in prompts]
    return ids, None, {}


def pair_row(self: Any, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
    """Return a pair under the names of ORPO's and CPO's trainers."""
    prompt = feature["prompt_ids"]
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        answer = feature[f"{side}_ids"]
        row[f"{side}_input_ids"] = prompt + answer
        row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{side}_labels"] = [-100] * len(prompt) + answer
    return row
