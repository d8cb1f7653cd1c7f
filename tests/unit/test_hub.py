"""The hub path, against a small local server that speaks the hub's protocol."""

from functools import partial
from pathlib import Path

import pytest
from hub import FILES, PICKLED, commit, fetched, local_hub
from safetensors.torch import save
from tiny import make_recipe
from torch import zeros

from ftlab import models
from ftlab.errors import LabError
from ftlab.recipe import memory_needs, to_script
from ftlab.recipe import read as recipes
from ftlab.runs import chat, train

OTHER = {"config.json": b'{"model_type": "other"}', "model.safetensors": save({"w": zeros(2)})}


@pytest.fixture
def hub():
    with local_hub({"org/good": FILES, "org/good@v2": OTHER, "org/pickled": PICKLED}) as server:
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


def test_a_revision_is_fetched_into_the_folder_that_was_asked(fetch, hub, tmp_path):
    kept = tmp_path / "kept"
    main, second = fetch("org/good"), fetch("org/good", "v2", str(kept))
    assert (main.returncode, second.returncode) == (0, 0), main.stderr + second.stderr
    folders = [Path(done.stdout.splitlines()[-1]) for done in (main, second)]
    assert [(folder / "config.json").read_bytes() for folder in folders] == [FILES["config.json"], OTHER["config.json"]]
    assert folders[1] == kept / "models--org--good" / "snapshots" / commit("org/good@v2")
    assert (folders[1] / "model.safetensors").read_bytes() == OTHER["model.safetensors"]
    hub.requests.clear()
    again = fetch("org/good", "v2", str(kept), HF_HUB_OFFLINE="1")
    assert again.stdout.splitlines()[-1] == str(folders[1]) and hub.requests == []


def test_a_revision_that_is_not_there_is_said(fetch):
    done = fetch("org/good", "v3")
    assert done.returncode == 2 and "`org/good` has no branch, tag or commit `v3`" in done.stdout, done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["smollm2-135m", "."])
def test_a_model_of_this_machine_has_no_revision(name):
    with pytest.raises(LabError, match="`model_revision: v2` is for models of a hub") as error:
        models.fetch(name, revision="v2")
    assert error.value.exit_code == 2


def test_the_keys_reach_every_place_that_fetches(tiny_model_dir, tiny_rows, tmp_path, monkeypatch):
    asked, fetch = [], models.fetch

    def fetching(name, trust_remote_code=False, revision="main", cache_dir=None):
        asked.append((name, revision, cache_dir))
        return fetch(str(tiny_model_dir))

    def here(*place):
        asked.append(place)
        return True

    monkeypatch.setattr(models, "fetch", fetching)
    monkeypatch.setattr(models, "is_here", here)
    keys = make_recipe(tiny_model_dir, tiny_rows, tmp_path / "run") | {"model_name_or_path": "org/good"}
    made = recipes.load(keys | {"model_revision": "v2", "cache_dir": "kept", "max_steps": 1})
    train.check(made)
    chat.from_recipe(made)
    assert asked == [("org/good", "v2", "kept")] * 3
    script = to_script.script(made)
    assert script.count("revision='v2'") == script.count("cache_dir='kept'") == 2


def test_an_estimate_reads_the_config_of_the_revision(monkeypatch):
    asked = {}

    def config(source, **options):
        asked.update(options, source=source)
        raise OSError("asked enough")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", config)
    made = recipes.load({"model_name_or_path": "org/good", "model_revision": "v2", "cache_dir": "kept"})
    with pytest.raises(LabError):
        memory_needs.sizes(made.model_name_or_path, **made.source)
    assert asked == {"source": "org/good", "revision": "v2", "cache_dir": "kept", "trust_remote_code": False}
