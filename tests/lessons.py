"""From-scratch code lives in its lesson only; tests take it from there."""

import ast
from pathlib import Path
from typing import Any

import jupytext

SOURCES = Path(__file__).parents[1] / "notebooks" / "source"


def definitions(lesson: str, *names: str, **given: Any) -> list[Any]:
    """Return functions and classes of a lesson, by name; `given` is what they read from the cells around them."""
    notebook = jupytext.reads((SOURCES / f"{lesson}.py").read_text(encoding="utf-8"), fmt="py:percent")
    tree = ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names]
    namespace = dict(given)
    exec(compile(ast.Module(wanted, []), lesson, "exec"), namespace)
    return [namespace[name] for name in names]
