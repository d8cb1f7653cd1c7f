"""The labelling pile: picks become a registered preference set, by button, by key and by a scripted rater."""

import json

import pytest

from ftlab.apps.board.label_panel import LEFT, RIGHT, SKIP, Labels, panel
from ftlab.data import registry
from ftlab.errors import LabError

ROWS = [(f"Question {i}?", f"Short {i}.", f"A longer answer, number {i}.") for i in range(8)]


def longer(question, left, right):
    return RIGHT if len(right) > len(left) else LEFT


def test_a_scripted_rater_makes_a_set_that_the_registry_reads(tmp_path):
    labels = Labels(ROWS, "mine", tmp_path)
    lefts = [row[1].startswith("Short") for row in labels.rows]
    assert any(lefts) and not all(lefts)
    assert labels.rate(longer) == 8
    rows = registry.rows_of("mine", tmp_path)
    assert [row["prompt"][0]["content"] for row in rows] == [row[0] for row in ROWS]
    assert all(row["chosen"][0]["content"].startswith("A longer") for row in rows)
    assert all(row["rejected"][0]["content"].startswith("Short") for row in rows)


def test_buttons_keys_and_skip(tmp_path):
    labels = Labels(ROWS, "mine", tmp_path)
    box = panel(labels)
    (left_column, right_column), (keys, skip, progress) = box.children[1].children, box.children[2].children
    shown = list(labels.rows)
    left_column.children[1].click()
    right_column.children[1].click()
    skip.click()
    for key in "12x0":
        keys.value = key
    assert progress.value == "4 rated, 2 to go"
    chosen = [row["chosen"] for row in labels.preferences()]
    assert chosen == [shown[0][1], shown[1][2], shown[3][1], shown[4][2]]
    labels.rate(lambda *_: SKIP)
    left_column.children[1].click()
    assert len(labels.preferences()) == 4 and "last one" in panel(labels).children[0].value


@pytest.mark.parametrize(
    ("lang", "words"), [("en", ("this one", "neither", "8 to go")), ("zh", ("选这个", "都不选", "8 对"))]
)
def test_the_pile_speaks_both_languages(tmp_path, monkeypatch, lang, words):
    monkeypatch.setenv("FTLAB_LANG", lang)
    labels = Labels(ROWS, "mine", tmp_path)
    box = panel(labels)
    keys, skip, progress = box.children[2].children
    assert words[0] in box.children[1].children[0].children[1].description
    assert words[1] in skip.description and words[2] in progress.value
    labels.rate(lambda *_: SKIP)
    asked = panel(labels).children[0].value
    assert ("last one" in asked) == (lang == "en") and keys.placeholder.endswith("0")


def test_it_goes_on_where_it_was_left(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"other": {"file_name": "other.json"}}))
    first = Labels(ROWS, "mine", tmp_path)
    first.pick(LEFT)
    again = Labels(ROWS, "mine", tmp_path)
    assert again.rows == first.rows and len(again.preferences()) == 1
    assert set(json.loads((tmp_path / "dataset_info.json").read_text())) == {"other", "mine"}


def test_an_answer_with_a_line_separator_is_one_row(tmp_path):
    rows = [("Q?", "one\u2028two", "three\x85four")]
    assert Labels(rows, "mine", tmp_path).rate(lambda *_: LEFT) == 1
    assert Labels(rows, "mine", tmp_path).rows == []


def test_the_name_of_another_data_set_is_refused_and_its_entry_stays(tmp_path):
    info = '{"mine": {"file_name": "mine.jsonl", "formatting": "sharegpt"}}'
    (tmp_path / "dataset_info.json").write_text(info)
    with pytest.raises(LabError, match="mine already exists"):
        Labels(ROWS, "mine", tmp_path)
    assert (tmp_path / "dataset_info.json").read_text() == info


def test_equal_answers_are_refused(tmp_path):
    with pytest.raises(LabError, match="the same answer"):
        Labels([("Q?", "same", "same ")], "mine", tmp_path)
    assert not list(tmp_path.iterdir())
