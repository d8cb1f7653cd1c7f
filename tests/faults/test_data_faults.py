"""Broken data files: each is refused with its place and a fix; nothing else ever escapes."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftlab.data import check, registry
from ftlab.errors import LabError

HERE = Path(__file__).parent / "data"
BROKEN = sorted(HERE.iterdir())
SEEDS = [
    b'{"instruction": "say hi", "output": "hi"}\n{"instruction": "2", "output": "2", "history": [["a", "b"]]}\n',
    b'[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"}]',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
    b'{"instruction": "a", "chosen": "b", "rejected": "c"}\n{"instruction": "d", "chosen": "e", "rejected": "f"}\n',
    b'instruction,output\n"a, b",c\nd,"e\nf"\n',
]
PIECES = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\n",
    b"\x00",
    b"\xff",
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"",
]


def test_there_are_enough_of_them():
    assert len(BROKEN) >= 60 and len({path.read_bytes() for path in BROKEN if path.stat().st_size}) >= 60


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.name)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_broken_file_is_refused_with_its_place_and_a_fix(path, language, monkeypatch):
    monkeypatch.setenv("FTLAB_LANG", language)
    with pytest.raises(LabError) as error:
        registry.load(str(path))
    assert re.match(rf"{re.escape(str(path))}:\d+", error.value.where), error.value.where
    assert error.value.what and error.value.fix and error.value.exit_code == 2


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.name)
def test_its_report_adds_up(path):
    try:
        report = check.check(str(path))
    except LabError as error:
        assert error.fix
        return
    assert report.problems and report.kept + report.cut + report.dropped == report.read


@settings(max_examples=5000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, len(SEEDS) - 1),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from(PIECES)), min_size=1, max_size=4),
)
def test_no_mutation_escapes_as_anything_but_a_lab_error(tmp_path_factory, seed, edits):
    content = SEEDS[seed]
    for place, removed, inserted in edits:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    path = tmp_path_factory.getbasetemp() / ("fuzz.csv" if seed == 4 else "fuzz.jsonl")
    path.write_bytes(content)
    try:
        report = check.check(str(path))
        assert report.kept + report.cut + report.dropped == report.read
    except LabError as error:
        assert error.where and error.fix
