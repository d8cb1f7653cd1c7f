"""The one renderer: a conversation to token ids and labels, and back to rows a person can read.

Training, evaluation, chat and the server all render through this file, so that a model is asked in the very tokens
it was trained on.
"""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ftlab.errors import fail

IGNORED = -100
Message = dict[str, Any]


class Token(NamedTuple):
    """One token of a rendered row: its id, its text, and whether the loss looks at it."""

    id: int
    text: str
    trained: bool


def prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: list | str | None = None
) -> list[int]:
    """Return the token ids of a conversation up to where the assistant's answer begins, shape (prompt_len,)."""
    return template_ids(tokenizer, messages, tools, add_generation_prompt=True)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    *,
    cutoff_len: int | None = None,
    train_on_prompt: bool = False,
    mask_history: bool = False,
) -> dict[str, list[int]]:
    """Render a row to `input_ids` and `labels`, both of shape (seq_len,).

    Args:
        row: `messages` (every assistant turn is trained on), `prompt` and `completion` as lists of messages (the
            completion is trained on), each with optional `tools`; or `text` (all of it is trained on).
        cutoff_len: tokens to keep, from the start; None keeps all.
        train_on_prompt: the loss looks at every token.
        mask_history: of several assistant turns only the last is trained on.
    Returns:
        `labels` equals `input_ids` where the token is trained on and is -100 elsewhere. What follows a turn's end
        token (ChatML's line break) is not trained on: generation stops before it. An answer after which the template
        writes no such token gets eos.
    Raises:
        LabError: the template renders a turn differently once another follows, so that the answer cannot be found.
    """
    if "text" in row:
        ids = [*tokenizer(row["text"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        return {"input_ids": ids[:cutoff_len], "labels": ids[:cutoff_len]}
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    first = 0 if "messages" in row else len(row["prompt"])
    ids = template_ids(tokenizer, messages, row.get("tools"))
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
    spans = [answer_span(tokenizer, messages, turn, ids, row.get("tools")) for turn in turns]
    if spans and spans[-1][1] > len(ids):
        ids = [*ids, tokenizer.eos_token_id]
    labels = list(ids) if train_on_prompt else [IGNORED] * len(ids)
    for start, end in spans[-1:] if mask_history else spans:
        labels[start:end] = ids[start:end]
    return {"input_ids": ids[:cutoff_len], "labels": labels[:cutoff_len]}


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every id that ends an answer."""
    found = {tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template is not None:
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        special = [token for token in template_ids(tokenizer, turn) if token in set(tokenizer.all_special_ids)]
        found |= set(special[-1:])
    return sorted(found)


def answer_span(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int, ids: list[int], tools: list | str | None
) -> tuple[int, int]:
    """Return where in `ids` the answer of `messages[turn]` starts and ends, the token that ends the turn included.

    A template without such a token (GLM-4's) lets the next speaker's token end the answer; after the last answer that
    is one place behind the end of `ids`, where eos belongs.
    """
    before = template_ids(tokenizer, messages[:turn], tools, add_generation_prompt=True)
    upto = template_ids(tokenizer, messages[: turn + 1], tools)
    if ids[: len(upto)] != upto or upto[: len(before)] != before:
        raise fail("tokens_not_a_prefix", where=f"turn {turn + 1}")
    special = set(tokenizer.all_special_ids)
    end = len(upto)
    while end > len(before) and not tokenizer.decode(upto[end - 1]).strip():
        end -= 1
    if upto[end - 1] in special:
        return len(before), end
    followed = len(upto) == len(ids) or ids[len(upto)] in special
    return len(before), len(upto) + followed


def template_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: list | str | None = None,
    add_generation_prompt: bool = False,
) -> list[int]:
    """Return the ids of the model's own chat template over `messages`."""
    if tokenizer.chat_template is None:
        raise fail("tokens_no_template", where=tokenizer.name_or_path)
    known = "tool_calls" in str(tokenizer.chat_template)
    rendered = tokenizer.apply_chat_template(
        [message if known else calls_as_text(message) for message in messages],
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        add_generation_prompt=add_generation_prompt,
        return_dict=True,
    )
    return rendered["input_ids"]


def calls_as_text(message: Message) -> Message:
    """Write a tool call into the content, for a template that would otherwise leave it out."""
    if not message.get("tool_calls"):
        return message
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *calls]))}


def ends_with_turn_end(tokenizer: PreTrainedTokenizerBase, encoded: dict[str, list[int]]) -> bool:
    """Say whether the last trained token of a row is one that ends a turn: else the model never learns to stop."""
    trained = [label for label in encoded["labels"] if label != IGNORED]
    return bool(trained) and trained[-1] in set(tokenizer.all_special_ids)


def summary(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[dict[str, list[int]]]) -> str:
    """Describe encoded rows: lengths, share of trained tokens, rows whose last trained token ends a turn."""
    lengths = sorted(len(row["input_ids"]) for row in encoded)
    trained = sum(label != IGNORED for row in encoded for label in row["labels"])
    ending = sum(ends_with_turn_end(tokenizer, row) for row in encoded)
    middle, high = lengths[len(lengths) // 2], lengths[int(0.95 * (len(lengths) - 1))]
    return (
        f"{len(lengths)} rows, tokens: median {middle}, 95% within {high}, longest {lengths[-1]}\n"
        f"trained tokens: {trained / sum(lengths):.0%}; rows that end with a turn end: {ending / len(lengths):.0%}\n"
        + histogram(lengths)
    )


def histogram(lengths: Sequence[int], bins: int = 8, width: int = 40) -> str:
    """Draw a histogram of row lengths in text."""
    step = max(1, -(-(max(lengths) + 1) // bins))
    counts = [sum(start <= value < start + step for value in lengths) for start in range(0, step * bins, step)]
    return "\n".join(
        f"{bin * step:>6}-{bin * step + step - 1:<6} {'█' * round(width * count / max(counts))} {count}"
        for bin, count in enumerate(counts)
    )


def tokens(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> list[Token]:
    """Return one `Token` per position, the text of each as the tokenizer decodes it alone."""
    return [
        Token(int(token), tokenizer.decode(int(token)), int(label) != IGNORED)
        for token, label in zip(input_ids, labels, strict=True)
    ]


def to_html(rows: Sequence[Token]) -> str:
    """Colour a rendered row for a notebook: trained tokens green, masked ones grey; the id is the tooltip."""
    cells = []
    for row in rows:
        colour = "#b7e4c7" if row.trained else "#e9ecef"
        text = html.escape(row.text).replace("\n", "⏎<br>")
        cells.append(f'<span title="{row.id}" style="background:{colour};color:#111;margin:1px">{text}</span>')
    return f'<div style="font-family:monospace;line-height:1.7">{"".join(cells)}</div>'


def to_ansi(rows: Sequence[Token]) -> str:
    """Colour a rendered row for a terminal: trained tokens green, masked ones dim."""
    return "".join(f"\x1b[{'32' if row.trained else '2'}m{row.text}\x1b[0m" for row in rows)
