"""The lessons as their tests read them, each parsed once: from-scratch code lives in its lesson only."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode

from ftlab.apps import notebooks
from ftlab.apps.lesson_files import Lesson

SOURCES = Path(__file__).parents[1] / "notebooks" / "source"


@cache
def edition(lesson: Lesson, language: str) -> NotebookNode:
    """Return an edition of a lesson, which nobody may change."""
    return notebooks.edition(lesson, language)


@cache
def statements(lesson: str) -> list[ast.stmt]:
    """Return the statements of a lesson's code cells: a tenth of a second, for many tests of a lesson."""
    notebook = jupytext.reads((SOURCES / f"{lesson}.py").read_text(encoding="utf-8"), fmt="py:percent")
    return ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")).body


def definitions(lesson: str, *names: str, **given: Any) -> list[Any]:
    """Return functions and classes of a lesson, by name; `given` is what they read from the cells around them."""
    wanted = [
        node for node in statements(lesson) if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names
    ]
    namespace = dict(given)
    exec(compile(ast.Module(wanted, []), lesson, "exec"), namespace)
    return [namespace[name] for name in names]
