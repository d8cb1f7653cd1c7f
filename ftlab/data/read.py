"""Read the rows of a file of any common kind, each with its line number; a broken row is a problem with a place."""

import csv
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.data import decoding
from ftlab.errors import LabError, fail, reason_of, say, suggest

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
# The only ways in which JSON can bring a surrogate or a NUL into decoded text.
SUSPECT_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
# Deeper values would exceed the recursion limit; no real row comes near.
MAX_DEPTH = 100
# An object with one of these is a row, whatever lists it has as well.
ROW_COLUMNS = {"messages", "conversations", "instruction", "prompt", "question", "query", "text", "chosen"}
# Under these an object holds the turns of one example, not examples.
TURN_LISTS = {"conversation", "dialog", "dialogue", "turns", "chat"}
# Digits of an integer; Python refuses to read longer ones.
LONGEST_NUMBER = 4000
Row = dict[str, Any]
# A line number, or "line (row number)" if several rows share a line.
Place = int | str
Read = tuple[Place, Row | LabError]
# Two rows on one line of an array.
NEXT_ON_LINE = re.compile(r"[ \t]*,[ \t]*[^\s\]]")


def rows(path: Path, encoding: str = "utf-8") -> Iterator[Read]:
    """Yield (place, row) for every row of `path`, or (place, what is wrong with that row).

    Memory stays flat: one row, at most 64 MiB of text, is held at a time.

    Args:
        path: .json or .jsonl (either: an array, or one object a line), .csv, .parquet (the line is the row's number),
            or .txt (a line is a row). Rows of an array that share a line have their number beside it: `1 (row 3)`.
        encoding: of the text; a byte-order mark is accepted.
    Raises:
        LabError: the file as a whole cannot be read, or not from some line on.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise fail("data_suffix", where=str(path), suffixes=" ".join(SUFFIXES))
    if not path.is_file():
        raise fail("data_no_file", where=str(path))
    if path.stat().st_size == 0:
        raise fail("data_empty_file", where=f"{path}:1")
    if suffix == ".parquet":
        return parquet_rows(path)
    encoding = decoding.codec(encoding, str(path))
    decoding.refuse_wide(path, encoding)
    if suffix in (".json", ".jsonl") and decoding.first_character(path, encoding) == "[":
        return array_rows(path, encoding)
    if decoding.is_one_line_of_cr(path, encoding):
        raise bare_cr(path, 1)
    if suffix == ".csv":
        return csv_rows(path, encoding)
    return text_rows(path, encoding) if suffix == ".txt" else line_rows(path, encoding)


def text_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield a row for every line of raw text that is not blank."""
    for number, text in decoding.lines(path, encoding):
        if isinstance(text, LabError):
            yield number, text
        elif text.strip():
            yield number, {"text": text.rstrip("\r\n")}


def line_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield the rows of a file with one JSON object a line.

    Raises:
        LabError: the first object is spread over several lines, so that no line of the file is a row.
    """
    first = True
    for number, text in decoding.lines(path, encoding):
        if isinstance(text, str) and not text.strip():
            continue
        row = text if isinstance(text, LabError) else parsed(text, f"{path}:{number}")
        if isinstance(row, LabError) and isinstance(text, str) and comma_after_object(text):
            row = fail("data_comma", where=f"{path}:{number}")
        elif isinstance(row, LabError) and isinstance(text, str) and "\r" in text.strip():
            row = bare_cr(path, number)
        elif first and isinstance(row, LabError) and isinstance(text, str) and text.rstrip().endswith(("{", "[", ",")):
            where = f"{path}:{number}"
            whole = whole_object(path, encoding)
            raise wrapped(whole, where) or by_columns(whole, where) or fail("data_spread", where=where)
        first = False
        yield number, row


def whole_object(path: Path, encoding: str) -> Row:
    """Return the object that makes up the whole file, {} if it is not one object, or larger than a row may be."""
    if path.stat().st_size > decoding.MAX_LINE_BYTES:
        return {}
    try:
        value = DECODER.decode("".join(decoding.chunks(path, encoding)))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def wrapped(value: Row, where: str) -> LabError | None:
    """Return the problem of an object that holds lists of rows (`{"data": [...]}`), None for any other object."""
    lists = [
        name
        for name, inner in value.items()
        if isinstance(inner, list)
        and inner
        and all(isinstance(one, dict) and "role" not in one for one in inner)
        and name not in TURN_LISTS
    ]
    if not lists or not ROW_COLUMNS.isdisjoint(value):
        return None
    file, listed, rows = where.rpartition(":")[0], ", ".join(lists), len(value[lists[0]])
    return fail("data_wrapped", where=where, keys=listed, rows=rows, names=shlex.join([file, lists[0]]))


def comma_after_object(text: str) -> bool:
    """Return True if a line is an object and a comma, as in an array without its brackets."""
    stripped = text.strip()
    return stripped.endswith("},") and not isinstance(parsed(stripped[:-1], ""), LabError)


def parsed(text: str, where: str) -> Row | LabError:
    """Parse one JSON object strictly."""
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return comma_before_end(error, where) or fail("data_json", where=where, reason=reason(error))
    return checked(value, text, where)


def comma_before_end(error: Exception, where: str) -> LabError | None:
    """Return the problem of a comma before a closing `}` or `]`, None for any other error."""
    if not isinstance(error, json.JSONDecodeError):
        return None
    before, ahead = error.doc[: error.pos].rstrip(), error.doc[error.pos :]
    # Python 3.13 and later point at the comma, earlier versions after it.
    mark = ahead.removeprefix(",").lstrip()[:1]
    comma = ahead.startswith(",") or before.endswith(",")
    return fail("data_trailing_comma", where=where, mark=mark) if comma and mark in ("}", "]") else None


def bare_cr(path: Path, line: int) -> LabError:
    """Build the error for lines that end with a carriage return alone."""
    file = shlex.quote(str(path))
    return fail("data_bare_cr", where=f"{path}:{line}", file=file, suffix=path.suffix)


def checked(value: Any, text: str, where: str) -> Row | LabError:
    """Return a parsed value if it can be a row: an object with fields and valid text."""
    if not isinstance(value, dict):
        return fail("data_not_object", where=where, got=kind(value))
    if not value:
        return fail("data_empty_row", where=where)
    if problem := by_columns(value, where):
        return problem
    if len(value) > 1 and all(isinstance(inner, dict) for inner in value.values()):
        return fail("data_dict_of_rows", where=where, keys=", ".join(list(value)[:3]))
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        return fail("data_json", where=where, reason=say("json_depth"))
    if SUSPECT_ESCAPE.search(text):
        for inner in texts(value):
            if any("\ud800" <= character <= "\udfff" for character in inner):
                return fail("data_surrogate", where=where)
            if "\x00" in inner:
                return fail("data_nul", where=where)
    return value


def by_columns(value: Row, where: str) -> LabError | None:
    """Return the problem of an object that holds whole columns, None for any other object."""
    file = shlex.quote(where.rpartition(":")[0])
    return fail("data_columns_first", where=where, file=file) if columns_first(value) else None


def columns_first(value: Row) -> bool:
    """Return True if an object holds a list, or numbered values, for each column: pandas and `datasets` write such.

    >>> columns_first({"instruction": ["a", "b"], "output": ["c", "d"]}), columns_first({"text": {"0": "a"}})
    (True, True)
    >>> columns_first({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant"}]})
    False
    """
    # A list is what the others hold in every row.
    if (ROW_COLUMNS - {"messages", "conversations", "chosen"}).isdisjoint(value):
        return False
    columns = [
        list(inner.values()) if isinstance(inner, dict) and all(name.isdecimal() for name in inner) else inner
        for inner in value.values()
    ]
    lists = [inner for inner in columns if isinstance(inner, list) and inner]
    same = len(lists) == len(columns) and len({len(inner) for inner in lists}) == 1
    return same and not any(isinstance(cell, dict) for inner in lists for cell in inner)


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, the names of its fields included."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, dict):
            waiting += [*inner.keys(), *inner.values()]
        elif isinstance(inner, list):
            waiting += inner


def depth(value: Any) -> int:
    """Return the nesting depth of a JSON value."""
    level, inside = 0, [value]
    while inside := [one for one in inside if isinstance(one, dict | list)]:
        level += 1
        inside = [inner for one in inside for inner in (one.values() if isinstance(one, dict) else one)]
    return level


def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """Refuse an object with a duplicate key: the first value would be lost silently."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(say("json_twice", key=repr(next(n for n in names if names.count(n) > 1))))
    return row


def no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(say("json_constant", name=name))


def whole_number(digits: str) -> int:
    """Return an integer, unless it has more digits than Python reads.

    Raises:
        ValueError: it has; Python's own message would advise changing an interpreter setting.
    """
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(say("json_digits", count=len(digits.lstrip("-"))))
    return int(digits)


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=no_constant, parse_int=whole_number)
# Finds the end of a row that DECODER refuses for its content, not its syntax.
LAX_DECODER = json.JSONDecoder(parse_int=len)


# What the library says of JSON's syntax -> the message with the same English.
SYNTAX = {
    "Expecting value": "json_value",
    "Expecting property name enclosed in double quotes": "json_name",
    "Expecting ':' delimiter": "json_colon",
    "Expecting ',' delimiter": "json_comma",
    "Unterminated string starting at": "json_string",
    "Invalid control character at": "json_control",
    "Invalid \\escape": "json_escape",
    "Extra data": "json_extra",
}


def reason(error: Exception) -> str:
    """Return a short reason why JSON could not be parsed."""
    if isinstance(error, RecursionError):
        return say("json_depth")
    if isinstance(error, json.JSONDecodeError):
        message = SYNTAX.get(error.msg.partition(": ")[0])
        return say("json_column", reason=say(message) if message else error.msg, column=error.colno)
    return str(error)


@dataclass
class Window:
    """The current part of a JSON text: `text` from position `at`, which is on line `line`."""

    chunks: Iterator[str]
    text: str = ""
    at: int = 0
    line: int = 1

    def grow(self) -> bool:
        """Read on until the part ahead has doubled; return False at the end of the file, where nothing changes."""
        pieces, wanted = [], len(self.text) - self.at + 1
        for piece in self.chunks:
            pieces.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        if not any(pieces):
            return False
        self.text, self.at = self.text[self.at :] + "".join(pieces), 0
        return True

    def move(self, to: int) -> None:
        """Go forward to position `to`."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def character(self) -> str:
        """Go to the next character that is not white space and return it, "" at the end of the file."""
        while True:
            to = self.at
            while to < len(self.text) and self.text[to] in " \t\r\n":
                to += 1
            self.move(to)
            if to < len(self.text):
                return self.text[to]
            if not self.grow():
                return ""

    def value(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """Return the JSON value that begins here, and the position after it.

        Raises:
            json.JSONDecodeError: broken JSON, or a value above 64 MiB.
            ValueError, RecursionError: `decoder` refuses the value.
        """
        while True:
            try:
                return decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                # The value may just be cut off by the end of the window.
                if len(self.text) - self.at > decoding.MAX_LINE_BYTES or not self.grow():
                    raise


def array_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield the rows of a JSON array, each with the line on which it begins.

    Raises:
        LabError: a syntax error; after it the boundaries of the next rows are unknown.
    """
    window = Window(decoding.chunks(path, encoding))
    window.character()
    window.move(window.at + 1)
    separator = "]" if window.character() == "]" else ","
    number = before = 0
    while separator == ",":
        number, line = number + 1, window.line
        place = f"{line} (row {number})" if line == before else line
        try:
            row, end = array_row(window, f"{path}:{place}")
        except json.JSONDecodeError as error:
            yield syntax_error(window, error, path, place)
            return
        if place == line == window.line + window.text.count("\n", window.at, end):
            place = f"{line} (row {number})" if NEXT_ON_LINE.match(window.text, end) else line
        yield place, placed(row, f"{path}:{place}")
        before = line
        window.move(end)
        separator = window.character()
        if not separator:
            yield window.line, fail("data_truncated", where=f"{path}:{window.line}")
            return
        if separator not in ",]":
            raise fail("data_json", where=f"{path}:{window.line}", reason=say("json_separator"))
        if separator == ",":
            comma = window.line
            window.move(window.at + 1)
            if window.character() == "]":
                raise fail("data_trailing_comma", where=f"{path}:{comma}", mark="]")
    window.move(window.at + 1)
    if window.character():
        raise fail("data_json", where=f"{path}:{window.line}", reason=say("json_after"))


def placed(row: Row | LabError, where: str) -> Row | LabError:
    """Return a row, or its problem with its final place."""
    return LabError(row.what, where, row.fix) if isinstance(row, LabError) else row


def array_row(window: Window, where: str) -> tuple[Row | LabError, int]:
    """Return the row that begins here, or what is wrong with it, and the position after it.

    Raises:
        json.JSONDecodeError: broken JSON.
    """
    try:
        value, end = window.value(DECODER)
        return checked(value, window.text[window.at : end], where), end
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise fail("data_json", where=where, reason=reason(error)) from None
    except ValueError as error:
        return fail("data_json", where=where, reason=reason(error)), window.value(LAX_DECODER)[1]


def syntax_error(window: Window, error: json.JSONDecodeError, path: Path, place: Place) -> Read:
    """Return the problem of a file that ends inside a row.

    Raises:
        LabError: the row is broken before the file ends, or too long to be read.
    """
    line = window.line + window.text.count("\n", window.at, error.pos)
    at = place if line == window.line else line
    if len(window.text) - window.at > decoding.MAX_LINE_BYTES:
        raise fail("data_long_line", where=f"{path}:{window.line}", limit=decoding.MAX_LINE_BYTES // 2**20)
    if problem := comma_before_end(error, f"{path}:{at}"):
        raise problem
    if error.pos >= len(window.text.rstrip()) or error.msg.startswith("Unterminated string"):
        return at, fail("data_truncated", where=f"{path}:{at}")
    raise fail("data_json", where=f"{path}:{at}", reason=error.msg)


def kind(value: object) -> str:
    """Return JSON's name for the type of a value."""
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def suggestion(name: str, names: Iterable[Any]) -> str:
    """Return "did you mean x?" if a known name is near, else the known names."""
    known = [str(one) for one in names]
    return suggest(name, known, say("data_known", names=first(known)))


def first(names: Iterable[Any]) -> str:
    """Return the first names, for a message."""
    return ", ".join(str(one) for one in list(names)[:8])


def empty(value: object) -> bool:
    """Return True if a value is empty: null, NaN, or an empty text, list or object."""
    return value is None or value in ("", [], {}) or value != value


def csv_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield the rows of a CSV file with a header line.

    Raises:
        LabError: no usable header, invalid bytes, or a quote that is never closed.
    """
    csv.field_size_limit(decoding.MAX_LINE_BYTES)
    reader = csv.reader(csv_lines(path, encoding), strict=True)
    start = 1
    try:
        header = next(reader, [])
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise fail("data_csv_delimiter", where=f"{path}:1", header=header[0])
        if not header or len(set(header)) < len(header) or not all(name.strip() for name in header):
            raise fail("data_csv_header", where=f"{path}:1", header=", ".join(header))
        while True:
            start = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if cells and len(cells) != len(header):
                where = f"{path}:{start}"
                yield start, fail("data_csv_width", where=where, got=len(cells), expected=len(header))
            elif cells:
                yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        if "new-line character" in str(error):
            raise bare_cr(path, start) from None
        raise fail("data_csv", where=f"{path}:{start}", reason=str(error)) from None


def csv_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a CSV file; a quoted cell may span several, so none can be left out."""
    for _, text in decoding.lines(path, encoding):
        if isinstance(text, LabError):
            raise text
        yield text


def parquet_rows(path: Path) -> Iterator[Read]:
    """Yield the rows of a Parquet file; the line number is the row's.

    Raises:
        LabError: not a Parquet file, or a damaged one.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError(f"duplicate column {next(n for n in names if names.count(n) > 1)!r}")
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, table_row(row, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise fail("data_parquet", where=f"{path}:{number + 1}", reason=reason_of(error)) from None


def table_row(row: Row, where: str) -> Row | LabError:
    """Return a row of a table if it can be a row of a JSON file too."""
    if not row:
        return fail("data_empty_row", where=where)
    if depth(row) > MAX_DEPTH:
        return fail("data_json", where=where, reason=say("json_depth"))
    return fail("data_nul", where=where) if any("\x00" in text for text in texts(row)) else row
