"""A hub token in a recipe: it is used for downloads of this process, and stored nowhere.

LLaMA-Factory's key. A recipe is copied into its run folder and printed for other frameworks, so that the token is taken
out of the keys before they become a `Recipe`.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from ftlab.errors import fail, say

KEY = "hf_hub_token"
# The variable that huggingface_hub reads at every request, and that child processes inherit.
VARIABLE = "HF_TOKEN"
# The characters that an HTTP header can carry; a `$` would be an unexpanded variable.
TOKEN = re.compile(r"[!#%-~]+")


def take(values: dict[str, Any], where: str) -> list[str]:
    """Remove the token from a recipe's keys, use it from now on, and return a note.

    As in LLaMA-Factory, it takes precedence over the one in the environment.

    Raises:
        LabError: it is not a token; its value is not shown.
    """
    token = values.pop(KEY, None)
    if token is None or token == "":
        return []
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise fail("recipe_token", where=where)
    os.environ[VARIABLE] = token
    return [say("recipe_note_token", key=KEY)]


def left_out(overrides: Sequence[str]) -> list[str]:
    """Return `key=value` words without the token, for a text that is printed or written."""
    return [one for one in overrides if not one.startswith(f"{KEY}=")]
