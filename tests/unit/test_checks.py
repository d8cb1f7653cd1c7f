"""Every exercise of every lesson: right answers pass, wrong ones and untouched cells get a hint that helps."""

import ast
import math
import re
from pathlib import Path

import lessons
import nbformat
import numpy as np
import pytest
import torch
from wrong_answers import RIGHT, WRONG

from ftlab import checks
from ftlab.apps import cli, course, lesson_files, notebooks, report_card
from ftlab.checks import trying
from ftlab.errors import LANGUAGES, speaking

ROOT = Path(__file__).parents[2]
LESSONS = [
    path for path in sorted((ROOT / "notebooks" / "source").glob("*.py")) if 'tags=["exercise"]' in path.read_text()
]
KEYS = sorted(name.removeprefix("check_") for name in checks.__all__ if name.startswith("check_"))
NUMBERS = {"supervised_tokens", "padding_share", "lora_parameters", "nf4_bytes", "full_bytes", "front", "q8_bytes"}
NUMBERS |= {
    "request_cost",
    "state_bytes",
    "replay_count",
    "active_parameters",
    "cache_bytes",
    "reward_margin",
    "rloo_advantage",
    "reference_free",
}
ON_TENSORS = {
    "answer_loss", "gradient_step", "trainable_share", "next_token_loss", "pad_right", "lora_forward", "lora_freeze",
    "block_scales", "restored_weights", "ia3_forward", "dora_weight", "merged_weight", "mixed_weight", "q8_roundtrip",
    "temperature", "cached_attention", "reward_loss", "last_token_rewards", "grpo_advantages", "kl_estimate",
    "answer_logp", "loss_with_sft", "mean_kl", "walk_back", "label_probabilities", "calibrated_label",
    "clipped_gradient", "accumulated_loss", "router_weights", "switch_loss", "reduce_scatter", "shard",
    "mlp_partial_sums", "lost_share", "next_logits",
    "pass_at_k", "preference_rows",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_misses():
    """Every test starts as a learner does."""
    trying.misses.clear()


def check(key: str, answer: object) -> checks.Verdict:
    """Call the check of an exercise; the first one takes two numbers."""
    given = answer if key == "supervised_tokens" else (answer,)
    return getattr(checks, f"check_{key}")(*given)


def evaluated(source: str) -> object:
    return eval(source, {"torch": torch, "math": math, "np": np})


def lesson_of(path: Path) -> lesson_files.Lesson:
    return lesson_files.Lesson(path.stem[:2], path.stem, path)


def exercises(path: Path, language: str) -> dict[str, tuple[str, str]]:
    """Return the exercises of a lesson's edition: key of the check -> (the cell, its folded solution)."""
    cells = lessons.edition(lesson_of(path), language).cells
    found = {}
    for place, cell in enumerate(cells):
        if "exercise" in cell.metadata.get("tags", []):
            solution = re.search(r"<details>.*```python\n(.*?)```\n\n</details>", cells[place + 1].source, re.DOTALL)
            found[re.search(r"checks\.check_(\w+)\(", cell.source)[1]] = (cell.source, solution[1])
    return found


SOLUTIONS = {key: both for path in LESSONS for key, both in exercises(path, "en").items()}


def handed_in(cell: str, solution: str) -> checks.Verdict:
    """Run a solution, then the last line of the exercise's cell."""
    return course.verdict(f"{solution}\n{cell.splitlines()[-1]}", "import math\nimport torch\nfrom ftlab import checks")


def test_every_lesson_has_four_exercises_and_two_on_tensors():
    assert len(LESSONS) == len(lesson_files.lessons())
    for path in LESSONS:
        keys = exercises(path, "en").keys()
        assert len(keys) >= 4 and len(keys & ON_TENSORS) >= 2, path.name
    assert sorted(SOLUTIONS) == KEYS == sorted(WRONG) == sorted(RIGHT) and len(KEYS) >= 40


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_folded_solutions_pass_in_the_lesson_s_own_namespace(path, language):
    code = notebooks.code_cells(lessons.edition(lesson_of(path), language))
    above = "\n".join(cell.source for cell in code if "exercise" not in cell.metadata.get("tags", []))
    for cell, solution in exercises(path, language).values():
        verdict = course.verdict(f"{solution}\n{cell.splitlines()[-1]}", above)
        assert verdict.passed, verdict


@pytest.mark.parametrize("key", KEYS)
def test_right_answers_of_other_styles_pass(key):
    for source in RIGHT[key]:
        assert check(key, evaluated(source)).passed, source


@pytest.mark.parametrize("key", KEYS)
def test_wrong_answers_are_rejected_with_a_hint(key):
    assert len(WRONG[key]) >= 5
    for source in WRONG[key]:
        verdict = check(key, evaluated(source))
        assert not verdict.passed and verdict.hint, source


@pytest.mark.parametrize("key", sorted(set(KEYS) - NUMBERS))
def test_constants_and_echoes_are_rejected(key):
    """A function that returns what the first case wants, whatever it is given, is wrong."""
    for answer in (lambda *_: 0, lambda *_: 1.0, lambda *given: given[0], lambda *_: None, lambda: 1, 3, "text"):
        assert not check(key, answer).passed


def mutants(source: str) -> list[str]:
    """Return the right answer with one operator swapped or one number changed, all such variants."""
    swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
    found = []
    for place, node in enumerate(ast.walk(ast.parse(source))):
        changed = ast.parse(source)
        twin = list(ast.walk(changed))[place]
        if isinstance(node, ast.BinOp) and type(node.op) in swaps:
            twin.op = swaps[type(node.op)]()
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            twin.value = node.value * 2 + 1
        else:
            continue
        found.append(ast.unparse(changed))
    return found


def test_mutants_of_the_solutions_are_rejected():
    survivors, count = [], 0
    for key, (cell, solution) in SOLUTIONS.items():
        for mutant in mutants(solution):
            count += 1
            if handed_in(cell, mutant).passed:
                survivors.append((key, mutant))
    assert count >= 100 and not survivors, survivors


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_an_untouched_cell_is_no_wrong_answer_and_does_not_see_the_solution(path, language):
    with speaking(language):
        for cell, solution in exercises(path, language).values():
            verdict = course.verdict(cell, "import torch\nfrom torch import nn\nfrom ftlab import checks")
            assert verdict == checks.Verdict(False, trying.general_hint("untouched")) and not trying.misses
            assert solution.splitlines()[-1].strip().removeprefix("return ") not in repr(verdict)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("key", KEYS)
def test_hints_come_in_two_stages_and_in_the_learner_s_language(key, language):
    stages = trying.hints()[key]
    with speaking(language):
        wrong = evaluated(WRONG[key][0])
        first, second = check(key, wrong), check(key, wrong)
    assert first.hint != second.hint and stages[f"how_{language}"] in second.hint
    assert bool(re.search("[\u4e00-\u9fff]", first.hint)) == (language == "zh")
    line = SOLUTIONS[key][1].splitlines()[-1].strip()
    assert line not in second.hint and line.removeprefix("return ") not in second.hint


def test_hints_belong_to_exercises_and_every_slip_is_wrong():
    table = trying.hints()
    general = {"untouched", "no_function", "raises", "shape", "no_number", "no_names"}
    assert set(table) - general == set(KEYS)
    for key in KEYS:
        for slip in table[key].get("slips", []):
            trying.misses.clear()
            answer = {slip["value"]} if isinstance(slip["value"], str) else slip["value"]
            assert check(key, answer).hint == slip["en"]


class Hostile:
    """A value that cannot be compared, printed, or turned into a number."""

    def refuse(self, *_):
        raise RuntimeError(self)

    __eq__ = __repr__ = __str__ = __float__ = __iter__ = __len__ = __bool__ = __array__ = refuse
    __hash__ = None


@pytest.mark.parametrize("key", KEYS)
def test_a_check_never_raises(key):
    class SilentError(Exception):
        def __str__(self):
            raise ValueError

    def leaves(*_):
        raise SystemExit

    def breaks(*_):
        raise SilentError

    odd = [
        Hostile(),
        [Hostile()],
        lambda *_: Hostile(),
        leaves,
        breaks,
        torch.ones(2, 2),
        np.ones(3),
        float("nan"),
        10**400,
    ]
    odd += [
        None,
        True,
        "",
        b"",
        {},
        int,
        1j,
        [],
        [[1], [1, 2]],
        torch.tensor(7.0, requires_grad=True),
        lambda *_: [None],
    ]
    for answer in odd:
        verdict = check(key, (answer, answer) if key == "supervised_tokens" else answer)
        assert not verdict.passed and verdict.hint and repr(verdict)


def test_a_verdict_speaks_the_learner_s_language():
    assert (repr(checks.Verdict(True)), repr(checks.Verdict(False, "x"))) == ("passed", "not yet: x")
    with speaking("zh"):
        assert (repr(checks.Verdict(True)), repr(checks.Verdict(False, "x"))) == ("通过", "还不对：x")


def test_a_shape_is_named():
    assert "(4, 5), expected (4, 3)" in checks.check_lora_forward(lambda x, W, A, B, scale: x).hint


def solved(path: Path, key: str, language: str) -> nbformat.NotebookNode:
    """Return a lesson's notebook with one exercise solved."""
    notebook = notebooks.edition(lesson_of(path), language)
    cell, solution = exercises(path, language)[key]
    for each in notebook.cells:
        if each.source == cell:
            each.source = f"{solution}\n{cell.splitlines()[-1]}"
    return notebook


@pytest.mark.parametrize("key", ["cache_bytes", "preference_probability", "reward_margin", "dpo_loss"])
def test_course_check_reads_the_learner_s_edition_and_the_lesson_s_imports(key, tmp_path, monkeypatch):
    """The answer is in the Chinese copy alone, and needs `math` where the lesson imports it."""
    path = next(path for path in LESSONS if key in exercises(path, "en"))
    source = tmp_path / "notebooks" / "source" / path.name
    source.parent.mkdir(parents=True)
    source.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (lesson,) = lesson_files.lessons()
    notebooks.build(lesson)
    nbformat.write(solved(path, key, "zh"), lesson.notebook("zh"))
    place = list(exercises(path, "en")).index(key)
    assert not course.check_answers(lesson)[place].passed
    with speaking("zh"):
        verdicts = course.check_answers(lesson)
        assert [verdict.passed for verdict in verdicts] == [number == place for number in range(len(verdicts))]
        assert report_card.as_text([(lesson, verdicts)]).splitlines()[-1] == "  1/4   合计"
        page = report_card.as_page([(lesson, verdicts)])
        assert '<html lang="zh">' in page and lesson_files.title(lesson, "zh") in page
        assert "".join("✓" if number == place else "·" for number in range(4)) in page and page.count("1/4") == 2
    assert report_card.as_text([(lesson, verdicts)]).splitlines()[0] == "exercises passed"


def test_a_report_card_is_not_written_over_a_file(tmp_path, capsys):
    card = tmp_path / "card.html"
    assert cli.main(["course", "check", "03", "--out", str(card)]) == 1
    assert "0/4" in card.read_text(encoding="utf-8")
    card.write_text("mine")
    assert cli.main(["course", "check", "03", "--out", str(card)]) == 2
    assert "exists" in capsys.readouterr().err and card.read_text() == "mine"


def test_an_answer_may_use_parameters_and_definitions_above_but_nothing_is_trained():
    above = (
        "import math\nr = 4\nmodel = train()\ndef half(x):\n    return x / two()\ndef two():\n    return 2\n%magic\n"
    )
    cell = "from ftlab import checks\nadvantage = half(math.sqrt(9 / r))\nchecks.check_rloo_advantage(advantage)"
    assert course.verdict(cell, course.plain_python(above)).passed
    assert "NameError" in course.verdict(cell.replace("half", "model"), course.plain_python(above)).hint


@pytest.mark.parametrize("cell", ["", "answer = (", "1 / 0\n1", "exit()\n1"])
def test_a_broken_cell_is_a_hint(cell):
    assert "stops with" in course.verdict(cell, "").hint


def test_a_cell_without_its_check_is_a_hint():
    assert "must be its check" in course.verdict("answer = 3\nanswer", "").hint
