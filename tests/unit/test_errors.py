"""Messages: short whatever a user's file holds."""

from ftlab.errors import LONGEST_VALUE, fail, say


def test_a_long_value_is_cut_and_the_sentence_stays():
    error = fail("data_unknown_set", where="r.yaml", name="a" * 5000, nearest="known: x;")
    assert len(str(error)) < LONGEST_VALUE + 200
    assert "unknown data set `aaa" in str(error) and "known: x;" in str(error)


def test_a_value_of_usual_length_is_shown_whole():
    assert "x" * 300 in say("data_unknown_set", name="x" * 300)
