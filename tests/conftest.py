"""What every test stands on: a private cache, no hub, and a tiny random model that is made on the spot."""

# ruff: noqa: E402 - huggingface_hub and datasets read the environment when they are imported.
import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="ftlab-tests-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# As `ftlab` does while it imports: what the imports create is permanent. Enabled again after the collection of tests.
gc.disable()

import pytest

# torch and transformers are imported where they are needed: the process that hands tests out to others needs neither.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Exclude what the imports created from later garbage collections: every training asks for several."""
    try:
        return (yield)
    finally:
        if torch := sys.modules.get("torch"):
            # Models of these tests are so small that a second thread only waits.
            torch.set_num_threads(1)
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Keep every test out of the user's cache and off the hub; lessons use the real model in the real cache."""
    if "notebook" not in request.keywords:
        monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "ftlab-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FTLAB_LANG", raising=False)


@pytest.fixture(autouse=True)
def same_random_numbers(request: pytest.FixtureRequest) -> None:
    """Seed every test: what it draws must not depend on which tests ran before it; a lesson draws in its kernel."""
    if "notebook" not in request.keywords:
        from transformers import set_seed

        set_seed(0)


@pytest.fixture
def no_frame_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage keep no tensors while memory is measured.

    SlipCover 1.1 removes its probes in the midst of a forward pass: it reads the locals of all frames that run, and
    holds them, in a reference cycle, until a garbage collection.
    """
    if coverage := sys.modules.get("slipcover.slipcover"):
        monkeypatch.setattr(coverage.Slipcover, "deinstrument_seen", lambda self: None)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level tokenizer with ChatML: one token per byte, and the two control tokens."""
    import tiny

    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama of 64 hidden units and its tokenizer."""
    import tiny

    return tiny.make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_mixture_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Mixtral of four experts and its tokenizer."""
    import tiny

    return tiny.make_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small file per kind of row: sft.json, text.json, preference.json, kto.json."""
    import tiny

    return tiny.make_rows(tmp_path_factory.mktemp("tiny_rows"))


@pytest.fixture
def tiny_recipe(tiny_model_dir: Path, tiny_rows: Path, tmp_path: Path) -> dict[str, Any]:
    """The keys of a recipe that trains in half a second, and draws no loss: that would take a fifth longer."""
    import tiny

    return tiny.make_recipe(tiny_model_dir, tiny_rows, tmp_path / "run") | {"plot_loss": False}
