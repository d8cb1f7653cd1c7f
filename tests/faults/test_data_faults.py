"""Broken data files: each is refused with its place and a fix, none with a traceback, and no wrong row comes in."""

import copy
import csv
import hashlib
import io
import json
import random
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftlab.data import check, registry
from ftlab.data.read import rows
from ftlab.errors import LabError

FAULTS = Path(__file__).parent / "data"

# file -> the place after `file:`, and what is said first.
EXPECTED = {
    "array_lines.jsonl": ("2", "invalid JSON: unexpected text after the closing `]`"),
    "array_not_closed.json": ("3", "the file ends inside an example or before the closing `]`"),
    "bad_escape.jsonl": ("2", "invalid JSON: Invalid \\escape (column 32)"),
    "binary.jsonl": ("1", "the text is not UTF-8"),
    "blank_answer.jsonl": ("2", "`output` is empty"),
    "boolean_answer.jsonl": ("2", "`output` must be a string, got boolean"),
    "call_is_no_json.jsonl": ("2 (turn 2)", "invalid tool call"),
    "call_without_name.jsonl": ("2 (turn 2)", "invalid tool call"),
    "call_without_result.jsonl": ("2 (turn 3)", "a tool call has no result"),
    "carriage_return_inside.csv": ("2", "lines end with a carriage return (CR) alone"),
    "carriage_return_inside.jsonl": ("2", "lines end with a carriage return (CR) alone"),
    "carriage_returns.csv": ("1", "lines end with a carriage return (CR) alone"),
    "carriage_returns.jsonl": ("1", "lines end with a carriage return (CR) alone"),
    "carriage_returns.txt": ("1", "lines end with a carriage return (CR) alone"),
    "chosen_by_human.jsonl": ("2 (chosen)", "this answer has the role `user`, expected the assistant"),
    "columns_as_lists.json": ("1", "an object holds whole columns"),
    "columns_as_numbered_values.json": ("1", "an object holds whole columns"),
    "comma_after_one_object.jsonl": ("2", "a comma follows the object, and the file is not a JSON array"),
    "commas_after_objects.jsonl": ("1", "a comma follows the object, and the file is not a JSON array"),
    "comment.jsonl": ("1", "invalid JSON: Expecting value (column 1)"),
    "cut.parquet": ("1", "the Parquet file cannot be read: Parquet magic bytes not found in footer."),
    "cut_inside_character.jsonl": ("2", "the text ends inside a character"),
    "deep_nesting.jsonl": ("1", "invalid JSON: it is nested too deeply"),
    "dict_of_rows.json": ("1", "expected an example, got an object of examples (0, 1, ...)"),
    "duplicate_key.json": ("3", "invalid JSON: duplicate key 'output'"),
    "duplicate_key.jsonl": ("2", "invalid JSON: duplicate key 'output'"),
    "empty.jsonl": ("1", "the file is empty"),
    "empty_answer.jsonl": ("2", "`output` is empty"),
    "empty_array.json": ("1", "the file has no examples"),
    "empty_chosen.jsonl": ("2", "`chosen` is empty"),
    "empty_cell.csv": ("3", "`output` is empty"),
    "empty_instruction.jsonl": ("2", "`instruction` is empty"),
    "empty_object.jsonl": ("2", "the example has no fields"),
    "empty_rejected.jsonl": ("2", "`rejected` is empty"),
    "ends_with_question.jsonl": ("2", "the conversation ends with `user`: there is no answer to learn"),
    "equal_sides.jsonl": ("2", "chosen and rejected are the same answer"),
    "gbk.csv": ("2", "the text is not UTF-8, probably GBK"),
    "gbk.json": ("3", "the text is not UTF-8, probably GBK"),
    "gbk.jsonl": ("2", "the text is not UTF-8, probably GBK"),
    "header_only.csv": ("1", "the file has no examples"),
    "history_is_text.jsonl": ("2", "`history` must be a list of [question, answer] pairs of strings"),
    "history_of_one.jsonl": ("2", "`history` must be a list of [question, answer] pairs of strings"),
    "huge_number_in_call.jsonl": ("2 (turn 2)", "number out of range or not a number: inf"),
    "infinity_in_array.json": ("3", "invalid JSON: Infinity is not JSON"),
    "kto_tag_is_number.jsonl": ("2", "`kto_tag` must be true or false, got number"),
    "kto_tag_is_text.jsonl": ("2", "`kto_tag` must be true or false, got string"),
    "kto_tag_missing.jsonl": ("2", "`kto_tag` is missing"),
    "latin1.jsonl": ("2", "the text is not UTF-8"),
    "latin1.txt": ("1", "the text is not UTF-8"),
    "line_break_in_string.jsonl": ("2", "invalid JSON: Invalid control character at (column 31)"),
    "list_answer.jsonl": ("2", "`output` must be a string, got array"),
    "lone_surrogate.jsonl": ("2", "the example contains half a character (a lone surrogate)"),
    "long_row.csv": ("3", "the row has 3 cells, but the header has 2"),
    "missing_answer.jsonl": ("2", "`output` is missing"),
    "missing_comma_between_rows.json": ("3", "invalid JSON: expected `,` or `]` after a row"),
    "missing_rejected.jsonl": ("2", "`rejected` is missing"),
    "misspelt_answer.jsonl": ("2", "`output` is missing"),
    "misspelt_role.jsonl": ("2 (turn 2)", "unknown role `gtp`"),
    "nan_answer.jsonl": ("2", "invalid JSON: NaN is not JSON"),
    "no_turns.jsonl": ("2", "`conversations` must be a list with at least one turn, got array"),
    "nul_byte.json": ("3", "the text contains a NUL byte"),
    "nul_byte.jsonl": ("2", "the text contains a NUL byte"),
    "nul_escape.jsonl": ("2", "the text contains a NUL byte"),
    "null_answer.jsonl": ("2", "`output` must be a string, got null"),
    "null_answer.parquet": ("2", "`output` must be a string, got null"),
    "null_chosen.jsonl": ("2", "`chosen` must be a string, got null"),
    "null_row.json": ("3", "expected an object with named fields, got null"),
    "null_text.jsonl": ("2", "`text` must be a string, got null"),
    "null_turn.jsonl": ("2 (turn 2)", "`value` must be a string, got null"),
    "number_answer.jsonl": ("2", "`output` must be a string, got number"),
    "number_answer.parquet": ("1", "`output` must be a string, got number"),
    "number_instruction.jsonl": ("2", "`instruction` must be a string, got number"),
    "number_row.jsonl": ("2", "expected an object with named fields, got number"),
    "object_answer.jsonl": ("2", "`output` must be a string, got object"),
    "only_blank_lines.jsonl": ("1", "the file has no examples"),
    "only_bom.json": ("1", "the file has no examples"),
    "only_system.jsonl": ("2", "the conversation ends with `system`: there is no answer to learn"),
    "openai_bad_arguments.jsonl": ("2 (turn 2)", "invalid tool call"),
    "openai_content_parts.jsonl": ("2 (turn 1)", "`image_url`: ftlab trains on text only"),
    "openai_only_user.jsonl": ("2", "the conversation ends with `user`: there is no answer to learn"),
    "openai_role_in_sharegpt.jsonl": ("2 (turn 1)", "unknown role `user`"),
    "openai_wrong_call_id.jsonl": ("2 (turn 3)", "a tool result has no matching tool call"),
    "preference_ends_with_answer.jsonl": ("2", "the conversation must end with a question, but ends with `assistant`"),
    "pretty_printed_objects.jsonl": ("1", "an object spans several lines, and the file is not a JSON array"),
    "quote_never_closed.csv": ("3", "invalid CSV: unexpected end of data"),
    "result_without_call.jsonl": ("2 (turn 3)", "a tool result has no matching tool call"),
    "rows_after_the_array.json": ("4", "invalid JSON: unexpected text after the closing `]`"),
    "semicolons.csv": ("1", "the header is not comma-separated: instruction;output"),
    "short_row.csv": ("3", "the row has 1 cell, but the header has 2"),
    "sides_as_python_text.csv": ("2", "`chosen` holds its turns as text, not as a list"),
    "single_quotes.jsonl": (
        "1",
        "invalid JSON: Expecting property name enclosed in double quotes (column 2)",
    ),
    "string_row.json": ("3", "expected an object with named fields, got string"),
    "swapped_roles.jsonl": ("2 (turn 1)", "turn of `assistant` out of order: user and assistant turns must alternate"),
    "system_in_the_middle.jsonl": ("2 (turn 3)", "a system turn is not at the start of the conversation"),
    "system_is_a_list.jsonl": ("2", "`system` must be a string, got array"),
    "text_after_quote.csv": ("3", "invalid CSV: ',' expected after '\"'"),
    "text_named.parquet": ("1", "the Parquet file cannot be read: Parquet magic bytes not found in footer."),
    "tools_are_no_json.jsonl": ("2", "`tools` must be a JSON list of tool descriptions, each with a name"),
    "tools_are_no_list.jsonl": ("2", "`tools` must be a JSON list of tool descriptions, each with a name"),
    "trailing_comma_in_array.json": ("2", "a comma before the closing `]`, which JSON does not allow"),
    "trailing_comma_in_row.jsonl": ("2", "a comma before the closing `}`, which JSON does not allow"),
    "truncated_array.json": ("3", "the file ends inside an example or before the closing `]`"),
    "truncated_line.jsonl": ("2", "invalid JSON: Unterminated string starting at (column 31)"),
    "turn_is_text.jsonl": ("2 (turn 1)", "expected an object with named fields, got string"),
    "turn_without_value.jsonl": ("2 (turn 2)", "`value` is missing"),
    "turns_as_json_text.csv": ("2", "`messages` holds its turns as text, not as a list"),
    "turns_are_text.jsonl": ("2", "`conversations` must be a list with at least one turn, got string"),
    "twice_the_same_column.csv": ("1", "the first line is not a header: instruction, instruction"),
    "two_answers.jsonl": ("2 (turn 3)", "turn of `assistant` out of order: user and assistant turns must alternate"),
    "two_questions.jsonl": ("2 (turn 2)", "turn of `user` out of order: user and assistant turns must alternate"),
    "two_rows_on_a_line.jsonl": ("1", "invalid JSON: Extra data (column 69)"),
    "unknown_columns.jsonl": ("1", "these columns match no known format: frage, antwort"),
    "unnamed_column.csv": ("1", "the first line is not a header: instruction, "),
    "unquoted_key.jsonl": ("2", "invalid JSON: Expecting property name enclosed in double quotes (column 2)"),
    "utf16.jsonl": ("1", "the text is UTF-16"),
    "utf16_no_mark.json": ("1", "the text is UTF-16-LE"),
    "utf32.json": ("1", "the text is UTF-32"),
    "wrapped_in_data.json": ("1", "one object holds the examples under data (1 in the first)"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("FTLAB_LANG", raising=False)


def test_every_broken_file_is_expected():
    names = {path.name for path in FAULTS.iterdir()}
    assert names == set(EXPECTED) and len(names) >= 60
    assert max(path.stat().st_size for path in FAULTS.iterdir()) < 2048


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_file_is_refused_with_place_and_fix(name):
    place, what = EXPECTED[name]
    with pytest.raises(LabError) as caught:
        registry.load(str(FAULTS / name))
    assert caught.value.where == f"{FAULTS / name}:{place}"
    assert caught.value.what.startswith(what)
    assert caught.value.fix and caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["columns_as_lists.json", "columns_as_numbered_values.json"])
def test_the_command_for_columns_writes_the_examples(name, tmp_path):
    with pytest.raises(LabError) as caught:
        registry.load(str(FAULTS / name))
    command = caught.value.fix.partition(": ")[2]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
    written = registry.load(str(tmp_path / "examples.json"))
    texts = [[message["content"] for message in row] for row in written["messages"]]
    assert texts == ([["a", "c"], ["b", "d"]] if "lists" in name else [["q", "007"], ["r", "b"]])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_check_reports_the_same_place(name):
    place, what = EXPECTED[name]
    report = check.check(str(FAULTS / name))
    assert report.kept + report.cut + report.dropped == report.read
    empty = what == "the file has no examples"
    assert empty or any(p.where == f"{FAULTS / name}:{place}" and p.what.startswith(what) for p in report.problems)
    assert all(problem.fix for problem in report.problems)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_file_is_refused_in_chinese(name, monkeypatch):
    monkeypatch.setenv("FTLAB_LANG", "zh")
    with pytest.raises(LabError) as caught:
        registry.load(str(FAULTS / name))
    assert any("\u4e00" <= character <= "\u9fff" for character in caught.value.what + caught.value.fix)


ENTRIES = {
    "unknown_key": ({"file_name": "good.json", "colums": {}}, "unknown key `colums` in the entry"),
    "unknown_column": ({"file_name": "good.json", "columns": {"promt": "a"}}, "unknown key `promt` in the entry"),
    "unknown_tag": ({"file_name": "good.json", "tags": {"role": "a"}}, "unknown key `role` in the entry"),
    "formatting": ({"file_name": "good.json", "formatting": "sharegtp"}, "unknown formatting `sharegtp`"),
    "no_source": ({"formatting": "alpaca"}, "the entry has no source that ftlab can read"),
    "script": ({"script_url": "belle"}, "the entry has no source that ftlab can read"),
    "no_object": (["good.json"], "expected an object with named fields, got array"),
    "ranking": ({"file_name": "good.json", "ranking": "yes"}, "`ranking` must be bool, got string"),
    "samples": ({"file_name": "good.json", "num_samples": 0}, "`num_samples` must be int > 0, got 0"),
    "true_samples": ({"file_name": "good.json", "num_samples": True}, "`num_samples` must be int, got boolean"),
    "file_name": ({"file_name": ["good.json"]}, "`file_name` must be str, got array"),
    "media": ({"file_name": "good.json", "columns": {"prompt": "a", "images": "b"}}, "`images`: ftlab trains on text"),
    "reset": ({"file_name": "good.json", "columns": {"query": "input"}}, "`columns` overrides some names and clears"),
    "tag_reset": (
        {"file_name": "good.json", "formatting": "sharegpt", "tags": {"role_tag": "role"}},
        "`tags` overrides some names and clears the others, but `content_tag` is required",
    ),
    "encoding": ({"file_name": "good.json", "encoding": "gbq"}, "unknown text encoding `gbq`"),
    "codec": ({"file_name": "good.json", "encoding": "unicode_escape"}, "unknown text encoding `unicode_escape`"),
    "wrong_encoding": (
        {"file_name": "zh.json", "encoding": "ascii"},
        "the text is not encoded in ascii, which dataset_info.json",
    ),
    "outside": ({"file_name": "../outside.json"}, "`../outside.json` is outside the folder of dataset_info.json"),
    "absolute": ({"file_name": "/etc/passwd"}, "`/etc/passwd` is outside the folder of dataset_info.json"),
    "gone": ({"file_name": "gone.json"}, "file not found"),
    "empty_folder": ({"file_name": "nothing"}, "a folder must contain data files of one type, found: -"),
    "no_row_has_it": (
        {"file_name": "good.json", "columns": {"prompt": "instruction", "response": "output", "system": "sytem"}},
        "no example has the column `sytem`, which the entry lists",
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_broken_entry_is_refused(name, tmp_path):
    entry, what = ENTRIES[name]
    (tmp_path / "nothing").mkdir()
    (tmp_path / "good.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "zh.json").write_text('[{"instruction": "你", "output": "b"}]', encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps({name: entry}))
    with pytest.raises(LabError) as caught:
        registry.load(name, tmp_path)
    assert caught.value.what.startswith(what)
    assert caught.value.where and caught.value.fix


ROWS = [
    {"instruction": "请说出一条河。", "input": "", "output": "长江。"},
    {"instruction": "Name a lake, with a\nline break.", "input": "one", "output": 'Lake "Constance".'},
]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
ARRAY = "[" + ",\n".join(LINES) + "]"


def as_csv(line_end="\n"):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(ROWS[0]), lineterminator=line_end)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


HARMLESS = {
    "lines.jsonl": "\n".join(LINES).encode(),
    "lines.json": "\n".join(LINES).encode(),
    "array.json": ARRAY.encode(),
    "array.jsonl": ARRAY.encode(),
    "SHOUTED.JSONL": "\n".join(LINES).encode(),
    "indented.json": json.dumps(ROWS, indent=4).encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + "\n".join(LINES).encode(),
    "mark.json": b"\xef\xbb\xbf" + ARRAY.encode(),
    "mark.csv": b"\xef\xbb\xbf" + as_csv().encode(),
    "crlf.jsonl": "\r\n".join(LINES).encode() + b"\r\n",
    "crlf.json": json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode(),
    "crlf.csv": as_csv("\r\n").encode(),
    "blank_lines.jsonl": ("\n\n \n" + "\n\n\t\n".join(LINES) + "\n\n").encode(),
    "blank_before.json": ("\n\r\n  " + ARRAY + "\n\n").encode(),
    "escaped.json": json.dumps(ROWS).encode(),
    "plain.csv": as_csv().encode(),
    "gb18030.jsonl": "\n".join(LINES).encode("gb18030"),
    "gb18030.json": ARRAY.encode("gb18030"),
    "gb18030.csv": as_csv().encode("gb18030"),
    "utf-16.jsonl": "\n".join(LINES).encode("utf-16"),
    "utf-16.json": ARRAY.encode("utf-16"),
    "utf-32.csv": as_csv().encode("utf-32"),
}


def digest(dataset):
    return hashlib.sha256(json.dumps(dataset.to_list(), sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_variant_gives_the_same_rows(name, tmp_path):
    (tmp_path / name).write_bytes(HARMLESS[name])
    (tmp_path / "plain.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    encoding = {"encoding": name.split(".")[0]} if name.startswith(("gb", "utf")) else {}
    info = {"variant": {"file_name": name} | encoding, "plain": {"file_name": "plain.jsonl"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert digest(registry.load("variant", tmp_path)) == digest(registry.load("plain", tmp_path))


# Whole files as seeds: the broken ones, and good ones of every kind.
SEEDS = [path for path in sorted(FAULTS.iterdir()) if path.suffix != ".parquet"]
BYTES = [path.read_bytes() for path in SEEDS] + list(HARMLESS.values())
KINDS = [path.suffix for path in SEEDS] + [Path(name).suffix.lower() for name in HARMLESS]
PIECES = [b"\x00", b"\xff", b"\xfe", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u", b"\\ud800", b"\n", b"\r", b"\\",
          b"null", b"NaN", b"1e999", b"9" * 5000, b"\xef\xbb\xbf", "长".encode(), "长".encode("gbk"), b"{{name}}",
          b"<|im_end|>", b'"role"', b'"from"', b'"human"', b"[[" * 600, b'{"a":' * 400]  # fmt: skip


def mutated(seed):
    """Return (kind, bytes): a seed file with one to eight changes, all following from one number."""
    chance = random.Random(seed)
    number = chance.randrange(len(BYTES))
    data = bytearray(BYTES[number])
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        change = chance.randrange(5)
        if change == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif change == 1:
            data[at:at] = chance.choice(PIECES)
        elif change == 2:
            del data[at : at + chance.choice((1, 2, 10, 1000))]
        elif change == 3:
            data[at:at] = data[: chance.randrange(200)]
        else:
            data[at : at + 4] = chance.randbytes(4)
    return KINDS[number] if chance.random() < 0.9 else chance.choice((".json", ".jsonl", ".csv", ".txt")), bytes(data)


def harmless_or_refused(path):
    """Read a file through every layer; a row that comes out must be one that TRL could train on."""
    try:
        entry, _ = registry.find(str(path), path.parent)
    except LabError:
        return 0
    good = 0
    try:
        for made in registry.converted(entry, path, None, {}):
            if isinstance(made.row, LabError):
                assert made.row.where.startswith(f"{path}:") and made.row.fix
                continue
            good += 1
            answers = [made.row.get(key) for key in ("messages", "completion", "chosen", "rejected")]
            assert all(a[-1]["role"] == "assistant" for a in answers if a is not None)
            assert all(a[-1]["content"].strip() or a[-1]["tool_calls"] for a in answers if a is not None)
            json.dumps(made.row, ensure_ascii=False, allow_nan=False).encode()
    except LabError as end:
        assert end.where.startswith(str(path)) and end.fix
    return good


@settings(max_examples=5000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1))
def test_mutated_files_raise_nothing_but_lab_errors(seed, tmp_path_factory):
    kind, data = mutated(seed)
    path = tmp_path_factory.getbasetemp() / f"mutated{kind}"
    path.write_bytes(data)
    harmless_or_refused(path)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1))
def test_mutated_files_are_checked_and_mended(seed, tmp_path_factory):
    kind, data = mutated(seed)
    folder = tmp_path_factory.getbasetemp()
    path, mended = folder / f"mutated{kind}", folder / "mended.jsonl"
    path.write_bytes(data)
    mended.unlink(missing_ok=True)
    report = check.check(str(path), fix_to=mended)
    assert report.kept + report.cut + report.dropped == report.read
    if mended.exists():
        assert sum(1 for _ in rows(mended)) == report.kept - report.duplicates - report.overlap
        assert check.check(str(mended)).total == 0


def said(role, content, **more):
    return {"role": role, "content": content} | more


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"until": null}'}}
PAIR = {"chosen": [said("assistant", "b")], "rejected": [said("assistant", "c")]}
# Good rows with all that a format may hold, as seeds.
GOOD_ROWS = [
    {
        "messages": [
            said("system", "s"),
            said("user", "a", name="x"),
            said("assistant", "b", weight=0, reasoning="c"),
            said("user", [{"type": "text", "text": "d"}]),
            said("assistant", None, tool_calls=[CALL]),
            said("tool", "ok", tool_call_id="c1"),
            said("assistant", "e"),
        ],
        "tools": [{"name": "f", "parameters": {"default": None}}],
        "images": [],
    },
    {
        "messages": [
            said("user", "a"),
            said("assistant", None, function_call={"name": "f", "arguments": "{}"}),
            said("function", "ok", name="f"),
            said("assistant", "b"),
        ],
        "functions": [{"name": "f"}],
        "label": False,
    },
    {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": null}}'},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "b", "train": True},
        ],
        "tools": "[]",
        "system": "s",
    },
    {"instruction": "a", "input": "b", "output": "c", "history": [["q", "r"]], "label": "x"},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": [said("user", "a")], "completion": [said("assistant", "b")], "tools": [{"name": "f"}]},
    {"prompt": [said("user", "a")], "margin": 1.0} | PAIR,
    {side: [said("user", "a"), *answer] for side, answer in PAIR.items()},
    {"conversations": [{"from": "human", "value": "a"}]}
    | {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")},
    {"text": "a", "label": 1},
]
STRANGE = [
    None, "", " ", 0, 1, True, False, 0.5, -1, 10**30, [], {}, "x", ["x"], [None], {"a": None}, "true", "[]", "{}",
    "user", "tool", "<image>", "{{name}}", "<think>t</think>", [["a", "b"]], [{"type": "image"}], said("user", "z"),
    [said("assistant", "z")],
]  # fmt: skip
KEYS = [
    "messages", "role", "content", "weight", "train", "reasoning_content", "tools", "functions", "label", "kto_tag",
    "images", "system", "history", "prompt", "chosen", "rejected", "tool_calls", "function_call", "name", "arguments",
    "from", "value", "id", "where", "text", "type",
]  # fmt: skip


def containers(value):
    """Return every object and list of a row that is not empty, from the outside in."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if inside else []) + [found for one in inside for found in containers(one)]


def mutated_row(chance):
    """Return a good row with up to three changes."""
    row = copy.deepcopy(chance.choice(GOOD_ROWS))
    for _ in range(chance.randrange(4)):
        inside = chance.choice(containers(row) or [row])
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        key, value = chance.choice(keys or [0]), copy.deepcopy(chance.choice(STRANGE))
        if chance.random() < 0.3 and isinstance(inside, dict):
            inside[chance.choice(KEYS)] = value
        elif chance.random() < 0.3 and len(inside):
            del inside[key]
        elif len(inside):
            inside[key] = value
    return row


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1))
def test_a_check_keeps_the_rows_that_a_load_accepts(seed, tmp_path_factory):
    chance = random.Random(seed)
    rows_ = [mutated_row(chance) for _ in range(chance.randint(1, 4))]
    folder = tmp_path_factory.getbasetemp()
    path, fixed = folder / f"rows{chance.choice(('.json', '.jsonl'))}", folder / "fixed.jsonl"
    lines = [json.dumps(row) for row in rows_]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    fixed.unlink(missing_ok=True)
    report = check.check(str(path), fix_to=fixed)
    try:
        accepted = len(registry.load(str(path), on_bad_rows="drop", substitutions={"name": "n"}))
    except LabError:
        accepted = 0
    assert accepted == report.kept
    if fixed.exists():
        assert len(registry.load(str(fixed), substitutions={"name": "n"})) == report.kept - report.duplicates


# Not getrusage: its peak begins with what the process that started this one held.
MEASURED = """
import re, sys
from pathlib import Path
from ftlab.data import registry
from ftlab.errors import LabError
try:
    print("rows", len(registry.load(sys.argv[1])))
except LabError as error:
    print("refused", error.where.rpartition(":")[2], error.what)
print("peak", 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def measured(path):
    """Load a file in a process of its own; return what it printed and its largest resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return said[-1], int(peak.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line.jsonl", "array.json"])
def test_a_row_of_600_mb_is_refused_within_1_gb(name, tmp_path):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"[\n" if name == "array.json" else b'{"instruction": "a", "output": "b"}\n')
        file.write(b'{"instruction": "a", "output": "')
        for _ in range(600):
            file.write(b"x" * 10**6)
        file.write(b'"}')
    said, peak = measured(path)
    path.unlink()
    assert "2 the line is longer than 64 MiB" in said
    assert peak < 10**9, f"{peak / 1e6:.0f} MB"
    print(f"{name}: {peak / 1e6:.0f} MB")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lines.jsonl", "array.json"])
def test_300_mb_of_rows_stream_within_350_mb(name, tmp_path):
    """The imports take 150 MB of them, and a file of any size about 90."""
    path = tmp_path / name
    row = json.dumps({"instruction": "Say x.", "output": "长 x " * 1600})
    count = 3 * 10**8 // (len(row) + 1) + 1
    start, between, end = ("[", ",\n", "]") if name == "array.json" else ("", "\n", "\n")
    with path.open("w") as file:
        file.write(start + row)
        for _ in range(count - 1):
            file.write(between + row)
        file.write(end)
    assert path.stat().st_size >= 3 * 10**8
    said, peak = measured(path)
    path.unlink()
    assert said == f"rows {count}"
    assert peak < 3.5 * 10**8, f"{peak / 1e6:.0f} MB"
    print(f"{name}: {peak / 1e6:.0f} MB")
