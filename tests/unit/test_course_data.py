"""The data sets of the course are what data/README.md says."""

import importlib.util
import json
import re
import unicodedata
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"


def rows_of(name: str) -> list[dict]:
    text = (DATA / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def folded(text: str) -> str:
    return re.sub(r"\W", "", unicodedata.normalize("NFKC", text).casefold())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_identity(language):
    train, held_out = rows_of(f"identity_{language}.json"), rows_of(f"identity_{language}_eval.json")
    assert len(train) >= 80 and len(held_out) == 32
    asked = {folded(row["instruction"]) for row in train}
    assert len(asked) == len(train) and not asked & {folded(row["instruction"]) for row in held_out}
    for row in train + held_out:
        assert set(re.findall(r"\{+\w*\}+", row["output"])) & {"{{name}}", "{{author}}"}
        assert not set(re.findall(r"\{+\w*\}+", row["output"])) - {"{{name}}", "{{author}}"}
    assert all(row["expect"] in row["output"] for row in held_out)


def test_general_knowledge():
    rows = rows_of("general_mcq.jsonl")
    assert len(rows) >= 150 and len({folded(row["question"]) for row in rows}) == len(rows)
    assert all(len(set(row["choices"])) == 4 for row in rows)
    shares = [sum(row["answer"] == place for row in rows) / len(rows) for place in range(4)]
    assert all(0.15 < share < 0.35 for share in shares), shares


def test_the_makers_give_the_files_byte_for_byte(tmp_path, monkeypatch):
    for script in sorted((DATA / "make").glob("*.py")):
        spec = importlib.util.spec_from_file_location(script.stem, script)
        maker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(maker)
        if script.stem == "identity":
            monkeypatch.setattr(maker, "DATA", tmp_path)
            maker.write("identity_en", maker.rows(maker.ENGLISH, evaluation=False))
            maker.write("identity_zh_eval", maker.rows(maker.CHINESE, evaluation=True))
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in maker.rows())
            (tmp_path / "general_mcq.jsonl").write_text(text, encoding="utf-8")
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (DATA / made.name).read_bytes(), f"run the maker of {made.name}"


def test_the_readme_s_table_is_true():
    table = re.findall(r"^\| `(\w+)` \| (\S+) \| (\d+) \| (\d+) \|", (DATA / "README.md").read_text(), re.MULTILINE)
    files = {path.name for path in DATA.iterdir() if path.suffix in (".json", ".jsonl")} - {"dataset_info.json"}
    assert {file for _, file, _, _ in table} == files
    for _, file, rows, kilobytes in table:
        assert (len(rows_of(file)), round((DATA / file).stat().st_size / 1000)) == (int(rows), int(kilobytes)), file
