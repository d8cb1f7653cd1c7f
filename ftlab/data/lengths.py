"""How many tokens a row takes, and how a budget of tokens is shared between question and answer."""

from typing import TYPE_CHECKING

from ftlab.data.read import Row
from ftlab.errors import fail

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def truncate_lengths(source: int, target: int, cutoff: int) -> tuple[int, int]:
    """Return how many tokens of a prompt (source) and of its answer (target) fit into `cutoff` tokens together.

    The shorter one is kept whole while it takes less than half of the budget; else both give in proportion.
    Source: the rule of LLaMA-Factory's `infer_seqlen`, which cuts the very same rows.

    >>> truncate_lengths(3000, 2000, 1000)
    (600, 400)
    >>> truncate_lengths(100, 1000, 1000)
    (100, 900)
    """
    if 2 * target < cutoff:
        kept_target = target
    elif 2 * source < cutoff:
        kept_target = min(target, cutoff - source)
    else:
        kept_target = min(target, cutoff * target // (source + target))
    return min(source, cutoff - kept_target), kept_target


def token_lengths(tokenizer: "PreTrainedTokenizerBase", row: Row) -> tuple[int, int]:
    """Return (tokens of the prompt, tokens of the answer) of a row in TRL's shape; of a pair, the longer answer.

    Of a longer conversation the last answer counts as the answer; raw text has no prompt.

    Raises:
        LabError: the tokenizer has no chat template, or its template refuses the row.
    """
    if "text" in row:
        return 0, len(tokenizer(row["text"], add_special_tokens=False).input_ids)
    prompt = row["prompt"] if "prompt" in row else row["messages"][:-1]
    answers = [row[key] for key in ("chosen", "rejected", "completion") if key in row] or [row["messages"][-1:]]
    source = template_length(tokenizer, prompt, row.get("tools"), True)
    return source, max(template_length(tokenizer, [*prompt, *one], row.get("tools"), False) for one in answers) - source


def template_length(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Row], tools: list[Row] | None, asking: bool
) -> int:
    """Return how many tokens the chat template makes of messages."""
    from jinja2 import TemplateError

    try:
        rendered = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=asking, return_dict=True)
    except (TemplateError, ValueError, TypeError) as error:
        raise fail("data_template", reason=(str(error).splitlines() or [type(error).__name__])[0]) from None
    return len(rendered["input_ids"])
