"""Iterate over the rows of an entry: place, original row, and row in TRL's format."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlab.data.dataset_info import Entry, files, format_of_entry
from ftlab.data.read import Row, empty, rows, suggestion, texts, wrapped
from ftlab.errors import LabError, fail

if TYPE_CHECKING:
    from datasets import Dataset

# LLaMA-Factory's own two, anywhere in a text; any other name unless it follows a letter or a brace, as in LaTeX
# (\frac{{abc}}{{def}}).
PLACEHOLDER = re.compile(r"\{\{(?:(name|author)|(?<![A-Za-z0-9}\\]\{\{)([A-Za-z_]\w{2,}))\}\}", re.ASCII)


# Columns of pictures, videos and sounds; others with such a beginning are told by a placeholder in the text.
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
MEDIA = ("image", "video", "audio")


class ConvertedRow(NamedTuple):
    """A row at `where`: `raw` as in the file ({}: unreadable), and `row` in TRL's shape or the problem."""

    where: str
    raw: Row
    row: Row | LabError


def converted(
    entry: Entry, path: Path | None, hub: "Dataset | None", substitutions: dict[str, str] | None
) -> Iterator[ConvertedRow]:
    """Yield every row of an entry, read from `path` or else from `hub`.

    Args:
        substitutions: name -> text for `{{name}}` placeholders; None leaves them as they are.
    Raises:
        LabError: a file cannot be read (any further), or no row has a column that the entry names.
    """
    columns, tags, convert = entry.all_columns(), entry.all_tags(), format_of_entry(entry).convert
    seen: dict[str, None] = {}
    for where, raw in raw_rows(entry, path, hub):
        if isinstance(raw, LabError):
            yield ConvertedRow(where, {}, raw)
            continue
        seen.update(dict.fromkeys(raw))
        try:
            refuse_media(raw, where)
            row = convert(raw, columns, tags, where)
            yield ConvertedRow(where, raw, row if substitutions is None else filled(row, substitutions, where))
        except LabError as problem:
            unknown = not any(column in raw for column in columns.values())
            yield ConvertedRow(where, raw, (unknown and wrapped(raw, where)) or problem)
    if seen and entry.where:
        check_seen(entry, seen)


def raw_rows(entry: Entry, path: Path | None, hub: "Dataset | None") -> Iterator[tuple[str, Row | LabError]]:
    """Yield (`file:line`, original row)."""
    if path is None:
        for number, row in enumerate(hub or (), 1):
            yield f"{entry.hf_hub_url or entry.ms_hub_url}:{number}", row
        return
    for file in files(path):
        for line, row in rows(file, entry.encoding):
            yield f"{file}:{line}", row


def check_seen(entry: Entry, seen: dict[str, None]) -> None:
    """Compare the columns of all rows with those of the entry.

    Raises:
        LabError: the entry lists a column that no row has.
    """
    for column in entry.columns.values():
        if column and column not in seen:
            raise fail("data_no_column_at_all", where=entry.where, column=column, near=suggestion(column, seen))


def refuse_media(row: Row, where: str) -> None:
    """Refuse a row about a picture, a video or a sound, which the model would not see.

    Raises:
        LabError: such a column is not empty, or a text has a placeholder such as `<image>`.
    """
    for column in row:
        medium = next((one for one in MEDIA if column.startswith(one)), "")
        meant = column in MEDIA_COLUMNS and not empty(row[column])
        if medium and (meant or any(f"<{medium}>" in text for text in texts(row))):
            raise fail("data_media_row", where=where, column=column)


def filled(row: Row, substitutions: dict[str, str], where: str) -> Row:
    """Replace `{{name}}` placeholders in the texts of a row.

    Raises:
        LabError: a placeholder has no value; it would be trained on literally.
    """

    def value(values: re.Match[str]) -> str:
        name = values[1] or values[2]
        if name not in substitutions:
            raise fail("data_placeholder", where=where, placeholder=values[0], name=name)
        return substitutions[name]

    return on_texts(row, lambda text: PLACEHOLDER.sub(value, text) if "{{" in text else text)


def on_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with `change` applied to every string in it, field names excepted."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: on_texts(inner, change) for key, inner in value.items()}
    return [on_texts(inner, change) for inner in value] if isinstance(value, list) else value
