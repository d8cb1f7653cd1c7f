"""Messages: short whatever a user's file holds, and each given what it needs to be filled."""

import ast
import string
from collections.abc import Iterator
from pathlib import Path

from ftlab.errors import LONGEST_VALUE, fail, messages, say

ROOT = Path(__file__).parents[2]


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """Yield place, message and the names given, of every fail() and say() whose message and names are written out."""
    for path in sorted((ROOT / "ftlab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Name("fail" | "say"), [ast.Constant(str(key))], given) if key in messages():
                    if all(one.arg for one in given):
                        yield f"{path.name}:{node.lineno}", key, {str(one.arg) for one in given}


def placeholders(key: str) -> set[str]:
    """Return the names that a message needs, in both languages and with its fix."""
    fields = (field for text in messages()[key].values() for _, field, _, _ in string.Formatter().parse(text))
    return {field for field in fields if field}


def test_a_message_is_given_every_value_that_it_shows_and_no_other():
    found = list(calls())
    assert len(found) > 300
    # `where` and `exit_code` are of the error, not of its text.
    assert [one for one in found if one[2] - {"where", "exit_code"} != placeholders(one[1]) - {"where"}] == []


def test_a_long_value_is_cut_and_the_sentence_stays():
    error = fail("data_unknown_set", where="r.yaml", name="a" * 5000, nearest="known: x;")
    assert len(str(error)) < LONGEST_VALUE + 200
    assert "unknown data set `aaa" in str(error) and "known: x;" in str(error)


def test_a_value_of_usual_length_is_shown_whole():
    assert "x" * 300 in say("data_unknown_set", name="x" * 300)


def test_one_of_something_is_singular():
    one = say("data_unread_rows", name="a.json", count=1, column="note")
    assert "a.json: 1 example has `note`" in one
    assert "2 examples have" in say("data_unread_rows", name="a.json", count=2, column="note")
    assert str(fail("world_devices", asked=1, visible=2)).startswith("1 process was asked for, but 2 accelerators are")
