"""Parsing of the command line: `--key value` as `key=value`, robust standard streams, suggestions for typos."""

import argparse
import contextlib
import difflib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ftlab.errors import fail, messages, say

# The values of a flag: any other word after `--packing` is the next argument.
FLAG_WORDS = ("true", "false", "yes", "no", "on", "off")
# Commands of LLaMA-Factory and swift that have another name here.
THEIRS = {"api": "serve", "deploy": "serve", "webchat": "board", "infer": "chat", "predict": "eval", "merge": "export"}


# argparse's own texts, as messages with the same English.
TEXTS = (
    "argparse_usage",
    "argparse_positional",
    "argparse_options",
    "argparse_help",
    "argparse_argument",
    "argparse_unrecognized",
    "argparse_required",
    "argparse_choice",
    "argparse_value",
    "argparse_one",
    "argparse_at_most_one",
    "argparse_at_least_one",
    "argparse_explicit",
    "argparse_error",
)


def translated(text: str) -> str:
    """Return a text of argparse's own in the user's language, or unchanged if it is none of TEXTS."""
    return next((say(key) for key in TEXTS if messages()[key]["en"] == text), text)


@contextlib.contextmanager
def in_language() -> Iterator[None]:
    """Let argparse write its own texts in the user's language while the body runs."""
    # argparse looks them up under this name, which is gettext's; other programs that import ftlab keep theirs.
    before = argparse._  # type: ignore[attr-defined]
    argparse._ = translated  # type: ignore[attr-defined]
    try:
        yield
    finally:
        argparse._ = before  # type: ignore[attr-defined]


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviated options that, if `keys` is set, accepts recipe keys as options.

    Attributes:
        keys: whether `--key value` and `--key=value` mean `key=value`. The verb's own options take precedence: none
            has the name of a key with another meaning.
        verbs: the parsers of the verbs by their names.
    """

    keys = False
    verbs: Mapping[str, Any] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"allow_abbrev": False})

    # argparse declares overloads for each kind of namespace; this one passes any of them on.
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse after rewriting keys; the verb's own options are moved to the front, so they can be anywhere."""
        if self.keys and args is not None:
            own = {name: action.nargs != 0 for action in self._actions for name in action.option_strings}
            args = rewritten(args, own)
        return super().parse_known_args(args, namespace)


def rewritten(arguments: Sequence[str], own: dict[str, bool]) -> list[str]:
    """Return arguments with every `--key value` as `key=value`: the verb's own options, the recipe, then the keys.

    Args:
        own: the verb's options -> whether a value follows.
    Raises:
        LabError: a key without its value.

    >>> rewritten(["r.yaml", "--learning-rate", "1e-4", "--packing", "--as", "trl"], {"--as": True})
    ['--as', 'trl', 'r.yaml', 'learning_rate=1e-4', 'packing=true']
    """
    options: list[str] = []
    recipe: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in own:
            options.append(word)
            if own[name] and not equals and rest:
                options.append(rest.pop(0))
        elif not name.startswith("--") or name == "--":
            (overrides if recipe else recipe).append(word)
        else:
            key = name.removeprefix("--").replace("-", "_")
            overrides.append(f"{key}={value if equals else value_of(key, rest)}")
    return options + recipe + overrides


def value_of(key: str, rest: list[str]) -> str:
    """Return the value that follows `--key`, taken off `rest`; a flag without one is "true".

    Raises:
        LabError: nothing follows a key that is not a flag.
    """
    flag = is_flag(key)
    if rest and rest[0].lower() in FLAG_WORDS:
        return rest.pop(0)
    # An empty word is a shell variable that is not set: no value either.
    if rest and rest[0] and not flag and not rest[0].startswith("--") and (flag is False or is_value(rest[0])):
        return rest.pop(0)
    if flag is False:
        raise fail("recipe_no_value", where=f"--{key}")
    return "true"


def is_flag(key: str) -> bool | None:
    """Return whether a recipe's key takes true or false and nothing else; None if the key is unknown."""
    # Imported here because it imports pydantic, which most commands do not need.
    from ftlab.recipe import keys, translated_keys

    if key in translated_keys.RENAMED_VALUES:
        return True
    key = translated_keys.RENAMED.get(key, (key, ""))[0]
    field = keys.Recipe.model_fields.get(key)
    hint = field.annotation if field else keys.TRAINING_HINTS.get(key)
    return None if hint is None else hint in (bool, bool | None)


def is_value(word: str) -> bool:
    """Return True if a word can only be the value of the key before it: not a recipe, and not an override."""
    return "=" not in word and not word.endswith((".yaml", ".yml"))


def refuse_unknown_verb(arguments: Sequence[str], verbs: Iterable[str]) -> None:
    """Refuse a first word that is not a verb, and suggest a similar one.

    Raises:
        LabError: naming the word.
    """
    if not arguments or arguments[0].startswith("-") or arguments[0] in verbs:
        return
    word = arguments[0]
    close = [THEIRS[word]] if word in THEIRS else difflib.get_close_matches(word, verbs, n=2, cutoff=0.6)
    hint = say("did_you_mean", nearest=", ".join(close)) + " " if close else ""
    raise fail("cli_unknown_verb", where=word[:60], hint=hint)


def open_streams() -> None:
    """Make the standard streams accept any text: characters outside their encoding are escaped, broken ones are "?"."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        # The streams of a notebook are of another class, and accept any text.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def lines(prompt: str) -> Iterator[str]:
    """Yield the lines typed after a prompt until an empty one, or the end of the input."""
    # None if the shell closed it (`<&-`).
    while sys.stdin is not None:
        try:
            line = input(prompt)
        except EOFError:
            return
        if not line:
            return
        yield line
