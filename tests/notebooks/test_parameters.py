"""A lesson with a learner's parameters: another model, name, seed, rank and rate give sentences, not errors."""

import csv
import json
import re
from pathlib import Path

import jupytext
import papermill
import pytest

from ftlab import embedded, models
from ftlab.apps import course, lesson_files, notebooks

# What a learner changes first; each lesson takes those that its parameters cell has.
CHANGED = {"name": "Al", "author": "me", "seed": 1, "r": 4, "learning_rate": 3e-4, "beta": 0.3, "sft_weight": 0.2}
# Each lesson takes half a minute: these two in `make test`, the others in `make test-slow`.
QUICK = ("00", "02")
# Files and folders of the course that a lesson reads.
READ = ("data", "recipes", "notebooks", "ftlab", "benchmarks")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a random model as small as the embedded one's tokenizer allows."""
    import tiny

    embedded.fetch()
    return tiny.make_small_model(models.fetch("smollm2-135m"), tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the course's files, whose runs are nobody else's."""
    for name in READ:
        (tmp_path / name).symlink_to(lesson_files.root() / name)
    monkeypatch.delenv("FTLAB_OUTCOMES", raising=False)
    monkeypatch.setenv("FTLAB_HEADLESS", "1")
    monkeypatch.setenv("PYTHONPATH", str(lesson_files.root()))
    return tmp_path


def marked(lesson: lesson_files.Lesson):
    """Return a lesson as a parameter of a test."""
    return pytest.param(lesson, id=lesson.name, marks=[] if lesson.number in QUICK else [pytest.mark.lengthy])


@pytest.mark.notebook
@pytest.mark.parametrize("lesson", [marked(lesson) for lesson in lesson_files.lessons()])
def test_a_lesson_survives_other_parameters(lesson, small_model, place):
    source = jupytext.read(lesson.source)
    (cell,) = [cell for cell in source.cells if "parameters" in cell.metadata.get("tags", [])]
    changed = {name: value for name, value in CHANGED.items() if f"\n{name} = " in cell.source}
    parameters = {"PROFILE": "smoke", "model_name": str(small_model)} | changed
    execute(lesson, parameters, place)


def execute(lesson: lesson_files.Lesson, parameters: dict[str, object], place: Path) -> None:
    """Run a lesson in `place`, its kernel as the course sets it up."""
    with notebooks.kernel_settings() as settings:
        papermill.execute_notebook(
            lesson.notebook(),
            place / "executed.ipynb",
            parameters=parameters,
            cwd=place,
            execution_timeout=course.CELL_TIMEOUT_SECONDS,
            progress_bar=False,
            **settings,
        )


TURNS = [(f"Is shelf {n} free?", f"Shelf {n} is {'free' if n % 3 else 'taken'}.") for n in range(60)]


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "completion"), *TURNS])


def write_sharegpt(path: Path) -> None:
    turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": said}] for asked, said in TURNS]
    path.write_text(json.dumps([{"conversations": both} for both in turns]))


@pytest.mark.notebook
@pytest.mark.lengthy
@pytest.mark.parametrize(("write", "name"), [(write_csv, "shelves.csv"), (write_sharegpt, "shelves.json")])
def test_the_capstone_takes_files_of_other_shapes(write, name, small_model, place):
    write(place / name)
    (lesson,) = lesson_files.lessons(["16"])
    # A gate that nothing passes, and a second stage: the branches that a smoke run's numbers would not choose.
    branches = {"allowed_drop": -2.0, "second_stage": "dpo", "system_prompt": "Say whether the shelf is free."}
    own = {"PROFILE": "smoke", "model_name": str(small_model), "data_file": name}
    execute(lesson, own | branches, place)
    made = place / "runs" / "16_capstone"
    printed = json.dumps(json.loads((place / "executed.ipynb").read_text())["cells"])
    evaluated, served = re.search(r"evaluated (\d+%), served (\d+%)", printed).groups()
    assert evaluated == served
    card = (made / "merged" / "README.md").read_text()
    assert "mixed.jsonl" in (made / "recipe.yaml").read_text() and name in card and "dpo" in card
