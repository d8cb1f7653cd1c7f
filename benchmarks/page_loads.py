"""What repeated loads of the page of `ftlab board` leave behind: python -m benchmarks.page_loads 50 5.

The first number is how often the page is loaded, the second how many trainings are started from it in between. Prints,
as JSON: seconds until something is shown, until the panels can be used, from a change of a field until its command
shows it, and until the estimates are shown (first load, and median), the memory of the server's process tree while one
page is open after the first load, after the last, and the most, kernels then, and the processes that are left when the
terminal has been closed. Needs Chromium.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
# A closed page notifies the server, which takes a moment to end the kernel.
SETTLE_SECONDS = 3
END_SECONDS = 60
# Steps of a training: enough for a curve.
STEPS = 3
TIMES = ("first_content_seconds", "usable_seconds", "answer_seconds", "estimates_seconds")


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its running descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid)
        return [found, *found.children(recursive=True)]
    return []


def own_bytes(processes: list[psutil.Process]) -> int:
    """Return the unique set size (USS) of processes: shared pages are not counted."""
    total = 0
    for one in processes:
        # One of them may end after it was listed.
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_full_info().uss
    return total


def is_kernel(process: psutil.Process) -> bool:
    """Return True for a running kernel."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "ipykernel" in " ".join(process.cmdline())
    return False


def runs(process: psutil.Process) -> bool:
    """Return True for a process that has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def board(folder: Path) -> Iterator[tuple[str, int]]:
    """Run `ftlab board` in a session of its own, yield its address and process id, and close its terminal."""
    from lab import private

    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "ftlab", "board", str(folder / "beginning.yaml"), "--port", "0", "--lang", "en"]
    # Under nohup, this process ignores SIGHUP, and its child would inherit that.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
        env=os.environ | private(folder / "private") | {"PYTHONPATH": paths},
    )  # fmt: skip
    signal.signal(signal.SIGHUP, before)
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.send_signal(signal.SIGHUP)
        # A process that does not end is reported as left.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def train(page: Any, number: int) -> None:
    """Start a training from the page and wait for its end."""
    from drive import enabled, press, state, until, write

    write(page, "output_dir", f"runs/job{number}", ".ftlab-train")
    write(page, "max_steps", str(STEPS), ".ftlab-train")
    until(lambda: enabled(page, "start"), "a training can be started")
    press(page, "start")
    until(lambda: state(page) in ("done", "failed", "ended"), "it is trained")
    assert state(page) == "done", state(page)


def load(page: Any, url: str, steps: int) -> tuple[float, ...]:
    """Load the page and set its steps; return the seconds until shown, usable, answered (since usable), estimated."""
    from drive import text, until, write

    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector("header.ft-shell")
    shown = time.monotonic() - began
    until(lambda: page.locator("button.ft-start:visible").count(), "the panels are shown")
    usable = time.monotonic() - began
    write(page, "max_steps", str(steps), ".ftlab-train")
    until(lambda: f"max_steps: {steps}\n" in text(page, "command"), "the command shows the field")
    answered = time.monotonic() - began - usable
    until(lambda: "GiB" in text(page, "readouts"), "the estimates are shown")
    return shown, usable, answered, time.monotonic() - began


def main(loads: int, jobs: int) -> None:
    """Load the page `loads` times and print the figures."""
    from drive import browser

    from ftlab.apps.board import controls
    from ftlab.apps.board import page as panels

    times, memory, seen, started = [], [], set(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = panels.BEGINNING | {"dataset_dir": str(ROOT / "data")}
        (folder / "beginning.yaml").write_text(controls.yaml_lines(values), encoding="utf-8")
        with board(folder) as (url, pid), browser(1280, 800) as page:
            for number in range(1, loads + 1):
                times.append(load(page, url, STEPS + number))
                time.sleep(SETTLE_SECONDS)
                processes = tree(pid)
                seen.update(processes)
                memory.append(own_bytes(processes))
                kernels = sum(map(is_kernel, processes))
                each = [f"{own_bytes([one]) / 2**20:.0f}" for one in processes]
                print(f"load {number}: {' + '.join(each)} MiB, {kernels} kernel(s)", file=sys.stderr, flush=True)
                if started < round(number * jobs / loads) and number < loads:
                    started += 1
                    train(page, started)
                    seen.update(tree(pid))
            problems = page.problems
        left = [one for one in seen if runs(one)]
    by_name = dict(zip(TIMES, zip(*times, strict=True), strict=True))
    figures = {
        "loads": loads,
        "jobs": started,
        **{name: [found[0], statistics.median(found)] for name, found in by_name.items()},
        "memory_mib": [round(memory[0] / 2**20), round(memory[-1] / 2**20), round(max(memory) / 2**20)],
        "kernels": kernels,
        "left": len(left),
        "console_errors": problems,
    }
    print(json.dumps(figures))
    for one in left:
        one.kill()


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    main(*(numbers + [10, 1][len(numbers) :]))
