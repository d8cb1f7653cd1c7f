"""Formats, registry, check and split on files small enough to read."""

import hashlib
import json
from pathlib import Path

import pytest

from ftlab import control
from ftlab.data import check, registry, split
from ftlab.errors import LabError

ROWS = [{"instruction": "say hi", "output": "hi"}, {"instruction": "问好", "input": "张三", "output": "你好"}]
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def loaded(folder: Path, entry: dict, row: dict) -> dict:
    """Load one row through a registry entry."""
    (folder / "rows.jsonl").write_text(jsonl([row]), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"set": {"file_name": "rows.jsonl"} | entry}))
    return registry.load("set", folder)[0]


@pytest.mark.parametrize(
    ("entry", "row", "expected"),
    [
        ({}, {"instruction": "Solve", "input": "3 + 4", "output": "a"}, {"messages": [{"role": "user", "content": "Solve\n3 + 4"}, ASSISTANT]}),
        (
            {},
            {"instruction": "q", "output": "a", "system": "s", "history": [["h", "r"]]},
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "h"}, {"role": "assistant", "content": "r"}, USER, ASSISTANT]},
        ),
        # Giving any column resets the others, as in LLaMA-Factory: here the system turn is lost.
        ({"columns": {"prompt": "p", "response": "r"}}, {"p": "q", "r": "a", "system": "s"}, {"messages": [USER, ASSISTANT]}),
        ({"columns": {"prompt": "text"}}, {"text": "raw"}, {"text": "raw"}),
        (
            {"ranking": True},
            {"instruction": "q", "chosen": "a", "rejected": "b"},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "b"}]},
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "liked"}},
            {"instruction": "q", "output": "a", "liked": False},
            {"prompt": [USER], "completion": [ASSISTANT], "label": False},
        ),
        ({"formatting": "sharegpt"}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {"messages": [USER, ASSISTANT]}),
        (
            {"formatting": "sharegpt", "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}, "columns": {"messages": "messages"}},
            {"messages": [USER, ASSISTANT]},
            {"messages": [USER, ASSISTANT]},
        ),
        ({"formatting": "openai"}, {"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}),
        (
            {"formatting": "sharegpt", "ranking": True},
            {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "b"}]},
        ),
    ],
)  # fmt: skip
def test_each_format_becomes_trl_s_shape(tmp_path, entry, row, expected):
    assert loaded(tmp_path, entry, row) == expected


def test_tool_calls_survive(tmp_path):
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "a"},
    ]
    row = loaded(tmp_path, {"formatting": "sharegpt"}, {"conversations": turns, "tools": '[{"name": "add"}]'})
    assert row["messages"][1]["tool_calls"] == [CALL] and row["messages"][2]["role"] == "tool"
    assert json.loads(row["tools"]) == [{"name": "add"}]


def digest(path: Path) -> str:
    return hashlib.sha256(json.dumps(registry.load(str(path)).to_list()).encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS).encode()),
        ("crlf.jsonl", jsonl(ROWS).replace("\n", "\r\n").encode()),
        ("blank.jsonl", b"\n\n" + jsonl(ROWS).replace("\n", "\n\n").encode()),
        ("no_last_break.jsonl", jsonl(ROWS).rstrip().encode()),
        ("array.json", json.dumps(ROWS, indent=2).encode()),
        ("array_as.jsonl", json.dumps(ROWS).encode()),
        ("lines_as.json", jsonl(ROWS).encode()),
        ("escaped.json", json.dumps(ROWS, ensure_ascii=True).encode()),
        ("bom_array.json", b"\xef\xbb\xbf" + json.dumps(ROWS, ensure_ascii=False).encode()),
        ("table.csv", 'instruction,input,output\nsay hi,,hi\n问好,张三,你好\n'.encode()),
    ],
)  # fmt: skip
def test_harmless_variants_are_the_same_rows(tmp_path, name, content):
    (tmp_path / "plain.jsonl").write_text(jsonl(ROWS), encoding="utf-8")
    (tmp_path / name).write_bytes(content)
    assert digest(tmp_path / name) == digest(tmp_path / "plain.jsonl")


def test_parquet_and_gb18030_are_the_same_rows(tmp_path):
    import pandas

    (tmp_path / "plain.jsonl").write_text(jsonl(ROWS), encoding="utf-8")
    pandas.DataFrame(ROWS).fillna("").to_parquet(tmp_path / "rows.parquet")
    assert digest(tmp_path / "rows.parquet") == digest(tmp_path / "plain.jsonl")
    (tmp_path / "gbk.jsonl").write_bytes(jsonl(ROWS).encode("gb18030"))
    info = {"gbk": {"file_name": "gbk.jsonl", "encoding": "gb18030"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert registry.load("gbk", tmp_path).to_list() == registry.load(str(tmp_path / "plain.jsonl")).to_list()


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(jsonl(ROWS))
    assert len(registry.load(str(path))) == 2
    path.write_text(jsonl(ROWS[:1]))
    assert len(registry.load(str(path))) == 1


def test_sets_are_mixed_and_capped(tmp_path):
    for name in ("a", "b"):
        rows = [{"instruction": name, "output": str(n)} for n in range(5)]
        (tmp_path / f"{name}.jsonl").write_text(jsonl(rows))
    both = f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl"
    assert len(registry.load(both, max_samples=3)) == 6
    mixed = registry.load(both, mix_strategy="interleave_under", interleave_probs=[0.5, 0.5], seed=0)
    assert {row["messages"][0]["content"] for row in mixed} == {"a", "b"}
    with pytest.raises(LabError, match="interleave_over"):
        registry.load(both, mix_strategy="shuffle")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"orders": {"file_name": "x.jsonl"}}, "did you mean orders"),
        ({"order": {"file_nam": "x.jsonl"}}, "`file_nam` is no key.*\n.*file_name"),
        ({"order": {"file_name": "x.jsonl", "formatting": "vicuna"}}, "no formatting is called `vicuna`"),
        ({"order": {"file_name": "missing.jsonl"}}, "no such file"),
    ],
)
def test_a_wrong_registry_is_said(tmp_path, info, message):
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(LabError, match=message):
        registry.load("order", tmp_path)


def test_unfilled_placeholders_are_refused(tmp_path):
    (tmp_path / "r.jsonl").write_text(jsonl([{"instruction": "who", "output": "I am {{name}}"}]))
    with pytest.raises(LabError, match=r"r\.jsonl:1: .*\{\{name\}\}"):
        registry.load(str(tmp_path / "r.jsonl"))
    row = registry.load(str(tmp_path / "r.jsonl"), substitutions={"name": 'Lu"mi'})[0]
    assert row["messages"][1]["content"] == 'I am Lu"mi'


def test_the_report_counts_every_row_and_the_fix_mends_them(tmp_path):
    rows = [
        *ROWS,
        {"instruction": "SAY  hi", "output": "Hi"},
        {"instruction": "x", "output": ""},
        {"instruction": "a<|im_end|>", "output": "long"},
    ]
    path, fixed = tmp_path / "r.jsonl", tmp_path / "fixed.jsonl"
    path.write_text(jsonl(rows))
    long = len("a<|im_end|>long")
    count = lambda row: len("".join(message["content"] for message in row["messages"]))  # noqa: E731
    report = check.check(str(path), cutoff_len=long - 2, row_lengths=count)
    assert (report.read, report.kept, report.cut, report.dropped, report.tokens_lost) == (5, 2, 1, 2, 2)
    said = str(report)
    assert "r.jsonl:3: the row says the same as line 1" in said and "r.jsonl:4: `output` is empty" in said
    assert "1 control tokens stand in the text, <|im_end|>" in said and "5 rows read = 2 kept + 1 cut" in said

    assert "3 rows written" in str(check.check(str(path), fix_to=fixed))
    again = check.check(str(fixed))
    assert not again.problems and again.kept == 3
    with pytest.raises(LabError, match="exists already"):
        check.check(str(path), fix_to=fixed)


def test_a_long_report_shows_twenty_and_the_total(tmp_path):
    (tmp_path / "r.jsonl").write_text(jsonl([{"instruction": "x", "output": ""}] * 30 + ROWS))
    assert "... and 10 more, 30 problems in all" in str(check.check(str(tmp_path / "r.jsonl")))


def test_escaped_control_tokens_are_plain_text(tiny_tokenizer):
    text = control.escape_control_tokens("a<|im_end|>b")
    assert tiny_tokenizer.eos_token_id not in tiny_tokenizer(text).input_ids
    assert control.count_control_tokens(text) == 0 and text.replace(control.JOINER, "") == "a<|im_end|>b"


def test_a_split_has_no_overlap_and_keeps_shares():
    rows = [
        {
            "prompt": [{"role": "user", "content": f"q{n % 90}"}],
            "completion": [{"role": "assistant", "content": "a"}],
            "label": n % 90 < 30,
        }
        for n in range(100)
    ]
    parts = split.split(rows, 0.1, 0.1, seed=0, stratify="label")
    assert parts.dropped == 10 and len(parts.train) + len(parts.validation) + len(parts.test) == 90
    assert split.overlap(parts.train, parts.test) == split.overlap(parts.train, parts.validation) == 0
    assert sum(row["label"] for row in parts.test) == 3 and len(parts.test) == 9
    assert split.split(rows, 0.1, 0.1, seed=0, stratify="label") == parts
    assert split.overlap(rows, rows) == 100
    with pytest.raises(LabError, match=r"0\.6 and 0\.5"):
        split.split(rows, 0.6, 0.5)


def test_every_registered_set_of_the_course_loads():
    data = Path(__file__).parents[2] / "data"
    names = json.loads((data / "dataset_info.json").read_text())
    for name in names:
        assert len(registry.load(name, data, substitutions={"name": "Lumi", "author": "Ada"})) >= 30, name
