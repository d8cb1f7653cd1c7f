"""docs/architecture.md shows the package as its imports are."""

import ast
import re
from pathlib import Path

import pytest
from test_thin import FLOORS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ftlab"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("apps", "runs", "recipe", "cpu", "checks", "data")
JOURNEYS = {
    title: re.findall(r"^\| `(\S+)` \| `(\S+)` \| .+ \|$", body, re.MULTILINE)
    for title, body in re.findall(r"^## (From .+)\n((?:(?!^## ).*\n)+)", PAGE, re.MULTILINE)
}


def imported(path: Path) -> set[str]:
    """Return the files of ftlab that one imports, anywhere in it, as paths below ftlab/."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ftlab":
            place = PACKAGE.joinpath(*node.module.split(".")[1:])
            names = [place / alias.name for alias in node.names] if place.is_dir() else []
            files |= {file for one in (place, *names) if (file := file_of(one))}
    return files


def file_of(place: Path) -> str:
    """Return the file of a module or package below ftlab/, "" where the name is neither."""
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file.relative_to(PACKAGE).as_posix() for file in files if file.is_file()), "")


def package_of(file: str) -> str:
    """Return which of PACKAGES a file is in, "instruments" for those at the top."""
    return file.split("/")[0] if "/" in file else "instruments"


def block(heading: str) -> list[str]:
    """Return the lines of the code block under a heading of the page."""
    return PAGE.split(f"## {heading}\n")[1].split("```")[1].splitlines()[1:]


def test_the_diagram_has_the_imports_between_packages():
    arrows = {
        (package_of(path.relative_to(PACKAGE).as_posix()), package_of(target))
        for path in PACKAGE.rglob("*.py")
        for target in imported(path)
        if path.name != "__main__.py"
    }
    expected = sorted(f"    {one} --> {other}" for one, other in arrows if one != other)
    assert block("Packages") == ["graph TD", *expected], "paste:\n" + "\n".join(expected)


def test_the_layers_are_those_that_the_imports_are_tested_by():
    expected = [" ".join(name + "/" * (name in PACKAGES) for name in sorted(names)) for names in reversed(FLOORS)]
    assert block("Layers") == expected, "paste:\n" + "\n".join(expected)


@pytest.mark.parametrize("title", JOURNEYS)
def test_each_step_of_a_journey_is_an_import(title):
    reached = {JOURNEYS[title][0][0]}
    for file, target in JOURNEYS[title]:
        assert file in reached, f"no step leads to {file}"
        assert target in imported(PACKAGE / file), f"{file} does not import {target}"
        reached.add(target)


def test_there_are_three_journeys():
    assert [len(steps) >= 10 for steps in JOURNEYS.values()] == [True] * 3
