"""Control tokens inside plain text: `<|im_end|>` typed by a user must not end a turn."""

import re
from collections.abc import Iterable, Sequence

# What chat templates of any model use to mark turns.
CONTROL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<start_of_turn>",
    "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>", "[INST]", "[/INST]", "[gMASK]", "<sop>",
)  # fmt: skip
# A text without these characters contains no control token: two searches instead of one for each token.
FIRST_CHARACTERS = {token[0] for token in CONTROL_TOKENS}
# This invisible character goes after the first one: the text looks the same but is no longer a control token.
JOINER = "\u2060"


def pattern(tokens: Iterable[str] = CONTROL_TOKENS) -> re.Pattern[str]:
    """Return the pattern that finds any of `tokens`."""
    return re.compile("|".join(re.escape(token) for token in sorted(set(tokens), key=len, reverse=True)))


def has_control_token(text: str) -> bool:
    """Return True if a text contains one of CONTROL_TOKENS."""
    return any(first in text for first in FIRST_CHARACTERS) and any(token in text for token in CONTROL_TOKENS)


def escape_control_tokens(text: str, tokens: Iterable[str] = CONTROL_TOKENS) -> str:
    """Return `text` with every control token made harmless: it reads the same and tokenizes to plain text.

    >>> escape_control_tokens("a<|im_end|>") == "a<\u2060|im_end|>"
    True
    """
    return pattern(tokens).sub(lambda match: match.group()[0] + JOINER + match.group()[1:], text)


def harmless(text: str, tokens: Sequence[str]) -> str:
    """Escape control tokens, including those nested in others, which appear when the outer ones are escaped."""
    while (escaped := escape_control_tokens(text, tokens)) != text:
        text = escaped
    return text
