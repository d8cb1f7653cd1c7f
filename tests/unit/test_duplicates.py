"""No two places of the package say the same in six lines or more: one function serves both."""

import ast
import io
import keyword
import tokenize
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ftlab"
LINES = 6
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> list[tuple[int, str]]:
    """Return number and shape of every line inside a function: what it calls stays, other names and values go.

    Tables and fields outside functions are data: the same shape there is what a table is. Docstrings, imports and
    lines of punctuation say nothing.
    """
    tree = ast.parse(source)
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            inside |= {line for part in first for line in range(part.lineno, (part.end_lineno or 0) + 1)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            inside -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    shapes: dict[int, str] = defaultdict(str)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in NO_CODE]
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if token.start[0] in inside:
            shapes[token.start[0]] += f"{shape(before, token, after)} "
    return [(line, text) for line, text in sorted(shapes.items()) if any(part.isalnum() for part in text)]


def shape(before: tokenize.TokenInfo | None, token: tokenize.TokenInfo, after: tokenize.TokenInfo | None) -> str:
    """Return a token as it counts: names that are called or looked up, keywords and signs; "_" for any other."""
    if token.type == tokenize.NAME:
        looked_up, called = before and before.string == ".", after and after.string == "("
        return token.string if keyword.iskeyword(token.string) or looked_up or called else "_"
    return token.string if token.type == tokenize.OP else "_"


def duplicates(sources: dict[str, str], lines: int = LINES) -> list[str]:
    """Return the places where a run of lines stands that stood before, each with the first place."""
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    found = []
    for name, source in sources.items():
        numbered = code_lines(source)
        for start in range(len(numbered) - lines + 1):
            run = tuple(text for _, text in numbered[start : start + lines])
            place = (name, numbered[start][0])
            if first.setdefault(run, place) != place:
                found.append(f"{name}:{place[1]} repeats {':'.join(map(str, first[run]))}")
    return found


def test_no_six_lines_of_the_package_stand_twice():
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    assert duplicates(sources) == []


def test_lines_under_other_names_are_found_and_tables_are_not():
    body = "    a = f({x})\n    if a > 1:\n        a.b({x})\n    for one in {x}:\n        g(one)\n    return {x}\n"
    sources = {name: f'def {name}({name}):\n    """{name}."""\n' + body.format(x=name) for name in ("p", "q")}
    assert duplicates(sources) == ["q:3 repeats p:3"]
    assert duplicates({"p": sources["p"], "q": sources["q"].replace("g(", "h(")}) == []
    table = "T = {\n" + "".join(f'    "{number}": {number},\n' for number in range(20)) + "}\n"
    assert duplicates({"table": table}) == []
