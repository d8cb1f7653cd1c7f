"""Splits that share nothing, because duplicates go first and rows that ask the same stay together."""

import pytest
from datasets import Dataset

from ftlab.data.split import dedup, folded, overlap, split
from ftlab.errors import LabError


def chats(*pairs):
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return Dataset.from_dict({"messages": rows})


def test_folding():
    assert folded("Ｆｕｌｌ　Width\r\n\tstraße ﬁ") == "full width strasse fi"


def test_duplicates_are_dropped_first():
    rows = chats(("Hi", "a"), (" HI ", "A"), ("Hi", "b"), ("ho", "a"))
    unique, dropped = dedup(rows)
    assert dropped == 1
    assert unique.to_list() == [rows[0], rows[2], rows[3]]


def test_parts_add_up_share_nothing_and_come_back_the_same(capsys):
    rows = chats(*[(f"question {n % 100 % 90}", f"answer {n % 100}") for n in range(120)])
    parts = split(rows, 0.1, 20, seed=7)
    said = capsys.readouterr().out
    assert (len(parts.validation), len(parts.test), parts.dropped) == (10, 20, 20)
    assert len(parts.train) == 70
    assert said == "120 examples read = 70 train + 10 validation + 20 test + 20 duplicates dropped; overlap 0\n"
    for one, other in ((parts.train, parts.test), (parts.train, parts.validation), (parts.validation, parts.test)):
        assert overlap(one, other) == overlap(other, one) == 0
    again, other = split(rows, 0.1, 20, seed=7), split(rows, 0.1, 20, seed=8)
    assert again.test.to_list() == parts.test.to_list() != other.test.to_list()


def test_rows_that_ask_the_same_stay_together():
    rows = Dataset.from_list(
        [
            {"prompt": f"question {n // 2}", "completion": f"answer {n}", "label": bool(n % 2)}
            for n in range(40)
        ]
    )  # fmt: skip
    parts = split(rows, 0.2, 0.2, seed=1)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (24, 8, 8)
    for part in parts[:3]:
        assert sum(part["label"]) == len(part) / 2


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_conversation_and_a_longer_one_stay_together(system):
    short = [system + turns(f"q{n}", f"a{n}") for n in range(20)]
    longer = [system + turns(f"q{n}", f"a{n}", "And then?", f"b{n}") for n in range(20)]
    parts = split(Dataset.from_list([{"messages": one} for one in short + longer]), val_size=10, test_size=0)
    held_out, trained = ({row["messages"][len(system)]["content"] for row in part} for part in parts[1::-1])
    assert len(held_out) == 5 and len(trained) == 15 and not held_out & trained


def test_a_pair_and_one_with_a_longer_prompt_stay_together():
    def pair(*texts):
        *prompt, answer = turns(*texts)
        return {"prompt": prompt, "chosen": [answer], "rejected": [answer | {"content": "no"}]}

    rows = [pair(f"q{n}", f"a{n}") for n in range(20)]
    rows += [pair(f"q{n}", f"a{n}", "And then?", f"b{n}") for n in range(20)]
    parts = split(Dataset.from_list(rows), val_size=10, test_size=0)
    held_out, trained = ({row["prompt"][0]["content"] for row in part} for part in parts[1::-1])
    assert len(held_out) == 5 and len(trained) == 15 and not held_out & trained


def test_conversations_that_merely_begin_alike_are_divided():
    """Nobody's whole conversation is the greeting, so that nothing is learned from one about the others."""
    rows = [{"messages": turns("Hello", "Hi!", f"q{n}", "a")} for n in range(9)]
    parts = split(Dataset.from_list(rows), val_size=3, test_size=0)
    assert (len(parts.train), len(parts.validation)) == (6, 3)


def test_a_family_that_is_too_large_is_divided_by_its_questions():
    rows = [{"messages": turns("Hello", "Hi!", *(f"t{n}" for n in range(2 * longest)))} for longest in range(9)]
    parts = split(Dataset.from_list(rows), val_size=3, test_size=0)
    assert (len(parts.train), len(parts.validation)) == (6, 3)


def test_a_label_keeps_its_share_in_every_part():
    rows = Dataset.from_list([{"text": f"row {n}", "mood": "good" if n % 4 else "bad"} for n in range(200)])
    parts = split(rows, 0.1, 0.1, seed=3, stratify="mood")
    assert [sum(mood == "bad" for mood in part["mood"]) for part in parts[:3]] == [40, 5, 5]
    assert [len(part) for part in parts[:3]] == [160, 20, 20]


def test_overlap_counts_questions():
    train, test = chats(("a", "1"), ("b", "2")), chats(("A ", "other"), ("c", "3"), ("b", "2"))
    assert overlap(train, test) == 2


@pytest.mark.parametrize(("val_size", "test_size"), [(0.5, 0.5), (-0.1, 0.1), (3, 1), (1.5, 0), (True, 0)])
def test_sizes_that_cannot_be(val_size, test_size):
    with pytest.raises(LabError, match="val_size, test_size"):
        split(chats(*[(str(n), "a") for n in range(4)]), val_size, test_size)


def test_a_label_that_is_not_there():
    with pytest.raises(LabError, match="did you mean messages"):
        split(chats(("a", "b"), ("c", "d")), 0.5, 0, stratify="message")
