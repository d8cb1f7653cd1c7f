"""What a user of LLaMA Board would try first on the page of `ftlab board`, at the width of a laptop and of a phone.

axe checks every step, in both languages and themes. Pictures are kept in build/shots.
"""

import json

import pytest
from drive import (
    CHROMIUM,
    browser,
    color,
    enabled,
    in_sight,
    kept,
    opened,
    press,
    serious,
    shot,
    state,
    step,
    text,
    until,
    write,
)
from lab import private

from ftlab.apps.board import controls, voila_server
from ftlab.errors import LANGUAGES
from ftlab.runs import folder as folders

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.lengthy,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium fonts-noto-cjk"),
]
# The primary action of each step, in their order; the memory step shows its table at once.
PRIMARY = ("data_check", "start", "evaluate_start", "compare_refresh", "chat_load", "export_start", None, "quiz_check")


def go(page, number: int) -> None:
    """Open a step, whose primary action has to be in sight."""
    page.locator(".ftlab-board .lm-TabBar-tab").nth(number).click()
    until(lambda: page.locator(".ftlab-board .widget-tab-contents > :not(.lm-mod-hidden) > *").count(), "a panel")
    if PRIMARY[number]:
        until(lambda: page.locator(f"button.ft-{PRIMARY[number]}:visible").count(), "its primary action")
        until(lambda: in_sight(page, PRIMARY[number]), "its primary action is in sight")


def unfold(page, panel: str, number: int) -> None:
    """Open or close a folded part of a panel."""
    page.locator(f"{panel} .jupyter-widget-Collapse-header").nth(number).click()


def look_at_data(page, place) -> None:
    """Page through a set, check it, save a repaired copy, upload another."""
    go(page, 0)
    until(lambda: page.locator(".ft-tokens span").count() > 10, "an example is shown")
    before = text(page, "tokens")
    press(page, "data_next")
    until(lambda: text(page, "tokens") != before, "the next one")
    press(page, "data_check")
    until(lambda: text(page, "report"), "the report")
    press(page, "data_repair")
    until(lambda: list(place.glob("*-repaired*.jsonl")), "the copy")
    row = json.dumps({"instruction": "Say hi.", "output": "Hi."}).encode()
    with page.expect_file_chooser() as chooser:
        press(page, "data_upload")
    chooser.value.set_files({"name": "mine.jsonl", "mimeType": "application/json", "buffer": row})
    until(lambda: (place / "uploads" / "mine.jsonl").is_file(), "it is uploaded")
    until(lambda: "hi" in text(page, "tokens"), "and shown")


def fill_in(page) -> None:
    """A wrong value is named at the field and beside Start; help opens; a key without a field is set."""
    go(page, 1)
    write(page, "max_steps", "ten", ".ftlab-train")
    until(lambda: text(page, "bad-max_steps") and state(page) == "wrong" and not enabled(page, "start"), "refused")
    assert "max_steps" in text(page, "status")
    write(page, "max_steps", "12", ".ftlab-train")
    until(lambda: enabled(page, "start"), "Start is on again")
    cell = page.locator(".ftlab-train .ft-cell:has(.ft-lora_rank)")
    cell.locator("summary").click()
    assert cell.locator("details p").is_visible()
    cell.locator("summary").click()
    unfold(page, ".ftlab-train .ft-more", 4)
    write(page, "any_key", "max_grad_norm", ".ftlab-train")
    until(lambda: "max_grad_norm" in text(page, "any_key-about"), "it is explained")
    write(page, "any_value", "0.5", ".ftlab-train")
    press(page, "set_key")
    until(lambda: "max_grad_norm: 0.5" in text(page, "command"), "it is set")
    field = page.locator(".ftlab-train .ft-model_name_or_path input")
    name = field.input_value()
    field.click()
    assert field.input_value() == name, "a click on the text leaves it to be edited"
    field.press("Tab")
    box = field.bounding_box()
    field.click(position={"x": box["width"] - 8, "y": box["height"] / 2})
    assert field.input_value() == "" and field.get_attribute("placeholder") == name, "the arrow opens the whole list"
    field.press("Tab")
    assert field.input_value() == name


def keep_settings(page, place, name: str) -> None:
    """Settings are saved, changed and loaded again."""
    unfold(page, ".ftlab-train .ft-columns > :last-child", 2)
    write(page, "settings_file", name)
    press(page, "settings_save")
    until(lambda: (place / name).is_file(), "saved")
    write(page, "max_steps", "13", ".ftlab-train")
    until(lambda: "max_steps: 13" in text(page, "command"), "changed")
    press(page, "settings_load")
    until(lambda: "max_steps: 12" in text(page, "command"), "loaded")


def train_and_extend(page, place, name: str) -> None:
    """Train to the end, open the run again, and continue it in another folder."""
    press(page, "start")
    until(lambda: state(page) == "done", "it is trained")
    assert page.locator("img.ft-plot:visible").count() and in_sight(page, "start")
    page.locator(".ft-earlier select:visible").select_option(index=1)
    press(page, "extend")
    until(lambda: f"{name}-2" in text(page, "command"), "a folder of its own")
    assert "adapter_name_or_path" in text(page, "command")
    until(lambda: enabled(page, "start"), "it can be extended")
    press(page, "start")
    until(lambda: state(page) == "done", "it is trained further")
    assert step(page) == 0 and folders.read_recipe(place / "runs" / f"{name}-2")["max_steps"] == 12


def compare(page, name: str) -> None:
    """Two runs side by side differ in where they began."""
    go(page, 3)
    until(lambda: "adapter_name_or_path" in text(page, "compared"), "what differs")
    assert f"{name}-2" in text(page, "compared") and "seed" not in text(page, "compared")


def evaluate(page, rows: str, name: str) -> None:
    """Base and tuned on the same examples."""
    go(page, 2)
    write(page, "eval_dataset", rows, ".ftlab-evaluate")
    write(page, "adapter_name_or_path", f"runs/{name}", ".ftlab-evaluate")
    until(lambda: enabled(page, "evaluate_start"), "it can be evaluated")
    press(page, "evaluate_start")
    until(lambda: page.locator(".ft-evaluate_start-result td").count() > 2, "the scores")


def chat(page) -> None:
    """A system prompt, sampling, and an answer of base and adapter."""
    go(page, 4)
    unfold(page, ".ftlab-chat", 0)
    page.locator(".ft-chat_system textarea").fill("Be brief.")
    page.locator(".ft-do_sample input").check()
    press(page, "chat_load")
    until(lambda: enabled(page, "chat_send"), "loaded")
    page.locator(".ft-chat_question textarea").fill("What is 1 plus 1?")
    page.locator(".ft-chat_question textarea").press("Tab")
    press(page, "chat_send")
    until(lambda: page.locator(".ft-turn").count() >= 4 and enabled(page, "chat_send"), "both answer")


def export(page, place, name: str) -> None:
    """The format is in the command; the merged model is compared with the adapter."""
    go(page, 5)
    write(page, "adapter_name_or_path", f"runs/{name}", ".ftlab-export")
    write(page, "export_dir", f"runs/{name}-merged", ".ftlab-export")
    page.locator(".ft-export_gguf select").select_option("q8_0")
    until(lambda: "export_gguf: q8_0" in page.locator(".ftlab-export pre").first.text_content(), "the command")
    page.locator(".ft-export_gguf select").select_option("-")
    until(lambda: enabled(page, "export_start"), "it can be exported")
    press(page, "export_start")
    until(lambda: page.locator(".ft-export_start-result td").count() > 2, "verified")
    assert (place / "runs" / f"{name}-merged" / "model.safetensors").is_file()


def learn(page) -> None:
    """A question is answered and explained."""
    go(page, 7)
    page.locator(".ft-quiz-choices input").first.check()
    until(lambda: enabled(page, "quiz_check"), "an answer can be checked")
    press(page, "quiz_check")
    until(lambda: len(text(page, "quiz-verdict")) > 40, "it is explained")


def switch(page) -> None:
    """The theme without the kernel, the language in place, with the settings that were there."""
    theme = page.evaluate("document.documentElement.dataset.ftTheme")
    page.click("#ft-theme")
    assert page.evaluate("document.documentElement.dataset.ftTheme") != theme
    for lang, word in (("zh", "训练"), ("en", "Train")):
        press(page, "language")
        until(lambda word=word: page.get_by_role("tab", name=word).count(), "in the other language")
        until(lambda lang=lang: page.get_attribute("html", "lang") == lang, "and said so to screen readers")
    go(page, 1)
    until(lambda: "max_grad_norm: 0.5" in text(page, "command"), "the settings are kept")
    go(page, 2)
    assert page.locator(".ft-evaluate_start-result td").count() > 2, "the scores, too"
    go(page, 4)
    assert page.locator(".ft-turn").count() >= 4, "and the conversations"


def look_at(page, name: str, width: int) -> None:
    """The step that is shown fits the window and has no serious finding of axe, in either theme."""
    until(lambda: not page.locator(".ftlab-board .ft-loading:visible").count(), "the panel is there")
    assert page.evaluate("document.querySelector('.ftlab-board').scrollWidth") <= width
    for theme in ("light", "dark"):
        color(page, theme)
        shot(page, f"{name}_{theme}")
        assert not serious(page), name


def lose_the_kernel(page) -> None:
    """A page whose kernel is gone says so; before, it does not, and a server that is away for a while is not that."""
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(look)
    page.wait_for_load_state("networkidle")
    assert page.is_hidden("#ft-gone") and page.is_hidden("#ft-away")
    page.route("**/api/kernels/*", lambda route: route.abort())
    page.evaluate(look)
    page.wait_for_selector("#ft-away:visible")
    assert page.is_hidden("#ft-gone")
    page.unroute("**/api/kernels/*")
    page.wait_for_selector("#ft-away", state="hidden")
    page.evaluate("""async () => {
        const { baseUrl, kernelId } = JSON.parse(document.getElementById("jupyter-config-data").textContent);
        const sent = new FormData();
        sent.append("_xsrf", document.cookie.match(/_xsrf=([^;]*)/)[1]);
        await fetch(`${baseUrl}voila/api/shutdown/${kernelId}`, { method: "POST", body: sent });
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    page.wait_for_selector("#ft-gone:visible")
    assert in_sight(page, PRIMARY[-1]), "the buttons stay in sight"
    shot(page, "walk_gone")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_a_stranger_s_list(place, values, tmp_path, width, height):
    name = f"wide{width}"
    path = place / "tiny.yaml"
    path.write_text(controls.yaml_lines(values | {"max_steps": 12, "output_dir": f"runs/{name}"}))
    with (
        voila_server.serving(str(path), lang="en", environment=private(tmp_path / "private")) as served,
        browser(width, height) as page,
        kept(page, f"walk_{width}"),
    ):
        opened(page, served.url)
        assert page.title() and values["model_name_or_path"] in text(page, "facts")
        look_at_data(page, place)
        fill_in(page)
        keep_settings(page, place, "mine.yaml")
        train_and_extend(page, place, name)
        evaluate(page, values["dataset"], name)
        compare(page, name)
        chat(page)
        export(page, place, name)
        go(page, 6)
        until(lambda: page.locator(".ft-sized-table td").count() > 10, "the table")
        learn(page)
        switch(page)
        for lang in LANGUAGES:
            if lang != "en":
                press(page, "language")
                until(lambda lang=lang: page.get_attribute("html", "lang") == lang, "in the other language")
            for number in range(len(PRIMARY)):
                go(page, number)
                look_at(page, f"walk_{width}_{lang}_{number}", width)
        assert not page.problems, page.problems
        lose_the_kernel(page)
