"""Completions for training on a CPU: a prompt is prefilled once per group, and finished rows are dropped.

The loop replaces that of transformers' `generate`, which still prepares everything: settings, logits processors and
stopping criteria. Every token comes from the same distribution, but not from the same random numbers.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerationMode

from ftlab.cpu import attention, lora
from ftlab.cpu.patches import replace

# What a rollout needs of `generate`: one token after the other, and no other outputs.
MODES = (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
PLAIN = {"input_ids", "attention_mask", "generation_config"}


def install(model: PreTrainedModel) -> None:
    """Make `generate` of a model that uses `attention.attention` run `loop` where the result is the same."""
    replace(model, "generate", partial(generate, model))


def generate(model: PreTrainedModel, *others: Any, **given: Any) -> Any:
    """Return what the model's own `generate` returns, (batch, seq_len) of token ids."""
    config = given.get("generation_config") or model.generation_config
    plain = not others and given.keys() <= PLAIN and attention.used(model)
    plain = plain and config.get_generation_mode() in MODES
    plain = plain and not config.return_dict_in_generate and not config.cache_implementation
    # PEFT puts its virtual tokens before a prompt in this method, which `loop` does not call.
    plain = plain and getattr(model.prepare_inputs_for_generation, "__self__", model) is model
    if not plain:
        return type(model).generate(model, *others, **given)
    with lora.rounded(model):
        return type(model).generate(model, custom_generate=loop, **given)


def loop(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> Tensor:
    """Return prompts and completions, (batch, seq_len), with padding after a row's end token."""
    cache = DynamicCache(config=model.config)

    def read(new: Tensor, mask: Tensor) -> Tensor:
        """Return the logits (rows, vocabulary) after new tokens (rows, new); `mask` also covers those before them."""
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        inputs = {"position_ids": places, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        return model(input_ids=new, attention_mask=mask, **inputs).logits[:, -1]

    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask.long()
    (prompts, real), whose = torch.stack([input_ids, mask]).unique(dim=1, return_inverse=True)
    logits = read(prompts, real)[whose]
    cache.batch_select_indices(whose)
    said, going = input_ids, torch.arange(len(input_ids))
    ended = next(iter(ids(generation_config.pad_token_id) + ids(generation_config.eos_token_id)), 0)
    while True:
        scores = logits_processor(said[going], logits.float())
        token = draw(scores.softmax(-1)) if generation_config.do_sample else scores.argmax(-1)
        said = nn.functional.pad(said, (0, 1), value=ended)
        said[going, -1] = token
        goes = ~stopping_criteria(said[going], None)
        if not goes.any():
            return said
        going, token = going[goes], token[goes]
        mask = nn.functional.pad(mask[goes], (0, 1), value=1)
        if not goes.all():
            cache.batch_select_indices(goes.nonzero()[:, 0])
        logits = read(token[:, None], mask)


def ids(value: int | list[int] | None) -> list[int]:
    """Return token ids as a list, however a configuration holds them."""
    return value if isinstance(value, list) else [] if value is None else [value]


def draw(probabilities: Tensor) -> Tensor:
    """Draw one entry of each row, (batch, vocabulary) -> (batch,).

    `torch.multinomial` draws a random number for every entry of the vocabulary, which takes longer than the model's
    whole output layer. Here one per row is enough: it is looked up in the cumulative probabilities.
    """
    sums = probabilities.cumsum(-1)
    number = torch.rand(len(sums), 1, device=sums.device) * sums[:, -1:]
    # The product can be rounded up to the total, beyond the last entry.
    return torch.searchsorted(sums, number, right=True).squeeze(1).clamp(max=sums.shape[1] - 1)
