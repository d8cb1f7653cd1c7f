"""The entry of a data set: from dataset_info.json, with LLaMA-Factory's keys, or detected from a file's columns."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ftlab import manifests
from ftlab.data import decoding
from ftlab.data.formats import ALPACA_COLUMNS, Columns, Format, format_of, tags_of
from ftlab.data.messages import OPENAI_TAGS, SHAREGPT_TAGS, Tags
from ftlab.data.read import SUFFIXES, Row, empty, first, kind, reason, rows, suggestion, unique_keys, wrapped
from ftlab.errors import LabError, fail

INFO = "dataset_info.json"
# As `dataset_dir`: the names are hub ids.
ONLINE = "ONLINE"
FORMATTINGS = ("alpaca", "sharegpt", "openai")
COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected", "kto_tag",
)  # fmt: skip
MEDIA_COLUMNS = ("images", "videos", "audios")
# LLaMA-Factory's keys for sources that ftlab does not read; allowed next to one that it reads.
OTHER_SOURCES = ("om_hub_url", "script_url", "cloud_file_name")
# (prompt, query, response) of files without an entry, the most common first.
KNOWN_COLUMNS = (
    ("instruction", "input", "output"),
    ("prompt", "", "response"),
    ("prompt", "", "completion"),
    ("question", "", "answer"),
    ("question", "", "response"),
    ("query", "", "response"),
)
# Next to these columns (TRL's and ms-swift's) `label` is KTO's; next to others it may be the name of a class.
JUDGED = ("prompt", "query")
# One of this many first rows of a file used by its path must have a known format.
LOOKED_AT = 1000
TRUTHS = (
    "true", "false", "yes", "no", "1", "0", "-1", "1.0", "0.0", "good", "bad", "desirable", "undesirable", "chosen",
    "rejected", "liked", "disliked", "thumbs_up", "thumbs_down",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One registry entry with LLaMA-Factory's keys; `encoding` is ftlab's own, `where` is the entry's place."""

    file_name: str = ""
    hf_hub_url: str = ""
    ms_hub_url: str = ""
    formatting: str = "alpaca"
    ranking: bool = False
    columns: Mapping[str, str | None] = field(default_factory=dict)
    tags: dict[str, str | None] = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    encoding: str = "utf-8"
    where: str = ""

    def all_columns(self) -> Columns:
        """Return the effective columns. Setting any resets the others, as in LLaMA-Factory."""
        if self.columns:
            return {name: column for name, column in self.columns.items() if column}
        sides = {"chosen": "chosen", "rejected": "rejected"} if self.ranking else {}
        if self.formatting == "alpaca":
            return ALPACA_COLUMNS | {"system": "system", "history": "history"} | sides
        return {"messages": "messages" if self.formatting == "openai" else "conversations"} | sides

    def all_tags(self) -> Tags:
        """Return the effective tags. Setting any resets the others."""
        if self.tags:
            return {name: tag for name, tag in self.tags.items() if tag}
        return OPENAI_TAGS if self.formatting == "openai" else SHAREGPT_TAGS


def read_info(dataset_dir: Path) -> dict[str, Any]:
    """Return dataset_info.json: name -> description.

    Raises:
        LabError: there is none, or it is not valid JSON.
    """
    path = dataset_dir / INFO
    if not path.is_file():
        raise fail("data_no_info", where=str(path))
    try:
        info = json.loads(decoding.text_of(path), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise fail("data_json", where=f"{path}:{getattr(error, 'lineno', 1)}", reason=reason(error)) from None
    if not isinstance(info, dict):
        raise fail("data_not_object", where=f"{path}:1", got=kind(info))
    return info


def register(name: str, entry: Mapping[str, Any], dataset_dir: Path) -> None:
    """Add a data set to dataset_info.json and keep its other lines; nothing is written if it is there already.

    Raises:
        LabError: another data set has this name, or dataset_info.json is not valid JSON.
    """
    path = dataset_dir / INFO
    info = read_info(dataset_dir) if path.is_file() else {}
    if name in info and info[name] != entry:
        raise fail("data_name_taken", where=str(dataset_dir), name=name)
    if name not in info:
        lines = path.read_text(encoding="utf-8-sig") if info else "{}"
        head = lines.rstrip().removesuffix("}").rstrip()
        added = f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}"
        manifests.write_text(path, f"{head}{',' if info else ''}\n  {added}\n}}\n")


def entry_of(name: str, dataset_dir: Path) -> Entry:
    """Return the entry of a registered name.

    Raises:
        LabError: no such name, or an entry with an unknown key or a value of the wrong type; the nearest is named.
    """
    info = read_info(dataset_dir)
    if name not in info:
        raise fail("data_unknown_set", where=str(dataset_dir / INFO), name=name, nearest=suggestion(name, info))
    where, values = f"{dataset_dir / INFO}: {name}", info[name]
    if not isinstance(values, dict):
        raise fail("data_not_object", where=where, got=kind(values))
    check_types(values, where)
    entry = Entry(**{key: value for key, value in values.items() if key not in OTHER_SOURCES}, where=where)
    if entry.formatting not in FORMATTINGS:
        known = ", ".join(FORMATTINGS)
        raise fail("data_formatting", where=where, formatting=entry.formatting, known=known)
    if not (entry.file_name or entry.hf_hub_url or entry.ms_hub_url):
        raise fail("data_no_source", where=where)
    check_columns(entry)
    return entry


def check_types(values: Row, where: str) -> None:
    """Refuse an entry with unknown keys or invalid values."""
    known = {one.name: one for one in fields(Entry) if one.name != "where"}
    types = {"ranking": (bool,), "columns": (dict,), "tags": (dict,), "num_samples": (int, type(None))}
    for key, value in values.items():
        if key in OTHER_SOURCES:
            continue
        if key not in known:
            raise fail("data_unknown_key", where=where, key=key, nearest=suggestion(key, known))
        allowed = types.get(key, (str, type(None)) if known[key].default is None else (str,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise fail("data_key_type", where=where, key=key, got=kind(value), expected=allowed[0].__name__)
    for key, names in (("columns", (*COLUMNS, *MEDIA_COLUMNS)), ("tags", tuple(SHAREGPT_TAGS))):
        for name, value in values.get(key, {}).items():
            if name not in names:
                raise fail("data_unknown_key", where=f"{where}: {key}", key=name, nearest=suggestion(name, names))
            if name in MEDIA_COLUMNS and value is not None:
                raise fail("data_media", where=f"{where}: {key}", column=name)
            if not isinstance(value, str | None):
                raise fail("data_key_type", where=f"{where}: {key}", key=name, got=kind(value), expected="str")
    if values.get("num_samples") is not None and values["num_samples"] < 1:
        raise fail("data_key_type", where=where, key="num_samples", got=values["num_samples"], expected="int > 0")


def check_columns(entry: Entry) -> None:
    """Refuse an entry whose `columns` or `tags` lack one that its format needs."""
    columns = entry.all_columns()
    needed = ["messages"] if entry.formatting != "alpaca" else [] if entry.ranking else ["prompt"]
    needed += ["chosen", "rejected"] if entry.ranking else []
    if entry.formatting == "alpaca" and not entry.ranking and {"query", "history", "kto_tag"} & set(columns):
        needed.append("response")
    needed_tags = ["role_tag", "content_tag", "user_tag", "assistant_tag"] if entry.formatting != "alpaca" else []
    for key, names, wanted in (("columns", columns, needed), ("tags", entry.all_tags(), needed_tags)):
        for name in wanted:
            if name not in names:
                raise fail("data_reset", where=f"{entry.where}: {key}", key=key, name=name)


def find(name: str, dataset_dir: Path) -> tuple[Entry, Path | None]:
    """Return the entry and the file (or folder) of a registry name or a path; None if the rows are on a hub.

    Raises:
        LabError: no such file, no such name, or an invalid entry.
    """
    path = Path(name)
    if str(dataset_dir) == ONLINE:
        return Entry(hf_hub_url=name), None
    if path.suffix and path.is_file():
        return detect(path), path
    if path.suffix.lower() in SUFFIXES and ("/" in name or os.sep in name or not (dataset_dir / INFO).is_file()):
        raise fail("data_no_file", where=name)
    entry = entry_of(name, dataset_dir)
    return entry, None if entry.hf_hub_url or entry.ms_hub_url else inside(entry, dataset_dir)


def inside(entry: Entry, dataset_dir: Path) -> Path:
    """Return the path of an entry's file.

    Raises:
        LabError: it does not exist, it is outside the folder of the registry, which may be someone else's, or the
            entry asks for a split or subset, which only a data set on a hub has.
    """
    for key in ("split", "subset", "folder"):
        if (value := getattr(entry, key)) and (key, value) != ("split", "train"):
            raise fail("data_hub_key", where=entry.where, key=key, value=value, file=entry.file_name)
    root = os.path.abspath(dataset_dir)
    path = os.path.normpath(os.path.join(root, entry.file_name))
    if "\x00" in path or os.path.commonpath([root, path]) != root:
        raise fail("data_outside", where=entry.where, path=entry.file_name)
    if not os.path.exists(path):
        raise fail("data_no_file", where=str(dataset_dir / entry.file_name))
    return dataset_dir / entry.file_name


def files(path: Path) -> list[Path]:
    """Return the files of a path: itself, or the data files of a folder in the order of their names; not hidden ones.

    Raises:
        LabError: a folder without data files, with several kinds of them, or with more in subfolders.
    """
    if not path.is_dir():
        return [path]
    seen = [one for one in path.iterdir() if not one.name.startswith(".")]
    if deeper := sorted(one.name for one in seen if one.is_dir() and any(map(is_data, one.rglob("*")))):
        raise fail("data_folder_deeper", where=str(path), folders=first(deeper))
    paths = sorted(filter(is_data, seen))
    kinds = sorted({one.suffix.lower() for one in paths})
    if len(kinds) != 1:
        raise fail("data_folder", where=str(path), kinds=" ".join(kinds) or "-", suffixes=" ".join(SUFFIXES))
    return paths


def is_data(path: Path) -> bool:
    """Return True for a file of a kind that is read."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def detect(path: Path, encoding: str = "utf-8") -> Entry:
    """Return the entry for a file used by its path: that of the first row with a known format.

    Raises:
        LabError: no format has the columns of the first rows, or they cannot be read.
    """
    problems: list[LabError] = []
    if fits := fitting(readable(path, encoding, problems)):
        return replace(fits, encoding=encoding)
    raise problems[0] if problems else fail("data_no_rows", where=f"{path}:1")


def readable(path: Path, encoding: str, problems: list[LabError]) -> Iterator[Row]:
    """Yield the first rows of a file; `problems` gets those that cannot be read or have no format, and the end."""
    try:
        for place, row in islice(rows(path, encoding), LOOKED_AT):
            if isinstance(row, LabError):
                problems.append(row)
                continue
            if guess(row) is None:
                problems.append(no_format(f"{path}:{place}", row))
            yield row
    except LabError as end:
        problems.append(end)


def fitting(examples: Iterable[Row]) -> Entry | None:
    """Return the entry of the first row with a known format, and the columns that rows of the same format add.

    The first row may lack columns of later ones: `tools`, or KTO's label. The first value of each column that is not
    empty counts, so a `label` that is null in some rows is KTO's, or the name of a class, as in the others.
    """
    first_fit: Entry | None = None
    union: Row = {}
    for row in examples:
        entry = guess(row)
        if entry and (first_fit is None or needs(entry) == needs(first_fit)):
            first_fit = first_fit or entry
            union |= {column: value for column, value in row.items() if empty(union.get(column))}
    return guess(union) if first_fit else None


def needs(entry: Entry) -> tuple[object, ...]:
    """Return what all rows of an entry must have in common."""
    return entry.formatting, entry.ranking, *(entry.columns.get(name) for name in ("messages", "prompt", "response"))


def no_format(where: str, row: Row) -> LabError:
    """Build the error of a row whose columns fit no format."""
    if unwrapped := wrapped(row, where):
        return unwrapped
    # `Instruction`, or ` output` where a table has spaces after its commas.
    plain = {name: name.strip().lower() for name in row}
    if len({*plain.values()}) == len(plain) and guess({plain[name]: value for name, value in row.items()}):
        renamed = ", ".join(f"`{name}` -> `{other}`" for name, other in plain.items() if name != other)
        return fail("data_column_spelling", where=where, columns=first(row), renamed=renamed)
    return fail("data_no_format", where=where, columns=first(row))


def described(entry: Entry) -> str:
    """Return a short description of an entry's format: the formatting and the columns it reads."""
    columns = entry.all_columns()
    return f"{entry.formatting} ({', '.join(columns.values())} -> {', '.join(format_of_entry(entry).gives)})"


def format_of_entry(entry: Entry) -> Format:
    """Return the Format of an entry."""
    return format_of(entry.formatting, entry.ranking, entry.all_columns())


def guess(row: Row) -> Entry | None:
    """Return the entry whose columns these are."""
    ranking = "chosen" in row and "rejected" in row
    columns: Columns
    sides = {"chosen": "chosen", "rejected": "rejected"} if ranking else {}
    for column in () if ranking and begins_with_prompt(row["chosen"]) else ("messages", "conversations"):
        if column in row:
            kto = {} if ranking else kto_column(row, judged=True)
            columns = {"messages": column, "system": system_column(row), "tools": tools_column(row)} | sides | kto
            formatting = "openai" if tags_of(row[column]) is OPENAI_TAGS else "sharegpt"
            return Entry(formatting=formatting, ranking=ranking, columns=columns)
    tools = {"tools": tools_column(row)} if {"tools", "functions"} & set(row) else {}
    for prompt, query, response in KNOWN_COLUMNS:
        if prompt in row and (ranking or response in row):
            columns = {"prompt": prompt, "query": query, "system": system_column(row), "history": "history"} | tools
            kto = kto_column(row, judged=prompt in JUDGED)
            return Entry(ranking=ranking, columns=columns | (sides or {"response": response} | kto))
    if ranking:
        # The prompt is the common beginning of both sides.
        return Entry(ranking=True, columns={"system": system_column(row)} | tools | sides)
    return Entry(columns={"prompt": "text"}) if "text" in row else None


def begins_with_prompt(side: object) -> bool:
    """Return whether a side of a preference is a whole conversation, as in UltraFeedback."""
    first = side[0] if isinstance(side, list) and side else None
    return isinstance(first, dict) and first.get("role", first.get("from")) in ("system", "developer", "user", "human")


def system_column(row: Row) -> str:
    """Return the column of a row's system turn, which OpenOrca and its relatives call `system_prompt`."""
    return "system_prompt" if empty(row.get("system")) and not empty(row.get("system_prompt")) else "system"


def tools_column(row: Row) -> str:
    """Return the column of a row's tools, which OpenAI formerly called `functions`."""
    return "functions" if empty(row.get("tools")) and not empty(row.get("functions")) else "tools"


def kto_column(row: Row, judged: bool) -> Columns:
    """Return the column with the KTO label, {} if there is none.

    Args:
        judged: a `label` that only looks like true or false is KTO's too (and refused later), not a class.
    """
    label = row.get("label")
    meant = isinstance(label, bool) or (judged and str(label).strip().lower() in TRUTHS)
    name = "kto_tag" if "kto_tag" in row else "label" if meant else ""
    return {"kto_tag": name} if name else {}
