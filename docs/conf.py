"""The site: README, lessons in both languages with their outputs, guides, measurements, API. `make site` builds it.

Its source folder is the repository, so that the links between README, docs and lessons hold here as on GitHub.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.highlighting import lexers

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import api_pages  # noqa: E402

from ftlab import __version__  # noqa: E402
from ftlab.apps import lesson_files, notebooks  # noqa: E402

project = "ftlab"
author = project_copyright = "ftlab, Apache-2.0"
release = __version__
root_doc = "README"
extensions = ["myst_nb"]
include_patterns = ["*.md", "docs/**", "notebooks/*.ipynb", "notebooks/zh/*.ipynb", "benchmarks/*.md", "data/*.md"]
exclude_patterns = [".*", "build", "runs", "mutants", "**/.*", "notebooks/source", "tests", "ftlab"]

# The lessons show the outputs they were committed with.
nb_execution_mode = "off"
myst_heading_anchors = 4
# No lexer draws the graph of docs/architecture.md; as text it is readable, and no script comes from elsewhere.
lexers["mermaid"] = TextLexer()

html_theme = "sphinx_book_theme"
html_title = "ftlab"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = False
# Words of three characters and more are found inside others, which is what Chinese text needs.
html_search_language = "en"
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
REPOSITORY = notebooks.repository(ROOT / "pyproject.toml")
html_theme_options = {
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    # The sidebar has the search field already.
    "navbar_persistent": [],
    "use_download_button": True,
    "use_fullscreen_button": False,
} | (
    {
        "repository_url": REPOSITORY,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": notebooks.COLAB},
    }
    if REPOSITORY
    else {}
)

# Caption -> pages, in reading order. README has no table of contents of its own: on GitHub it would be a line of code.
CONTENTS = {
    "Start here": ["docs/learner", "docs/teacher", "docs/from-llamafactory", "CONTRIBUTING"],
    "Lessons": [f"notebooks/{lesson.name}" for lesson in lesson_files.lessons(course=ROOT)],
    "课程（中文）": [f"notebooks/zh/{lesson.name}" for lesson in lesson_files.lessons(course=ROOT)],
    "Guides": [
        *("docs/data", "docs/recipes", "docs/evaluate", "docs/export", "docs/engines", "docs/server", "docs/board"),
        *("docs/coming-from", "docs/distributed", "docs/rented-gpus", "docs/docker", "docs/ascend"),
    ],
    "Reference": [
        *("docs/api/index", "docs/architecture", "docs/promises", "benchmarks/README", "data/README"),
        *("CHANGELOG", "SECURITY"),
    ],
}


def write_api(app: Sphinx) -> None:
    """Write the API pages before Sphinx looks for sources, at `builder-inited`."""
    api_pages.write(ROOT / "ftlab", ROOT / "docs" / "api")


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the tables of contents to README, as `source-read` passes it."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```", ""])


def describe_pictures(app: Sphinx, document: nodes.document) -> None:
    """Give a lesson's pictures its heading as their text, at `doctree-read`: an output has none of its own."""
    for image in document.findall(nodes.image):
        around = image.parent
        while around is not None and not isinstance(around, nodes.section):
            around = around.parent
        if around is not None and not image.get("alt"):
            image["alt"] = around.next_node(nodes.title).astext()


def add_switch(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Put links to the other edition, and to both side by side, above a lesson, as `html-page-context` passes it."""
    folder, _, lesson = name.rpartition("/")
    if folder not in ("notebooks", "notebooks/zh"):
        return
    here = "zh" if folder == "notebooks/zh" else "en"
    if here == "zh":
        context["language"] = "zh-CN"
    up = "../" if here == "zh" else ""
    pages = {"English": f"{up}{lesson}.html", "中文": f"{up}zh/{lesson}.html"}
    current = "中文" if here == "zh" else "English"
    links = [
        f'<a href="{page}" lang="{"zh-CN" if label == "中文" else "en"}"'
        + (' aria-current="page"' if label == current else "")
        + f">{label}</a>"
        for label, page in pages.items()
    ]
    both = f'<a class="both" href="{up}../_static/both.html?{lesson}">English + 中文</a>'
    context["body"] = f'<nav class="editions" aria-label="Language, 语言">{"".join(links)}{both}</nav>{context["body"]}'


def add_front_page(app: Sphinx, failure: Exception | None) -> None:
    """Write README.html as index.html too: it is what a server shows first."""
    if not failure and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx's events."""
    app.connect("builder-inited", write_api)
    app.connect("source-read", add_contents)
    app.connect("doctree-read", describe_pictures)
    app.connect("html-page-context", add_switch)
    app.connect("build-finished", add_front_page)
