"""What the site shows, without building it: `make site` builds it, and look_at_site.py opens the result."""

import ast
import re

import pytest
from test_project import ROOT

from ftlab.apps import lesson_files

CONF = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
GUIDES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


def contents() -> list[str]:
    """Return the pages of the tables of contents in conf.py, lessons left out."""
    (table,) = [
        node.value
        for node in ast.parse(CONF).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONTENTS"
    ]
    found = [node.value for node in ast.walk(table) if isinstance(node, ast.Constant)]
    return [text for text in found if re.fullmatch(r"(\w+/)*[\w-]+", text) and text != "Lessons"]


def test_every_page_is_in_the_contents_and_every_entry_is_a_page():
    listed = contents()
    assert {f"docs/{name}" for name in GUIDES} <= set(listed)
    # Written from the docstrings when the site is built.
    there = [name for name in listed if name not in ("docs/api/index", "Guides", "Reference")]
    assert not [name for name in there if not (ROOT / f"{name}.md").is_file()]


def test_both_editions_of_every_lesson_are_listed():
    assert CONF.count("for lesson in lesson_files.lessons(course=ROOT)") == len(lesson_files.LANGUAGES)


PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "benchmarks/README")),
    *(ROOT / name for name in ("data/README.md", "tests/mutants.md")),
    *(ROOT / "docs").glob("*.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_promise_names_a_test_that_exists():
    promises = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in promises.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    for row in rows:
        file, test = re.search(r"`(tests/[\w/]+\.py)::(\w+)`", row).groups()
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), row
    assert len(rows) > 30


def test_the_api_pages_show_signature_and_sections(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import api_pages

    package = tmp_path / "pack"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "one.py").write_text(
        '"""A module."""\n\n\nclass Thing(Base):\n    """A thing."""\n\n    def turn(self, by: int = 1) -> bool:\n'
        '        """Turn it.\n\n        >>> turn(2)\n        True\n\n        Raises:\n            LabError: it is\n'
        '                stuck.\n        """\n\n    def _hidden(self):\n        """Nothing."""\n'
    )
    api_pages.write(package, tmp_path / "api")
    page = (tmp_path / "api" / "pack.inner.md").read_text()
    assert page.startswith(
        "# pack.inner\n\n## pack.inner.one\n\nA module.\n\n### Thing\n\n```python\nclass Thing(Base)\n```"
    )
    assert (
        "```python\nThing.turn(self, by: int=1) -> bool\n```\n\nTurn it.\n\n```python\n>>> turn(2)\nTrue\n```\n" in page
    )
    assert "\n**Raises:**\n\n- `LabError`: it is\n  stuck.\n" in page and "hidden" not in page
    assert "\npack.inner\n" in (tmp_path / "api" / "index.md").read_text()


def test_the_workflow_publishes_what_make_site_builds():
    workflow = (ROOT / ".github" / "workflows" / "site.yml").read_text()
    assert "make site" in workflow and "--directory build/site" in workflow
    recipe = (ROOT / "Makefile").read_text().partition("\nsite:")[2].partition("\n\n")[0]
    assert ". build/site" in recipe and "look_at_site.py build/site" in recipe
