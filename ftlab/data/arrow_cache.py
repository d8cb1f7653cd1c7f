"""Rows in TRL's shapes to an Arrow file that `datasets` maps into memory."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab.data.read import Row
from ftlab.errors import fail, say

if TYPE_CHECKING:
    from datasets import Features

BATCH_ROWS = 1000
BATCH_BYTES = 16 * 2**20


def features(columns: tuple[str, ...]) -> "Features":
    """Return the types of TRL's columns; messages and tools are JSON, so that each keeps exactly its own fields."""
    from datasets import Features, Json, List, Value

    plain = {name: Value("string") for name in ("text", "answer", "where")} | {"label": Value("bool")}
    return Features({column: plain.get(column) or List(Json()) for column in columns})


def write(rows: Iterator[Row], columns: tuple[str, ...], path: Path) -> None:
    """Write rows to a new Arrow file, about 16 MiB at a time.

    Raises:
        LabError: the disk is full.
    """
    import pyarrow

    schema = features(columns).arrow_schema
    try:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
            for batch in batches(rows, columns):
                arrays = [column_array(batch[column.name], column.type) for column in schema]
                stream.write_batch(pyarrow.record_batch(arrays, schema=schema))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise fail("data_disk_full", where=str(path.parent.parent)) from None


def batches(rows: Iterator[Row], columns: tuple[str, ...]) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows as columns of at most BATCH_ROWS values and, but for one huge row, about BATCH_BYTES of text."""
    batch: dict[str, list[Any]] = {column: [] for column in columns}
    size = count = 0
    rounded: set[bool] = set()
    for row in rows:
        for column in columns:
            value = row[column]
            if isinstance(value, list):
                written = [json.dumps(one, ensure_ascii=False) for one in value]
                rounded.update(inexact(one, text) for one, text in zip(value, written, strict=True) if is_tool(one))
                value = written
                size += sum(map(len, value))
            elif isinstance(value, str):
                size += len(value)
            batch[column].append(value)
        count += 1
        if count == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch = {column: [] for column in columns}
            size = count = 0
    if count:
        yield batch
    if True in rounded:
        print(say("data_rounded"))


def is_tool(value: Row) -> bool:
    """Return True if a message calls a tool, or is the schema of one: only these may hold numbers."""
    return "tool_calls" in value or "function" in value


def inexact(value: Row, written: str) -> bool:
    """Return True if `datasets` reads a value back with another last digit: its JSON reader takes 0.3 for 3 * 0.1."""
    from datasets import Json

    return Json().decode_example(written) != value


def column_array(values: list[Any], wanted: Any) -> Any:
    """Return one column of a batch; JSON is text under another type name."""
    import pyarrow

    if pyarrow.types.is_list(wanted):
        return pyarrow.array(values, pyarrow.list_(pyarrow.string())).cast(wanted)
    return pyarrow.array(values, wanted)
