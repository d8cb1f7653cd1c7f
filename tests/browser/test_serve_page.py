"""The server's own page in a real browser: the key, an answer that is Markdown, Stop, languages, a phone.

Pictures of what was seen are kept in build/shots.
"""

import sys
import time
from pathlib import Path

import pytest
import torch
from drive import CHROMIUM, browser, shot, until

sys.path.insert(0, str(Path(__file__).parents[1]))
import serving

from ftlab.apps.serve.batch import PaddedBatch

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.lengthy,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium fonts-noto-cjk"),
]
ANSWER = """## Plan
Some **bold**, *soft* and `code`, [site](https://a.example), [no](javascript:alert(1)).
<img src=x onerror=alert(1)>
1. one
   - inner
2. two

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>hi</b>")
```
> so"""


@pytest.fixture(scope="module")
def server(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)
    model.config.max_position_embeddings = 4096
    with serving.serving(model, tokenizer) as running:
        yield running


@pytest.fixture
def written(server, monkeypatch):
    """Let the model write ANSWER, so slowly that it can be stopped; returns how slowly, in seconds a token."""
    pace = [0.0]

    def forward(batch, ids, rows, cache):
        time.sleep(pace[0])
        target = [*server.engine.tokenizer(ANSWER).input_ids, server.engine.tokenizer.eos_token_id]
        likeliest = torch.tensor([target[len(row.generated)] for row in rows])
        return torch.nn.functional.one_hot(likeliest, len(server.engine.tokenizer)).float() * 100

    monkeypatch.setattr(PaddedBatch, "forward", forward)
    return pace


def test_a_chat_on_the_page(server, written):
    with browser(height=800) as page:
        page.goto(server.url)
        shot(page, "serve-key")
        page.fill("#token", "not the key")
        page.press("#token", "Enter")
        until(lambda: "不是该服务器的 API key" in page.text_content("#refused"))
        assert page.is_visible("#enter") and not page.is_visible("#room")
        page.click("#language")
        page.fill("#token", serving.TOKEN)
        page.press("#token", "Enter")
        page.wait_for_selector("#text:visible")
        assert not page.is_visible("#enter") and page.input_value("#token") == "" and serving.TOKEN not in page.url
        page.click("#tune")
        page.fill("#max_tokens", "600")
        page.fill("#system", "Be brief.")
        shot(page, "serve-drawer")
        page.keyboard.press("Escape")
        assert not page.is_visible("#drawer")
        page.fill("#text", "one <b>two</b>")
        page.press("#text", "Enter")
        page.wait_for_selector(".retry")
        assert page.text_content(".user") == "one <b>two</b>"
        prose = page.locator(".prose")
        for tag, text in (("h3", "Plan"), ("strong", "bold"), ("em", "soft"), ("p code", "code"), ("td", "1"),
                          ("pre code", 'print("<b>hi</b>")'), ("ol > li > ul > li", "inner"),
                          ("blockquote", "so")):  # fmt: skip
            assert prose.locator(tag).first.text_content() == text
        assert prose.locator("a").count() == 1 and prose.locator("a").get_attribute("rel") == "noopener noreferrer"
        assert not prose.locator("img, script, b").count() and "onerror=alert(1)" in prose.text_content()
        assert "tokens/s" in page.text_content(".foot")
        shot(page, "serve-answer")
        written[0] = 0.05
        page.click(".retry")
        until(lambda: "Plan" in page.text_content(".prose"))
        page.click("#stop")
        until(lambda: "stopped" in page.text_content(".foot"))
        assert page.text_content(".prose").startswith("Plan") and page.locator(".assistant").count() == 1
        written[0] = 0.0
        page.fill("#text", "again")
        page.click("#send")
        until(lambda: page.locator(".assistant .foot").last.text_content().count("tokens") == 2)
        assert page.locator(".turn").count() == 4
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shot(page, "serve-phone")
        page.click("#tune")
        shot(page, "serve-phone-drawer")
        page.click("#close")
        page.click("#language")
        assert page.text_content("#send") == "发送"
        page.click("#again")
        assert page.locator(".turn").count() == 0 and "回车发送" in page.text_content(".empty")
        # The browser itself reports the wrong key.
        assert all("401" in problem for problem in page.problems)
