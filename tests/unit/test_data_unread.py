"""Nothing in a data set is lost without a word: each key and column is honoured, refused by name, or counted."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from ftlab.data import check, registry
from ftlab.errors import LabError

CALL = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": '{"room": "A", "until": null}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "ok"}


def user(content, **more):
    return {"role": "user", "content": content} | more


def assistant(content, **more):
    return {"role": "assistant", "content": content} | more


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*rows, name="x.jsonl"):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return name


def loaded(*rows):
    return registry.load(write(*rows)).to_list()


def refused(*rows, line=1):
    """Return the problem of the rows, which load, check and the list of good rows see alike."""
    path = write(*rows)
    with pytest.raises(LabError) as caught:
        registry.load(path)
    report = check.check(path)
    assert report.problems[0].what == re.sub(r" \(\d+ problems.*", "", caught.value.what)
    assert caught.value.where.startswith(f"x.jsonl:{line}") and caught.value.fix
    return f"{caught.value.where.removeprefix('x.jsonl:')}: {caught.value.what}"


def noted(capsys, *rows):
    """Return what is said at a load, without the line that names the format; a check says it too."""
    path = write(*rows)
    capsys.readouterr()
    registry.load(path)
    said = capsys.readouterr().out.splitlines()[1:]
    assert check.check(path).unread == said
    registry.load(path)
    assert capsys.readouterr().out.splitlines()[1:] == said, "the cache keeps what there is to say"
    return [re.sub("; `columns`.*|: nothing in training.*", "", line.removeprefix("x.jsonl: ")) for line in said]


# weights

TURNS = [user("Name a colour."), assistant("Go away."), user("Please."), assistant("Green.")]
OFF = [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"training": False}, {"loss_mask": 0}]
OFF += [{"loss_scale": 0.0}, {"weight": 0, "loss": False}]
ON = [{}, {"weight": 1}, {"weight": 1.0}, {"loss": True}, {"train": True}, {"weight": None}, {"train_detail": []}]


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("on", ON)
def test_a_turn_with_weight_0_is_marked(off, on):
    first, bad, again, good = TURNS
    wanted = [{"messages": [first, bad | {"weight": 0}, again, good]}]
    assert loaded({"messages": [first, bad | off, again, good | on]}) == wanted
    shared = [{"from": "human" if t["role"] == "user" else "gpt", "value": t["content"]} for t in TURNS]
    shared[1] |= off
    shared[3] |= on
    assert loaded({"conversations": shared}) == wanted


@pytest.mark.parametrize("value", ["0", "false", 0.5, 2, -1, [1], {"a": 1}, "all"])
@pytest.mark.parametrize("key", ["weight", "loss", "train"])
def test_another_weight_is_refused(key, value):
    said = refused(
        {"messages": [user("a"), assistant("b")]}, {"messages": [user("a"), assistant("b", **{key: value})]}, line=2
    )
    assert said == f"2 (turn 2): `{key}` of a turn must be 0 or 1 (false or true), got {json.dumps(value)}"


def test_weights_that_contradict_each_other_are_refused():
    said = refused({"messages": [user("a"), assistant("b", weight=1, loss=False)]})
    assert said == "1 (turn 2): weight, loss contradict each other: one trains on the turn, another does not"


def test_an_example_without_a_trained_answer_is_refused():
    good = {"messages": TURNS}
    said = refused(good, {"messages": [user("a"), assistant("b", weight=0)]}, line=2)
    assert said == "2: no answer is trained on: all have weight 0"
    assert refused({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "train": False}]})
    assert refused({"prompt": [user("a")], "completion": [assistant("b", weight=0)]})


def test_weights_of_turns_that_are_only_read_have_no_meaning(capsys):
    first, bad, again, good = TURNS
    asked = [first | {"weight": 0}, bad | {"weight": 0}, again | {"loss": False}]
    wanted = {"prompt": [first, bad, again]}
    pair = {"chosen": good, "rejected": assistant("Red.")}
    assert loaded({"messages": asked} | pair) == [wanted | {"chosen": [good], "rejected": [assistant("Red.")]}]
    assert loaded({"messages": [*asked, good], "label": False}) == [wanted | {"completion": [good], "label": False}]
    assert noted(capsys, {"messages": [first | {"weight": 0}, good]}) == []
    assert noted(capsys, {"messages": [first | {"train": True}, good]}) == ["1 message has `train`, which is not read"]


def test_a_judged_answer_with_weight_0_is_refused():
    pair = {"chosen": assistant("a", weight=0), "rejected": assistant("b")}
    assert "weight 0" in refused({"messages": [user("a")]} | pair)
    assert "weight 0" in refused({"messages": [user("a"), assistant("b", weight=0)], "label": True})


# thoughts


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_thought_is_kept_under_one_name(key):
    wanted = [{"messages": [user("2+2?"), assistant("4.", reasoning_content="Two and two.")]}]
    assert loaded({"messages": [user("2+2?"), assistant("4.", **{key: "Two and two."})]}) == wanted
    shared = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4.", key: "Two and two."}]
    assert loaded({"conversations": shared}) == wanted
    calls = {"tool_calls": [CALL], key: "Book it."}
    row = loaded({"messages": [user("Book."), assistant(None, **calls), RESULT, assistant("Done.")]})[0]
    assert row["messages"][1]["reasoning_content"] == "Book it." and row["messages"][1]["tool_calls"]


@pytest.mark.parametrize("nothing", [None, "", " \n", []])
def test_an_empty_thought_is_none(nothing):
    assert loaded({"messages": [user("a"), assistant("b", reasoning=nothing)]}) == [
        {"messages": [user("a"), assistant("b")]}
    ]


def test_thoughts_that_cannot_be_one_text_are_refused():
    row = {"messages": [user("a"), assistant("b", thinking={"text": "c"})]}
    assert refused(row) == "1 (turn 2): `thinking` must be a string, got object"
    assert refused({"messages": [user("a"), assistant("b", thinking="c", reasoning="d")]}).startswith(
        "1 (turn 2): the turn has two"
    )
    assert "two different" in refused({"messages": [user("a"), assistant("<think>\nc\n</think>\n\nb", thinking="c")]})
    both = {"reasoning": "c", "reasoning_content": "c"}
    assert loaded({"messages": [user("a"), assistant("b", **both)]})[0]["messages"][1] == assistant(
        "b", reasoning_content="c"
    )


def test_a_thought_elsewhere_is_counted_and_one_in_the_content_stays(capsys):
    row = {"messages": [user("a", reasoning="hm"), assistant("<think>c</think>b")]}
    assert noted(capsys, row, row | {"id": 1}) == [
        "2 messages have `reasoning`, which is not read",
        "columns not read: id",
    ]
    assert registry.load("x.jsonl")[0]["messages"][1]["content"] == "<think>c</think>b"
    assert noted(capsys, {"instruction": "a", "output": "b", "thinking": "c"}) == [
        "1 example has `thinking`, which is not read"
    ]


def test_a_think_block_before_a_function_call_stays():
    call = '{"name": "f", "arguments": {"x": "</think>"}}'
    turns = [("human", "a"), ("function_call", f"<think>\nhm\n</think>\n\n{call}"), ("observation", "o"), ("gpt", "b")]
    message = loaded({"conversations": [{"from": who, "value": said} for who, said in turns]})[0]["messages"][1]
    assert message["content"] == "<think>\nhm\n</think>"
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": "</think>"}


# contents in parts, media


def text(words, **more):
    return {"type": "text", "text": words} | more


def test_text_parts_are_joined_as_the_server_joins_them(capsys):
    row = {
        "messages": [user([text("a"), text("b", image_url=None)]), assistant([{"type": "output_text", "text": "c"}])]
    }
    assert loaded(row) == [{"messages": [user("ab"), assistant("c")]}]


PARTS = [
    ({"type": "image_url", "image_url": {"url": "x.png"}}, "`image_url`: ftlab trains on text only"),
    ({"type": "image"}, "`image`: ftlab trains on text only"),
    ({"type": "input_audio", "input_audio": {}}, "`input_audio`: ftlab trains on text only"),
    ({"type": "video", "video": "x"}, "`video`: ftlab trains on text only"),
    ({"type": "tool_use", "name": "f"}, "unsupported content part type `tool_use`"),
    ({"type": "refusal", "refusal": "no"}, "unsupported content part type `refusal`"),
    ({"type": "text"}, "unsupported content part type `text`"),
]


@pytest.mark.parametrize(("part", "message"), PARTS)
def test_other_parts_are_refused_by_name(part, message):
    assert refused({"messages": [user([text("a"), part]), assistant("b")]}) == f"1 (turn 1): {message}"


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
def test_rows_with_media_are_refused(column, folder):
    said = f"1: `{column}`: ftlab trains on text only"
    plain = [{"instruction": "a", "output": "b"}, {"messages": TURNS}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    for row in plain:
        assert refused(row | {column: ["x"]}) == refused(row | {column: "x"}) == said
        assert len(loaded(row | {column: []}, row | {column: None}, row | {column: ""})) == 3
    placeholder = f"<{column.rstrip('s')}>"
    assert refused({"instruction": f"{placeholder}What?", "output": "b", column: []}) == said
    assert len(loaded({"instruction": f"What does {placeholder} mean in HTML?", "output": "b"})) == 1
    write(plain[1] | {column: ["x"]})
    entry = {"file_name": "x.jsonl", "formatting": "openai", "columns": {"messages": "messages"}}
    (folder / "dataset_info.json").write_text(json.dumps({"set": entry}))
    with pytest.raises(LabError, match="trains on text only"):
        registry.load("set", folder)


def test_a_placeholder_without_its_column_is_said(capsys):
    rows = [{"instruction": f"<image>What? {n}", "output": "b"} for n in range(2)]
    rows.append({"instruction": "<video>", "output": "<image> and <image>"})
    end = "trained on as text, without a picture, video or sound"
    assert sorted(noted(capsys, *rows)) == [
        f"1 example has <video> in its text and no column for it: it is {end}",
        f"3 examples have <image> in their text and no column for it: they are {end}",
    ]


def test_media_under_other_names_are_told_by_the_placeholder(capsys):
    row = {"instruction": "<image>\nWhat?", "output": "b", "image_path": "x.png"}
    assert refused(row) == "1: `image_path`: ftlab trains on text only"
    assert noted(capsys, row | {"instruction": "What?"}) == ["columns not read: image_path"]
    assert (
        refused({"messages": [user("What?", images=["x"]), assistant("b")]})
        == "1 (turn 1): `images`: ftlab trains on text only"
    )
    assert len(loaded({"messages": [user("What?", images=[]), assistant("b")]})) == 1


# KTO


@pytest.mark.parametrize("value", ["true", "False", 1, 0, 1.0, "1", "no", "desirable", "Bad", "rejected"])
def test_a_label_that_only_looks_like_true_or_false_is_named(value):
    got = "string" if isinstance(value, str) else "number"
    for row in (
        {"prompt": "a", "completion": "b"},
        {"prompt": [user("a")], "completion": [assistant("b")]},
        {"messages": TURNS},
    ):
        assert refused(row | {"label": value}) == f"1: `label` must be true or false, got {got}"
        assert refused(row | {"label": True}, row | {"label": value}, line=2).startswith(
            "2: `label` must be true or false"
        )
    assert "kto_tag" in refused({"instruction": "a", "output": "b", "kto_tag": value})


def test_a_csv_file_cannot_say_true(folder):
    (folder / "x.csv").write_text("prompt,completion,label\na,b,true\n")
    with pytest.raises(LabError, match=r"x.csv:2: `label` must be true or false, got string"):
        registry.load("x.csv")


@pytest.mark.parametrize("value", ["positive", 1, "true", 3])
def test_a_class_beside_an_instruction_is_no_judgement(value, capsys):
    rows = [{"instruction": "a", "output": "b", "label": value}]
    assert noted(capsys, *rows) == ["1 example has `label`, which is not read"]
    assert registry.load("x.jsonl").column_names == ["messages"]


# calls and tools


def test_nulls_in_arguments_and_schemas_are_values():
    schema = {
        "name": "book",
        "parameters": {"type": "object", "properties": {"until": {"type": ["null"], "default": None}}},
    }
    tool = {"type": "function", "function": schema}
    texts = [CALL, {"id": "c1", "function": {"name": "book", "arguments": {"room": "A", "until": None}}}]
    for call, tools in zip(texts, ([tool], json.dumps([tool])), strict=True):
        row = loaded(
            {"messages": [user("a"), assistant(None, tool_calls=[call]), RESULT, assistant("b")], "tools": tools}
        )[0]
        assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"room": "A", "until": None}
        assert row["tools"] == [tool]
    shared = [
        ("human", "a"),
        ("function_call", '{"name": "f", "arguments": {"x": null}}'),
        ("observation", "b"),
        ("gpt", "c"),
    ]
    row = loaded({"conversations": [{"from": who, "value": said} for who, said in shared]})[0]
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": None}


def test_the_filler_of_a_table_is_removed_from_messages_alone(folder, capsys):
    from datasets import Dataset

    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "f", "arguments": {"y": 2}}}]
    rows = [
        {"messages": [user("a"), assistant("", tool_calls=[call]), {"role": "tool", "content": "c"}, assistant("b")]}
        for call in calls
    ]
    Dataset.from_list(rows).to_parquet("x.parquet")
    capsys.readouterr()
    first, _ = registry.load("x.parquet").to_list()
    assert first["messages"] == [
        user("a"),
        assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}]),
        {"role": "tool", "content": "c"},
        assistant("b"),
    ]
    assert "x.parquet: 2 rows of a table have nulls inside tool arguments" in capsys.readouterr().out
    for call in calls:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    Dataset.from_list(rows).to_parquet("y.parquet")
    rows = registry.load("y.parquet").to_list()
    assert [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in rows] == [{"x": 1}, {"y": 2}]
    assert "nulls" not in capsys.readouterr().out


def test_the_former_function_call_and_functions_are_read():
    function = {"name": "book", "description": "Book a room.", "parameters": {"type": "object", "properties": {}}}
    turns = [
        user("Book A."),
        assistant(None, function_call={"name": "book", "arguments": '{"room": "A"}'}),
        {"role": "function", "name": "book", "content": "ok"},
        assistant("Done."),
    ]
    row = loaded({"messages": turns, "functions": [function]})[0]
    call = {"type": "function", "function": {"name": "book", "arguments": {"room": "A"}}}
    assert row["messages"][1:3] == [assistant("", tool_calls=[call]), {"role": "tool", "content": "ok", "name": "book"}]
    assert row["tools"] == [{"type": "function", "function": function}]


CALLS = [
    (
        {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "x"}}]},
        "unsupported tool call type `custom`",
    ),
    ({"tool_calls": [{"function": {"name": "f", "parameters": {"x": 1}}}]}, "invalid tool call"),
    ({"tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}]}, "invalid tool call"),
    ({"function_call": "auto"}, "invalid tool call"),
    ({"tool_calls": [CALL], "function_call": {"name": "f", "arguments": "{}"}}, "the turn has both"),
]


@pytest.mark.parametrize(("keys", "message"), CALLS)
def test_calls_that_would_lose_something_are_refused(keys, message):
    said = refused({"messages": [user("a"), assistant(None, **keys), RESULT, assistant("b")]})
    assert said.startswith(f"1 (turn 2): {message}")


@pytest.mark.parametrize("none", [None, "", "[]", []])
def test_no_tools(none):
    assert loaded({"messages": TURNS, "tools": none}) == [{"messages": TURNS}]


# roles, system, other keys and columns


def test_roles_that_are_not_known_are_refused_with_a_name_that_is_near():
    path = write({"messages": [user("a"), {"role": "model", "content": "b"}]})
    assert "did you mean assistant?" in check.check(path).problems[0].fix
    path = write({"conversations": [{"from": "human", "value": "a"}, {"from": "chatgpt", "value": "b"}]})
    assert "did you mean gpt?" in check.check(path).problems[0].fix
    path = write({"conversations": [{"from": "narrator", "value": "a"}, {"from": "gpt", "value": "b"}]})
    assert check.check(path).problems[0].fix.startswith("available: human, gpt, observation, function_call, system;")
    assert (
        loaded({"messages": [{"role": "developer", "content": "s"}, user("a"), assistant("b")]})[0]["messages"][0][
            "role"
        ]
        == "system"
    )


def test_a_column_that_is_not_there_is_not_guessed_from_far():
    write({"instruction": "a", "output": "b"}, {"instruction": "a", "outptu": "b"})
    report = check.check("x.jsonl")
    assert report.problems[0].fix.startswith("did you mean outptu?")
    write({"instruction": "a", "output": "b"}, {"instruction": "a", "x": "b"})
    assert check.check("x.jsonl").problems[0].fix.startswith("available: instruction, x;")


def test_keys_of_messages_that_nobody_reads_are_counted(capsys):
    extra = {"refusal": None, "annotations": [], "audio": {"id": "x"}, "id": 7}
    rows = [{"messages": [user("a", name="Ada"), assistant("b", **extra)]}] * 3
    assert noted(capsys, *rows) == [f"3 messages have `{key}`, which is not read" for key in ("name", "audio", "id")]
    tool = [user("a"), assistant(None, tool_calls=[CALL]), RESULT | {"name": "book"}, assistant("b")]
    assert noted(capsys, {"messages": tool}) == []


def test_columns_that_formats_know_are_counted_and_others_listed(capsys):
    row = {
        "prompt": "a",
        "chosen": "b",
        "rejected": "c",
        "margin": 0.5,
        "score_chosen": 7.0,
        "source": "x",
        "empty": "",
    }
    assert noted(capsys, row, row) == [
        "2 examples have `margin`, which is not read",
        "2 examples have `score_chosen`, which is not read",
        "columns not read: source",
    ]
    assert noted(capsys, {"messages": TURNS, "rejected_response": "b"}) == [
        "1 example has `rejected_response`, which is not read"
    ]
    assert noted(capsys, {"question": "a", "context": "b", "answer": "c"}) == [
        "1 example has `context`, which is not read"
    ]


def test_a_registered_set_says_what_its_entry_leaves_out(folder, capsys):
    write({"messages": TURNS, "system": "s", "source": "x"})
    entry = {"file_name": "x.jsonl", "formatting": "openai", "columns": {"messages": "messages"}}
    (folder / "dataset_info.json").write_text(json.dumps({"set": entry}))
    registry.load("set", folder)
    assert capsys.readouterr().out.splitlines() == [
        "set: 1 example has `system`, which is not read; `columns` in dataset_info.json sets which columns are read"
    ]
    assert "set: columns not read: source" in check.check("set", folder).unread


def test_two_different_systems_are_counted(capsys):
    turns = [{"role": "system", "content": "turn"}, *TURNS]
    rows = [{"messages": turns, "system": "column"}, {"messages": turns, "system": "turn"}]
    assert noted(capsys, *rows) == [
        "1 example has a system turn and a different text in the system column: the turn is used"
    ]


def test_placeholders_are_counted_by_a_check():
    write({"instruction": "a", "output": "I am {{name}}."})
    assert "1 text contains placeholders such as {{name}}" in check.check("x.jsonl").unread[0]


# TRL's own shapes


def test_prompt_and_completion_as_messages_train_the_completion():
    first, bad, again, good = TURNS
    wanted = [{"messages": [first, bad | {"weight": 0}, again, good]}]
    assert loaded({"prompt": [first, bad, again], "completion": [good]}) == wanted
    assert loaded({"prompt": [first, bad, again], "completion": "Green."}) == wanted
    call = assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])
    answer = [call, {"role": "tool", "content": "ok"}, good]
    row = {"prompt": [first], "completion": answer, "tools": [{"name": "f"}]}
    assert loaded(row) == [{"messages": [first, *answer], "tools": [{"type": "function", "function": {"name": "f"}}]}]
    assert loaded({"prompt": [first], "completion": [good], "label": False}) == [
        {"prompt": [first], "completion": [good], "label": False}
    ]


def test_preferences_as_messages():
    system, asked = {"role": "system", "content": "s"}, user("a?")
    wanted = [{"prompt": [system, asked], "chosen": [assistant("b")], "rejected": [assistant("c")]}]
    sides = {"chosen": [assistant("b")], "rejected": [assistant("c")]}
    whole = {side: [system, asked, *answer] for side, answer in sides.items()}
    assert loaded({"prompt": [system, asked]} | sides) == wanted
    assert loaded({"prompt": "a?", "system": "s"} | sides) == wanted
    assert loaded(whole) == wanted
    assert loaded({"prompt": "a?", "messages": whole["chosen"]} | whole) == wanted, "as in UltraFeedback"
    assert loaded({"messages": [system, asked]} | sides) == wanted


def test_the_prompt_of_two_conversations_is_what_they_begin_with():
    shared = [user("a"), assistant("b"), user("c")]
    row = loaded({"chosen": [*shared, assistant("d")], "rejected": [*shared, assistant("e")]})[0]
    assert (row["prompt"], row["chosen"]) == (shared, [assistant("d")])


WRONG = [
    ({"chosen": "a", "rejected": "b"}, "the example has chosen and rejected, but no prompt"),
    (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
        "chosen and rejected don't start with the same",
    ),
    (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        "chosen and rejected are the same answer",
    ),
    (
        {"prompt": "x", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        "`prompt` (or a history) differs from what",
    ),
    ({"prompt": [user("a")], "completion": [user("b")]}, "this answer has the role `user`"),
    (
        {"prompt": [user("a"), assistant("b")], "completion": [assistant("c")]},
        "the conversation must end with a question",
    ),
    ({"prompt": [user("a"), user("b")], "completion": [assistant("c")]}, "turn of `user` out of order"),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_wrong_shapes_are_named(row, message):
    assert message in refused(row)


def test_advice_follows_the_value():
    write({"instruction": "a", "output": ["b"]}, {"instruction": "a", "output": 1})
    of_a_list, of_a_number = check.check("x.jsonl").problems
    assert "quotes" not in of_a_list.fix and "role" in of_a_list.fix and "quotes" in of_a_number.fix


# the repaired file


def test_what_json_does_not_have_is_written_by_a_rule_and_read_back(folder):
    import datetime
    import decimal

    import pyarrow
    from pyarrow import parquet

    columns = {
        "instruction": ["a", "c"],
        "output": ["b", "d"],
        "score": [1.5, float("nan")],
        "day": [datetime.date(2026, 1, 2)] * 2,
        "at": pyarrow.array([datetime.datetime(2026, 1, 2, 3, 4)] * 2, pyarrow.timestamp("ns", tz="UTC")),
        "price": [decimal.Decimal("1.50")] * 2,
        "raw": [b"\x00\xff"] * 2,
        "nested": [{"took": datetime.timedelta(seconds=2), "deep": [float("inf")]}] * 2,
    }
    parquet.write_table(pyarrow.table(columns), "x.parquet")
    report = check.check("x.parquet", fix_to=folder / "y.jsonl")
    assert json.loads((folder / "y.jsonl").read_text().splitlines()[1]) == {
        "instruction": "c",
        "output": "d",
        "score": None,
        "day": "2026-01-02",
        "at": "2026-01-02T03:04:00+00:00",
        "price": "1.50",
        "raw": "AP8=",
        "nested": {"took": "0:00:02", "deep": [None]},
    }
    assert "`score`: 1 value of type float, which JSON does not have, written as null" in report.changes
    assert check.check("y.jsonl").total == 0 and len(registry.load("y.jsonl")) == len(registry.load("x.parquet")) == 2


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_file_that_does_not_read_back_is_not_written(suffix, folder, monkeypatch):
    write({"instruction": "a", "output": "b"})
    monkeypatch.setattr(check.RowWriter, "plain", lambda self, value, column: "")
    report = check.check("x.jsonl", fix_to=folder / f"y{suffix}")
    assert [problem.what for problem in report.problems] == [
        "nothing was written: the repaired examples would be read differently (`output` is empty)"
    ]
    assert sorted(one.name for one in folder.iterdir() if one.is_file()) == ["x.jsonl"]


def test_values_of_a_table_that_are_read_must_be_text(folder):
    import datetime

    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"instruction": ["a"], "output": [datetime.date(2026, 1, 2)]}), "x.parquet")
    with pytest.raises(LabError, match=r"x.parquet:1: `output` must be a string, got date"):
        registry.load("x.parquet")
    call = {"function": {"name": "f", "arguments": {"day": datetime.date(2026, 1, 2)}}}
    turns = [user("a"), {"role": "assistant", "content": "b", "tool_calls": [call]}]
    parquet.write_table(pyarrow.table({"messages": [turns]}), "y.parquet")
    assert [problem.what for problem in check.check("y.parquet").problems] == [
        "tool calls and tools must contain only JSON values, got date"
    ]
    names = ["instruction", "output", "output"]
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([one]) for one in "abc"], names=names), "w.parquet")
    assert "duplicate column 'output'" in check.check("w.parquet").problems[0].what
    nul = pyarrow.table({"instruction": ["a"], "output": ["b\x00"]})
    parquet.write_table(nul, "z.parquet")
    assert "NUL" in check.check("z.parquet").problems[0].what


# places, bad rows


def test_rows_that_share_a_line_are_numbered(folder):
    good, bad = {"instruction": "a", "output": "b"}, {"instruction": "a"}
    (folder / "one.json").write_text(json.dumps([good, bad, good, bad]))
    assert [problem.where for problem in check.check("one.json").problems][::2] == [
        "one.json:1 (row 2)",
        "one.json:1 (row 4)",
    ]
    (folder / "some.json").write_text(
        f"[{json.dumps(bad)},\n{json.dumps(good)}, {json.dumps(bad)},\n{json.dumps(bad)}]"
    )
    places = [problem.where for problem in check.check("some.json").problems]
    assert places == ["some.json:1", "some.json:2 (row 3)", "some.json:3"]
    (folder / "cut.json").write_text(json.dumps([good, good])[:-10])
    assert check.check("cut.json").problems[-1].where == "cut.json:1 (row 2)"


def test_bad_rows_are_refused_or_dropped_and_listed(folder, capsys):
    good, bad = {"instruction": "a", "output": "b"}, {"instruction": "a"}
    write(good, *[bad] * 6, {"instruction": "c", "output": "d"})
    with pytest.raises(LabError, match=r"x.jsonl:2: `output` is missing \(6 problems in total"):
        registry.load("x.jsonl")
    for _ in range(2):
        capsys.readouterr()
        rows = registry.load("x.jsonl", on_bad_rows="drop", places=True)
        assert rows["where"][:] == ["x.jsonl:1", "x.jsonl:8"]
        said = capsys.readouterr().out.splitlines()[1:]
        assert said[0] == "x.jsonl: 6 of 8 examples cannot be used and are dropped, the first:"
        assert said[1:] == [f"  x.jsonl:{line}: `output` is missing" for line in (2, 3, 4, 5)]
    with pytest.raises(LabError, match="6 problems"):
        registry.load("x.jsonl")
    assert len(registry.rows_of("x.jsonl")) == check.check("x.jsonl").kept == 2
    with pytest.raises(LabError, match="`on_bad_rows` cannot be skip"):
        registry.load("x.jsonl", on_bad_rows="skip")
    write(bad, good)
    assert len(registry.load("x.jsonl", on_bad_rows="drop")) == 1
    write({"instruction": "a", "output": ""}, {"instruction": "a", "output": 1})
    with pytest.raises(LabError, match=r"x.jsonl:1: `output` is empty \(2 problems"):
        registry.load("x.jsonl", on_bad_rows="drop")
    write(bad, bad)
    with pytest.raises(LabError, match=r"x.jsonl:1: these columns match no known format"):
        registry.load("x.jsonl", on_bad_rows="drop")


def test_a_file_that_breaks_off_is_refused_whatever_is_dropped(folder):
    (folder / "x.json").write_text('[{"instruction": "a", "output": "b"},\n{"instruction": "a"},\n{"instruction" "a"}]')
    with pytest.raises(LabError, match=r"x\.json:3"):
        registry.load("x.json", on_bad_rows="drop")


def test_places_are_a_column_only_where_they_are_asked_for(folder):
    write({"instruction": "a", "output": "b"})
    write({"instruction": "c", "output": "d"}, name="y.jsonl")
    assert registry.load("x.jsonl,y.jsonl").column_names == ["messages"]
    assert registry.load("x.jsonl,y.jsonl", places=True)["where"][:] == ["x.jsonl:1", "y.jsonl:1"]
    assert [row["where"] for row in registry.rows_of("y.jsonl", places=True)] == ["y.jsonl:1"]
    assert list(registry.rows_of("y.jsonl")[0]) == ["messages"]


def test_a_history_in_csv_is_json_text(folder):
    (folder / "x.csv").write_text('instruction,output,history\nc,d,"[[""a"", ""b""]]"\ne,f,\n')
    assert [len(row["messages"]) for row in registry.load("x.csv")] == [4, 2]


PAIR = {"instruction": "q", "output": "a", "chosen": "Good", "rejected": "Bad", "kto_tag": True}
SIDES = {"chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    ("more", "columns", "unread"),
    [
        ({}, {"prompt": "instruction", "response": "output"} | SIDES, ["chosen", "rejected"]),
        ({}, {"prompt": "instruction"} | SIDES, ["chosen", "rejected"]),
        ({"ranking": True}, {"prompt": "instruction", "response": "output"} | SIDES, ["response"]),
        ({"ranking": True}, {"prompt": "instruction", "kto_tag": "kto_tag"} | SIDES, ["kto_tag"]),
        ({}, {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}, []),
        ({"ranking": True}, {"prompt": "instruction"} | SIDES, []),
    ],
)
def test_a_column_that_the_entry_lists_for_another_kind_of_data_is_counted(more, columns, unread, folder, capsys):
    write(PAIR, PAIR | {"instruction": "r"})
    entry = {"file_name": "x.jsonl", "columns": columns} | more
    (folder / "dataset_info.json").write_text(json.dumps({"set": entry}), encoding="utf-8")
    registry.load("set", folder)
    said = capsys.readouterr().out.splitlines()
    assert check.check("set", folder).unread[: len(unread)] == said[: len(unread)]
    lines = [line for line in said if "`columns` lists" in line]
    ranking = str(bool(more)).lower()
    assert lines == [
        f"set: 2 examples have `{columns[key]}`, which `columns` lists as `{key}`; "
        f"`formatting: alpaca` with `ranking: {ranking}` does not read it"
        for key in sorted(unread, key=lambda key: list(PAIR).index(columns[key]))
    ]


def test_advice_names_columns_only_where_an_entry_could_read_the_column(capsys):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    registry.load(write(pair | {"margin": 0.5, "rejected_response": "d"}))
    margin, response = [line for line in capsys.readouterr().out.splitlines() if "which is not read" in line]
    assert margin == "x.jsonl: 1 example has `margin`, which is not read: nothing in training takes it"
    assert response.endswith("; `columns` in dataset_info.json sets which columns are read")


def test_answers_that_look_like_empty_cells_are_counted(capsys):
    rows = [{"instruction": f"Say {n}", "output": text} for n, text in enumerate(["nan", "nan", "None", "nan so far"])]
    assert noted(capsys, *rows, rows[3] | {"input": "NaN"}, rows[3] | {"input": "<noinput>"}) == [
        f"the {part} of {count} {'example' if count == 1 else 'examples'} is only `{word}`, "
        "as programs write an empty cell; it is taken as text"
        for part, count, word in (
            ("answer", 2, "nan"),
            ("answer", 1, "None"),
            ("input", 1, "NaN"),
            ("input", 1, "<noinput>"),
        )
    ]


def test_the_number_of_a_choice_is_not_trained_on(capsys):
    asked = {"question": "2 + 2?", "choices": ["3", "4"]}
    assert (
        refused(asked | {"answer": 1}) == "1: `answer` is the number of one of the `choices`, not an answer to train on"
    )
    assert noted(capsys, asked | {"answer": "B"}) == ["1 example has `choices`, which is not read"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("one.json", '{"version": 1, "data": [ROW, ROW]}', "holds the examples under data (2 in the first)"),
        ("spread.json", '{\n "data": [\n  ROW,\n  ROW\n ]\n}', "holds the examples under data (2 in the first)"),
        ("it's two.json", "{\"my 'data'\": [ROW]}", "holds the examples under my 'data' (1 in the first)"),
        ("splits.json", '{"train": [ROW], "test": [ROW]}', "holds the examples under train, test (1 in the first)"),
        ("row.json", '{\n "messages": [{"role": "user", "content": "a"}],\n "docs": [{"a": 1}]}', "an object spans"),
        ("other.json", '{"a": [ROW], "text": "b"}', ""),
    ],
)
def test_an_object_around_the_examples_is_named_with_the_command_that_unwraps_it(name, content, said, folder, capsys):
    (folder / name).write_text(content.replace("ROW", '{"instruction": "a", "output": "b"}'), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"set": {"file_name": name}}), encoding="utf-8")
    if not said:
        assert registry.load(name).to_list() == [{"text": "b"}]
        return
    for dataset in (name, "set"):
        with pytest.raises(LabError) as caught:
            registry.load(dataset, ".")
        assert said in caught.value.what and caught.value.where == f"{name}:1"
    if "holds" in said:
        _, *command = shlex.split(caught.value.fix.partition("alone: ")[2])
        subprocess.run([sys.executable, *command], check=True)
        assert registry.load("examples.json").to_list()[0]["messages"][1]["content"] == "b"
        assert command[-1] == said.split("under ")[1].split(",")[0].split(" (")[0]
        # What is there is not overwritten.
        assert subprocess.run([sys.executable, *command], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", ["conversation", "dialogue", "chat"])
def test_turns_of_another_format_are_not_taken_for_examples(name):
    row = {name: [{"human": "a", "assistant": "b"}]}
    assert refused(row) == f"1: these columns match no known format: {name}"


def test_a_column_that_the_first_row_lacks_counts(capsys):
    plain, tool = {"instruction": "a", "output": "b"}, {"name": "f", "description": "d", "parameters": {}}
    first, second = loaded(plain, plain | {"tools": json.dumps([tool])})
    assert first["tools"] is None and second["tools"] == [{"type": "function", "function": tool}]
    chat = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert loaded(chat, chat | {"functions": [tool]})[1]["tools"] == [{"type": "function", "function": tool}]
    assert "which is not read" not in capsys.readouterr().out


def test_a_label_that_the_first_row_lacks_makes_the_set_one_of_likes():
    liked = {"prompt": "a", "completion": "b", "label": False}
    assert refused({"prompt": "a", "completion": "b"}, liked) == "1: `label` is missing"
    assert loaded({"prompt": "a", "completion": "b", "label": "spam"}, liked | {"label": "yes"})[1]["messages"]


def test_columns_that_differ_in_capitals_or_spaces_are_named():
    assert refused({"Instruction": "a", " output": "b"}) == (
        "1: these columns match no known format, but would without capitals and spaces: Instruction,  output"
    )
    with pytest.raises(LabError, match="rename them: `Instruction` -> `instruction`, ` output` -> `output`"):
        registry.load(write({"Instruction": "a", " output": "b"}))


def test_a_number_of_thousands_of_digits_is_told_as_one(folder):
    (folder / "x.jsonl").write_text('{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}\n", encoding="utf-8")
    with pytest.raises(LabError, match="a number of 5000 digits; put it in quotes"):
        registry.load("x.jsonl")
