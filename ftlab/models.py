"""Resolve a model name to a local folder for `from_pretrained`, on any machine and with any mirror."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab import embedded, packages, saved_weights
from ftlab.catalogue import MODELS
from ftlab.errors import LabError, fail, reason_of, say, suggest
from ftlab.system_errors import explained, require_space

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Weights are read from safetensors alone; pickles of a hub repository are never fetched.
SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
# Fetched as well if `trust_remote_code` is set.
CODE_FILES = ["*.py"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
# The longest header of a safetensors file that its reader accepts, in bytes.
LONGEST_HEADER = 100_000_000
ADAPTER_FILES = (saved_weights.ADAPTER_CONFIG, saved_weights.ADAPTER_WEIGHTS)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Quantizers -> the modules that read their weights.
QUANTIZERS = {"gptq": "optimum", "awq": "gptqmodel", "aqlm": "aqlm"}
MODELSCOPE_PREFIX = "modelscope:"


def fetch(name: str, trust_remote_code: bool = False, revision: str = "main", cache_dir: str | None = None) -> str:
    """Return a local folder with the model `name`, and fetch it if it is not on this machine yet.

    Args:
        name: the embedded model ("smollm2-135m", or "smollm2-135m-short" for its first blocks alone), another
            catalogue name, a local folder (also of a run that trained a whole model), a Hugging Face id "org/name", or
            a ModelScope id "modelscope:org/name".
            With USE_MODELSCOPE_HUB=1 or true every id is ModelScope's.
        trust_remote_code: fetch the code that comes with the model too.
        revision: branch, tag or commit of a hub's model.
        cache_dir: the folder that models of a hub are kept in; None: the hub's own.
    Raises:
        LabError: unknown name or revision, no model in that folder, only pickle weights, files that are cut short,
            code that is not trusted, no network, no disk space.

    HF_HOME must be set before huggingface_hub is imported; HF_ENDPOINT may be set at any time before this call.
    """
    folder = Path(name).expanduser()
    if revision != "main" and not has_revisions(name):
        raise fail("model_no_revision", where=name, revision=revision)
    if name == embedded.NAME:
        return str(embedded.fetch())
    if name == embedded.SHORT_NAME:
        return str(embedded.fetch_short())
    if folder.is_dir():
        return str(check_folder(whole_model(folder), trust_remote_code))
    if folder.is_file():
        raise fail("model_is_file", where=name)
    if looks_like_path(name):
        raise fail("model_no_folder", where=name)
    known = next((model for model in MODELS if model.name == name), None)
    if known is None and "/" not in name:
        raise unknown(name)
    if name.startswith(MODELSCOPE_PREFIX) or prefers_modelscope():
        name = known.modelscope_id if known else name.removeprefix(MODELSCOPE_PREFIX)
        return from_modelscope(name, trust_remote_code, revision, cache_dir)
    return from_hub(known.hub_id if known else name, trust_remote_code, revision, cache_dir)


def prefers_modelscope() -> bool:
    """Return True if USE_MODELSCOPE_HUB is on, in the words that LLaMA-Factory takes."""
    return os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "y")


def whole_model(folder: Path) -> Path:
    """Return the folder of the whole model in a run folder; any other folder unchanged.

    LLaMA-Factory saves it in the run folder itself, which its files then use as `model_name_or_path`.
    """
    inner = folder / saved_weights.MODEL
    is_run = not (folder / "config.json").is_file() and (inner / "config.json").is_file()
    return inner if is_run else folder


def has_revisions(name: str) -> bool:
    """Return True if a name refers to a model on a hub; local models have a single version."""
    return name not in embedded.NAMES and not Path(name).expanduser().is_dir()


def source_in(keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return revision and cache folder of a hub's model from a recipe's keys, {} for any other model."""
    if keys.get("model_name_or_path") != name:
        return {}
    return {"revision": keys.get("model_revision") or "main", "cache_dir": keys.get("cache_dir")}


def is_here(name: str, revision: str = "main", cache_dir: str | None = None) -> bool:
    """Return True if `fetch` would download nothing for a model; also for an unknown name, which it refuses."""
    if name in embedded.NAMES:
        return (embedded.cache_dir() / name).is_dir()
    known = next((model for model in MODELS if model.name == name), None)
    if Path(name).expanduser().exists() or looks_like_path(name) or (known is None and "/" not in name):
        return True
    if name.startswith(MODELSCOPE_PREFIX) or prefers_modelscope():
        return False
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "allow_patterns": SAFE_FILES}
    try:
        snapshot_download(known.hub_id if known else name, local_files_only=True, **options)
    except (OSError, ValueError):
        return False
    return True


def check_folder(folder: Path, trust_remote_code: bool = False) -> Path:
    """Return `folder` if `from_pretrained` can read a model from it without unpickling anything.

    Raises:
        LabError: a file that is missing, cut short or not JSON, or code of its own that is not trusted.
    """
    config = read_config(folder)
    shards = list(folder.glob("*.safetensors"))
    if not shards:
        pickled = any(path.suffix in PICKLES for path in folder.iterdir())
        raise fail("model_no_safetensors" if pickled else "model_no_weights", where=str(folder))
    missing = missing_shards(folder) + missing_code(folder, config, trust_remote_code)
    if missing:
        raise fail("model_incomplete", where=str(folder), missing=", ".join(missing[:3]))
    for shard in sorted(shards):
        if reason := broken_weights(shard):
            raise fail("model_broken_weights", where=str(shard), reason=reason)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a model folder.

    Raises:
        LabError: there is none, or it is not a JSON object.
    """
    if not (folder / "config.json").is_file():
        raise no_config(folder)
    return read_json(folder / "config.json")


def no_config(folder: Path) -> LabError:
    """Build the error for a folder without a config.json: an adapter, a run around one, or neither."""
    for place in (folder, folder / saved_weights.ADAPTER):
        if (place / saved_weights.ADAPTER_CONFIG).is_file():
            base = read_json(place / saved_weights.ADAPTER_CONFIG).get("base_model_name_or_path") or "MODEL"
            return fail("model_is_adapter", where=str(folder), base=base, adapter=place)
    return fail("model_no_config", where=str(folder))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        LabError: it cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise explained(error, str(path)) or error from None
    except (ValueError, RecursionError) as error:
        raise fail("model_broken_json", where=str(path), reason=reason_of(error)) from None
    if not isinstance(values, dict):
        raise fail("model_broken_json", where=str(path), reason=say("json_other", kind=type(values).__name__))
    return values


def broken_weights(path: Path) -> str:
    """Return what is wrong with a safetensors file, "" if it is as long as its header says.

    The file begins with the length of its header in eight bytes, then the header, which is JSON: name -> dtype, shape
    and [begin, end] of each tensor in the bytes that follow. A download that was cut short is shorter than that.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            return say("weights_cut_short", size=size)
        try:
            tensors = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return say("weights_header")
    needed = 8 + length + max(ends, default=0)
    return "" if size == needed else say("weights_size", size=size, needed=needed)


def refuse_code(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuse a model that needs its own code, unless that is trusted.

    Many models come with code that transformers no longer needs, because it supports their architecture.

    Raises:
        LabError: naming the key that allows it.
    """
    code = config.get("auto_map")
    if not code or trust_remote_code:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        raise fail("model_own_code", where=str(folder), code=", ".join(sorted(code_files(config))) or "auto_map")


def code_files(config: dict[str, Any]) -> set[str]:
    """Return the names of the files that `auto_map` of a config.json names; "repo--file.Class" is another repository's.

    >>> code_files({"auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModel": "org/x--modeling_x.X"}})
    {'configuration_x.py'}
    """
    references = config.get("auto_map")
    texts = references.values() if isinstance(references, dict) else []
    return {f"{text.rpartition('.')[0]}.py" for text in texts if isinstance(text, str) and "--" not in text}


def missing_code(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> list[str]:
    """Return the files of trusted code that config.json names and the folder does not have.

    Raises:
        LabError: the model needs its code, and that is not trusted.
    """
    refuse_code(folder, config, trust_remote_code)
    return sorted(name for name in code_files(config) if trust_remote_code and not (folder / name).is_file())


@contextlib.contextmanager
def loading(where: str | Path, key: str = "train_model") -> Iterator[None]:
    """Turn any exception that a library raises on a model's files into one line.

    Args:
        key: the message, which has the placeholder `reason`.
    Raises:
        LabError: naming `where`.
    """
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise fail("model_own_code", where=str(where), code="auto_map") from None
        raise explained(error, str(where)) or fail(key, where=str(where), reason=reason_of(error)) from error


def quantizer_missing(folder: str | Path) -> LabError | None:
    """Return the error for a model whose quantizer is not installed, None for any other model."""
    method = (read_config(Path(folder)).get("quantization_config") or {}).get("quant_method")
    if method not in QUANTIZERS:
        return None
    install = packages.install(QUANTIZERS[method])
    return fail("model_quantizer", where=str(folder), method=method.upper(), install=install)


def load_weights(kind: Any, folder: str | Path, *, new_head: bool = True, **options: Any) -> "PreTrainedModel":
    """Load a model and require that the folder has all its weights.

    Args:
        kind: AutoModelForCausalLM or a class like it.
        new_head: whether a reward model's head may be missing, as when its training begins.
        options: of `from_pretrained`.
    Raises:
        LabError: the folder cannot be read, or lacks weights, which transformers would fill with random numbers.
    """
    # For other shapes it raises a report of several lines, unless told to ignore them; then it returns their names.
    fixed = {"trust_remote_code": False, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with loading(folder), without_report():
        try:
            model, info = kind.from_pretrained(folder, output_loading_info=True, **fixed | options)
        except ImportError as error:
            # transformers names only the first missing package.
            raise quantizer_missing(folder) or error from None
    if info["mismatched_keys"]:
        name, actual, expected = min(info["mismatched_keys"])
        values = {"name": name, "found": tuple(actual), "needed": tuple(expected)}
        raise fail("model_other_shape", where=str(folder), **values)
    missing = sorted(name for name in info["missing_keys"] if not (new_head and name.startswith("score.")))
    if missing:
        raise fail("model_missing_weights", where=str(folder), count=len(missing), names=", ".join(missing[:3]))
    if model.config.model_type == "falcon" and model.config.alibi:
        # transformers' eager attention adds Falcon's ALiBi twice: to the scores, and in the mask.
        model.config._attn_implementation = "sdpa"
    return model


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Keep transformers from printing a table of missing weights, which `load_weights` reports in one line."""
    own = logging.getLogger("transformers.modeling_utils")
    before, own.disabled = own.disabled, True
    try:
        yield
    finally:
        own.disabled = before


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in a folder.

    Raises:
        LabError: there is none, it cannot be read, or it needs code that is not trusted.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not any(path for pattern in TOKENIZER_FILES for path in Path(folder).glob(pattern)):
        raise fail("model_no_tokenizer", where=str(folder))
    if (Path(folder) / "config.json").is_file():
        # It decides the tokenizer's class; an error in it is not the tokenizer's.
        with loading(folder):
            AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with loading(folder, "model_tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def adapter(name: str | Path) -> Path:
    """Return the folder of an adapter; a run folder means the adapter inside it.

    Raises:
        LabError: there is none, it is damaged, or its weights are not safetensors: PEFT would unpickle them.
    """
    folder = Path(name).expanduser()
    inside = folder / saved_weights.ADAPTER
    folder = inside if inside.is_dir() else folder
    if not all((folder / file).is_file() for file in ADAPTER_FILES):
        raise fail("model_no_adapter", where=str(name), files=", ".join(ADAPTER_FILES))
    settings, weights = (folder / file for file in ADAPTER_FILES)
    read_json(settings)
    if reason := broken_weights(weights):
        raise fail("model_broken_weights", where=str(weights), reason=reason)
    return folder


def require_rows(tokenizer: "PreTrainedTokenizerBase", rows: int | None, where: str) -> None:
    """Refuse a tokenizer with token ids beyond the embedding's `rows` rows; None: the number is unknown.

    Raises:
        LabError: with both numbers.
    """
    if rows is not None and unreachable(tokenizer, rows):
        raise fail("model_rows", where=where, tokens=len(tokenizer), rows=rows)


def embedding_rows(folder: str | Path) -> int | None:
    """Return the number of rows of a model folder's embedding, None if its config.json does not say."""
    # As plain JSON: a configuration may ask for its own code.
    config = read_config(Path(folder))
    return config.get("text_config", config).get("vocab_size")


def unreachable(tokenizer: "PreTrainedTokenizerBase", rows: int) -> list[str]:
    """Return the tokens that a text can contain and that have no row in an embedding of `rows` rows.

    A control token that the chat template never writes does not count: typed text is escaped, so it cannot occur.
    Gemma 3 has one such for images, after the last row of its text models.
    """
    beyond = (
        [token for token, number in tokenizer.get_vocab().items() if number >= rows] if len(tokenizer) > rows else []
    )
    control = set(tokenizer.all_special_tokens)
    return [token for token in beyond if token not in control or token in str(tokenizer.chat_template)]


def missing_shards(folder: Path) -> list[str]:
    """Return the weight files that the index of `folder` lists and that are missing."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise fail("model_broken_json", where=str(index), reason="no `weight_map`")
    return sorted(shard for shard in set(shards.values()) if not (folder / shard).is_file())


def from_hub(
    repo_id: str, trust_remote_code: bool = False, revision: str = "main", cache_dir: str | None = None
) -> str:
    """Return the snapshot folder of a Hugging Face repository, from the cache if it is complete there."""
    # Imported here: huggingface_hub reads HF_HOME on import, and a lesson sets it first.
    from huggingface_hub import constants, snapshot_download

    endpoint = hub_endpoint()
    patterns = SAFE_FILES + (CODE_FILES if trust_remote_code else [])
    place = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    options: dict[str, Any] = {"revision": revision, "cache_dir": place, "allow_patterns": patterns}
    try:
        cached = Path(snapshot_download(repo_id, local_files_only=True, **options))
        return str(check_folder(cached, trust_remote_code))
    except LabError:
        # Cached in part, or cut short: ask the hub.
        if constants.HF_HUB_OFFLINE:
            raise
    except OSError:
        if constants.HF_HUB_OFFLINE:
            raise fail("hub_offline", name=repo_id, endpoint=endpoint, reason="HF_HUB_OFFLINE=1") from None
    except ValueError:
        # An id that no hub accepts.
        raise unknown(repo_id) from None
    needed_bytes = hub_bytes(repo_id, endpoint, trust_remote_code, revision)
    place.mkdir(parents=True, exist_ok=True)
    require_space(place, needed_bytes, "disk_full")
    size = f"{needed_bytes / 1e6:.0f}"
    print(say("fetching", name=repo_id, size=size, endpoint=endpoint, place=place), flush=True)
    try:
        fetched = Path(snapshot_download(repo_id, endpoint=endpoint, **options))
    except Exception as error:
        # Whatever the HTTP client raises during a download, which is resumed at the next call.
        raise explained(error, str(place)) or fail(
            "hub_offline", name=repo_id, endpoint=endpoint, reason=reason_of(error)
        ) from error
    return str(check_folder(fetched, trust_remote_code))


def hub_endpoint() -> str:
    """Return the address of the hub."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def hub_answers() -> bool:
    """Return True if the hub can be reached; whatever it answers to a request for nothing."""
    import httpx2
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx2.head(hub_endpoint(), timeout=10)
    except httpx2.HTTPError:
        return False
    return True


def require_push(token: str | None) -> None:
    """Refuse to train for an upload that the hub would not accept.

    Args:
        token: None: HF_TOKEN, or that of `hf auth login`.
    Raises:
        LabError: no token, one that the hub does not know, or no connection.
    """
    import httpx2
    from huggingface_hub import HfApi

    try:
        HfApi(endpoint=hub_endpoint()).whoami(token)
    except (httpx2.HTTPError, OSError) as error:
        raise fail("train_push", where="push_to_hub", endpoint=hub_endpoint(), reason=reason_of(error)) from None


def hub_bytes(repo_id: str, endpoint: str, trust_remote_code: bool = False, revision: str = "main") -> int:
    """Ask the hub once how many bytes the safe files of `repo_id` are.

    Raises:
        LabError: no such repository or revision, gated, only pickle weights, code that is not trusted, no connection.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        about = HfApi(endpoint=endpoint).model_info(repo_id, revision=revision, files_metadata=True, timeout=10)
    except GatedRepoError:
        raise fail("hub_gated", name=repo_id) from None
    except RepositoryNotFoundError:
        raise unknown(repo_id) from None
    except RevisionNotFoundError:
        raise fail("hub_no_revision", name=repo_id, revision=revision) from None
    except (httpx2.HTTPError, HfHubHTTPError, OSError) as error:
        raise fail("hub_offline", name=repo_id, endpoint=endpoint, reason=type(error).__name__) from None
    siblings = about.siblings or []
    refuse_code(Path(repo_id), about.config or {}, trust_remote_code)
    safe = [file for file in siblings if Path(file.rfilename).suffix == ".safetensors"]
    if not safe:
        raise fail("model_no_safetensors", where=repo_id)
    return sum(file.size or 0 for file in siblings if Path(file.rfilename).suffix not in PICKLES)


def from_modelscope(
    model_id: str, trust_remote_code: bool = False, revision: str = "main", cache_dir: str | None = None
) -> str:
    """Return the snapshot folder of a ModelScope model.

    Raises:
        LabError: the package modelscope is missing, or could not fetch the model.
    """
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        missing = (error.name or "modelscope").partition(".")[0]
        raise fail("modelscope_missing", name=model_id, package=missing) from None
    patterns = SAFE_FILES + (CODE_FILES if trust_remote_code else [])
    with loading(model_id):
        # Its main branch is called master.
        options = {"revision": None if revision == "main" else revision, "cache_dir": cache_dir}
        fetched = Path(snapshot_download(model_id, allow_file_pattern=list(patterns), **options))
    return str(check_folder(fetched, trust_remote_code))


def unknown(name: str) -> LabError:
    """Build the error for an unknown name, with the nearest known ones."""
    names = [model.name for model in MODELS] + [model.hub_id for model in MODELS]
    hint = suggest(name, [*embedded.NAMES, *names])
    return fail("model_unknown", name=name, hint=f"{hint} " if hint else "")


def looks_like_path(name: str) -> bool:
    """Return True if `name` can only be a path."""
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or "\\" in name
