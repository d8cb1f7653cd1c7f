"""Multiple-choice questions as an `eval_dataset`: rows with `question`, `choices`, `answer`, as in general_mcq."""

from pathlib import Path

from ftlab.data import dataset_info
from ftlab.data.read import Row, rows
from ftlab.errors import LabError, fail
from ftlab.recipe.keys import Recipe

COLUMNS = {"question", "choices", "answer"}


def read_all(recipe: Recipe) -> list[Row]:
    """Return the questions of a recipe's `eval_dataset`, [] if it holds other examples.

    Raises:
        LabError: no such data set, or a row that is not a question.
    """
    name = recipe.eval_dataset or ""
    if not name or ("," in name and not Path(name).is_file()):
        return []
    entry, path = dataset_info.find(name, Path(recipe.dataset_dir))
    if path is None or not path.is_file():
        return []
    questions = rows(path, entry.encoding)
    place, first = next(questions, (0, {}))
    if isinstance(first, LabError) or not first.keys() >= COLUMNS:
        return []
    return [checked(row, f"{path}:{place}") for place, row in [(place, first), *questions]]


def checked(row: Row | LabError, where: str) -> Row:
    """Return a question.

    Raises:
        LabError: the row is broken, or its `answer` is not the number of one of at least two `choices`, from 0.
    """
    if isinstance(row, LabError):
        raise row
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    texts = [question, *choices] if isinstance(choices, list) else []
    right = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts) - 1
    if len(texts) < 3 or not all(isinstance(text, str) and text for text in texts) or not right:
        raise fail("eval_question", where=where)
    return row
