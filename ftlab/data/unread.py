"""Fields of a data set that are not read: they are counted, so that no data is lost silently."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ftlab.data.convert import MEDIA, PLACEHOLDER, ConvertedRow
from ftlab.data.dataset_info import COLUMNS, Entry, format_of_entry
from ftlab.data.formats import is_messages, tags_of
from ftlab.data.messages import OPENAI_NAMES, ROLES, THOUGHTS, WEIGHTS, Message, Tags
from ftlab.data.read import Row, empty, texts
from ftlab.errors import say

# A message of errors.messages() and its values: it may be printed again, in another language, from the cache.
Note = tuple[str, dict[str, Any]]
# Columns that formats give a meaning: without them the examples mean something else.
KNOWN = {
    *COLUMNS, "instruction", "input", "output", "question", "answer", "completion", "context", "conversations", "label",
    "functions", "system_prompt", "score", "scores", "score_chosen", "score_rejected", "margin", "rejected_response",
    "rejected_messages", "chosen_messages", "chat_template_kwargs", "enable_thinking", "mask", "choices", "options",
    *THOUGHTS, *WEIGHTS,
}  # fmt: skip

# Of these, those that `columns` cannot map: margins, scores, weights and template settings.
NEVER = {
    "score", "scores", "score_chosen", "score_rejected", "margin", "chat_template_kwargs", "enable_thinking", "mask",
}  # fmt: skip
NEVER |= {*THOUGHTS, *WEIGHTS}
# How programs write a cell without a value: pandas, Python, JSON, spreadsheets, self-instruct.
BLANK_WORDS = {"nan", "none", "null", "<na>", "#n/a", "<noinput>"}
LONGEST_BLANK = max(map(len, BLANK_WORDS))

# The columns of an entry that may hold turns.
SPOKEN = ("messages", "prompt", "response", "chosen", "rejected")


class Unread:
    """Counts, over the rows of one set, what no format reads.

    Attributes:
        columns: column -> rows in which it is not empty.
        blanks: ("answer" or a column, a word for a missing value) -> rows in which it is the whole text.
        keys: key of a message -> messages in which it is not empty.
    """

    def __init__(self, entry: Entry, *, table: bool) -> None:
        self.entry, self.table = entry, table
        listed, reads = entry.all_columns(), format_of_entry(entry).reads
        self.named = {name: column for name, column in listed.items() if name in reads}
        self.read, self.tags = set(self.named.values()), entry.all_tags()
        # Columns of another kind of data: `chosen` and `rejected` without `ranking: true`.
        self.idle = {column: name for name, column in listed.items() if column not in self.read}
        self.spoken = [self.named[name] for name in SPOKEN if name in self.named]
        self.columns: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()
        self.media: Counter[str] = Counter()
        self.blanks: Counter[tuple[str, str]] = Counter()
        self.systems = self.nulls = self.placeholders = 0

    def counted(self, rows: Iterable[ConvertedRow]) -> Iterator[ConvertedRow]:
        """Yield rows and count the unread fields of the good ones."""
        for made in rows:
            if isinstance(made.row, dict):
                self.count(made.raw, made.row)
            yield made

    def count(self, raw: Row, row: Row) -> None:
        """Count the unread fields of one good row."""
        self.columns.update(name for name, value in raw.items() if name not in self.read and not empty(value))
        turns = [turn for name in self.spoken for turn in self.turns(raw.get(name))]
        for turn, tags in turns:
            self.keys.update(unread_keys(turn, tags))
        self.systems += self.other_system(raw, row)
        self.nulls += self.table and (any(null_arguments(turn) for turn, _ in turns) or self.null_tools(raw))
        strings = list(texts(row))
        self.media.update({f"<{one}>" for text in strings if "<" in text for one in MEDIA if f"<{one}>" in text})
        self.placeholders += any("{{" in text and PLACEHOLDER.search(text) for text in strings)
        whole: list[tuple[str, Any]] = [("answer", text) for text in answers(row)]
        whole += [(self.named[name], raw.get(self.named[name])) for name in ("query", "system") if name in self.named]
        plain = [(part, text.strip()) for part, text in whole if isinstance(text, str)]
        short = [(part, text) for part, text in plain if len(text) <= LONGEST_BLANK]
        self.blanks.update((part, text) for part, text in short if text.lower() in BLANK_WORDS)

    def turns(self, value: Any) -> list[tuple[Message, Tags]]:
        """Return the turns in a column with their tags: the entry's, or those of TRL's own lists."""
        listed = [value] if isinstance(value, dict) else value
        if not is_messages(listed):
            return []
        tags = tags_of(listed) if self.entry.formatting == "alpaca" else self.tags
        return [(turn, tags) for turn in listed]

    def other_system(self, raw: Row, row: Row) -> bool:
        """Return True if a row has a system column and a different system turn."""
        column = raw.get(self.named["system"]) if "system" in self.named else None
        first = (row.get("messages") or row.get("prompt") or [{}])[0]
        return isinstance(column, str) and bool(column.strip()) and column != first.get("content")

    def null_tools(self, raw: Row) -> bool:
        """Return True if the schemas of a row's tools contain nulls."""
        tools = raw.get(self.named["tools"]) if "tools" in self.named else None
        return isinstance(tools, list) and any(has_null(tool) for tool in tools)

    def notes(self, name: str, *, all_columns: bool) -> list[Note]:
        """Return the notes; columns that no format knows are listed with `all_columns`."""
        idle = {column: count for column, count in self.columns.items() if column in self.idle}
        kind = {"formatting": self.entry.formatting, "ranking": str(self.entry.ranking).lower()}
        result: list[Note] = [
            ("data_unread_listed", {"name": name, "count": count, "column": column, "key": self.idle[column]} | kind)
            for column, count in idle.items()
        ]
        others = {column: count for column, count in self.columns.items() if column not in idle}
        known = {} if self.entry_gives_text() else {c: n for c, n in others.items() if c in KNOWN}
        result += [
            (
                "data_unread_never" if column in NEVER else "data_unread_rows",
                {"name": name, "count": count, "column": column},
            )
            for column, count in known.items()
        ]
        result += [("data_unread_keys", {"name": name, "count": count, "key": key}) for key, count in self.keys.items()]
        result += [
            ("data_blank_words", {"name": name, "count": count, "part": part, "word": word})
            for (part, word), count in self.blanks.items()
        ]
        if self.systems:
            result.append(("data_two_systems", {"name": name, "count": self.systems}))
        if self.nulls:
            result.append(("data_nulls_kept", {"name": name, "count": self.nulls}))
        result += [
            ("data_media_placeholders", {"name": name, "count": count, "placeholder": placeholder})
            for placeholder, count in self.media.items()
        ]
        if self.placeholders:
            result.append(("data_placeholders", {"name": name, "count": self.placeholders}))
        rest = [column for column in others if column not in known]
        if rest and all_columns:
            result.append(("data_unread_columns", {"name": name, "columns": ", ".join(rest)}))
        return result

    def entry_gives_text(self) -> bool:
        """Return True if the data set is raw text, so that no other column has a meaning."""
        return format_of_entry(self.entry).gives == ("text",)


def answers(row: Row) -> list[str]:
    """Return the texts of a row's last answers, one for each side of a pair."""
    sides = [row[name] for name in ("messages", "completion", "chosen", "rejected") if row.get(name)]
    return [side[-1]["content"] for side in sides]


def say_all(notes: Iterable[Note]) -> list[str]:
    """Return notes in the user's language."""
    return [say(key, **values) for key, values in notes]


def unread_keys(turn: Message, tags: Tags) -> list[str]:
    """Return the keys of a turn that are not empty and not read."""
    named = turn.get(tags["role_tag"])
    role = next((role for tag, role in ROLES.items() if tags.get(tag) == named), "")
    role = role or ROLES.get(OPENAI_NAMES.get(named or "", ("", ""))[0], "")
    read = {tags["role_tag"], tags["content_tag"], "tool_calls", "function_call"}
    if role == "tool":
        read |= {"name", "tool_call_id"}
    if role in ("assistant", "function"):
        read |= {*THOUGHTS, *WEIGHTS}
    return [key for key, value in turn.items() if key not in read and not empty(value) and not off(key, value)]


def off(key: str, value: object) -> bool:
    """Return True if a key only says that a turn is not trained on, which holds for all but the assistant's."""
    return key in WEIGHTS and value in (0, False)


def null_arguments(turn: Message) -> bool:
    """Return True if the arguments of a turn's tool calls hold nulls from a table's columns, not from JSON text."""
    calls = turn.get("tool_calls") or []
    return any(has_null((call.get("function") or call).get("arguments")) for call in calls)


def has_null(value: Any) -> bool:
    """Return True if there is a null inside an object or a list."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(one is None or has_null(one) for one in inside)
