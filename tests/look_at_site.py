"""What `make site` checks: links inside the site, the browser's console, accessibility, and the width of the pages.

python tests/look_at_site.py build/site
"""

import functools
import http.server
import itertools
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import axe_playwright_python
from browser.drive import SHOTS, browser
from playwright.sync_api import Page

# A desktop and a phone.
WIDTHS = (1280, 390)
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
# Pages of every kind; the same templates make the others.
LOOKED_AT = (
    *("index.html", "notebooks/03_lora.html", "notebooks/zh/03_lora.html", "docs/recipes.html", "docs/promises.html"),
    *("docs/api/ftlab.data.html", "benchmarks/README.html", "search.html", "_static/both.html?03_lora"),
)
# Serious and worse, as axe grades them.
GRADES = ("serious", "critical")


class Links(HTMLParser):
    """The targets of a page's links and pictures, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value and tag != "link":
                self.targets.add(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield "page: target" for each link whose file or anchor does not exist in the site."""
    # The theme leaves templates among its own files.
    pages = {page: Links(page) for page in sorted(site.rglob("*.html")) if "_static" not in page.parts}
    for page, links in pages.items():
        for target in sorted(links.targets):
            parts = urlparse(target)
            if parts.scheme or parts.netloc:
                continue
            file, anchor = urldefrag(unquote(urljoin(page.as_uri(), parts._replace(query="").geturl())))
            there = Path(file.removeprefix("file://"))
            known = pages[there].anchors if there in pages else None
            if not there.exists() or (anchor and known is not None and anchor not in known):
                yield f"{page.relative_to(site)}: {target}"


def problems_in_the_browser(site: Path) -> Iterator[str]:
    """Yield what console, accessibility checks and layout have against the pages, and leave a picture of each."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    with served(site) as address:
        for width in WIDTHS:
            with browser(width, 900) as page:
                for name in LOOKED_AT:
                    page.goto(f"{address}/{name}", wait_until="networkidle")
                    page.screenshot(path=SHOTS / f"site-{name.replace('/', '-')}-{width}.png")
                    yield from (f"{name} at {width}: {problem}" for problem in problems_of(page))


def problems_of(page: Page) -> Iterator[str]:
    """Yield what is wrong with the page that is shown, in the light and in the dark theme."""
    yield from page.problems
    page.problems.clear()
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        yield "wider than the screen"
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement === document.body"):
        yield "nothing to reach with the keyboard"
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        page.add_script_tag(path=AXE)
        # axe would fetch style sheets again, from where the page is and not from where they are.
        found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa'], preload: false})")
        for rule in found["violations"]:
            if rule["impact"] in GRADES:
                where = ", ".join(str(node["target"]) for node in rule["nodes"][:3])
                yield f"{theme}: {rule['id']} ({len(rule['nodes'])}): {where}"


class served:
    """Serve a folder at a free port of the loopback address; gives its address."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that logs what it does not have, and nothing else."""

    def log_request(self, *values: object) -> None:
        pass

    def log_error(self, format: str, *values: object) -> None:
        print(f"not in the site: {self.path}")


def main(site: Path) -> int:
    """Print every problem; 1 if there is one."""
    links = (f"broken link: {link}" for link in broken_links(site))
    problems = []
    for problem in itertools.chain(links, problems_in_the_browser(site)):
        print(problem, flush=True)
        problems.append(problem)
    print(f"{len(list(site.rglob('*.html')))} pages, {len(problems)} problems; pictures in {SHOTS}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
