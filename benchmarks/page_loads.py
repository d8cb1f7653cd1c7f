"""What loading the page of `ftlab board` again and again leaves behind: python -m benchmarks.page_loads 50.

Prints, as JSON: seconds until something is shown and until the panels can be used (first load, and median), the memory
of the server's process tree while one page is open after the first load and after the last, kernels then, and the
processes that are left when the server has ended. Needs Chromium.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
# A closed page tells the server; ending the kernel takes it a moment.
SETTLE_SECONDS = 3


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started."""
    found = psutil.Process(pid)
    return [found, *found.children(recursive=True)]


def resident_bytes(processes: list[psutil.Process]) -> int:
    """Return the memory that processes have to themselves: what they share counts once, in none of them."""
    return sum(one.memory_full_info().uss for one in processes)


def main(loads: int) -> None:
    """Load the page that often and print what it took."""
    from drive import browser, until
    from lab import private

    from ftlab.apps.board import voila_server

    voila_server.START_SECONDS = 600
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    shown, usable, memory = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        with voila_server.serving(environment=private(Path(folder))) as served, browser(1280, 800) as page:
            for _ in range(loads):
                began = time.monotonic()
                page.goto(served.url, wait_until="commit")
                page.wait_for_selector("header.ft-shell")
                shown.append(time.monotonic() - began)
                until(lambda: page.locator("button.ft-start:visible").count(), 600, "the panels are shown")
                usable.append(time.monotonic() - began)
                time.sleep(SETTLE_SECONDS)
                processes = tree(served.process.pid)
                memory.append(resident_bytes(processes))
                kernels = sum("ipykernel" in " ".join(one.cmdline()) for one in processes)
            problems = page.problems
        left = [one.pid for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    figures = {
        "loads": loads,
        "first_content_seconds": [shown[0], statistics.median(shown)],
        "usable_seconds": [usable[0], statistics.median(usable)],
        "memory_mib": [round(memory[0] / 2**20), round(memory[-1] / 2**20), round(max(memory) / 2**20)],
        "kernels": kernels,
        "left": left,
        "console_errors": problems,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
