"""The API pages of the site, from signatures and docstrings; the source is parsed, for an import would load torch."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# A line that opens a section of a docstring, and an entry of one: "name: what it is".
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
ENTRY = re.compile(r"(    )([\w*]+): ")


def write(package: Path, folder: Path) -> None:
    """Write one page for each folder of the package, and index.md, which lists them."""
    folder.mkdir(exist_ok=True)
    pages = []
    for place in sorted({path.parent for path in package.rglob("*.py")}):
        modules = [section for path in sorted(place.glob("*.py")) if (section := module_section(path, package))]
        if modules:
            name = ".".join((package.name, *place.relative_to(package).parts))
            pages.append(name)
            put(folder / f"{name}.md", f"# {name}\n\n" + "\n".join(modules))
    listed = "\n".join(pages)
    put(folder / "index.md", f"# API\n\nFrom the docstrings.\n\n```{{toctree}}\n:maxdepth: 2\n\n{listed}\n```\n")


def put(path: Path, text: str) -> None:
    """Write a page unless it is there already: Sphinx reads again whatever is newer than its last build."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def module_section(path: Path, package: Path) -> str:
    """Return the Markdown of a module, "" where nothing public has a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries = "\n".join(entry(node, name) for node, name in public(tree))
    if not entries:
        return ""
    dotted = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    return f"## {dotted}\n\n{prose(ast.get_docstring(tree) or '')}\n\n{entries}"


def public(tree: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[tuple[Definition, str]]:
    """Yield (definition, name) for what is public and has a docstring, methods after their class."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_") and ast.get_docstring(node):
            yield node, owner + node.name
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def entry(node: Definition, name: str) -> str:
    """Return the Markdown of one class or function: a heading, the signature, the docstring."""
    return f"### {name}\n\n```python\n{signature(node, name)}\n```\n\n{prose(ast.get_docstring(node) or '')}\n"


def signature(node: Definition, name: str) -> str:
    """Return a class's or function's first line, without decorators."""
    if isinstance(node, ast.ClassDef):
        return f"class {name}" + (f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: examples as code, the entries of its sections as lists."""
    lines, inside = [], ""
    for line in docstring.splitlines():
        example = line.startswith(">>>") or (inside == ">>>" and line)
        if bool(example) != (inside == ">>>"):
            lines.append("```python" if example else "```")
            inside = ">>>" if example else ""
        if SECTION.match(line):
            inside = line
            lines += ["", f"**{line}**", ""]
        elif inside.endswith(":") and line.startswith("    "):
            lines.append(ENTRY.sub(r"- `\2`: ", line) if ENTRY.match(line) else f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines + ["```"] * (inside == ">>>"))
