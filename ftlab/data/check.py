"""All problems of a data set in one report, with place, problem and fix; kept + cut + dropped = read."""

import base64
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ftlab.control_tokens import CONTROL_TOKENS, harmless
from ftlab.data import decoding
from ftlab.data.convert import ConvertedRow, converted, on_texts
from ftlab.data.dataset_info import Entry, described, detect, format_of_entry
from ftlab.data.encoding import Encoding, encode
from ftlab.data.read import SUFFIXES, Row, texts
from ftlab.data.registry import is_table, opened
from ftlab.data.split import digest, question
from ftlab.data.unread import Unread, say_all
from ftlab.errors import LabError, fail, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 20
# A report on a large broken file must not fill the memory: further problems are only counted.
REMEMBERED = 1000


class Problem(NamedTuple):
    """One thing that is wrong: `where` is `file:line`, `fix` what to do."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  " + say("fix") + self.fix


@dataclass
class Report:
    """The result of a check.

    Attributes:
        read: rows; read = kept + cut + dropped.
        cut: good rows that lose tokens to cutoff_len, `tokens_lost` in all.
        dropped: rows that cannot be used.
        duplicates: good rows with the same content as an earlier one; `fix_to` leaves them out.
        overlap: good rows with the same question as a row of an earlier set.
        changed: good rows that contain control tokens; `fix_to` escapes them.
        total: problems found, of which `problems` holds the first 1000.
        unread: fields of the rows that no format reads, one line each.
        notes: remarks on the set as a whole, one line each.
        changes: what `fix_to` did, one line each.
    """

    name: str
    read: int = 0
    kept: int = 0
    cut: int = 0
    dropped: int = 0
    duplicates: int = 0
    overlap: int = 0
    changed: int = 0
    tokens_lost: int = 0
    total: int = 0
    problems: list[Problem] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def add(self, problem: LabError) -> None:
        """Count a problem, and keep it if it is among the first."""
        self.total += 1
        if len(self.problems) < REMEMBERED:
            self.problems.append(Problem(problem.where, problem.what, problem.fix))

    def __str__(self) -> str:
        shown = [str(problem) for problem in self.problems[:SHOWN]]
        if self.total > SHOWN:
            shown.append(say("data_more", count=self.total - SHOWN, total=self.total))
        shown += [*self.unread, *self.notes, *self.changes]
        names = ("name", "read", "kept", "cut", "tokens_lost", "dropped", "duplicates", "overlap", "changed")
        shown.append(say("data_summary", **{name: getattr(self, name) for name in names}))
        return "\n".join(shown)


def check(
    path_or_name: str,
    dataset_dir: str | Path = "data",
    cutoff_len: int | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    fix_to: Path | None = None,
) -> Report:
    """Read sets to their ends and report every problem.

    Args:
        path_or_name: a registry name or a path; for several, separated by commas, rows that one shares with an earlier
            one are reported too.
        cutoff_len: the most tokens of a training example; needs `tokenizer`.
        tokenizer: gives the control tokens and the chat template: every row is encoded as in training. Without one,
            the control tokens of common models are looked for.
        fix_to: write the good rows there, as .jsonl or .json, in UTF-8, control tokens escaped, duplicates left out.
    Raises:
        LabError: no such set, or `fix_to` exists or cannot be written.
    """
    names = [path_or_name] if Path(path_or_name).is_file() else [one.strip() for one in path_or_name.split(",")]
    if fix_to is not None:
        check_target(Path(fix_to), names)
    tokens = CONTROL_TOKENS if tokenizer is None else [one for one in tokenizer.all_special_tokens if len(one) > 1]
    if tokenizer is not None and cutoff_len and tokenizer.chat_template is None:
        raise fail("tokens_no_template", where=tokenizer.name_or_path)
    report = Report(path_or_name)
    look = Look(report, tokens, cutoff_len, tokenizer)
    if fix_to is None:
        for name in names:
            look.through(name, Path(dataset_dir), None)
    else:
        with_rows_written(look, names[0], Path(dataset_dir), Path(fix_to))
    report.notes += filter(None, [label_note(look.labels)])
    assert report.kept + report.cut + report.dropped == report.read
    return report


def label_note(labels: Sequence[bool]) -> str:
    """Return a note if KTO's examples all have one label or are sorted by it: TRL trains them in order; else ""."""
    if not labels:
        return ""
    count, blocks, liked = len(labels), sum(1 for _ in itertools.groupby(labels)), sum(labels)
    if blocks == 1:
        return say("kto_one_side", count=count, label=str(labels[0]).lower())
    # In random order so many are expected.
    expected = 1 + 2 * liked * (count - liked) / count
    return say("kto_sorted", count=count, blocks=blocks) if 4 * blocks < expected else ""


def check_target(fix_to: Path, names: Sequence[str]) -> None:
    """Refuse a file that exists, one of a kind that is not written, and several sets for one file."""
    if fix_to.exists():
        raise fail("data_fix_exists", where=str(fix_to))
    if fix_to.suffix not in (".json", ".jsonl") or len(names) > 1:
        raise fail("data_fix_name", where=str(fix_to))
    if not fix_to.parent.is_dir():
        raise fail("data_no_folder", where=str(fix_to.parent))


@dataclass
class Look:
    """The state of a check over one or several sets."""

    report: Report
    tokens: Sequence[str]
    cutoff_len: int | None
    tokenizer: "PreTrainedTokenizerBase | None"
    rows: dict[bytes, str] = field(default_factory=dict)
    questions: dict[bytes, str] = field(default_factory=dict)
    labels: list[bool] = field(default_factory=list)

    def through(self, name: str, dataset_dir: Path, keep: Callable[[Row], None] | None) -> Entry | None:
        """Check every row of a set and pass the repaired good ones to `keep`; return None if the file is cut off.

        Raises:
            LabError: there is no such set.
        """
        file = Path(name)
        direct = file.suffix.lower() in SUFFIXES and file.is_file()
        entry, path, hub = (None, file, None) if direct else opened(name, dataset_dir)
        own: dict[bytes, str] = {}
        try:
            entry = self.in_real_encoding(entry, path, keep is not None)
            unread = Unread(entry, table=is_table(path))
            for one in unread.counted(converted(entry, path, hub, None)):
                self.report.read += 1
                self.one(one, own, keep)
            self.report.unread += say_all(unread.notes(name, all_columns=True))
        except LabError as end:
            self.report.add(end)
            return None
        finally:
            self.questions.update(own)
        return entry

    def in_real_encoding(self, entry: Entry | None, path: Path | None, fixing: bool) -> Entry:
        """Return the entry of a set (None: detect it), in the encoding that the file has, whatever the entry says."""
        encoding = entry.encoding if entry else "utf-8"
        if path is not None and path.is_file() and path.suffix.lower() != ".parquet":
            encoding, problem = decoding.real_encoding(path, encoding)
            if problem:
                self.report.add(problem)
                self.report.changes += [say("data_changed_encoding", where=path, encoding=encoding)] if fixing else []
        if entry:
            return replace(entry, encoding=encoding)
        assert path is not None, "only a file used by its path comes without an entry"
        return detect(path, encoding)

    def one(self, outcome: ConvertedRow, own: dict[bytes, str], keep: Callable[[Row], None] | None) -> None:
        """Check one row."""
        report, row = self.report, outcome.row
        if isinstance(row, LabError):
            report.dropped += 1
            self.leave_out(row, outcome.where, keep is not None)
            return
        if "label" in row:
            self.labels.append(row["label"])
        repeated = self.repeated(row, outcome.where, own)
        if repeated:
            self.leave_out(repeated, outcome.where, keep is not None)
        raw = self.escaped(outcome, keep is not None and not repeated)
        fate = self.fate(row, outcome.where)
        setattr(report, fate, getattr(report, fate) + 1)
        if keep and not repeated and fate != "dropped":
            keep(raw)

    def leave_out(self, problem: LabError, where: str, fixing: bool) -> None:
        """Report a row that a repaired file does not have."""
        self.report.add(problem)
        self.report.changes += [say("data_changed_dropped", where=where, why=problem.what)] if fixing else []

    def repeated(self, row: Row, where: str, own: dict[bytes, str]) -> LabError | None:
        """Return the problem of a row that repeats one of this set, or the question of one in an earlier set."""
        prompt, key = question(row), digest(row)
        if prompt in self.questions:
            self.report.overlap += 1
            return fail("data_overlap", where=where, first=self.questions[prompt])
        own.setdefault(prompt, where)
        if key in self.rows:
            self.report.duplicates += 1
            return fail("data_duplicate", where=where, first=self.rows[key])
        self.rows[key] = where
        return None

    def escaped(self, converted_row: ConvertedRow, fixing: bool) -> Row:
        """Report the control tokens in the texts of a row; return the row to write."""
        counts = {token: sum(text.count(token) for text in texts(converted_row.raw)) for token in self.tokens}
        present = [token for token, count in counts.items() if count]
        if not present:
            return converted_row.raw
        self.report.changed += 1
        total = sum(counts.values())
        self.report.add(fail("data_control_token", where=converted_row.where, count=total, token=", ".join(present)))
        self.report.changes += [say("data_changed_escaped", where=converted_row.where, count=total)] if fixing else []
        return on_texts(converted_row.raw, lambda text: harmless(text, self.tokens))

    def fate(self, row: Row, where: str) -> str:
        """Return what training does with a good row: "kept", "cut" or "dropped"; report lost tokens and refusals."""
        if self.tokenizer is None or (self.tokenizer.chat_template is None and "text" not in row):
            return "kept"
        # Texts are joined and cut into pieces, nothing is lost.
        how = Encoding(cutoff_len=None if "text" in row else self.cutoff_len)
        try:
            outcome = encode(self.tokenizer, row, how)
        except LabError as problem:
            self.report.add(LabError(problem.what, where, problem.fix))
            return "dropped"
        if not outcome.lost and outcome.examples:
            return "kept"
        counts: dict[str, Any] = {"cutoff_len": self.cutoff_len, "lost": outcome.lost, "answer": outcome.answer_lost}
        left = "data_no_pair_left" if "chosen" in row else "data_nothing_left"
        self.report.add(fail("data_too_long" if outcome.examples else left, where=where, **counts))
        if not outcome.examples:
            return "dropped"
        self.report.tokens_lost += outcome.lost
        return "cut"


def with_rows_written(look: Look, name: str, dataset_dir: Path, fix_to: Path) -> None:
    """Check a set and write its good rows to a temporary file, which is renamed if it reads back and removed if not."""
    partial = fix_to.with_name(f".{fix_to.stem}.{os.getpid()}.partial{fix_to.suffix}")
    try:
        with partial.open("x", encoding="utf-8") as file:
            writer = RowWriter(file, array=fix_to.suffix == ".json")
            entry = look.through(name, dataset_dir, writer)
            if fix_to.suffix == ".json":
                file.write("\n]\n" if writer.rows else "[]\n")
            file.flush()
            os.fsync(file.fileno())
        if entry is None or not writer.rows:
            look.report.changes.append(say("data_fix_nothing" if entry else "data_fix_not_written", path=fix_to))
            return
        problem = unread_problem(entry, partial, writer.rows)
        if problem:
            look.report.add(fail("data_fix_unreadable", where=str(fix_to), reason=problem))
            return
        if fix_to.exists():
            raise FileExistsError
        partial.rename(fix_to)
        look.report.changes += [*writer.said(), say("data_fix_written", path=fix_to, rows=writer.rows)]
    except FileExistsError:
        raise fail("data_fix_exists", where=str(fix_to)) from None
    except OSError as error:
        raise fail("data_fix_failed", where=str(fix_to), reason=error.strerror) from None
    finally:
        partial.unlink(missing_ok=True)


def unread_problem(entry: Entry, partial: Path, written: int) -> str:
    """Return why the written rows do not read back as those of their set, "" if they do."""
    try:
        explicit = replace(entry, encoding="utf-8", where="") if entry.where else detect(partial)
        read = [made.row for made in converted(explicit, partial, None, None)]
    except LabError as error:
        return error.what
    problem = next((row.what for row in read if isinstance(row, LabError)), "")
    same = len(read) == written and format_of_entry(explicit).convert is format_of_entry(entry).convert
    return problem or ("" if same else f"{described(explicit)}, {len(read)} / {written}")


@dataclass
class RowWriter:
    """Write rows one by one, as lines or as the elements of an array."""

    file: TextIO
    array: bool
    rows: int = 0
    translated: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def __call__(self, row: Row) -> None:
        """Write one row on a line of its own."""
        if self.array:
            self.file.write(",\n" if self.rows else "[\n")
        plain = {column: self.plain(value, column) for column, value in row.items()}
        self.file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + ("" if self.array else "\n"))
        self.rows += 1

    def plain(self, value: Any, column: str) -> Any:
        """Return a table's value as JSON, and count values of types that JSON lacks."""
        if isinstance(value, dict):
            return {str(name): self.plain(inner, column) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(inner, column) for inner in value]
        if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        written, form = in_json(value)
        self.translated[column, type(value).__name__, form] += 1
        return written

    def said(self) -> list[str]:
        """Return one line for each column and type that was converted."""
        return [
            say("data_changed_type", column=column, count=count, type=type_, form=form)
            for (column, type_, form), count in self.translated.items()
        ]


def in_json(value: Any) -> tuple[str | None, str]:
    """Return the JSON replacement of an unsupported value, and its name.

    NaN and infinity: null. Dates and times: their ISO 8601 text. Bytes: base64. All others: their text.
    """
    if isinstance(value, float):
        return None, "null"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode(), "base64"
    return (value.isoformat(), "ISO 8601") if hasattr(value, "isoformat") else (str(value), "text")
