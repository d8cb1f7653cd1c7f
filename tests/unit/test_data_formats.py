"""LLaMA-Factory's demo formats, with its own dataset_info.json entries, become TRL's shapes."""

import errno
import json

import pytest

from ftlab.data import arrow_cache, encoding, formats, messages, registry
from ftlab.errors import LabError


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


CALL = {"name": "find_train", "arguments": {"to": "Ulm", "after": 9}}
TOOLS = [{"name": "find_train", "description": "Look up a train.", "parameters": {"type": "object", "properties": {}}}]
SCHEMAS = [{"type": "function", "function": TOOLS[0]}]

# file name -> contents, one small file in each of the formats of LLaMA-Factory's published text demos.
FILES = {
    "alpaca_en_demo.json": json.dumps(
        [
            {"instruction": "Name a metal.", "input": "", "output": "Zinc."},
            {"instruction": "Add the numbers.", "input": "3 and 4", "output": "7"},
            {
                "instruction": "And its capital?",
                "input": "",
                "output": "Vienna.",
                "system": "Answer in one word.",
                "history": [["Name a country.", "Austria."]],
            },
        ]
    ),
    "alpaca_zh_demo.json": json.dumps(
        [{"instruction": "说出一种金属。", "input": "", "output": "锌。"}], ensure_ascii=False
    ),
    "identity.json": json.dumps(
        [
            {"instruction": "Who are you?", "input": "", "output": "I am {{name}}, made by {{author}}."},
            {"instruction": "你是谁？", "input": "", "output": "我是{{name}}，由{{author}}训练。"},
        ]
    ),
    "glaive_toolcall_en_demo.json": json.dumps(
        [
            {
                "conversations": [
                    {"from": "human", "value": "Any train to Ulm after nine?"},
                    {"from": "function_call", "value": json.dumps(CALL)},
                    {"from": "observation", "value": '{"departs": "9:12"}'},
                    {"from": "gpt", "value": "Yes, at 9:12."},
                ],
                "tools": json.dumps(TOOLS),
            },
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "tools": "[]"},
        ]
    ),
    "dpo_en_demo.json": json.dumps(
        [
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Is tea wet?"},
                ],
                "chosen": {"from": "gpt", "value": "Yes."},
                "rejected": {"from": "gpt", "value": "No."},
            }
        ]
    ),
    "kto_en_demo.json": json.dumps(
        [
            {
                "messages": [{"content": "Is tea wet?", "role": "user"}, {"content": "Yes.", "role": "assistant"}],
                "label": True,
            },
            {
                "messages": [{"content": "Is ice hot?", "role": "user"}, {"content": "Yes.", "role": "assistant"}],
                "label": False,
            },
        ]
    ),
    "wiki_demo.txt": "The Elbe is a river.\n\nZinc is a metal; “quotes” stay.\n",
    "c4_demo.jsonl": jsonl({"text": "First page.\nSecond line."}, {"text": "Another page."}),
    "answers.jsonl": jsonl({"prompt": "Is tea wet?", "response": "Yes."}, {"prompt": "Is ice hot?", "response": "No."}),
    "pairs.json": json.dumps([{"instruction": "Is tea", "input": "wet?", "chosen": "Yes.", "rejected": "No."}]),
}

INFO = {
    "identity": {"file_name": "identity.json"},
    "alpaca_en_demo": {"file_name": "alpaca_en_demo.json"},
    "alpaca_zh_demo": {"file_name": "alpaca_zh_demo.json"},
    "glaive_toolcall_en_demo": {
        "file_name": "glaive_toolcall_en_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
    "dpo_en_demo": {
        "file_name": "dpo_en_demo.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "kto_en_demo": {
        "file_name": "kto_en_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "wiki_demo": {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}},
    "c4_demo": {"file_name": "c4_demo.jsonl", "columns": {"prompt": "text"}},
    "align_anything": {"file_name": "answers.jsonl", "columns": {"prompt": "prompt", "response": "response"}},
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
    },
    "hub_and_file": {"hf_hub_url": "somebody/something", "om_hub_url": "somebody/something", "file_name": "x.json"},
}
NAMED = {"name": "Ada", "author": "the lab"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    return tmp_path


def test_alpaca_with_system_and_history(folder):
    rows = registry.load("alpaca_en_demo", folder).to_list()
    assert rows == [
        {"messages": [user("Name a metal."), assistant("Zinc.")]},
        {"messages": [user("Add the numbers.\n3 and 4"), assistant("7")]},
        {
            "messages": [
                {"role": "system", "content": "Answer in one word."},
                user("Name a country."),
                assistant("Austria."),
                user("And its capital?"),
                assistant("Vienna."),
            ]
        },
    ]
    assert registry.load("alpaca_zh_demo", folder)[0]["messages"][1] == assistant("锌。")


def test_identity_needs_its_placeholders_filled(folder):
    with pytest.raises(LabError) as caught:
        registry.load("identity", folder)
    where = folder / "identity.json"
    assert str(caught.value) == (
        f"{where}:1 (row 1): the text contains the placeholder {{{{name}}}}, which would be trained on literally "
        f"(2 problems in total, the next at {where}:1 (row 2); `ftlab data check identity` lists them)\n"
        "  fix: set its value: `dataset_substitutions: {name: ...}` in a recipe"
    )
    with pytest.raises(LabError, match=r"placeholder \{\{author\}\}"):
        registry.load("identity", folder, substitutions={"name": "Ada"})
    rows = registry.load("identity", folder, substitutions=NAMED)
    assert [row["messages"][1]["content"] for row in rows] == ["I am Ada, made by the lab.", "我是Ada，由the lab训练。"]


def test_latex_is_no_placeholder_and_a_value_is_not_searched_again(folder):
    (folder / "tex.jsonl").write_text(
        jsonl({"prompt": r"\frac{{abc}}{{def}} of {{name}}", "response": "{{ two words }}"})
    )
    rows = registry.load(str(folder / "tex.jsonl"), substitutions={"name": "{{name}}"})
    assert rows[0]["messages"] == [user(r"\frac{{abc}}{{def}} of {{name}}"), assistant("{{ two words }}")]


def test_tool_calls_keep_their_arguments_as_objects(folder):
    rows = registry.load("glaive_toolcall_en_demo", folder).to_list()
    call = {"type": "function", "function": CALL}
    assert rows[0] == {
        "messages": [
            user("Any train to Ulm after nine?"),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": '{"departs": "9:12"}'},
            assistant("Yes, at 9:12."),
        ],
        "tools": SCHEMAS,
    }
    assert rows[1] == {"messages": [user("Hi"), assistant("Hello.")], "tools": None}


def test_openai_tool_calls_with_ids(folder):
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": json.dumps({"n": n})}}
        for n in (1, 2)
    ]
    turns = [
        user("Both, please."),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        assistant("Done."),
    ]
    (folder / "calls.jsonl").write_text(jsonl({"messages": turns, "tools": SCHEMAS}))
    row = registry.load(str(folder / "calls.jsonl"))[0]
    assert row["messages"][1]["tool_calls"][1] == calls[1] | {"function": {"name": "f", "arguments": {"n": 2}}}
    assert row["messages"][3] == turns[3]
    assert row["tools"] == SCHEMAS


def test_several_calls_answered_in_one_turn(folder):
    turns = [("human", "a"), ("function_call", json.dumps([CALL, CALL])), ("observation", "both"), ("gpt", "b")]
    (folder / "x.jsonl").write_text(jsonl({"conversations": [{"from": who, "value": text} for who, text in turns]}))
    assert len(registry.load(str(folder / "x.jsonl"))[0]["messages"][1]["tool_calls"]) == 2


def test_preferences_in_both_styles(folder):
    assert registry.load("dpo_en_demo", folder).to_list() == [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, user("Is tea wet?")],
            "chosen": [assistant("Yes.")],
            "rejected": [assistant("No.")],
        }
    ]
    assert registry.load("pairs", folder).to_list() == [
        {"prompt": [user("Is tea\nwet?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
    ]


def test_kto(folder):
    assert registry.load("kto_en_demo", folder).to_list() == [
        {"prompt": [user("Is tea wet?")], "completion": [assistant("Yes.")], "label": True},
        {"prompt": [user("Is ice hot?")], "completion": [assistant("Yes.")], "label": False},
    ]


def test_a_question_before_the_result_of_a_call_without_id_is_refused():
    called = assistant("") | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(LabError) as caught:
        messages.check_order([user("a"), called, user("b"), assistant("c")], "rows.jsonl:1")
    assert "turn 3" in caught.value.where


def test_a_history_that_is_no_list_of_pairs_is_named_with_its_place():
    for history in ([["only a question"]], "[[1", [["a", " "]]):
        with pytest.raises(LabError) as caught:
            formats.history_of({"history": history}, {"history": "history"}, "rows.jsonl:1")
        assert caught.value.where == "rows.jsonl:1"


def test_a_system_turn_is_put_before_a_conversation_that_has_none():
    row = {"messages": [user("a"), assistant("b")]}
    with_one = {"messages": [{"role": "system", "content": "Be kind."}, *row["messages"]]}
    assert encoding.with_system(row, "Be kind.") == with_one
    assert encoding.with_system(with_one, "Other.") == with_one and encoding.with_system(row, None) == row


def test_a_disk_without_room_is_named_with_the_folder_of_the_cache(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("pyarrow.OSFile", full)
    with pytest.raises(LabError) as caught:
        arrow_cache.write(iter([]), ("text",), tmp_path / "cache" / "one" / "rows.arrow")
    assert caught.value.where == str(tmp_path / "cache")


def test_a_kto_row_without_its_label_names_the_column(folder):
    with pytest.raises(LabError, match="`liked` is missing"):
        formats.label({"prompt": "a", "completion": "b"}, {"kto_tag": "liked"}, "rows.jsonl:1")


def test_answers_that_differ_in_white_space_alone_express_no_preference():
    sides = [[{"role": "assistant", "content": text}] for text in ("Yes.", " Yes.\n")]
    with pytest.raises(LabError, match="the same answer"):
        formats.preference([{"role": "user", "content": "Is tea wet?"}], *sides, "rows.jsonl:1")


def test_raw_text(folder):
    texts = [row["text"] for row in registry.load("wiki_demo,c4_demo", folder)]
    assert texts == [
        "The Elbe is a river.",
        "Zinc is a metal; “quotes” stay.",
        "First page.\nSecond line.",
        "Another page.",
    ]


def test_prompt_and_response_as_in_align_anything(folder, capsys):
    registered = registry.load("align_anything", folder).to_list()
    assert registered[0] == {"messages": [user("Is tea wet?"), assistant("Yes.")]}
    path = folder / "answers.jsonl"
    assert registry.load(str(path)).to_list() == registered
    said = capsys.readouterr().out
    assert said == f"{path}: read as alpaca (prompt, system, history, response -> messages)\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables(folder, suffix):
    from datasets import Dataset

    path = folder / f"table{suffix}"
    rows = Dataset.from_dict({"instruction": ["a,\n“b”", "c"], "input": ["", "d"], "output": ["e", "f"]})
    rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
    assert registry.load(str(path)).to_list() == [
        {"messages": [user("a,\n“b”"), assistant("e")]},
        {"messages": [user("c\nd"), assistant("f")]},
    ]


DETECTED = {
    "question_answer": ({"question": "a", "answer": "b"}, ["messages"]),
    "prompt_completion": ({"prompt": "a", "completion": "b"}, ["messages"]),
    "kto": ({"prompt": "a", "completion": "b", "label": True}, ["prompt", "completion", "label"]),
    "class_label": ({"prompt": "a", "response": "b", "label": "positive"}, ["messages"]),
    "pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["prompt", "chosen", "rejected"]),
    "roles_under_conversations": ({"conversations": [user("a"), assistant("b")]}, ["messages"]),
    "sharegpt_under_messages": (
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ["messages"],
    ),
}


@pytest.mark.parametrize("name", DETECTED)
def test_a_path_is_read_by_its_columns(name, folder):
    row, columns = DETECTED[name]
    (folder / "x.jsonl").write_text(jsonl(row))
    assert registry.load(str(folder / "x.jsonl")).column_names == columns


LABELS = {
    "kto_later": ([None, True], "`label` must be true or false, got null"),
    "class_later": ([None, "positive"], ""),
    "never": ([None, None], ""),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_null_label_leaves_the_format_to_the_next_rows(name, folder):
    labels, said = LABELS[name]
    path = folder / "x.jsonl"
    path.write_text(jsonl(*({"prompt": "a", "completion": f"b{label}", "label": label} for label in labels)))
    if said:
        with pytest.raises(LabError, match=said) as error:
            registry.load(str(path))
        assert error.value.where == f"{path}:1"
    else:
        assert registry.load(str(path)).column_names == ["messages"]


@pytest.mark.parametrize("name", LABELS)
def test_a_null_label_of_a_hub_s_data_set_does_too(name, tmp_path, monkeypatch):
    from datasets import Dataset

    labels, said = LABELS[name]
    examples = [{"prompt": "a", "completion": f"b{label}", "label": label} for label in labels]
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "fetched", lambda entry: Dataset.from_list(examples))
    if said:
        with pytest.raises(LabError, match=said):
            registry.load("org/set", "ONLINE")
    else:
        assert registry.load("org/set", "ONLINE").column_names == ["messages"]


def test_the_system_prompt_of_openorca_is_the_system_turn(folder):
    row = {"id": "1", "system_prompt": "Be brief.", "question": "a", "response": "b"}
    (folder / "orca.jsonl").write_text(jsonl(row | {"system_prompt": ""}, row))
    first, second = registry.load(str(folder / "orca.jsonl"))["messages"]
    assert [turn["role"] for turn in first] == ["user", "assistant"]
    assert second[0] == {"role": "system", "content": "Be brief."} and len(second) == 3


def test_a_leading_system_turn_wins_over_the_column(folder):
    turns = [{"role": "system", "content": "turn"}, user("a"), assistant("b")]
    (folder / "x.jsonl").write_text(
        jsonl({"messages": turns, "system": "column"}, {"messages": turns[1:], "system": "column"})
    )
    rows = registry.load(str(folder / "x.jsonl"))
    assert [row["messages"][0]["content"] for row in rows] == ["turn", "column"]


@pytest.mark.parametrize("depth", [150, 600, 990])
def test_deep_nesting_is_refused_wherever_it_stands(depth, folder):
    deep = "[" * depth + "]" * depth
    turns = '"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'
    for more in (f'"tools": {json.dumps(deep)}', f'"tools": [{{"name": "f", "x": {deep}}}]', f'"other": {deep}'):
        (folder / "x.jsonl").write_text("{" + turns + ", " + more + "}")
        with pytest.raises(LabError) as caught:
            registry.load(str(folder / "x.jsonl"))
        assert caught.value.where == f"{folder / 'x.jsonl'}:1"


def test_a_text_that_reads_like_turns_has_a_way_into_training(tmp_path):
    text = '[{"role": "user", "content": "hi"}] has how many turns?'
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": text, "completion": "One."}))
    with pytest.raises(LabError, match="holds its turns as text") as error:
        registry.load(str(path))
    assert "if the text itself is meant, rename the column: `instruction` for the prompt" in error.value.fix
    path.write_text(json.dumps({"instruction": text, "output": "One."}))
    assert registry.load(str(path))["messages"][0][0]["content"] == text
