"""Everything that is wrong with a data set, in one report: place, problem, fix; and kept + cut + dropped = read."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab.control import CONTROL_TOKENS, count_control_tokens, escape_control_tokens
from ftlab.data import registry
from ftlab.data.read import Row
from ftlab.data.split import folded
from ftlab.errors import LabError, fail, say

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN = 20


@dataclass
class Report:
    """What a check found.

    Attributes:
        read, kept, cut, dropped: rows; kept + cut + dropped = read. `cut` rows lose tokens to cutoff_len.
        problems: one LabError per problem.
        changes: what `fix_to` changed, one line each.
    """

    name: str
    read: int = 0
    kept: int = 0
    cut: int = 0
    dropped: int = 0
    tokens_lost: int = 0
    problems: list[LabError] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(say("data_more", count=len(self.problems) - SHOWN, total=len(self.problems)))
        lines += self.changes
        counts = {"read": self.read, "kept": self.kept, "cut": self.cut, "dropped": self.dropped}
        lines.append(say("data_summary", name=self.name, tokens=self.tokens_lost, **counts))
        return "\n".join(lines)


def check(
    name: str,
    dataset_dir: str | Path = "data",
    *,
    cutoff_len: int | None = None,
    row_lengths: "Callable[[Row], int] | None" = None,
    fix_to: Path | None = None,
) -> Report:
    """Read a set to its end and report every problem.

    Args:
        name: a registry name or a path.
        cutoff_len: tokens kept of a row; needs `row_lengths`.
        row_lengths: a row in TRL's shape -> its tokens.
        fix_to: write the good rows there, control tokens escaped and duplicates left out. Never over a file.
    Raises:
        LabError: the file as a whole cannot be read, or `fix_to` exists.
    """
    if fix_to is not None and fix_to.exists():
        raise fail("data_fix_exists", where=str(fix_to))
    entry, path = registry.find(name, Path(dataset_dir))
    path = path or registry.fetched(entry, name)
    report, seen, good = Report(name), {}, []
    for line, row in registry.converted(entry, path, None):
        report.read += 1
        if isinstance(row, LabError):
            report.problems.append(row)
            report.dropped += 1
            continue
        where = f"{path}:{line}"
        key = folded(row)
        if key in seen:
            report.problems.append(fail("data_duplicate", where=where, first=seen[key]))
            report.changes += [f"{where}: duplicate of line {seen[key]} left out"] if fix_to else []
            report.dropped += 1
            continue
        seen[key] = line
        row = escaped(row, where, report, fixing=fix_to is not None)
        length = row_lengths(row) if row_lengths else 0
        if cutoff_len and length > cutoff_len:
            report.problems.append(fail("data_too_long", where=where, tokens=length, cutoff_len=cutoff_len))
            report.cut += 1
            report.tokens_lost += length - cutoff_len
        else:
            report.kept += 1
        good.append(row)
    if fix_to is not None:
        write(good, fix_to)
        report.changes.append(f"{len(good)} rows written to {fix_to}")
    assert report.kept + report.cut + report.dropped == report.read
    return report


def escaped(row: Row, where: str, report: Report, *, fixing: bool) -> Row:
    """Report the control tokens in the texts of a row; make them harmless when `fixing`."""
    text = json.dumps(row, ensure_ascii=False)
    count = count_control_tokens(text)
    if not count:
        return row
    found = next(token for token in CONTROL_TOKENS if token in text)
    report.problems.append(fail("data_control_token", where=where, count=count, token=found))
    if fixing:
        report.changes.append(f"{where}: {count} control tokens escaped")
        return json.loads(escape_control_tokens(text))
    return row


def write(rows: list[Row], path: Path) -> None:
    """Write rows as JSONL under a temporary name, then rename: a cut write leaves nothing that looks finished."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
