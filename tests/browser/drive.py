"""A real Chromium, and the few moves that a test of panels needs."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
# Lab's own indicator says "idle" before a kernel exists; cells run then would start a second kernel.
KERNEL_READY = """() => {
  const shown = window.jupyterapp?.shell?.currentWidget, kernel = shown?.context?.sessionContext?.session?.kernel;
  return !!kernel && shown.context.isReady && shown.context.sessionContext.isReady
         && kernel.connectionStatus === 'connected' && kernel.status === 'idle'; }"""
SHOTS = Path(os.environ.get("FTLAB_SHOTS", Path(__file__).parents[2] / "build" / "shots"))


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 1600) -> Iterator[Page]:
    """Open a fresh browser; `page.problems` collects what its console reports as an error."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = chromium.new_context(viewport={"width": width, "height": height}, locale="zh-CN").new_page()
        page.set_default_timeout(180_000)
        page.problems = []
        page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        chromium.close()


def until(true: Callable[[], Any], what: str = "") -> Any:
    """Wait until something is so, and return it; the limit of 15 minutes only ends a test that hangs."""
    end = time.monotonic() + 900
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError(f"it did not happen: {what}")


def in_sight(page: Page, name: str) -> bool:
    """Return True if a button is inside the window, without scrolling, and nothing covers its middle."""
    return page.locator(f"button.ft-{name}:visible").first.evaluate(
        "e => { const r = e.getBoundingClientRect();"
        " return r.top >= 0 && r.bottom <= innerHeight && r.left >= 0 && r.right <= innerWidth"
        " && e.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)); }"
    )


def color(page: Page, theme: str) -> None:
    """Show the page in the "light" or the "dark" theme."""
    if page.evaluate("document.documentElement.dataset.ftTheme") != theme:
        page.click("#ft-theme")


def serious(page: Page) -> list[str]:
    """Return what axe finds serious or worse on the page as it is shown."""
    # Imported here: only the walk through the panels asks axe.
    import axe_playwright_python

    page.add_script_tag(path=Path(axe_playwright_python.__file__).parent / "axe.min.js")
    violations = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa'], preload: false})")["violations"]
    return [
        f"{rule['id']}: {[node['html'][:200] for node in rule['nodes'][:3]]}"
        for rule in violations
        if rule["impact"] in ("serious", "critical")
    ]


def text(page: Page, name: str, panel: str = "") -> str:
    """Return what a widget with the class `ft-NAME`, of the panel with that class, shows, "" if it is not there."""
    place = page.locator(f"{panel} .ft-{name}").first
    return (place.text_content() or "") if place.count() else ""


def state(page: Page) -> str:
    """Return the name of what the train panel says beside its buttons."""
    place = page.locator(".ft-status [data-state]").first
    return (place.get_attribute("data-state") or "") if place.count() else ""


def step(page: Page) -> int:
    """Return the step that the train panel shows, 0 before the first."""
    found = re.search(r"step (\d+) of|第 (\d+)/", text(page, "status"))
    return int(found.group(1) or found.group(2)) if found else 0


def plot(page: Page) -> str:
    """Return the address of the picture that is shown."""
    return page.locator("img.ft-plot").first.get_attribute("src") or ""


def slide(page: Page, key: str, share: float) -> None:
    """Click a slider's track; not the arrow keys, which Lab takes for itself."""
    track = page.locator(f".ft-{key} .noUi-target").first
    track.scroll_into_view_if_needed()
    box = track.bounding_box()
    page.mouse.click(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)


def write(page: Page, key: str, value: str, panel: str = "") -> None:
    """Type into a text field, of the panel with that class where several have one, and leave it."""
    field = page.locator(f"{panel} .ft-{key} input").first
    field.fill(value)
    field.press("Tab")


def enabled(page: Page, name: str) -> bool:
    """Say whether a button can be pressed."""
    return page.locator(f"button.ft-{name}").first.is_enabled()


def press(page: Page, name: str) -> None:
    """Press a button."""
    page.locator(f"button.ft-{name}").first.click()


def shot(page: Page, name: str, of: str = "") -> None:
    """Keep a picture of the page for a person to look at, with the widget of the class `of` in sight."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    if of:
        page.locator(of).first.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / f"{name}.png")


def run_all(page: Page) -> None:
    """Run all cells of the notebook in Lab: asked again until one starts, because too early it does nothing."""
    page.wait_for_selector(".jp-Notebook")
    page.wait_for_function(KERNEL_READY)
    for _ in range(5):
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells', {}); }")
        for _ in range(25):
            prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_text_contents()
            if any(prompt.strip() not in ("[ ]:", "") for prompt in prompts):
                return
            time.sleep(0.2)
    raise AssertionError("no cell ever started")


def finished(page: Page) -> bool:
    """Say whether every code cell of the notebook in Lab has been run.

    Raises:
        AssertionError: a cell has failed.
    """
    failed = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert not failed.count(), failed.first.text_content()
    prompts = [text.strip() for text in page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()]
    return all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in prompts)


@contextlib.contextmanager
def kept(page, name):
    """Keep a picture of what went wrong."""
    try:
        yield
    except BaseException:
        shot(page, f"{name}_failed")
        print("browser console:", page.problems[-5:])
        raise


def opened(page, url):
    """Open the page and wait for its panels."""
    page.goto(url)
    until(lambda: page.locator("button.ft-start").count(), "the panels are shown")
