"""Decode a text file into numbered lines; invalid bytes are reported with their line."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from ftlab.errors import LabError, fail, say

MAX_LINE_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
# Codecs that decode to surrogates or to no text at all.
REFUSED_CODECS = {"utf-7", "unicode-escape", "unicode_escape", "raw-unicode-escape", "idna", "punycode", "undefined"}


def codec(encoding: str, where: str) -> str:
    """Return Python's own name of `encoding`.

    Raises:
        LabError: Python knows no such text encoding.
    """
    try:
        b"".decode(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        name = "undefined"
    if name in REFUSED_CODECS:
        raise fail("data_unknown_encoding", where=where, encoding=encoding)
    return name


def wide_encoding(path: Path) -> str:
    """Return which UTF-16 or UTF-32 a file is in, by its byte-order mark or zero bytes; "" for any other file."""
    with path.open("rb") as file:
        start = file.read(4)
    if start in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        return "utf-32"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = tuple(byte == 0 for byte in start)
    if zeros == (False, True, False, True):
        return "utf-16-le"
    return "utf-16-be" if zeros == (True, False, True, False) else ""


def refuse_wide(path: Path, encoding: str) -> None:
    """Refuse a file in UTF-16 or UTF-32 unless `encoding` says so.

    Raises:
        LabError: the file is in one of them and `encoding` is not.
    """
    wide = wide_encoding(path)
    if wide and not encoding.startswith(("utf-16", "utf-32")):
        raise fail("data_encoding", where=f"{path}:1", found=wide.upper(), encoding=wide)


def text_of(path: Path) -> str:
    """Return the text of a small file in UTF-8, without its byte-order mark.

    Raises:
        LabError: it is in another encoding; that and the line are named.
    """
    wide = wide_encoding(path)
    if wide:
        raise fail("text_encoding", where=f"{path}:1", found=wide.upper(), encoding=wide, file=path)
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found, encoding = guess([raw])
        line = raw[: error.start].count(b"\n") + 1
        raise fail("text_encoding", where=f"{path}:{line}", found=found, encoding=encoding, file=path) from None


def is_one_line_of_cr(path: Path, encoding: str) -> bool:
    """Return True if a file has carriage returns (CR) between its lines, and none is followed by LF.

    Python, csv and `datasets` end a line at LF: the whole file would be one line.
    """
    # A character of UTF-16 and UTF-32 may contain the byte of CR.
    if encoding.startswith(("utf-16", "utf-32")):
        return False
    with path.open("rb") as file:
        start = file.read(CHUNK_BYTES)
    return b"\r" in start.rstrip() and b"\n" not in start


def first_character(path: Path, encoding: str) -> str:
    """Return the first character of a file that is neither white space nor a byte-order mark, "" if there is none."""
    with path.open("rb") as file:
        return file.read(4096).decode(encoding, "ignore").lstrip("\ufeff \t\r\n")[:1]


def lines(path: Path, encoding: str) -> Iterator[tuple[int, str | LabError]]:
    """Yield (line number, text with its line end), or (line number, why this line is invalid).

    Args:
        encoding: a name that `codec` returned.
    """
    if encoding.startswith(("utf-16", "utf-32")):
        yield from wide_lines(path, encoding)
        return
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                yield number, fail("data_long_line", where=where, limit=MAX_LINE_BYTES // 2**20)
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(CHUNK_BYTES)
                continue
            text = decoded(raw, encoding, where)
            yield number, text.removeprefix("\ufeff") if number == 1 and isinstance(text, str) else text


def wide_lines(path: Path, encoding: str) -> Iterator[tuple[int, str | LabError]]:
    """Yield the lines of a file in which a line break takes more than one byte."""
    rest, number = "", 0
    for chunk in chunks(path, encoding):
        *whole, rest = (rest + chunk).split("\n")
        for text in whole:
            number += 1
            yield number, text + "\n"
        if len(rest) > MAX_LINE_BYTES:
            raise fail("data_long_line", where=f"{path}:{number + 1}", limit=MAX_LINE_BYTES // 2**20)
    if rest:
        yield number + 1, rest


def decoded(raw: bytes, encoding: str, where: str) -> str | LabError:
    """Decode one line, or say which encoding it seems to be in."""
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        return undecodable(error, encoding, where)
    return fail("data_nul", where=where) if "\x00" in text else text


def undecodable(error: UnicodeDecodeError, encoding: str, where: str) -> LabError:
    """Guess the encoding of bytes that are not in `encoding`."""
    if error.reason in ("unexpected end of data", "truncated data", "incomplete multibyte sequence"):
        return fail("data_half_character", where=where)
    if encoding != "utf-8":
        return fail("data_other_encoding", where=where, encoding=encoding)
    found, other = guess([error.object])
    return fail("data_encoding", where=where, found=found, encoding=other)


def guess(pieces: Iterable[bytes]) -> tuple[str, str]:
    """Return what bytes that are not UTF-8 seem to be, in words and as the name of an encoding."""
    return (say("encoding_gbk"), "gb18030") if is_chinese(pieces) else (say("encoding_other"), "latin-1")


def is_chinese(pieces: Iterable[bytes]) -> bool:
    """Return True if bytes are GBK text: nine of ten characters that are not ASCII are common Chinese ones.

    Almost any bytes decode as GBK; without the second test "éclair" in Latin-1 would become Chinese.
    """
    decoder = codecs.getincrementaldecoder("gb18030")()
    foreign = common = 0
    try:
        for piece in pieces:
            text = "".join(character for character in decoder.decode(piece) if character > "\x7f")
            foreign += len(text)
            common += len(text.encode("gb2312", "ignore")) // 2
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return common >= 0.9 * foreign


def real_encoding(path: Path, encoding: str) -> tuple[str, LabError | None]:
    """Return the encoding of a whole file, and the problem if it is not `encoding`.

    If no other encoding is certain, return `encoding` itself without a problem; the rows then report the errors.
    """
    encoding = codec(encoding, str(path))
    try:
        refuse_wide(path, encoding)
        for _ in chunks(path, encoding):
            pass
    except LabError as problem:
        wide = wide_encoding(path)
        if wide and not encoding.startswith(("utf-16", "utf-32")):
            return wide, problem
        # The failing line looks like GBK; check the whole file.
        with path.open("rb") as file:
            pieces = iter(lambda: file.read(CHUNK_BYTES), b"")
            if encoding == "utf-8" and "gb18030" in problem.fix and is_chinese(pieces):
                return "gb18030", problem
    return encoding, None


def chunks(path: Path, encoding: str) -> Iterator[str]:
    """Yield the text of a file piece by piece, without its byte-order mark.

    Raises:
        LabError: invalid bytes; the message names the line.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    line, first = 1, True
    with path.open("rb") as file:
        while True:
            raw = file.read(CHUNK_BYTES)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].decode(encoding, "ignore").count("\n")
                raise undecodable(error, encoding, f"{path}:{line}") from None
            if "\x00" in text:
                raise fail("data_nul", where=f"{path}:{line + text.count(chr(10), 0, text.index(chr(0)))}")
            yield text.removeprefix("\ufeff") if first else text
            if not raw:
                return
            line, first = line + text.count("\n"), first and not text
