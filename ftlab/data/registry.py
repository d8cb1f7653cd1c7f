"""Data sets by name: dataset_info.json with LLaMA-Factory's keys, or a path used directly."""

import difflib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab.data import formats
from ftlab.data.formats import ALPACA_COLUMNS, OPENAI_TAGS, SHAREGPT_COLUMNS, SHAREGPT_TAGS, Columns
from ftlab.data.read import Row, rows
from ftlab.errors import LabError, fail

if TYPE_CHECKING:
    from datasets import Dataset

INFO = "dataset_info.json"
FORMATTINGS = ("alpaca", "sharegpt", "openai")


@dataclass(frozen=True)
class Entry:
    """One registry entry, its keys as LLaMA-Factory names them; `encoding` is our own."""

    file_name: str = ""
    hf_hub_url: str = ""
    ms_hub_url: str = ""
    formatting: str = "alpaca"
    ranking: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"
    num_samples: int | None = None
    encoding: str = "utf-8"

    def all_columns(self) -> Columns:
        """Return the columns in force. Giving any resets those not given, as in LLaMA-Factory."""
        if self.columns:
            return Columns({name: column for name, column in self.columns.items() if column})
        if self.formatting == "alpaca":
            sides = {"chosen": "chosen", "rejected": "rejected"} if self.ranking else {}
            return Columns(ALPACA_COLUMNS | {"system": "system", "history": "history"} | sides)
        sides = {"chosen": "chosen", "rejected": "rejected"} if self.ranking else {}
        known = {"messages": "messages"} if self.formatting == "openai" else SHAREGPT_COLUMNS
        return Columns(known | {"system": "system", "tools": "tools"} | sides)

    def all_tags(self) -> dict[str, str]:
        """Return the tags in force."""
        return self.tags or (OPENAI_TAGS if self.formatting == "openai" else SHAREGPT_TAGS)


def read_info(dataset_dir: Path) -> dict[str, Row]:
    """Return dataset_info.json: name -> description."""
    path = dataset_dir / INFO
    if not path.is_file():
        raise fail("data_no_info", where=str(path))
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise fail("data_json", where=f"{path}:{getattr(error, 'lineno', 1)}", reason=str(error)) from None


def entry_of(name: str, dataset_dir: Path) -> Entry:
    """Return the entry of a registered name.

    Raises:
        LabError: no such name, or an entry with an unknown key; the nearest is named.
    """
    info = read_info(dataset_dir)
    if name not in info:
        raise fail("data_unknown_set", where=str(dataset_dir / INFO), name=name, nearest=nearest(name, info))
    known = [item.name for item in fields(Entry)]
    for key in info[name]:
        if key not in known:
            raise fail("data_unknown_key", where=f"{dataset_dir / INFO}: {name}", key=key, nearest=nearest(key, known))
    entry = Entry(**info[name])
    if entry.formatting not in FORMATTINGS:
        known = ", ".join(FORMATTINGS)
        raise fail("data_formatting", where=f"{dataset_dir / INFO}: {name}", formatting=entry.formatting, known=known)
    return entry


def nearest(name: str, names: Any) -> str:
    """Return the known names most like `name`."""
    return ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0.3) or list(names)[:3])


def find(name: str, dataset_dir: Path) -> tuple[Entry, Path | None]:
    """Return the entry and the file behind a registry name or a path; None where a hub holds the rows."""
    path = Path(name)
    if path.suffix and path.is_file():
        return detect(path), path
    if path.suffix and ("/" in name or not (dataset_dir / INFO).is_file()):
        raise fail("data_no_file", where=name)
    entry = entry_of(name, dataset_dir)
    return entry, dataset_dir / entry.file_name if entry.file_name else None


def detect(path: Path, encoding: str = "utf-8") -> Entry:
    """Return the entry that fits the first good row of a file used by its path, and say which format it seems to be.

    Raises:
        LabError: no format has these columns.
    """
    first = next((row for _, row in rows(path, encoding) if not isinstance(row, LabError)), None)
    if first is None:
        problem = next((row for _, row in rows(path, encoding)), None)
        raise problem if isinstance(problem, LabError) else fail("data_no_rows", where=f"{path}:1")
    entry = guess(set(first), encoding)
    if entry is None:
        raise fail("data_no_format", where=f"{path}:1", columns=", ".join(map(str, first)))
    columns = ", ".join(entry.all_columns()[key] for key in entry.all_columns() if entry.all_columns()[key] in first)
    print(f"{path}: read as {entry.formatting} ({columns})")
    return entry


def guess(names: set[str], encoding: str) -> Entry | None:
    """Return the entry whose columns these are."""
    ranking = {"chosen", "rejected"} <= names
    kto = {"kto_tag": "kto_tag"} if "kto_tag" in names else {"kto_tag": "label"} if "label" in names else {}
    common: dict[str, Any] = {"ranking": ranking, "encoding": encoding}
    if "conversations" in names:
        columns = {"messages": "conversations", "system": "system", "tools": "tools"} | kto if kto else {}
        return Entry(formatting="sharegpt", columns=columns, **common)
    if "messages" in names:
        columns = {"messages": "messages", "system": "system", "tools": "tools"} | kto if kto else {}
        return Entry(formatting="openai", columns=columns, **common)
    for prompt, query, response in (
        ("instruction", "input", "output"),
        ("prompt", "", "response"),
        ("prompt", "", "completion"),
    ):
        if prompt in names and (ranking or response in names):
            sides = {"chosen": "chosen", "rejected": "rejected"} if ranking else {"response": response} | kto
            columns = {"prompt": prompt, "query": query, "system": "system", "history": "history"} | sides
            return Entry(columns=columns, **common)
    return Entry(columns={"prompt": "text"}, **common) if "text" in names else None


def converted(entry: Entry, path: Path, substitutions: dict[str, str] | None) -> Iterator[tuple[int, Row | LabError]]:
    """Yield (line, row in TRL's shape), or (line, what is wrong with it); None leaves placeholders as they are."""
    columns, tags = entry.all_columns(), entry.all_tags()
    convert = formats.converter(entry.formatting, entry.ranking, columns)
    for line, row in rows(path, entry.encoding):
        if isinstance(row, LabError):
            yield line, row
            continue
        where = f"{path}:{line}"
        try:
            made = convert(row, columns, tags, where)
            yield line, made if substitutions is None else filled(made, substitutions, where)
        except LabError as problem:
            yield line, problem


def rows_of(name: str, dataset_dir: str | Path = "data") -> list[Row]:
    """Return the good rows of one set in TRL's shapes, placeholders left as they are."""
    entry, path = find(name, Path(dataset_dir))
    found = converted(entry, path or fetched(entry, name), None)
    return [row for _, row in found if not isinstance(row, LabError)]


def load(
    dataset: str,
    dataset_dir: str | Path = "data",
    *,
    max_samples: int | None = None,
    mix_strategy: str = "concat",
    interleave_probs: list[float] | None = None,
    seed: int = 42,
    substitutions: dict[str, str] | None = None,
) -> "Dataset":
    """Return the rows of one or several sets in TRL's shapes.

    Args:
        dataset: registry names or paths, separated by commas.
        dataset_dir: the folder of dataset_info.json.
        max_samples: rows to take of each set.
        mix_strategy: "concat", "interleave_under" or "interleave_over".
        interleave_probs: one probability per set.
        substitutions: name -> text for `{{name}}` placeholders.
    Returns:
        Columns `messages`[, `tools`] | `prompt`, `completion`, `label` | `prompt`, `chosen`, `rejected` | `text`.
    Raises:
        LabError: any row that cannot be read; the first one's place, and how many more there are.
    """
    from datasets import concatenate_datasets, interleave_datasets

    names = [name.strip() for name in dataset.split(",") if name.strip()]
    sets = [load_one(name, Path(dataset_dir), max_samples, substitutions or {}) for name in names]
    if len({tuple(sorted(one.column_names)) for one in sets}) > 1:
        raise fail("data_mixed_shapes", where=dataset, shapes="; ".join(",".join(one.column_names) for one in sets))
    if mix_strategy == "concat":
        return concatenate_datasets(sets)
    stops = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
    if mix_strategy not in stops:
        raise fail("data_mix", where="mix_strategy", got=mix_strategy, known=", ".join(["concat", *stops]))
    return interleave_datasets(sets, interleave_probs, seed, stopping_strategy=stops[mix_strategy])


def load_one(name: str, dataset_dir: Path, max_samples: int | None, substitutions: dict[str, str]) -> "Dataset":
    """Return the rows of one set."""
    from datasets import Dataset

    entry, path = find(name, dataset_dir)
    if path is None:
        path = fetched(entry, name)
    # All problems are known before the first row is kept.
    problems = [row for _, row in converted(entry, path, substitutions) if isinstance(row, LabError)]
    if problems:
        raise LabError(problems[0].what + more(len(problems) - 1, name), problems[0].where, problems[0].fix)
    wanted = min((n for n in (max_samples, entry.num_samples) if n), default=None)

    def generate(fingerprint: tuple) -> Iterator[Row]:
        for _, row in itertools.islice(converted(entry, path, substitutions), wanted):
            yield row

    # The fingerprint makes the cache of `datasets` see a changed file, entry or substitution.
    stamp = path.stat()
    key = (str(path), stamp.st_size, stamp.st_mtime_ns, repr(entry), wanted, tuple(sorted(substitutions.items())))
    return Dataset.from_generator(generate, gen_kwargs={"fingerprint": key})


def more(count: int, name: str) -> str:
    """Return how many problems were not printed."""
    return f" (and {count} more: `ftlab data check {name}`)" if count else ""


def filled(row: Row, substitutions: dict[str, str], where: str) -> Row:
    """Replace `{{name}}` placeholders in every text of a row.

    Raises:
        LabError: a placeholder nobody gave a value for; it would be trained on as it stands.
    """
    text = json.dumps(row, ensure_ascii=False)
    for name, value in substitutions.items():
        text = text.replace("{{" + name + "}}", json.dumps(value, ensure_ascii=False)[1:-1])
    for placeholder in ("{{name}}", "{{author}}"):
        if placeholder in text:
            raise fail("data_placeholder", where=where, placeholder=placeholder, name=placeholder.strip("{}"))
    return json.loads(text)


def fetched(entry: Entry, name: str) -> Path:
    """Return a local Parquet file with the rows of a hub data set; scripts of the repository are never run."""
    from ftlab.embedded import cache_dir

    target = cache_dir() / "datasets" / f"{name}.parquet"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.hf_hub_url:
        from datasets import load_dataset

        try:
            loaded = load_dataset(entry.hf_hub_url, entry.subset, split=entry.split)
        except (OSError, ValueError, RuntimeError) as error:
            raise fail("data_hub", where=entry.hf_hub_url, reason=str(error).splitlines()[0][:120]) from None
    else:
        try:
            from modelscope.msdatasets import MsDataset
        except ImportError:
            raise fail("modelscope_missing", name=entry.ms_hub_url or name) from None
        loaded = MsDataset.load(entry.ms_hub_url, subset_name=entry.subset, split=entry.split).to_hf_dataset()
    partial = target.with_suffix(".partial")
    loaded.to_parquet(partial)
    partial.rename(target)
    return target
