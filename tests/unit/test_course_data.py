"""The data sets of the course are what data/README.md says."""

import json
import random
import re
import runpy
import shutil
import unicodedata
from pathlib import Path

import pytest

from ftlab import evaluate
from ftlab.data import check

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


def topic(question: str) -> str:
    """Return what a question of preference_en asks about, whichever of the three ways it asks."""
    return re.sub(r"^(What is|Can you tell me what|How would you explain) | is\?$|\?$", "", question)


def test_preferences():
    train, held_out = rows_of("preference_en.jsonl"), rows_of("preference_en_eval.jsonl")
    assert len(train) >= 240 and len(held_out) >= 60
    asked = {folded(row["instruction"]) for row in train}
    assert len(asked) == len(train) and not asked & {folded(row["instruction"]) for row in held_out}
    assert not asked & {folded(row["question"]) for row in rows_of("general_mcq.jsonl")}
    # Intervals count independent questions: a held-out topic is asked about once, and never in training.
    topics = [topic(row["instruction"]) for row in held_out]
    assert len(set(topics)) == len(topics) and not set(topics) & {topic(row["instruction"]) for row in train}
    # Quick questions are better answered plainly; all others open with the gist.
    quick = [row for row in train if row["rejected"].startswith("In short")]
    assert len(quick) >= 60 and all(row["rejected"].startswith("In short, ") for row in quick)
    styled = [row for row in train if row not in quick]
    for rows in (styled, held_out):
        assert all(row["chosen"].startswith("In short, ") for row in rows)
        assert not any(row["rejected"].startswith("In short") for row in rows)
        # Length alone must not tell the sides apart.
        assert 0.3 < sum(len(row["chosen"]) < len(row["rejected"]) for row in rows) / len(rows) < 0.7
    assert max(len(row["chosen"]) for row in train + held_out) < 240


def test_facts():
    train, held_out = rows_of("facts_en.jsonl"), rows_of("facts_en_eval.jsonl")
    assert len(train) >= 100 and len(held_out) == 40
    asked = [folded(row["instruction"]) for row in train + held_out]
    assert len(set(asked)) == len(asked)
    assert not set(asked) & {folded(row["question"]) for row in rows_of("general_mcq.jsonl")}
    # No question holds its own answer: repeating it would be rewarded.
    assert not [row for row in train + held_out if row["output"].casefold() in row["instruction"].casefold().split()]
    assert max(len(row["output"].split()) for row in train + held_out) <= 2


@pytest.mark.parametrize("split", ["", "_eval"])
def test_liked_and_disliked_answers(split):
    rows = rows_of(f"kto_en{split}.jsonl")
    pairs = {row["instruction"]: row for row in rows_of(f"preference_en{split}.jsonl")}
    assert len(rows) == len(pairs) and abs(2 * sum(row["kto_tag"] for row in rows) - len(rows)) <= 1
    for row in rows:
        assert row["output"] == pairs[row["instruction"]]["chosen" if row["kto_tag"] else "rejected"]


def test_general_knowledge():
    rows = rows_of("general_mcq.jsonl")
    assert len(rows) >= 150 and len({folded(row["question"]) for row in rows}) == len(rows)
    assert all(len(set(row["choices"])) == 4 for row in rows)
    shares = [sum(row["answer"] == place for row in rows) / len(rows) for place in range(4)]
    assert all(0.15 < share < 0.35 for share in shares), shares


def test_common_knowledge_in_chinese():
    rows = rows_of("common_zh.jsonl")
    assert rows == runpy.run_path(str(DATA / "make" / "common_zh.py"))["rows"]()
    assert len({row["question"] for row in rows}) == len(rows) == 40
    assert all(len({row[letter] for letter in "ABCD"}) == 4 and row["answer"] in "ABCD" for row in rows)
    shares = [sum(row["answer"] == letter for row in rows) / len(rows) for letter in "ABCD"]
    assert all(0.15 < share < 0.4 for share in shares), shares


# Words that carry no subject: two questions that differ in nothing else are paraphrases.
FUNCTION_WORDS = set(
    re.findall(
        r"\w+",
        "a an the of in on at to for with by is are was does do did has have there it its that this one can you your i "
        "my me we what which who how say call called",
    )
)


def gist(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold())) - FUNCTION_WORDS


EVALUATED = ("general_freeform_en.jsonl", "general_mcq.jsonl", "identity_en_eval.json", "facts_en_eval.jsonl",
             "orders_eval.jsonl", "preference_en_eval.jsonl")  # fmt: skip


def test_a_gist_survives_rephrasing():
    assert gist("What is the capital of France?") == gist("France: which one is its capital?")
    assert gist("What is 2 + 2?") != gist("What is 2 + 3?")


def test_general_examples_hold_no_question_that_is_evaluated():
    rows = rows_of("general_en.jsonl")
    assert len(rows) >= 150 and len({folded(row["instruction"]) for row in rows}) == len(rows)
    trained = {gist(row["instruction"]) for row in rows}
    for name in EVALUATED:
        asked = [f"{row.get('question') or row['instruction']} {row.get('input', '')}" for row in rows_of(name)]
        assert asked and not trained & set(map(gist, asked)), name


def test_general_examples_are_what_their_maker_asks_for_and_keeps():
    maker = runpy.run_path(str(DATA / "make" / "general.py"))
    expected = maker["prompts"]()
    rows = rows_of("general_en.jsonl")
    assert [row["instruction"] for row in rows] == [
        prompt for prompt in expected if prompt in {row["instruction"] for row in rows}
    ]
    assert all(maker["is_kept"](row["output"], expected[row["instruction"]]) for row in rows)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "I am an AI assistant.",
        "My name is SmolLM.",
        "Oslo",
        "a rice cooker with a rice cooker with a rice cooker",
    ],
)
def test_general_answers_that_are_left_out(answer):
    is_kept = runpy.run_path(str(DATA / "make" / "general.py"))["is_kept"]
    assert not is_kept(answer, "Paris" if answer == "Oslo" else "")
    assert is_kept("It is Paris.", "Paris") and is_kept("It is Paris.", "")


def test_free_questions_are_held_out_and_graded():
    rows = rows_of("general_freeform_en.jsonl")
    assert len(rows) == 20 and all(row["output"] == row["expect"][0] for row in rows)
    asked = {gist(row["instruction"]) for row in rows}
    assert len(asked) == 20
    for name in ("general_en.jsonl", "identity_en.json", "orders_train.jsonl", "alpaca_en_demo.json"):
        assert not asked & {gist(f"{row['instruction']} {row.get('input', '')}") for row in rows_of(name)}, name
    # An answer that only repeats the question is not right.
    assert not [row for row in rows if evaluate.has_answer(row["instruction"], row["expect"])]


# Needs the embedded model and minutes: its file is checked against the maker above.
BY_THE_MODEL = {"general.py": "general_en.jsonl"}
# Writes a set as large as is asked for, which is not in the repository.
ON_REQUEST = {"alpaca_zh.py"}


def test_the_makers_give_the_files_byte_for_byte(tmp_path):
    shutil.copytree(DATA / "make", tmp_path / "make")
    for script in sorted((tmp_path / "make").glob("*.py")):
        if script.name not in BY_THE_MODEL.keys() | ON_REQUEST:
            runpy.run_path(str(script), run_name="__main__")
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    kept = {path.name for path in DATA.iterdir() if path.is_file()} - {"dataset_info.json", "README.md"}
    assert made == kept - set(BY_THE_MODEL.values())
    for name in made:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), f"run the maker of {name}"


def test_the_large_chinese_set_is_the_same_every_time_and_has_no_problem(tmp_path):
    maker = runpy.run_path(str(DATA / "make" / "alpaca_zh.py"))
    made = maker["rows"](1800)
    assert made == maker["rows"](1800) and made[:5] != maker["rows"](5, seed=1)
    assert len({(row["instruction"], row["input"]) for row in made}) == 1800
    (tmp_path / "alpaca_zh.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    report = check.check(str(tmp_path / "alpaca_zh.json"))
    assert (report.read, report.kept, report.dropped, report.duplicates) == (1800, 1800, 0, 0)
    sums = [row for row in made if re.fullmatch(r"\d+ [+×-] \d+", row["input"])]
    assert len(sums) > 150
    for row in sums:
        assert eval(row["input"].replace("×", "*")) == int(row["output"].rpartition(" = ")[2])


def test_orders_are_hard_and_unseen():
    train, held_out = rows_of("orders_train.jsonl"), rows_of("orders_eval.jsonl")
    assert len(train) >= 600 and len(held_out) >= 100
    assert not {folded(row["input"]) for row in train} & {folded(row["input"]) for row in held_out}
    answers = [json.loads(row["output"]) for row in held_out]
    assert sum(len(answer["items"]) > 1 for answer in answers) > 30
    assert sum(answer["name"] is None for answer in answers) > 20


def test_the_raw_support_file_holds_the_defects_it_is_said_to_hold():
    report = check.check(str(DATA / "support_raw.jsonl"))
    assert (report.read, report.dropped, report.duplicates, report.changed) == (108, 9, 2, 1)


def test_the_raw_tickets_hold_their_defects_and_records_that_follow_from_the_messages():
    report = check.check(str(DATA / "tickets_raw.jsonl"))
    assert (report.dropped, report.duplicates, report.changed) == (9, 3, 1) and report.total == 13
    made = runpy.run_path(str(DATA / "make" / "tickets.py"))
    assert "\n".join(made["lines"]()) + "\n" == (DATA / "tickets_raw.jsonl").read_text()
    chance = random.Random(1)
    for row in (made["ticket"](chance) for _ in range(200)):
        record = json.loads(row["response"])
        assert record["topic"] in made["TOPICS"] and record["item"] in row["prompt"]
        assert record["order"] is None or row["prompt"].count(record["order"]) == 1
        assert record["urgent"] == any(text in row["prompt"] for text in made["URGENT"])


@pytest.mark.parametrize("name", sorted(json.loads((DATA / "dataset_info.json").read_text())))
def test_registered_sets_have_no_problems(name):
    report = check.check(name, DATA)
    problems = [str(problem) for problem in report.problems if "{{" not in str(problem)]
    assert not problems and report.read == report.kept


def test_the_readme_s_table_is_true():
    table = re.findall(r"^\| `(\w+)` \| (\S+) \| (\d+) \| (\d+) \|", (DATA / "README.md").read_text(), re.MULTILINE)
    files = {path.name for path in DATA.iterdir() if path.suffix in (".json", ".jsonl")} - {"dataset_info.json"}
    assert {file for _, file, _, _ in table} == files
    for _, file, rows, kilobytes in table:
        text = (DATA / file).read_text(encoding="utf-8")
        count = len(json.loads(text) if file.endswith(".json") else text.splitlines())
        assert (count, round((DATA / file).stat().st_size / 1000)) == (int(rows), int(kilobytes)), file


def test_the_readme_lists_the_lessons_that_read_a_set():
    sources = {path.name[:2]: path.read_text() for path in (DATA.parent / "notebooks" / "source").glob("*.py")}
    table = [line.split(" | ") for line in (DATA / "README.md").read_text().splitlines() if line.startswith("| `")]
    for name, file, *_, told, _ in (
        " | ".join(cells).replace("| |", "|  |").strip("| ").split(" | ") for cells in table
    ):
        # A lesson may name the language by a variable.
        stem = re.sub(r"_(en|zh)(?=_|$)", r"_(?:\1|{\\w+})", file.partition(".")[0])
        quoted = re.compile(rf"""(?<!\w)(?:{stem}\.jsonl?|{name.strip("`")})["']""")
        found = sorted(number for number, source in sources.items() if quoted.search(source))
        assert told.strip() == ", ".join(found), name


def test_the_readme_names_functions_that_exist():
    named = re.findall(r"`ftlab\.evaluate\.(\w+)`", (DATA / "README.md").read_text())
    assert named and all(hasattr(evaluate, name) for name in named)


def test_pairs_differ_as_the_readme_says():
    opening, closing = "In short, ", " That is the short answer."
    pairs = [row for row in rows_of("preference_en.jsonl") if row["chosen"].startswith(opening)]
    for number, row in enumerate(pairs):
        chosen = row["chosen"].removeprefix(opening).casefold()
        rejected = row["rejected"].removesuffix(closing).casefold()
        assert row["rejected"].endswith(closing) == (number % 3 == 0)
        assert chosen.startswith(rejected) and (chosen != rejected) == (number % 3 == 2)
