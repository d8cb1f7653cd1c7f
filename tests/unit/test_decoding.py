"""Lines that are not in the encoding they are said to be in: named with their place, the encoding guessed."""

import pytest

from ftlab.data import decoding
from ftlab.errors import LabError

PLACE = "rows.jsonl:7"


@pytest.mark.parametrize(
    ("raw", "encoding", "said"),
    [
        ("éclair".encode("latin-1"), "utf-8", "not UTF-8"),
        ("今天天气很好，我们一起去公园散步吧".encode("gb18030"), "utf-8", "probably GBK"),
        ("今天".encode()[:-1], "utf-8", ""),
        (b"caf\xff\xfe!", "ascii", "ascii"),
        (b"a\x00b", "utf-8", ""),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_place(raw, encoding, said):
    problem = decoding.decoded(raw, encoding, PLACE)
    assert isinstance(problem, LabError) and problem.where == PLACE and said in problem.what


def test_a_line_in_its_encoding_is_its_text():
    assert decoding.decoded("今天".encode(), "utf-8", PLACE) == "今天"
    assert decoding.decoded("éclair".encode("latin-1"), "latin-1", PLACE) == "éclair"
