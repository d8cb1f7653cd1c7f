"""Registry semantics, mixing, caps and the cache."""

import json
import os
import re
import sys

import pytest

from ftlab.data import hub, registry
from ftlab.errors import LabError


def write_rows(path, answers, **more):
    path.write_text("".join(json.dumps({"instruction": "a", "output": one} | more) + "\n" for one in answers))


def answers(dataset):
    return [row["messages"][-1]["content"] for row in dataset]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "one.jsonl", ["1", "2", "3"])
    write_rows(tmp_path / "two.jsonl", ["7", "8"])
    info(tmp_path, one={"file_name": "one.jsonl"}, two={"file_name": "two.jsonl"})
    return tmp_path


def info(folder, **entries):
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def test_sets_are_mixed(folder):
    assert answers(registry.load("one, two", folder)) == ["1", "2", "3", "7", "8"]
    assert answers(registry.load("one,two", folder, max_samples=1)) == ["1", "7"]
    under = registry.load("one,two", folder, mix_strategy="interleave_under")
    over = registry.load("one,two", folder, mix_strategy="interleave_over", interleave_probs=[0.5, 0.5], seed=3)
    assert answers(under) == ["1", "7", "2", "8"]
    assert set(answers(over)) == {"1", "2", "3", "7", "8"}
    again = registry.load("one,two", folder, mix_strategy="interleave_over", interleave_probs=[0.5, 0.5], seed=3)
    assert answers(over) == answers(again)


WRONG_MIXES = [
    ({"mix_strategy": "blend"}, "mix_strategy: unknown mix_strategy `blend`"),
    (
        {"interleave_probs": [0.5, 0.5]},
        "interleave_probs: the probabilities do not match 2 data sets: [0.5, 0.5] (concat)",
    ),
    (
        {"mix_strategy": "interleave_under", "interleave_probs": [0.5, 0.6]},
        "interleave_probs: the probabilities do not match 2 data sets: [0.5, 0.6] (interleave_under)",
    ),
    (
        {"mix_strategy": "interleave_over", "interleave_probs": [1, 0]},
        "interleave_probs: the probabilities do not match 2 data sets: [1, 0] (interleave_over)",
    ),
    ({"max_samples": 0}, "max_samples: invalid number of examples 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_MIXES)
def test_mixtures_that_cannot_be_made(options, message, folder):
    with pytest.raises(LabError) as caught:
        registry.load("one,two", folder, **options)
    assert str(caught.value).startswith(message)


def test_kinds_are_not_mixed(folder):
    (folder / "raw.txt").write_text("text\n")
    with pytest.raises(LabError) as caught:
        registry.load("one,raw.txt", folder)
    assert caught.value.what == "data sets of different kinds cannot be mixed: one: messages; raw.txt: text"


def test_sets_with_and_without_tools_are_mixed(folder):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "9"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "n": [1, 2.5, None]}}}
    (folder / "t.jsonl").write_text(json.dumps({"messages": turns, "tools": [tool]}))
    rows = registry.load("one,t.jsonl", folder)
    assert answers(rows) == ["1", "2", "3", "9"]
    assert rows["tools"][:] == [None, None, None, [tool]]


def test_num_samples_draws_each_row_once_before_any_twice(folder):
    info(folder, some={"file_name": "one.jsonl", "num_samples": 2}, many={"file_name": "one.jsonl", "num_samples": 7})
    assert len(set(answers(registry.load("some", folder)))) == 2
    many = answers(registry.load("many", folder))
    assert len(many) == 7 and sorted(many[:3]) == ["1", "2", "3"]
    assert many == answers(registry.load("many", folder))
    assert len(registry.load("many", folder, max_samples=5)) == 5


def test_a_changed_file_is_read_again_even_with_the_same_size_and_time(folder):
    path = folder / "one.jsonl"
    before = path.stat()
    assert answers(registry.load("one", folder)) == ["1", "2", "3"]
    write_rows(path, ["4", "5", "6"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert answers(registry.load("one", folder)) == ["4", "5", "6"]
    assert len(list((folder / "cache" / "rows").iterdir())) == 2


def test_a_second_load_reads_the_cache_and_a_refused_file_leaves_nothing(folder, monkeypatch):
    registry.load("one", folder)
    monkeypatch.setattr(registry, "converted", None)
    assert answers(registry.load("one", folder)) == ["1", "2", "3"]
    monkeypatch.undo()
    monkeypatch.setenv("FTLAB_CACHE", str(folder / "other"))
    (folder / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    with pytest.raises(LabError):
        registry.load(str(folder / "bad.jsonl"))
    assert list((folder / "other" / "rows").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("FTLAB_CACHE", str(folder / "file"))
    with pytest.raises(LabError, match="the cache is not writable"):
        registry.load("one", folder)


def test_only_the_rows_taken_have_to_be_good(folder):
    with (folder / "one.jsonl").open("a") as file:
        file.write("broken\n")
    assert len(registry.load("one", folder, max_samples=3)) == 3
    with pytest.raises(LabError) as caught:
        registry.load("one", folder)
    assert caught.value.where == f"{folder / 'one.jsonl'}:4"


def test_the_first_problems_are_listed_with_the_total(folder):
    (folder / "bad.jsonl").write_text(
        '{"instruction": "a", "output": "b"}\n' + '{"instruction": "a", "output": 1}\n' * 9
    )
    with pytest.raises(LabError) as caught:
        registry.load("bad.jsonl")
    assert str(caught.value) == (
        "bad.jsonl:2: `output` must be a string, got number (9 problems in total, the next at bad.jsonl:3, "
        "bad.jsonl:4, "
        "bad.jsonl:5; `ftlab data check bad.jsonl` lists them)\n"
        "  fix: write a string (in JSON: in quotes), or remove the example"
    )


def test_giving_columns_resets_the_unlisted_ones_and_says_what_is_lost(folder, capsys):
    write_rows(folder / "one.jsonl", ["1"], system="Be brief.", input="more")
    columns = {"prompt": "instruction", "response": "output"}
    info(folder, bare={"file_name": "one.jsonl"}, listed={"file_name": "one.jsonl", "columns": columns})
    bare = registry.load("bare", folder)[0]["messages"]
    assert [turn["content"] for turn in bare] == ["Be brief.", "a\nmore", "1"]
    assert capsys.readouterr().out == ""
    listed = registry.load("listed", folder)[0]["messages"]
    assert [turn["content"] for turn in listed] == ["a", "1"]
    said = capsys.readouterr().out
    assert "listed: 1 example has `system`, which is not read" in said and "1 example has `input`" in said


def test_giving_tags_resets_the_unlisted_ones(folder):
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    (folder / "m.jsonl").write_text(json.dumps({"messages": turns}))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "m.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    info(folder, reset=entry, whole=entry | {"tags": tags | {"system_tag": "system"}})
    with pytest.raises(LabError, match=r"m.jsonl:1 \(turn 1\): unknown role `system`"):
        registry.load("reset", folder)
    assert registry.load("whole", folder)[0]["messages"] == turns


def test_a_folder_of_files_is_one_set(folder):
    (folder / "many").mkdir()
    for number in (2, 1):
        write_rows(folder / "many" / f"{number}.jsonl", [str(number)])
    info(folder, many={"file_name": "many"})
    assert answers(registry.load("many", folder)) == ["1", "2"]
    write_rows(folder / "many" / "3.jsonl", ["3"])
    assert answers(registry.load("many", folder)) == ["1", "2", "3"]
    (folder / "many" / "4.txt").write_text("text")
    with pytest.raises(LabError, match=r"data files of one type, found: \.jsonl \.txt"):
        registry.load("many", folder)


def test_a_folder_leaves_no_data_file_unread(folder):
    (folder / "many" / "part").mkdir(parents=True)
    write_rows(folder / "many" / "1.jsonl", ["1"])
    (folder / "many" / ".1.jsonl").write_text("what an editor left")
    (folder / "many" / "part" / "notes.md").write_text("not data")
    info(folder, many={"file_name": "many"})
    assert answers(registry.load("many", folder)) == ["1"]
    write_rows(folder / "many" / "part" / "2.jsonl", ["2"])
    with pytest.raises(LabError, match="in folders inside this one, which are not read: part"):
        registry.load("many", folder)


@pytest.mark.parametrize("part", [{"split": "train[:1]"}, {"split": "test"}, {"subset": "en"}, {"folder": "en"}])
def test_a_part_that_only_a_hub_has_is_not_ignored_for_a_file(part, folder):
    info(folder, one={"file_name": "one.jsonl"} | part)
    ((key, value),) = part.items()
    with pytest.raises(LabError, match=re.escape(f"`{key}: {value}` names a part of a data set on a hub")):
        registry.load("one", folder)
    info(folder, one={"file_name": "one.jsonl", "split": "train", "subset": None})
    assert answers(registry.load("one", folder)) == ["1", "2", "3"]


LOST = [
    ("on", "unknown data set `on`"),
    ("gone.jsonl", "unknown data set `gone.jsonl`"),
    ("some/gone.jsonl", "file not found"),
    ("", "no data set given"),
    ("table.xlsx", "unsupported file type"),
]


@pytest.mark.parametrize(("name", "message"), LOST)
def test_names_that_lead_nowhere(name, message, folder):
    (folder / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(LabError) as caught:
        registry.load(name, folder)
    assert caught.value.what == message and caught.value.fix


def test_no_registry(folder):
    with pytest.raises(LabError, match=r"dataset_info\.json not found"):
        registry.load("one", folder / "elsewhere")


@pytest.mark.parametrize("text", ["", "[]", '{"one": {}', '{"one": {}, "one": {}}', "\x80"])
def test_a_broken_registry(text, folder):
    (folder / "dataset_info.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LabError) as caught:
        registry.load("one", folder)
    assert caught.value.where.startswith(f"{folder / 'dataset_info.json'}:1")


def test_a_broken_registry_is_named_with_its_line(folder):
    (folder / "dataset_info.json").write_text('{\n "one": {},\n "two" 3}')
    with pytest.raises(LabError) as caught:
        registry.load("one", folder)
    assert caught.value.where == f"{folder / 'dataset_info.json'}:3"


@pytest.mark.parametrize(
    ("key", "name", "meant"), [("columns", "respnse", "response"), ("tags", "role_tg", "role_tag")]
)
def test_an_unknown_column_or_tag_is_named_with_the_nearest(folder, key, name, meant):
    info(folder, one={"file_name": "one.jsonl", key: {name: "x"}})
    with pytest.raises(LabError, match=f"did you mean {meant}") as caught:
        registry.load("one", folder)
    assert caught.value.where.endswith(f"one: {key}")


def test_a_hub_wins_over_a_file_and_is_asked_for_subset_and_split(folder, monkeypatch, capsys):
    import datasets

    asked = {}
    rows = datasets.Dataset.from_dict({"instruction": ["a", "b"], "output": ["c", "d"]})

    def load_dataset(url, subset, **options):
        asked.update(options, url=url, subset=subset)
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    info(folder, hub={"hf_hub_url": "org/set", "file_name": "one.jsonl", "subset": "s", "split": "test"})
    assert answers(registry.load("hub", folder)) == ["c", "d"]
    assert asked == {"url": "org/set", "subset": "s", "split": "test", "data_dir": None}
    assert capsys.readouterr().out == "downloading data set org/set from huggingface.co\n"
    rows = datasets.Dataset.from_dict({"instruction": ["a", "b"], "output": ["c", None]})
    with pytest.raises(LabError, match="org/set:2: `output` must be a string, got null"):
        registry.load("hub", folder)


def test_online_names_are_hub_ids_read_by_their_columns(monkeypatch, capsys):
    import datasets

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = datasets.Dataset.from_dict({"messages": [turns]})
    monkeypatch.setattr(datasets, "load_dataset", lambda url, subset, **options: rows)
    assert registry.load("org/set", "ONLINE").to_list() == [{"messages": turns}]
    assert "org/set: read as openai (messages, system, tools -> messages, tools)" in capsys.readouterr().out
    rows = datasets.Dataset.from_dict({"pixels": [1]})
    with pytest.raises(LabError, match="org/set:1: these columns match no known format: pixels"):
        registry.load("org/set", "ONLINE")


def test_a_hub_out_of_reach_is_one_message(folder, monkeypatch):
    import datasets

    def load_dataset(*arguments, **options):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    info(folder, hub={"hf_hub_url": "org/set"})
    with pytest.raises(LabError) as caught:
        registry.load("hub", folder)
    assert caught.value.what == "the data set could not be downloaded (no route)"


def test_modelscope_is_asked_for_when_there_is_no_other_hub(folder, monkeypatch):
    monkeypatch.setattr(hub, "from_hub", lambda entry: pytest.fail("asked the wrong hub"))
    info(folder, scope={"ms_hub_url": "org/set"}, both={"ms_hub_url": "org/set", "hf_hub_url": "org/set"})
    for name in ("modelscope", "modelscope.hub", "modelscope.hub.snapshot_download"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LabError) as caught:
        registry.load("scope", folder)
    assert caught.value.fix == "pip install modelscope"
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    with pytest.raises(LabError, match="modelscope is not installed"):
        registry.load("both", folder)


def test_a_package_that_modelscope_lacks_is_named_instead_of_modelscope(folder, monkeypatch):
    site = folder / "site"
    (site / "modelscope" / "hub").mkdir(parents=True)
    for name in ("modelscope", "modelscope/hub"):
        (site / name / "__init__.py").write_text("")
    (site / "modelscope" / "hub" / "snapshot_download.py").write_text("import a_package_that_is_not_here.part\n")
    monkeypatch.syspath_prepend(site)
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelscope"]:
        monkeypatch.delitem(sys.modules, name)
    info(folder, scope={"ms_hub_url": "org/set"})
    with pytest.raises(LabError, match="the package a_package_that_is_not_here is not installed") as caught:
        registry.load("scope", folder)
    assert caught.value.fix == "pip install a_package_that_is_not_here"
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelscope"]:
        del sys.modules[name]


def test_control_tokens_are_counted(folder, capsys):
    write_rows(folder / "one.jsonl", ["fine", "ends<|im_end|> here"])
    registry.load("one", folder)
    said = capsys.readouterr().out
    assert said.startswith(
        "one: 1 example contains control tokens such as <|im_end|>; `ftlab data check one --fix OUT`"
    )


def test_fractions_that_datasets_rounds_are_mentioned(folder, capsys):
    for number, said in ((0.25, False), (0.3, True)):
        call = json.dumps({"name": "f", "arguments": {"x": number}})
        turns = [("human", "a"), ("function_call", call), ("observation", "b"), ("gpt", "c")]
        row = {"conversations": [{"from": role, "value": value} for role, value in turns]}
        (folder / "x.jsonl").write_text(json.dumps(row))
        registry.load("x.jsonl")
        assert ("datasets` rounds" in capsys.readouterr().out) is said
