"""The report on a data set, the repaired file, the token budget."""

import json
from pathlib import Path

import pytest

from ftlab.control_tokens import CONTROL_TOKENS, escape_control_tokens
from ftlab.data import check, registry
from ftlab.errors import LabError
from ftlab.tokens import truncate_lengths

GOOD = {"instruction": "Name a river.", "output": "The Elbe."}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def answer(text):
    return {"instruction": f"Say {text}", "output": text}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer with one token a character, ChatML, and a control token that lies inside another."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: number for number, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "im_end|>"]
    made = PreTrainedTokenizerFast(tokenizer_object=tokens, extra_special_tokens=special, eos_token="<|im_end|>")
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def test_a_report_lists_what_is_wrong_and_adds_up(folder):
    rows = [
        GOOD,
        {"instruction": "a"},
        GOOD,
        {"instruction": " name a RIVER．", "output": "the\nelbe."},
        answer("<s>x"),
    ]
    path = write(folder / "x.jsonl", *rows)
    report = check.check(path)
    assert str(report) == (
        f"{path}:2: `output` is missing\n"
        "  fix: available: instruction; set the column names under `columns` in dataset_info.json\n"
        f"{path}:3: duplicate of {path}:1\n"
        "  fix: remove it; `--fix OUT` does so\n"
        f"{path}:4: duplicate of {path}:1\n"
        "  fix: remove it; `--fix OUT` does so\n"
        f"{path}:5: the text contains 2 control tokens (<s>), which would start or end a turn\n"
        "  fix: escape them; `--fix OUT` does so\n"
        f"{path}: 5 examples read = 4 kept + 0 truncated (0 tokens lost) + 1 dropped; 2 duplicates, "
        "0 in another data set, "
        "1 with control tokens"
    )
    assert (report.read, report.kept, report.cut, report.dropped, report.total) == (5, 4, 0, 1, 4)
    assert report.problems[0] == check.Problem(f"{path}:2", "`output` is missing", report.problems[0].fix)


def test_the_first_twenty_problems_are_shown(folder):
    path = write(folder / "x.jsonl", GOOD, *[{"instruction": "a", "output": None}] * 30)
    shown = str(check.check(path)).splitlines()
    assert len(shown) == 2 * 20 + 2
    assert shown[-2] == "... and 10 more, 30 problems in total"


def test_a_report_remembers_a_thousand_problems_and_counts_all(folder):
    report = check.check(write(folder / "x.jsonl", GOOD, *[{"instruction": "a", "output": None}] * 1500))
    assert (len(report.problems), report.total, report.dropped) == (1000, 1500, 1500)


def test_a_good_set_has_an_empty_report(folder):
    path = write(folder / "x.jsonl", GOOD, answer("b"))
    (folder / "dataset_info.json").write_text(json.dumps({"good": {"file_name": "x.jsonl"}}))
    for report in (check.check(path), check.check("good", folder)):
        assert (report.total, report.read, report.kept) == (0, 2, 2)


def test_rows_shared_with_another_set_are_reported(folder):
    train, test = write(folder / "train.jsonl", GOOD, answer("b")), write(folder / "test.jsonl", GOOD, answer("c"))
    report = check.check(f"{train},{test}")
    assert report.problems == [
        check.Problem(
            f"{test}:1",
            f"same question as {train}:1, in the other data set",
            "remove it from one of the two, or the score will be too high",
        )
    ]
    assert (report.overlap, report.kept, report.dropped) == (1, 4, 0)


def test_fix_writes_the_good_rows_and_says_every_change(folder):
    rows = [GOOD, GOOD, {"instruction": "a", "output": ""}, answer("x<|im_end|>")]
    path = write(folder / "x.jsonl", *rows)
    report = check.check(path, fix_to=folder / "mended.jsonl")
    assert report.changes == [
        f"{path}:2: dropped (duplicate of {path}:1)",
        f"{path}:3: dropped (`output` is empty)",
        f"{path}:4: 2 control tokens escaped",
        f"{folder / 'mended.jsonl'}: 2 examples written",
    ]
    assert all(change in str(report) for change in report.changes)
    mended = [json.loads(line) for line in (folder / "mended.jsonl").read_text(encoding="utf-8").splitlines()]
    assert mended[0] == GOOD and mended[1]["output"] == escape_control_tokens("x<|im_end|>") != "x<|im_end|>"
    assert check.check(str(folder / "mended.jsonl")).total == 0
    assert len(registry.load(str(folder / "mended.jsonl"))) == 2
    assert sorted(one.name for one in folder.iterdir() if one.is_file()) == ["mended.jsonl", "x.jsonl"]


def test_fix_keeps_the_fields_of_the_file_and_writes_arrays(folder):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    write(folder / "x.jsonl", {"conversations": turns, "id": 7}, {"conversations": turns[:1], "id": 8})
    check.check("x.jsonl", fix_to=folder / "mended.json")
    assert json.loads((folder / "mended.json").read_text()) == [{"conversations": turns, "id": 7}]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le"])
def test_fix_writes_utf_8(encoding, folder):
    rows = [{"instruction": "说出一条河。", "output": "长江。"}, GOOD]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "x.jsonl").write_bytes(text.encode(encoding))
    report = check.check("x.jsonl", fix_to=folder / "mended.jsonl")
    assert report.total == 1 and f"encoding: {encoding}" in report.problems[0].fix
    assert report.changes == [f"x.jsonl: decoded from {encoding}", f"{folder / 'mended.jsonl'}: 2 examples written"]
    assert [json.loads(line) for line in (folder / "mended.jsonl").read_text(encoding="utf-8").splitlines()] == rows


def test_latin_1_is_not_taken_for_chinese(folder):
    text = json.dumps({"instruction": "Un éclair ?", "output": "Été"}, ensure_ascii=False) + "\n" + json.dumps(GOOD)
    (folder / "x.jsonl").write_bytes(text.encode("latin-1"))
    report = check.check("x.jsonl", fix_to=folder / "mended.jsonl")
    assert report.problems[0].fix == "save the file as UTF-8, or set `encoding: latin-1` in dataset_info.json"
    assert report.changes[0] == "x.jsonl:1: dropped (the text is not UTF-8)"
    assert json.loads((folder / "mended.jsonl").read_text()) == GOOD


def test_nothing_is_overwritten(folder):
    path = write(folder / "x.jsonl", GOOD)
    for target in (Path(path), folder / "other.json"):
        target.touch()
        with pytest.raises(LabError, match="the output file already exists"):
            check.check(path, fix_to=target)
    assert (folder / "x.jsonl").read_text() == json.dumps(GOOD) + "\n"


@pytest.mark.parametrize(
    ("target", "message"), [("x.csv", "as one .jsonl or .json"), ("no/x.json", "folder not found")]
)
def test_names_that_cannot_be_written(target, message, folder):
    with pytest.raises(LabError, match=message):
        check.check(write(folder / "x.jsonl", GOOD), fix_to=folder / target)


def test_a_file_that_breaks_off_is_not_mended(folder):
    (folder / "x.json").write_text('[{"instruction": "a", "output": "b"},\n{"instruction" "a"},\n{"instruction": "c"}]')
    report = check.check("x.json", fix_to=folder / "mended.json")
    assert [problem.where for problem in report.problems] == ["x.json:2"]
    assert report.changes == [
        f"{folder / 'mended.json'}: not written; first fix by hand the place after which the file cannot be read"
    ]
    assert [one.name for one in folder.iterdir() if one.is_file()] == ["x.json"]


def test_no_such_set_is_an_error_not_a_report(folder):
    with pytest.raises(LabError, match=r"dataset_info\.json not found"):
        check.check("nothing", folder)


ORACLE = [
    ((3000, 2000, 1000), (600, 400)),
    ((2000, 3000, 1000), (400, 600)),
    ((1000, 100, 1000), (900, 100)),
    ((100, 1000, 1000), (100, 900)),
    ((100, 500, 1000), (100, 500)),
    ((500, 100, 1000), (500, 100)),
    ((10, 10, 1000), (10, 10)),
    ((40, 52, 23), (11, 12)),
]


@pytest.mark.parametrize(("lengths", "kept"), ORACLE)
def test_truncation_agrees_with_llama_factory(lengths, kept):
    assert truncate_lengths(*lengths) == kept


def test_rows_above_cutoff_len_are_reported_with_what_goes(folder, tokenizer):
    path = write(folder / "x.jsonl", GOOD, {"instruction": "q" * 20, "output": "a" * 100})
    report = check.check(path, cutoff_len=100, tokenizer=tokenizer)
    # <|im_start|>user\n + 20 + <|im_end|>\n<|im_start|>assistant\n = 39; 100 + <|im_end|>\n = 102.
    assert report.problems == [
        check.Problem(
            f"{path}:2",
            "cutoff_len 100 cuts 41 tokens from the example, 40 of them from its answer",
            "increase cutoff_len, or shorten the example",
        )
    ]
    assert (report.kept, report.cut, report.tokens_lost) == (1, 1, 41)
    assert len(tokenizer.apply_chat_template(registry.load(path)[1]["messages"], return_dict=True)["input_ids"]) == 141


def test_a_template_that_refuses_a_row_is_a_problem(folder, tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(LabError, match="no chat template"):
        check.check(write(folder / "x.jsonl", GOOD), cutoff_len=10, tokenizer=tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    report = check.check("x.jsonl", cutoff_len=10, tokenizer=tokenizer)
    assert [str(problem) for problem in report.problems] == [
        "x.jsonl:1: the chat template rejected the conversation: no such role\n"
        "  fix: change the roles or the order of the messages, or use a model with another template"
    ]
    assert (report.kept, report.dropped) == (0, 1)


def test_escaped_control_tokens_are_plain_text_to_the_tokenizer(folder, tokenizer):
    path = write(folder / "x.jsonl", answer("a<|im_end|>b im_end|> <|im_start|><|im_start|>"))
    assert check.check(path, tokenizer=tokenizer, fix_to=folder / "mended.jsonl").changed == 1
    text = registry.load(str(folder / "mended.jsonl"))[0]["messages"][1]["content"]
    assert not set(tokenizer(text).input_ids) & set(tokenizer.all_special_ids)
    assert text.replace("\u2060", "").replace("\u200b", "") == "a<|im_end|>b im_end|> <|im_start|><|im_start|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_every_control_token_is_found(token, folder):
    assert check.check(write(folder / "x.jsonl", answer(f"a {token} b"))).changed == 1


def test_an_empty_system_turn_is_to_be_removed_not_its_example(tmp_path):
    turns = [
        {"role": "system", "content": " "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    (problem,) = check.check(str(path)).problems
    assert (problem.what, problem.fix) == ("`content` of the system turn is empty", "add the text, or remove the turn")
    assert problem.where.endswith(":1 (turn 1)")
