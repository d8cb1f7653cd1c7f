"""A file of any common kind to rows, each with its line number; a broken line is a problem with a place."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftlab.errors import LabError, fail

MAX_LINE_BYTES = 64 * 2**20
# A JSON array has to be held in memory as a whole; lines stream.
MAX_ARRAY_BYTES = 256 * 2**20
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
Row = dict[str, Any]
Read = tuple[int, Row | LabError]


def rows(path: Path, encoding: str = "utf-8") -> Iterator[Read]:
    """Yield (line number, row) for every row of `path`, or (line number, what is wrong with that line).

    Args:
        path: .json (an array or one object a line), .jsonl (the same), .csv, .parquet or .txt (a line is a row).
        encoding: of the text; a byte-order mark is accepted.
    Raises:
        LabError: the file as a whole cannot be read.
    """
    if not path.is_file():
        raise fail("data_no_file", where=str(path))
    if path.suffix not in SUFFIXES:
        raise fail("data_suffix", where=f"{path}:1", suffixes=" ".join(SUFFIXES))
    if path.stat().st_size == 0:
        raise fail("data_empty_file", where=f"{path}:1")
    if path.suffix == ".parquet":
        return parquet_rows(path)
    with path.open("rb") as file:
        refuse_utf16(path, file.read(4), encoding)
    if path.suffix == ".csv":
        return csv_rows(path, encoding)
    if path.suffix == ".txt":
        return (
            (line, {"text": text}) if isinstance(text, str) else (line, text) for line, text in lines(path, encoding)
        )
    return array_rows(path, encoding) if first_character(path) == b"[" else line_rows(path, encoding)


def refuse_utf16(path: Path, start: bytes, encoding: str) -> None:
    """Name UTF-16 and UTF-32 by their byte-order marks, unless the user said so."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and not encoding.lower().startswith("utf-16"):
        raise fail("data_encoding", where=f"{path}:1", found="UTF-16", encoding="utf-16")


def first_character(path: Path) -> bytes:
    """Return the first byte of a file that is neither white space nor a byte-order mark."""
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def lines(path: Path, encoding: str) -> Iterator[tuple[int, str | LabError]]:
    """Yield (line number, text) for the lines that are not blank."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                # What follows on this line could be gigabytes: stop here instead of reading them.
                yield number, fail("data_long_line", where=f"{path}:{number}", limit=MAX_LINE_BYTES // 2**20)
                return
            text = decoded(raw, encoding, path, number)
            if isinstance(text, LabError):
                yield number, text
            elif text.strip():
                yield number, text.rstrip("\r\n")


def decoded(raw: bytes, encoding: str, path: Path, line: int) -> str | LabError:
    """Decode bytes that begin on `line`, or say which encoding they seem to be in."""
    try:
        text = raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise fail("data_unknown_encoding", where=str(path), encoding=encoding) from None
    except UnicodeDecodeError as error:
        line += raw[: error.start].count(b"\n")
        return fail("data_encoding", where=f"{path}:{line}", **likely_encoding(raw))
    if "\x00" in text:
        line += text[: text.index("\x00")].count("\n")
        return fail("data_nul", where=f"{path}:{line}")
    return text


def likely_encoding(raw: bytes) -> dict[str, str]:
    """Guess what bytes that are not UTF-8 are."""
    try:
        raw.decode("gb18030")
    except UnicodeDecodeError:
        return {"found": "not UTF-8", "encoding": "latin-1"}
    return {"found": "not UTF-8, probably GBK", "encoding": "gb18030"}


def line_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield the rows of a file with one JSON object a line."""
    for number, text in lines(path, encoding):
        yield number, text if isinstance(text, LabError) else parsed(text, f"{path}:{number}")


def array_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield the rows of a JSON array, each with the line on which it begins."""
    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise fail("data_big_array", where=f"{path}:1", limit=MAX_ARRAY_BYTES // 2**20)
    text = decoded(path.read_bytes(), encoding, path, 1)
    if isinstance(text, LabError):
        raise text
    position = skip(text, text.index("[") + 1)
    line, counted, after_comma = 1, 0, False
    while text[position : position + 1] != "]" or after_comma:
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, end = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            # After a syntax error the borders of the next rows are a guess: stop.
            place = line + text.count("\n", counted, getattr(error, "pos", position))
            yield place, fail("data_json", where=f"{path}:{place}", reason=reason(error))
            return
        yield line, row if isinstance(row, dict) else fail("data_not_object", where=f"{path}:{line}", got=kind(row))
        position = skip(text, end)
        after_comma = text[position : position + 1] == ","
        if after_comma:
            position = skip(text, position + 1)
        elif text[position : position + 1] != "]":
            place = line + text.count("\n", counted, position)
            yield place, fail("data_json", where=f"{path}:{place}", reason="expected `,` or `]` after a row")
            return
    if text[position + 1 :].strip():
        place = 1 + text.count("\n", 0, position)
        yield place, fail("data_json", where=f"{path}:{place}", reason="something follows the closing `]`")


def skip(text: str, position: int) -> int:
    """Return the next position that is not white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def parsed(text: str, where: str) -> Row | LabError:
    """Parse one JSON object strictly."""
    try:
        row = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return fail("data_json", where=where, reason=reason(error))
    return row if isinstance(row, dict) else fail("data_not_object", where=where, got=kind(row))


def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """Refuse an object that names a key twice: the first value would be lost in silence."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return row


def no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=no_constant)


def reason(error: Exception) -> str:
    """Return why JSON could not be parsed, in a few words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def kind(value: object) -> str:
    """Return how JSON calls the type of a value."""
    names = {str: "a string", bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def csv_rows(path: Path, encoding: str) -> Iterator[Read]:
    """Yield the rows of a CSV file with a header line."""
    text = decoded(path.read_bytes(), encoding, path, 1)
    if isinstance(text, LabError):
        raise text
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if not header or len(set(header)) < len(header) or not all(header):
            raise fail("data_csv_header", where=f"{path}:1", header=", ".join(header))
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if cells and len(cells) != len(header):
                yield reader.line_num, fail("data_csv_width", where=where, got=len(cells), expected=len(header))
            elif cells:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        yield reader.line_num, fail("data_csv", where=f"{path}:{reader.line_num}", reason=str(error))


def parquet_rows(path: Path) -> Iterator[Read]:
    """Yield the rows of a Parquet file; the line number is the row's."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise fail("data_parquet", where=f"{path}:1", reason=str(error).splitlines()[0]) from None
