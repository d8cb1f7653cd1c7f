"""Load data sets by name or path as rows that TRL trains on: read strictly, cached once, mixed."""

import hashlib
import json
import os
import random
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ftlab import embedded
from ftlab.control_tokens import has_control_token
from ftlab.data.arrow_cache import write
from ftlab.data.convert import PLACEHOLDER, ConvertedRow, converted
from ftlab.data.dataset_info import LOOKED_AT, Entry, described, files, find, fitting, format_of_entry
from ftlab.data.hub import fetched
from ftlab.data.read import Row, first, texts
from ftlab.data.unread import Note, Unread, say_all
from ftlab.errors import LabError, fail, say

if TYPE_CHECKING:
    from datasets import Dataset

STOPS = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
# What to do with a row that cannot be used.
ON_BAD_ROWS = ("refuse", "drop")
# Problems named in the one error of a strict load; `ftlab data check` lists more.
NAMED = 4


def load(
    dataset: str,
    dataset_dir: str | Path = "data",
    *,
    max_samples: int | None = None,
    mix_strategy: str = "concat",
    interleave_probs: list[float] | None = None,
    seed: int = 42,
    substitutions: dict[str, str] | None = None,
    on_bad_rows: str = "refuse",
    places: bool = False,
) -> "Dataset":
    """Return the rows of one or several sets in TRL's shapes; nothing is repaired silently.

    Fields that no format reads are counted and printed each time the rows are loaded.

    A file is read once and kept as an Arrow file under `FTLAB_CACHE` (else ~/.cache/ftlab), named after its content,
    so that memory stays flat and a changed file is read again.

    Args:
        dataset: registry names or paths, separated by commas.
        dataset_dir: the folder of dataset_info.json; "ONLINE" takes the names as hub ids.
        max_samples: rows to take of each set, from its start.
        mix_strategy: "concat", "interleave_under" (stop when the first set ends) or "interleave_over" (when all have).
        interleave_probs: one probability per set, for the two interleaving strategies.
        seed: of the interleaving and of `num_samples`.
        substitutions: name -> text for `{{name}}` placeholders.
        on_bad_rows: "refuse" the set if one row cannot be used, or "drop" such rows and print their number and places.
        places: add a column `where`, "file:line" of each row.
    Returns:
        Columns `messages` | `prompt`, `completion`, `label` | `prompt`, `chosen`, `rejected` | `text`, and `tools`
        where any row has some. A message that is not trained on has `weight: 0`.
    Raises:
        LabError: rows that cannot be used (with "drop": if no other is left), with the first places and their number.
    """
    from datasets import concatenate_datasets, interleave_datasets

    names = names_in(dataset)
    if not names:
        raise fail("data_no_name", where="dataset")
    check_mix(names, mix_strategy, interleave_probs)
    if max_samples is not None and max_samples < 1:
        raise fail("data_max_samples", where="max_samples", got=max_samples)
    if on_bad_rows not in ON_BAD_ROWS:
        raise fail("data_on_bad_rows", where="on_bad_rows", got=on_bad_rows, known=", ".join(ON_BAD_ROWS))
    options = Options(max_samples, seed, substitutions or {}, on_bad_rows == "drop")
    sets = [load_one(name, Path(dataset_dir), options) for name in names]
    sets = sets if places else [one.remove_columns("where") for one in sets]
    shapes = [", ".join(column for column in one.column_names if column not in ("tools", "where")) for one in sets]
    if len(set(shapes)) > 1:
        formats = "; ".join(f"{name}: {shape}" for name, shape in zip(names, shapes, strict=True))
        raise fail("data_mixed_shapes", where=dataset, shapes=formats)
    if len(sets) == 1:
        return sets[0]
    if mix_strategy == "concat":
        return concatenate_datasets(sets)
    return interleave_datasets(sets, interleave_probs, seed, stopping_strategy=STOPS[mix_strategy])


def names_in(dataset: str) -> list[str]:
    """Return the names and paths in a text that separates them by commas; a path may contain some."""
    return [dataset] if Path(dataset).is_file() else [name.strip() for name in dataset.split(",") if name.strip()]


def unused(substitutions: Iterable[str], dataset: str, dataset_dir: str | Path, most: int | None = None) -> list[str]:
    """Return the names that no placeholder of some data sets has; reading stops once all have been found.

    Args:
        dataset, dataset_dir: as for `load`.
        most: examples of each set that are used.
    """
    left = set(substitutions)
    for name in names_in(dataset):
        entry, path, hub = opened(name, Path(dataset_dir))
        for one in islice(converted(entry, path, hub, None), None if entry.num_samples else most):
            if not left:
                return []
            left -= {place[1] or place[2] for text in texts(one.raw) for place in PLACEHOLDER.finditer(text)}
    return sorted(left)


def check_mix(names: list[str], mix_strategy: str, interleave_probs: list[float] | None) -> None:
    """Refuse a mixture that cannot be made."""
    if mix_strategy not in ("concat", *STOPS):
        raise fail("data_mix", where="mix_strategy", got=mix_strategy, known=", ".join(["concat", *STOPS]))
    if interleave_probs is None:
        return
    # A set that is never drawn never ends.
    allowed = min(interleave_probs) > 0 if mix_strategy == "interleave_over" else min(interleave_probs) >= 0
    fits = len(interleave_probs) == len(names) and allowed and abs(sum(interleave_probs) - 1) < 1e-6
    if not fits or mix_strategy == "concat":
        got = f"{interleave_probs} ({mix_strategy})"
        raise fail("data_probs", where="interleave_probs", got=got, sets=len(names))


class Options(NamedTuple):
    """How one set is read."""

    max_samples: int | None
    seed: int
    substitutions: dict[str, str]
    drop: bool


def load_one(name: str, dataset_dir: Path, options: Options) -> "Dataset":
    """Return the rows of one set, each with its place in the column `where`."""
    from datasets import Dataset

    entry, path, hub = opened(name, dataset_dir)
    if not entry.where:
        print(say("data_read_as", path=name, format=described(entry)))
    gives = format_of_entry(entry).gives
    target = kept(name, entry, path, hub, options)
    for line in say_all(notes_beside(target)):
        print(line)
    rows = Dataset.from_file(str(target))
    if "tools" in gives and rows.data.column("tools").null_count == len(rows):
        rows = rows.remove_columns("tools")
    if entry.num_samples:
        rows = rows.select(drawn(len(rows), entry.num_samples, options.seed))
        rows = rows.select(range(min(options.max_samples, len(rows)))) if options.max_samples else rows
    return rows


def kept(name: str, entry: Entry, path: Path | None, hub: "Dataset | None", options: Options) -> Path:
    """Return the Arrow file of a data set, and write it first if it does not exist."""
    # num_samples draws from all rows, so all must be read.
    limit = None if entry.num_samples else options.max_samples
    target = cache_folder() / f"{fingerprint(path, hub, entry, (limit, *options[2:]))}.arrow"
    if target.is_file():
        return target
    unread = Unread(entry, table=is_table(path))
    rows = unread.counted(converted(entry, path, hub, options.substitutions))
    notes: list[Note] = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        partial = Path(scratch) / "rows.arrow"
        good = good_rows(rows, limit, name, notes, drop=options.drop)
        write(good, (*format_of_entry(entry).gives, "where"), partial)
        notes += unread.notes(name, all_columns=not entry.where)
        if notes:
            (Path(scratch) / "notes.json").write_text(json.dumps(notes, ensure_ascii=False), encoding="utf-8")
            os.replace(Path(scratch) / "notes.json", target.with_suffix(".json"))
        os.replace(partial, target)
    return target


def notes_beside(target: Path) -> list[Note]:
    """Return the notes that were stored when an Arrow file was written."""
    path = target.with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def is_table(path: Path | None) -> bool:
    """Return True if rows come from a table, whose columns give every object the same keys, filled with null."""
    return path is None or any(file.suffix.lower() == ".parquet" for file in files(path))


def opened(name: str, dataset_dir: Path) -> "tuple[Entry, Path | None, Dataset | None]":
    """Return the entry of a name or a path, and either its file (or folder) or its rows on a hub.

    Raises:
        LabError: no such file or name, not reachable, or a hub id without an entry whose columns fit no format.
    """
    entry, path = find(name, dataset_dir)
    if path is not None:
        return entry, path, None
    hub = fetched(entry)
    if not entry.where:
        guessed = fitting(islice(hub, LOOKED_AT))
        if guessed is None:
            raise fail("data_no_format", where=f"{name}:1", columns=first(hub.column_names))
        entry = replace(guessed, hf_hub_url=name)
    return entry, None, hub


def good_rows(
    rows: Iterable[ConvertedRow], limit: int | None, name: str, notes: list[Note], *, drop: bool = False
) -> Iterator[Row]:
    """Yield rows with their places while all are good; then read on only to count the bad ones.

    Args:
        notes: notes on the rows are added to it.
        drop: bad rows are left out and noted.
    Raises:
        LabError: a row is invalid (with `drop`, only if all are or the rest of the file is unreadable), or there are
            no rows.
    """
    problems: list[LabError] = []
    total = read = controlled = 0
    broken = False
    try:
        for one in islice(rows, limit):
            read += 1
            if isinstance(one.row, LabError):
                total += 1
                problems += [one.row] if len(problems) < NAMED else []
            elif drop or not problems:
                controlled += any(map(has_control_token, texts(one.row)))
                yield one.row | {"where": one.where}
    except LabError as end:
        total, broken = total + 1, True
        problems = [end, *problems] if drop else [*problems, end]
    if problems and (broken or not drop or total == read):
        raise refusal(problems[:NAMED], total, name)
    if not read:
        raise fail("data_no_rows", where=name)
    if problems:
        notes.append(left_out(problems, total, read, name))
    if controlled:
        notes.append(("data_controlled", {"name": name, "count": controlled, "file": shlex.quote(name)}))


def left_out(problems: list[LabError], total: int, read: int, name: str) -> Note:
    """Return the note about rows that were left out, the first ones with their places."""
    lines = [f"{problem.where}: {problem.what}" for problem in problems]
    return "data_left_out", {"name": name, "count": total, "read": read, "first": "\n  ".join(lines)}


def refusal(problems: list[LabError], total: int, name: str) -> LabError:
    """Build the one error of a strict load: the first problem, the places of the next ones, and the total."""
    first = problems[0]
    if total == 1:
        return first
    places = ", ".join(problem.where for problem in problems[1:])
    return LabError(
        first.what + say("data_also", total=total, places=places, file=shlex.quote(name)), first.where, first.fix
    )


def drawn(rows: int, count: int, seed: int) -> list[int]:
    """Draw `count` row numbers at random, each row once before any is repeated, as LLaMA-Factory does."""
    chance = random.Random(seed)
    picked = chance.sample(range(rows), min(rows, count))
    return picked + chance.choices(range(rows), k=count - len(picked))


def fingerprint(
    path: Path | None, hub: "Dataset | None", entry: Entry, how: tuple[int | None, dict[str, str], bool]
) -> str:
    """Return the cache key of converted rows, which changes with the data, the entry and ftlab's own code."""
    limit, substitutions, drop = how
    seen = hashlib.sha256(repr((entry, limit, sorted(substitutions.items()), drop)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        seen.update(source.read_bytes())
    if hub is not None:
        seen.update(hub._fingerprint.encode())
    for file in files(path) if path else ():
        with file.open("rb") as data:
            seen.update(file.suffix.lower().encode() + hashlib.file_digest(data, "sha256").digest())
    return seen.hexdigest()


def cache_folder() -> Path:
    """Return the folder of converted rows, and create it if necessary.

    Raises:
        LabError: it cannot be written to.
    """
    folder = embedded.cache_dir() / "rows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fail("data_cache", where=str(folder), reason=error.strerror) from None
    return folder


def rows_of(name: str, dataset_dir: str | Path = "data", *, places: bool = False) -> list[Row]:
    """Return the valid rows of one data set in TRL's formats, with placeholders; dropped rows are printed.

    Args:
        places: give each row a key `where`, "file:line".
    Raises:
        LabError: no row is good.
    """
    entry, path, hub = opened(name, Path(dataset_dir))
    unread = Unread(entry, table=is_table(path))
    notes: list[Note] = []
    source_rows = unread.counted(converted(entry, path, hub, None))
    rows = list(good_rows(source_rows, None, name, notes, drop=True))
    for line in say_all([*notes, *unread.notes(name, all_columns=not entry.where)]):
        print(line)
    return rows if places else [{key: value for key, value in row.items() if key != "where"} for row in rows]
