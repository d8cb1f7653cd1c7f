"""The hub path, against a small local server that speaks the hub's protocol."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hub import FILES, PICKLED, commit, fetched, local_hub, settings
from huggingface_hub import constants
from safetensors.torch import save
from tiny import make_recipe
from torch import zeros

from ftlab import models
from ftlab.apps import cli
from ftlab.apps.board import estimates, page
from ftlab.apps.board.form import Form
from ftlab.apps.board.words import Words
from ftlab.apps.serve import loading
from ftlab.data import registry
from ftlab.errors import LabError
from ftlab.recipe import memory_needs, strict_yaml, to_script
from ftlab.recipe import read as recipes
from ftlab.runs import chat, clusters, reference, train

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
    loading.load("org/good", overrides=["model_revision=v2", "cache_dir=kept"])
    assert asked == [("org/good", "v2", "kept")] * 4
    script = to_script.script(made)
    assert script.count("revision='v2'") == script.count("cache_dir='kept'") == 2


@pytest.mark.parametrize("place", ["org/other", "here"])
def test_a_reference_has_the_revision_where_a_hub_has_it(tiny_model_dir, monkeypatch, place):
    asked, fetch = [], models.fetch

    def fetching(name, **source):
        asked.append(source)
        return fetch(str(tiny_model_dir))

    monkeypatch.setattr(models, "fetch", fetching)
    name = str(tiny_model_dir) if place == "here" else place
    keys = {"model_name_or_path": "org/good", "stage": "dpo", "model_revision": "v2", "ref_model": name}
    reference.folder_of(recipes.load(keys), str(tiny_model_dir))
    revision = "main" if place == "here" else "v2"
    assert asked == [{"revision": revision, "cache_dir": None, "trust_remote_code": False}]


def test_the_board_talks_to_the_revision_of_its_recipe_or_of_the_adapter_s_run(tmp_path, monkeypatch):
    asked = []

    def fetching(name, **source):
        asked.append((name, source))
        raise LabError("asked enough")

    monkeypatch.setattr(models, "fetch", fetching)
    (tmp_path / "a").mkdir()
    run = {"model_name_or_path": "org/good", "model_revision": "v3", "cache_dir": "there"}
    (tmp_path / "a" / "recipe.yaml").write_text(strict_yaml.dumps(run))
    keys = {"model_name_or_path": "org/good", "model_revision": "v2", "output_dir": str(tmp_path / "run")}
    panel = page.chat(keys, "en")
    for name, chosen in (("org/good", []), ("org/good", [str(tmp_path / "a")]), ("org/other", [])):
        with pytest.raises(LabError, match="asked enough"):
            panel.load_now(name, chosen)
    here = {"revision": "v2", "cache_dir": None}
    assert asked == [("org/good", here), ("org/good", {"revision": "v3", "cache_dir": "there"}), ("org/other", {})]


def test_the_board_looks_for_the_revision_in_its_cache(fetch, tmp_path):
    folder = Path(fetch("org/good", "v2", str(tmp_path / "kept")).stdout.splitlines()[-1])
    keys = {"model_name_or_path": "org/good", "cache_dir": str(tmp_path / "kept")}
    assert estimates.folder_of(recipes.load(keys)) is None
    assert estimates.folder_of(recipes.load(keys | {"model_revision": "v2"})) == str(folder)


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


TOKEN = "hf_thisIsTheSecretOfATest"


@pytest.fixture
def closed(tiny_model_dir):
    """A hub whose only model is served to those who send TOKEN."""
    files = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir()}
    with local_hub({"org/closed": files}, {"org/closed": TOKEN}) as server:
        yield server


def ftlab(hub, home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of ftlab's whose hub this is, without a token in its environment."""
    plain = {name: value for name, value in settings(hub, home).items() if name != "HF_TOKEN"} | environment
    return subprocess.run([sys.executable, "-m", "ftlab", *words], env=plain, capture_output=True, text=True)


def test_a_token_in_a_recipe_opens_the_hub_and_is_written_nowhere(closed, tiny_rows, tmp_path, monkeypatch, capsys):
    keys = make_recipe(Path("org/closed"), tiny_rows, tmp_path / "run") | {"max_steps": 1, "use_cpu": True}
    path, home = tmp_path / "recipe.yaml", tmp_path / "home"
    refused = fetched(closed, home, "org/closed", HF_TOKEN="hf_another")
    assert refused.returncode == 2 and "`org/closed` is a gated model" in refused.stdout, refused.stdout
    path.write_text(strict_yaml.dumps(keys | {"hf_hub_token": TOKEN}))
    # The token of the recipe counts, as in LLaMA-Factory.
    done = ftlab(closed, home, "train", str(path), HF_TOKEN="hf_another")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("hf_hub_token is used for what this process downloads") == 1
    monkeypatch.setenv("HF_TOKEN", "hf_before")
    for name in ("trl", "llamafactory", "swift"):
        assert cli.main(["recipe", "show", str(path), "--as", name]) == 0
    assert cli.main(["recipe", "from", str(path), "--as-yaml", str(tmp_path / "run" / "again.yaml")]) == 0
    shown = capsys.readouterr()
    said = done.stdout + done.stderr + shown.out + shown.err
    assert TOKEN not in said and "a token in a file can leak: set HF_TOKEN" in said
    files = [one for folder in (tmp_path / "run", home) for one in folder.rglob("*") if one.is_file()]
    assert len(files) > 10 and not [one for one in files if TOKEN.encode() in one.read_bytes()]


@pytest.mark.parametrize("value", ["$HF_TOKEN", "two words", "hf_x\n", 5, True])
def test_what_is_not_a_token_is_refused_and_not_shown(value):
    with pytest.raises(LabError, match="`hf_hub_token` is not a token") as refused:
        recipes.read({"model_name_or_path": "org/closed", "hf_hub_token": value})
    assert str(value) not in str(refused.value).replace("spaces or `$`", "") and refused.value.exit_code == 2


def test_a_token_on_the_command_line_is_taken_and_left_out_of_a_script(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_before")
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: org/closed\ndataset: a.json\noutput_dir: runs/a\nhf_hub_token:\n")
    assert recipes.read(path)[1] == [] and os.environ["HF_TOKEN"] == "hf_before"
    words = [f"hf_hub_token={TOKEN}", "lora_rank=2"]
    made, notes = recipes.read(path, words)
    assert os.environ["HF_TOKEN"] == TOKEN and len(notes) == 1 and TOKEN not in notes[0]
    assert "hf_hub_token" not in recipes.plain(made)
    script = clusters.text("slurm", clusters.Start(made, str(path), words, 1, 2))
    assert "lora_rank=2" in script and TOKEN not in script
    with pytest.raises(LabError) as refused:
        recipes.read(path, ["hf_hub_token='un closed"])
    assert "un closed" not in str(refused.value)


def test_the_board_neither_shows_nor_keeps_a_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_before")
    keys = {"model_name_or_path": "org/closed", "dataset": "a.json", "output_dir": "runs/a", "hf_hub_token": TOKEN}
    form = Form(keys, Words("en"), (), (Path.cwd(), Path("runs")))
    assert os.environ["HF_TOKEN"] == TOKEN
    assert "hf_hub_token" not in form.written() | form.right and TOKEN not in form.lines.value


def test_a_data_set_of_an_unreachable_hub_is_one_line(monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(LabError, match="the data set could not be downloaded") as refused:
        registry.load("no-such-org/no-such-rows", "ONLINE")
    assert len(str(refused.value).splitlines()) == 2
    assert not caplog.records and constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("token", "reason"), [(None, "no token found"), ("hf_abc", "refused")])
def test_an_upload_that_cannot_succeed_is_refused_before_training(
    token, reason, tiny_model_dir, tiny_rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    keys = make_recipe(tiny_model_dir, tiny_rows, tmp_path / "run") | {"push_to_hub": True}
    with pytest.raises(LabError, match=f"would not take the trained model: .*{reason}") as refused:
        train.train(recipes.load(keys))
    assert refused.value.where == "push_to_hub" and not (tmp_path / "run").exists()
