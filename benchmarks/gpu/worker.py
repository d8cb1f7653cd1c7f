"""The child process that runs the parts: started once, again where a part crashed it or had to be stopped."""

import gc
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from benchmarks.gpu.parts import Place, Unfit, parts

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes")
NO_GPU = "no GPU: torch.cuda.is_available() is False here; --dry-run tries every part on the CPU, with tiny models"
# What a part may leave allocated on the GPU before the next one gets a fresh process, in bytes.
LEFT_OVER_BYTES = 2**28


class Worker:
    """A child process and the pipe to it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.process: Any = None
        self.pipe: Connection | None = None

    def start(self, limit: float) -> dict[str, Any]:
        """Start the process; return what it says of the machine, or the `reason` why nothing can run."""
        # Not forked: a process that has touched CUDA cannot be.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.place), daemon=True)
        self.process.start()
        theirs.close()
        return self.answer(limit)

    def ask(self, name: str, limit: float) -> dict[str, Any]:
        """Run a part for at most `limit` seconds, in a fresh process where the last one is gone."""
        begun = time.monotonic()
        if self.process is None:
            about = self.start(limit)
            if "reason" in about:
                return {"status": "failed"} | about
        self.pipe.send(name)
        answer = self.answer(limit - (time.monotonic() - begun))
        if answer.pop("worn", False):
            self.stop()
        return answer

    def answer(self, limit: float) -> dict[str, Any]:
        """Return what the process sends within `limit` seconds; stop it if that is nothing."""
        try:
            if self.pipe.poll(max(limit, 0)):
                return self.pipe.recv()
            status, reason = "stopped", f"stopped after {limit:.0f} s"
        except (EOFError, OSError):
            self.process.join(5)
            status, reason = "failed", f"the process died (exit code {self.process.exitcode}): {self.last_line()}"
        self.stop()
        return {"status": status, "reason": reason}

    def last_line(self) -> str:
        """Return the last line that the process wrote."""
        lines = self.place.log.read_text(errors="replace").split("\n") if self.place.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = self.pipe = None


def serve(pipe: Connection, place: Place) -> None:
    """Report what this machine is, then run one part after the other as they are named."""
    with place.log.open("a") as log:
        # What libraries print goes into the log, the table stays readable.
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # Sent to a whole group, it would end this process before its parent has removed the files.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    names: queue.Queue[str] = queue.Queue()
    threading.Thread(target=listen, args=(pipe, names, place), daemon=True).start()
    pipe.send(describe(place))
    known = {part.name: part for part in parts(place.dry)}
    while True:
        result = perform(known[names.get()], place)
        try:
            pipe.send(result)
        except OSError:
            end(place)


def listen(pipe: Connection, names: "queue.Queue[str]", place: Place) -> None:
    """Pass names on; end this process, and remove its files, when the parent is gone."""
    try:
        while True:
            names.put(pipe.recv())
    except (EOFError, OSError):
        end(place)


def end(place: Place) -> NoReturn:
    """Remove the files of this process and end it; its other thread may write some more while they are removed."""
    for _ in range(100):
        shutil.rmtree(place.folder, ignore_errors=True)
        if not place.folder.exists():
            break
    os._exit(1)


def describe(place: Place) -> dict[str, Any]:
    """Return the GPU's name, its memory and the versions of the libraries, or a `reason`: there is no GPU."""
    import torch

    if place.dry:
        # A dry run on a machine with a GPU is one on the CPU all the same.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.cuda.is_available = lambda: False
        # For models so small a second thread only waits.
        torch.set_num_threads(1)
    if not torch.cuda.is_available() and not place.dry:
        return {"reason": NO_GPU}
    found = {"python": sys.version.split()[0], "cuda": torch.version.cuda or "-"}
    found |= {name: installed_version(name) for name in PACKAGES}
    if place.dry:
        return {"name": "CPU (dry run: tiny models, figures mean nothing)", "memory_gib": 0.0, "versions": found}
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_gib": properties.total_memory / 2**30, "versions": found}


def installed_version(package: str) -> str:
    """Return a package's version, "-" where it is missing."""
    try:
        return version(package)
    except ImportError:
        return "-"


def perform(part: Any, place: Place) -> dict[str, Any]:
    """Run one part; return its status with its figures, or with one line on what went wrong and the traceback."""
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        figures = part.work(place)
        if on_gpu:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        answer: dict[str, Any] = {"status": "ok", "figures": figures}
    except Unfit as reason:
        answer = {"status": "skipped", "reason": str(reason)}
    except (Exception, SystemExit) as error:
        answer = {"status": "failed", "reason": one_line(error), "traceback": traceback.format_exc()[-2000:]}
    gc.collect()
    return answer | {"worn": worn(answer) if on_gpu else False}


def one_line(error: BaseException) -> str:
    """Return an exception as one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200]


def worn(answer: dict[str, Any]) -> bool:
    """Return True if the next part needs a fresh process: CUDA failed in this one, or memory is still taken."""
    import torch

    if "CUDA error" in answer.get("traceback", ""):
        return True
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated() > LEFT_OVER_BYTES
