"""The one exception a user is meant to see, and the table of its messages."""

import contextlib
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")
# The words of a name: learning_rate has two, meta-llama/Llama-3 three.
WORDS = re.compile(r"[^\W_]+")
# Characters of a value in a message: enough for the names of all data sets, without hiding the sentence.
LONGEST_VALUE = 600
# The language of a panel, if it differs from the environment's.
SPOKEN: ContextVar[str] = ContextVar("SPOKEN", default="")


class LabError(Exception):
    """A mistake that a user can fix: what is wrong, where, and what to do.

    Args:
        what: what is wrong, with the value received.
        where: `file:line`, a key, or a turn; empty when `what` says it.
        fix: what to do about it.
        exit_code: 2 for bad input, 1 for a run that failed.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", exit_code: int = 2) -> None:
        self.what, self.where, self.fix, self.exit_code = what, where, fix, exit_code
        place = f"{where}: " if where else ""
        remedy = "\n  " + say("fix") + fix if fix else ""
        super().__init__(f"{place}{what}{remedy}")


def language() -> str:
    """Return the language of messages: the one of `speaking`, else `FTLAB_LANG` if it is in LANGUAGES, else "en"."""
    preferred = SPOKEN.get() or os.environ.get("FTLAB_LANG", "en")
    return preferred if preferred in LANGUAGES else "en"


@contextlib.contextmanager
def speaking(lang: str) -> Iterator[None]:
    """Build the messages of the block in one of LANGUAGES."""
    before = SPOKEN.set(lang)
    try:
        yield
    finally:
        SPOKEN.reset(before)


@cache
def messages() -> dict[str, dict[str, str]]:
    """Return the table: message key -> {"en", "fix_en", "zh", "fix_zh"}."""
    return tomllib.loads(Path(__file__).with_name("messages.toml").read_text(encoding="utf-8"))


def say(key: str, /, **values: object) -> str:
    """Return message `key` in the user's language, its placeholders filled.

    Raises:
        KeyError: the table has no such key, or a placeholder has no value.
    """
    return fill_in(messages()[key][language()], values)


def fill_in(text: str, values: dict[str, object]) -> str:
    """Return a text with its placeholders filled, a list by indented lines; more than LONGEST_VALUE characters are cut.

    A value may come from a user's file, and a name of five thousand letters hides the sentence around it. A list is
    whole, its items are cut.
    """
    return text.format(**with_counts({name: short(value) for name, value in values.items()}))


def short(value: object) -> object:
    """Return a value as a message shows it."""
    if isinstance(value, list):
        return "\n  ".join(shorten(str(item), LONGEST_VALUE) for item in value)
    return shorten(value, LONGEST_VALUE) if isinstance(value, str) else value


class Count(int):
    """A number that chooses the words around it: a noun's ending by the format `s`, others by `singular|plural`.

    >>> "{n} row{n:s} {n:is|are} cut".format(n=Count(1)), "{n} row{n:s} {n:is|are} cut".format(n=Count(2))
    ('1 row is cut', '2 rows are cut')
    """

    def __format__(self, how: str) -> str:
        """Return the number, the ending, or the word."""
        one, choice, many = how.partition("|")
        if choice:
            return one if self == 1 else many
        return ("" if self == 1 else "s") if how == "s" else super().__format__(how)


def with_counts(values: dict[str, object]) -> dict[str, object]:
    """Return the values of placeholders, integers as `Count`."""
    return {name: Count(value) if type(value) is int else value for name, value in values.items()}


def near(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that `name` may have been meant to be, nearest first; [] if none is near.

    A name is near if it differs by a typing error, or if its words are among the other's words.

    >>> near("lora_rnak", ["lora_rank", "seed"]), near("batch_size", ["per_device_train_batch_size", "seed"])
    (['lora_rank'], ['per_device_train_batch_size'])
    >>> near("galore_rank", ["lora_rank"]), near("xyzzy", ["model_name_or_path"])
    ([], [])
    """
    names, words = list(dict.fromkeys(known)), set(WORDS.findall(name.casefold()))
    slips = difflib.get_close_matches(name, names, n=most, cutoff=0.81)
    folded = [other for other in names if other.casefold() == name.casefold()]
    longer = [other for other in names if words and words < set(WORDS.findall(other.casefold()))]
    extended = [other for other in names if len(name) >= 4 and other.startswith(name)]
    return list(dict.fromkeys([*folded, *slips, *extended, *longer]))[:most]


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean ...?" in the user's language if a known name is near, else `otherwise`."""
    nearest = near(name, known)
    return say("did_you_mean", nearest=", ".join(nearest)) if nearest else otherwise


def fail(key: str, /, where: str = "", exit_code: int = 2, **values: object) -> LabError:
    """Build the LabError of message `key`; the caller raises it.

    >>> print(fail("model_no_folder", where="./m"))
    ./m: folder not found
      fix: check the path, or use a model name from `ftlab models`
    """
    remedy = fill_in(messages()[key].get(f"fix_{language()}", ""), values)
    return LabError(say(key, **values), where, remedy, exit_code)


def reason_of(error: BaseException) -> str:
    """Return the first line of an exception, at most 200 characters, with its type if it is uninformative."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    named = not first or isinstance(error, KeyError | AssertionError | ZeroDivisionError)
    return shorten(f"{type(error).__name__}: {first}".removesuffix(": ") if named else first)


def shorten(text: str, limit: int = 200) -> str:
    """Return a text of at most `limit` characters: as many whole sentences as fit, else words and an ellipsis.

    >>> shorten("One sentence. Another one.", 20), shorten("Words and words", 12)
    ('One sentence.', 'Words ...')
    """
    if len(text) <= limit:
        return text
    sentences = text[:limit].rpartition(". ")[0]
    return f"{sentences}." if sentences else f"{text[: limit - 4].rpartition(' ')[0] or text[: limit - 4]} ..."
