"""A name to a local folder that `from_pretrained` takes, on any machine and behind any mirror."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab import embedded
from ftlab.catalogue import MODELS
from ftlab.errors import LabError, fail, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Weights are read from safetensors alone; code and pickles of a hub repository are never fetched.
SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MODELSCOPE_PREFIX = "modelscope:"


def fetch(name: str) -> str:
    """Return a local folder with the model `name`, fetching it when it is not here yet.

    Args:
        name: the embedded model ("smollm2-135m", or "smollm2-135m-short" for its first blocks alone), another
            catalogue name, a local folder, a Hugging Face id "org/name", or a ModelScope id "modelscope:org/name".
            With USE_MODELSCOPE_HUB=1 every id is ModelScope's.
    Raises:
        LabError: unknown name, no model in that folder, only pickle weights, no network, no disk space.

    HF_HOME must be set before huggingface_hub is imported; HF_ENDPOINT may be set at any time before this call.
    """
    if name == embedded.NAME:
        return str(embedded.fetch())
    if name == embedded.SHORT_NAME:
        return str(embedded.fetch_short())
    if Path(name).is_dir():
        return str(checked(Path(name)))
    if looks_like_path(name):
        raise fail("model_no_folder", where=name)
    known = next((model for model in MODELS if model.name == name), None)
    if known is None and "/" not in name:
        raise unknown(name)
    if name.startswith(MODELSCOPE_PREFIX) or os.environ.get("USE_MODELSCOPE_HUB") == "1":
        return from_modelscope(known.modelscope_id if known else name.removeprefix(MODELSCOPE_PREFIX))
    return from_hub(known.hub_id if known else name)


def is_here(name: str) -> bool:
    """Return True if `fetch` would fetch nothing for a model; for a name that nobody knows too: it would refuse it."""
    if name in (embedded.NAME, embedded.SHORT_NAME):
        return (embedded.cache_dir() / name).is_dir()
    known = next((model for model in MODELS if model.name == name), None)
    if Path(name).is_dir() or looks_like_path(name) or (known is None and "/" not in name):
        return True
    if name.startswith(MODELSCOPE_PREFIX) or os.environ.get("USE_MODELSCOPE_HUB") == "1":
        return False
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(known.hub_id if known else name, allow_patterns=SAFE_FILES, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def checked(folder: Path) -> Path:
    """Return `folder` if `from_pretrained` can read a model from it without unpickling anything."""
    if not (folder / "config.json").is_file():
        raise fail("model_no_config", where=str(folder))
    if not list(folder.glob("*.safetensors")):
        pickled = any(path.suffix in PICKLES for path in folder.iterdir())
        raise fail("model_no_safetensors" if pickled else "model_no_weights", where=str(folder))
    missing = missing_shards(folder)
    if missing:
        raise fail("model_incomplete", where=str(folder), missing=", ".join(missing[:3]))
    return folder


def adapter(name: str | Path) -> Path:
    """Return the folder of an adapter; a run folder stands for the adapter inside it.

    Raises:
        LabError: there is none, or its weights are not safetensors: PEFT would unpickle them.
    """
    folder = Path(name).expanduser()
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if not all((folder / file).is_file() for file in ADAPTER_FILES):
        raise fail("model_no_adapter", where=str(name), files=", ".join(ADAPTER_FILES))
    return folder


def require_rows(tokenizer: "PreTrainedTokenizerBase", rows: int | None, where: str) -> None:
    """Refuse a tokenizer that makes token ids for which the embedding, of `rows` rows, has none; None is not known.

    Raises:
        LabError: with both numbers.
    """
    if rows is not None and unreachable(tokenizer, rows):
        raise fail("model_rows", where=where, tokens=len(tokenizer), rows=rows)


def embedding_rows(folder: str | Path) -> int | None:
    """Return how many tokens the embedding of a model folder has rows for, None where its config.json does not say."""
    # As text: a configuration may ask for code of its own.
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config).get("vocab_size")


def unreachable(tokenizer: "PreTrainedTokenizerBase", rows: int) -> list[str]:
    """Return the tokens that a text can have and an embedding of `rows` rows has not.

    A control token that the chat template never writes does not count: typed text is escaped, so that nothing makes it.
    Gemma 3 has one such for images, behind the last row of its text models.
    """
    beyond = (
        [token for token, number in tokenizer.get_vocab().items() if number >= rows] if len(tokenizer) > rows else []
    )
    control = set(tokenizer.all_special_tokens)
    return [token for token in beyond if token not in control or token in str(tokenizer.chat_template)]


def missing_shards(folder: Path) -> list[str]:
    """Return the weight files that the index of `folder` names and that are not there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return sorted(shard for shard in shards if not (folder / shard).is_file())


def from_hub(repo_id: str) -> str:
    """Return the snapshot folder of a Hugging Face repository, from the cache when it is complete there."""
    # Imported here: huggingface_hub reads HF_HOME on import, and a lesson sets it first.
    from huggingface_hub import constants, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    try:
        return str(checked(Path(snapshot_download(repo_id, allow_patterns=SAFE_FILES, local_files_only=True))))
    except (OSError, LabError):
        # Not cached, or cached in part: ask the hub.
        if constants.HF_HUB_OFFLINE:
            raise fail("hub_offline", name=repo_id, endpoint=endpoint, reason="HF_HUB_OFFLINE=1") from None
    needed_bytes = hub_bytes(repo_id, endpoint)
    place = Path(constants.HF_HUB_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    embedded.require_space(place, needed_bytes)
    print(f"fetching {repo_id} ({needed_bytes / 1e6:.0f} MB, once) from {endpoint} into {place}", flush=True)
    return str(checked(Path(snapshot_download(repo_id, allow_patterns=SAFE_FILES, endpoint=endpoint))))


def hub_bytes(repo_id: str, endpoint: str) -> int:
    """Ask the hub once how many bytes the safe files of `repo_id` are.

    Raises:
        LabError: no such repository, gated, only pickle weights, or no connection.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        siblings = HfApi(endpoint=endpoint).model_info(repo_id, files_metadata=True, timeout=10).siblings
    except GatedRepoError:
        raise fail("hub_gated", name=repo_id) from None
    except RepositoryNotFoundError:
        raise unknown(repo_id) from None
    except (httpx2.HTTPError, HfHubHTTPError, OSError) as error:
        raise fail("hub_offline", name=repo_id, endpoint=endpoint, reason=type(error).__name__) from None
    safe = [file for file in siblings if Path(file.rfilename).suffix == ".safetensors"]
    if not safe:
        raise fail("model_no_safetensors", where=repo_id)
    return sum(file.size or 0 for file in siblings if Path(file.rfilename).suffix not in PICKLES)


def from_modelscope(model_id: str) -> str:
    """Return the snapshot folder of a ModelScope model."""
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise fail("modelscope_missing", name=model_id) from None
    return str(checked(Path(snapshot_download(model_id, allow_file_pattern=list(SAFE_FILES)))))


def unknown(name: str) -> LabError:
    """Build the error for a name nobody knows, with the nearest that exist."""
    names = [model.name for model in MODELS] + [model.hub_id for model in MODELS]
    hint = suggest(name, [embedded.NAME, *names])
    return fail("model_unknown", name=name, hint=f"{hint} " if hint else "")


def looks_like_path(name: str) -> bool:
    """Say whether `name` can only be meant as a path."""
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or "\\" in name
