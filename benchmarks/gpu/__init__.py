"""A check of ftlab on one GPU, most important parts first: does it work, is the memory estimate right, how fast is it.

Every part runs in a child process that is stopped when its time is up; every result is written immediately. Nothing is
fetched: models have random weights, the tokenizer is trained on data/. Figures: benchmarks/README.md.
"""

import contextlib
import datetime
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import needs, report, schedule
from benchmarks.gpu.parts import Place, parts
from benchmarks.gpu.worker import Worker

# Shared memory is the fastest place for models of 15 GB, where it has this much room left.
SHARED, ROOM_BYTES = Path("/dev/shm"), 40 * 2**30
# The child imports the libraries and looks for the GPU.
START_SECONDS = 120.0


def main(minutes: float, target: Path | None, dry: bool, list_needs: bool) -> int:
    """Run the check and print its table; return the exit code: 2 without a GPU, 1 if a part failed.

    Args:
        minutes: after so many, the part that runs is stopped and the table is printed.
        target: the JSON file that is rewritten after every part.
        dry: run every part on the CPU, with tiny models.
        list_needs: print the packages to copy to the machine instead.
    """
    if list_needs:
        print(needs.table())
        return 0
    if not minutes > 0:
        print(f"--minutes {minutes:g}: must be above 0", file=sys.stderr)
        return 2
    if target and (problem := unwritable(target)):
        print(f"{target}: cannot be written: {problem}", file=sys.stderr)
        return 2
    started = time.monotonic()
    with work_folder() as folder:
        quiet_libraries(folder)
        worker = Worker(Place(folder, dry))
        about = worker.start(min(START_SECONDS, 60 * minutes))
        if "reason" in about:
            print(about["reason"], file=sys.stderr)
            return 2
        found = {"about": about | {"date": f"{datetime.date.today()}", "minutes": minutes, "dry": dry}, "parts": []}
        return run(found, worker, 60 * minutes - (time.monotonic() - started), target)


def run(found: dict[str, Any], worker: Worker, seconds: float, target: Path | None) -> int:
    """Fill `found` part by part for so many seconds; print each result immediately, and the table at the end."""
    code = 130
    # A time limit such as `timeout` sends SIGTERM: the table is printed anyway.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for result in schedule.results(parts(found["about"]["dry"]), worker, seconds):
            found["parts"].append(result)
            # Written before it is printed: a reader of the line may end the check.
            keep(found, target)
            print(report.line(result), flush=True)
        code = int(any(part["status"] == "failed" for part in found["parts"]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        worker.stop()
        print(report.markdown(found), flush=True)
    return code


def keep(found: dict[str, Any], target: Path | None) -> None:
    """Write the results so far; a disk that refuses them does not end the check, which prints them as well."""
    try:
        if target:
            report.write(found, target)
    except OSError as error:
        print(f"{target}: cannot be written: {error.strerror}", file=sys.stderr)


def unwritable(target: Path) -> str:
    """Return why the results cannot be written there, "" if they can; what an earlier check has left stays."""
    if target.is_dir():
        return "it is a folder"
    try:
        report.partial(target).touch()
        report.partial(target).unlink()
    except OSError as error:
        return error.strerror
    return ""


@contextlib.contextmanager
def work_folder() -> Any:
    """Give a folder for models and runs; it is gone afterwards."""
    roomy = SHARED.is_dir() and os.access(SHARED, os.W_OK) and shutil.disk_usage(SHARED).free > ROOM_BYTES
    folder = Path(tempfile.mkdtemp(prefix="ftlab-gpu-", dir=SHARED if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def quiet_libraries(folder: Path) -> None:
    """Keep the child off the network and out of the user's caches."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "FTLAB_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        # A child that was stopped cannot give its semaphores back; Python does, and would say so behind the table.
        "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
    }
