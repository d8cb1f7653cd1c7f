"""The hub path, against a small local server that speaks the hub's protocol."""

from functools import partial

import pytest
from hub import FILES, PICKLED, fetched, local_hub


@pytest.fixture
def hub():
    with local_hub({"org/good": FILES, "org/pickled": PICKLED}) as server:
        yield server


@pytest.fixture
def fetch(hub, tmp_path):
    return partial(fetched, hub, tmp_path)


def test_a_hub_model_is_fetched_without_its_pickles_and_then_found_offline(fetch, hub, tmp_path):
    first = fetch("org/good")
    assert first.returncode == 0, first.stderr
    folder = first.stdout.splitlines()[-1]
    assert "fetching org/good" in first.stdout and folder.startswith(str(tmp_path))
    assert not list(tmp_path.rglob("evil.bin"))
    hub.requests.clear()
    again = fetch("org/good", HF_HUB_OFFLINE="1")
    assert again.stdout.splitlines()[-1] == folder and hub.requests == []


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("org/nobody", {}, "unknown model `org/nobody`"),
        ("org/pickled", {}, "ftlab does not load"),
        ("org/gated", {}, "access must be requested"),
        ("org/good", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=1"),
        ("org/good", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "is unreachable"),
    ],
)
def test_what_can_go_wrong_is_said(fetch, name, environment, message):
    done = fetch(name, **environment)
    assert done.returncode == 2 and message in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
