"""`ftlab course pack`: solutions and slides from the lessons."""

import re

import pytest

from ftlab.apps import cli, lesson_files, notebooks, teacher_pack


@pytest.mark.parametrize(("language", "folded"), [("en", "Solution"), ("zh", "参考答案")])
def test_solutions_are_unfolded_and_every_exercise_has_one(language, folded):
    (lesson,) = lesson_files.lessons(["03"])
    text = teacher_pack.solutions_of(lesson, language)
    assert text.startswith(f"# {lesson_files.title(lesson, language)}\n") and folded not in text
    cells = notebooks.edition(lesson, language).cells
    exercises = [cell for cell in cells if "exercise" in cell.metadata.get("tags", [])]
    assert text.count("```python") == len(exercises) == len(re.findall(r"^\*\*\d\.\*\*", text, re.MULTILINE))
    assert "trainable = 8 * (576 + 1536)" in text and "<details>" not in text


def test_every_picture_is_a_slide_with_its_heading_as_text(tmp_path):
    assert cli.main(["course", "pack", "03", "--lang", "zh", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "slides.html").read_text(encoding="utf-8")
    (lesson,) = lesson_files.lessons(["03"])
    outputs = notebooks.kept_outputs(lesson, notebooks.edition(lesson, "en")).values()
    count = sum(len(teacher_pack.pictures(shown)) for shown, _ in outputs)
    assert page.count("<section>") == len(re.findall(r'alt="[^"]+"', page)) == count > 3
    assert '<html lang="zh">' in page and "各课插图" in page


def test_a_pack_is_not_written_over_another(tmp_path, capsys):
    (tmp_path / "slides.html").write_text("mine")
    assert cli.main(["course", "pack", "03", "--out", str(tmp_path)]) == 2
    assert "slides.html" in capsys.readouterr().err
    assert (tmp_path / "slides.html").read_text() == "mine" and not (tmp_path / "solutions.md").exists()
