"""Strict YAML: 1.2 rules, no duplicate keys, no aliases, no tags, and the line of each key."""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ftlab.data import decoding
from ftlab.errors import LabError, fail, say, suggest
from ftlab.system_errors import explained

MAX_BYTES = 100_000
MAX_DEPTH = 20


# A number that is decimal in YAML 1.2 and octal in YAML 1.1, which LLaMA-Factory's parser reads.
OCTAL = re.compile(r"[-+]?0[0-9]+")
# ruamel's message for a duplicate key.
DUPLICATE = re.compile(r'duplicate key "(.*?)" with value', re.DOTALL)
# Part of ruamel's message -> ours, for the mistakes that people make; the first that is found.
PROBLEMS = (
    (r"mapping values are not allowed", "yaml_second_colon"),
    (r"could not find expected ':'", "yaml_no_colon"),
    (r"character '\\t'", "yaml_tab"),
    (r"character '(.)' that cannot start|node content, but found '(,)'", "yaml_first_character"),
    (r"unexpected end of stream", "yaml_open_quote"),
    (r"expected ',' or|found '[\])}]'", "yaml_bracket"),
    (r"found '<scalar>'", "yaml_after_quote"),
    (r"expected (<block end>|'<document start>')", "yaml_other_level"),
    (r"sequence entries are not allowed", "yaml_dash"),
    (r"unknown escape character", "yaml_escape"),
    (r"special characters are not allowed", "yaml_unprintable"),
    (r"must be in \d+\.\.|day is out of range", "yaml_date"),
    (r"integer string conversion", "yaml_digits"),
)


def read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the keys of a YAML file and the line of each.

    `1e-4` is a number and `no` a string, as in YAML 1.2.

    Raises:
        LabError: no file, too big, not UTF-8, not YAML, not a mapping, a repeated key, an alias or a tag.
    """
    if not path.is_file():
        raise no_file(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise fail("recipe_too_big", where=str(path), limit=MAX_BYTES // 1000)
        text = decoding.text_of(path)
    except OSError as error:
        raise explained(error, str(path)) or error from None
    loaded = parse(text, str(path))
    if not isinstance(loaded, dict):
        raise fail("recipe_yaml", where=f"{path}:1", reason=say("yaml_mapping"))
    return loaded, {str(key): line for key, line in key_lines(text)}


def no_file(path: Path) -> LabError:
    """Build the error for a recipe that does not exist; a file with a similar name next to it is suggested."""
    beside = [other.name for other in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
    return fail("recipe_no_file", where=str(path), hint=suggest(path.name, beside, say("recipe_copy_one")))


def parse(text: str, where: str) -> Any:
    """Return the plain value of a piece of YAML.

    Raises:
        LabError: naming `where` and the line.
    """
    try:
        refuse_machinery(text, where)
        return YAML(typ="safe", pure=True).load(text)
    except LabError:
        raise
    except DuplicateKeyError as error:
        line, match = error.problem_mark.line + 1, DUPLICATE.search(str(error.problem))
        key = match[1] if match else "?"
        values: dict[str, Any] = {"key": repr(key).strip("'\""), "first": first_line(text, key, line)}
        raise fail("recipe_twice", where=f"{where}:{line}", **values) from None
    except MarkedYAMLError as error:
        # A line without a colon or with a quote that stays open is the context; the problem is found later.
        begun = error.context in ("while scanning a simple key", "while scanning a quoted scalar")
        mark = error.context_mark if begun else error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise fail("recipe_yaml", where=place, reason=short(error.problem or error.context)) from None
    except (YAMLError, ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError) as error:
        # ruamel's own constructors raise these for invalid numbers and dates.
        raise fail("recipe_yaml", where=where, reason=short(error)) from None


def first_line(text: str, key: str, last: int) -> int:
    """Return the line in which a key is set first, or `last`, where it is set again, if no line begins with it."""
    begins = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*:""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if begins.match(line)), last)


def octal(digits: str) -> str:
    """Return the octal value of some digits, or a note that they are text."""
    return str(int(digits, 8)) if set(digits) <= set("01234567") else say("recipe_octal_text")


def refuse_machinery(text: str, where: str) -> None:
    """Refuse what only an attacker needs: aliases, tags, several documents, deep nesting."""
    depth = documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        name, place = type(event).__name__, f"{where}:{event.start_mark.line + 1}"
        tagged = name in ("ScalarEvent", "MappingStartEvent", "SequenceStartEvent") and event.tag is not None
        if name == "ScalarEvent" and event.implicit[0] and OCTAL.fullmatch(event.value):
            plain = event.value.lstrip("+-0") or "0"
            raise fail("recipe_octal", where=place, value=event.value, decimal=plain, octal=octal(plain))
        if name == "AliasEvent" or tagged:
            raise fail("recipe_machinery", where=place)
        depth += {"MappingStartEvent": 1, "SequenceStartEvent": 1}.get(name, 0)
        depth -= {"MappingEndEvent": 1, "SequenceEndEvent": 1}.get(name, 0)
        documents += name == "DocumentStartEvent"
        if depth > MAX_DEPTH or documents > 1:
            if depth <= MAX_DEPTH:
                raise fail("recipe_documents", where=place)
            raise fail("recipe_yaml", where=place, reason=say("yaml_depth"))


def key_lines(text: str) -> list[tuple[str, int]]:
    """Return (key, line) of every top-level key of a mapping that `parse` took."""
    node = YAML(typ="safe", pure=True).compose(text)
    return [(key.value, key.start_mark.line + 1) for key, _ in node.value]


def short(problem: object) -> str:
    """Return what is wrong in the user's language; the first line of the parser's own message where PROBLEMS lacks it.

    >>> short("found character '@' that cannot start any token"), short("found a new mistake")
    ('a value that begins with @ needs quotes', 'found a new mistake')
    """
    text = (str(problem).splitlines() or [type(problem).__name__])[0]
    for pattern, message in PROBLEMS:
        if match := re.search(pattern, text):
            return say(message, character=next(filter(None, match.groups()), ""))
    return text[:120]


def dumps(values: dict[str, Any]) -> str:
    """Return plain values as YAML that `parse` reads back: one key a line, in their order."""
    lines, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # ruamel declares no type for it, and sorts if it is None.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(values, lines)
    return lines.getvalue()


def dump(values: dict[str, Any], path: Path) -> None:
    """Write plain values so that `read` reads them back."""
    path.write_text(dumps(values), encoding="utf-8")
