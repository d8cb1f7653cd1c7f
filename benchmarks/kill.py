"""kill -9 of the processes of a run in two processes, thirty times: does it resume to the uninterrupted weights?

Six runs are killed five times each: one process, the other, both, the `ftlab train` that started them, all three; in
turns within a save, and at a step between saves. Then each is run to its end.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
RUNS, STEPS, SAVE_STEPS = 6, 72, 4
VICTIMS = ("0", "1", "01", "launcher", "01launcher")
# What a save writes, in its order.
SAVED = ("adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "partial-manifest.json")
HANGS, GIVE_UP = 60.0, 300.0


class Kill(NamedTuple):
    """The killed processes, the moment, the seconds until no process was left, and the run's error message."""

    victims: str
    moment: str
    seconds: float
    said: str


def measure(repeats: int, steps: int) -> dict:
    """Print every kill and return how many resumed to the same weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tiny.make_model(place / "tiny")
        tiny.make_rows(place)
        run_to_its_end(place, "whole")
        expected = weights(place / "whole")
        kills = [killed for number in range(RUNS) for killed in kill_five_times(place, number)]
        for number in range(RUNS):
            run_to_its_end(place, f"run{number}")
        equal = [weights(place / f"run{number}") == expected for number in range(RUNS)]
    hangs = sum(killed.seconds > HANGS for killed in kills)
    told = [killed.said.count("ftlab: ") == 1 for killed in kills if "launcher" not in killed.victims]
    print(f"{sum(told)} of {len(told)} runs whose launcher was left said one line")
    print(f"{len(kills)} kills, {hangs} hangs; {sum(equal)} of {RUNS} runs end with the uninterrupted weights")
    print(f"longest time until no process was left: {max(killed.seconds for killed in kills):.1f} s")
    found = {"kills": [killed._asdict() for killed in kills], "runs_with_equal_weights": sum(equal), "hangs": hangs}
    return found | {"ratios": {}}


def kill_five_times(place: Path, number: int) -> list[Kill]:
    """Start a run five times and kill it every time, during its next save or at a step soon after."""
    draw, kills = random.Random(number), []
    for turn, victims in enumerate(VICTIMS[number % 5 :] + VICTIMS[: number % 5]):
        save = (reached(place / f"run{number}") // SAVE_STEPS + 1) * SAVE_STEPS
        file = f"checkpoint-{save}/{draw.choice(SAVED)}" if (number + turn) % 2 else ""
        kills.append(kill(place, f"run{number}", victims, file, save + draw.randrange(1, SAVE_STEPS)))
        print(f"run {number}: {kills[-1]}", flush=True)
    return kills


def reached(folder: Path) -> int:
    """Return the last step that a run has logged, 0 before it has begun."""
    log = folder / "train_log.jsonl"
    rows = log.read_text().splitlines() if log.exists() else []
    # The last row may be half written.
    return max((json.loads(row)["step"] for row in rows if row.endswith("}")), default=0)


def start(place: Path, name: str) -> subprocess.Popen:
    """Start or resume `ftlab train` in two processes."""
    import tiny

    values = tiny.make_recipe(place / "tiny", place, place / name)
    keys = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "logging_steps": 1, "per_device_train_batch_size": 1}
    path = place / f"{name}.yaml"
    lines = (f"{key}: {json.dumps(value)}\n" for key, value in (values | keys).items())
    path.write_text("".join(lines))
    command = [sys.executable, "-m", "ftlab", "train", str(path), "nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (place / f"{name}.txt").open("w") as said:
        return subprocess.Popen(command, env=environment | {"FTLAB_DTYPE": "float32"}, stdout=said, stderr=said)


def kill(place: Path, name: str, victims: str, file: str, step: int) -> Kill:
    """Start a run, kill some of its processes when a file appears, or a step is logged, and wait for the others."""
    launcher = start(place, name)
    while not ((place / name / file).exists() if file else reached(place / name) >= step):
        assert launcher.poll() is None, (place / f"{name}.txt").read_text()[-3000:]
        time.sleep(0.001)
    every = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    for process in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.environ().get("RANK", "launcher") in victims:
                process.kill()
    began = time.monotonic()
    while (left := [process for process in every if not ended(process)]) and time.monotonic() < began + GIVE_UP:
        time.sleep(0.1)
    seconds = time.monotonic() - began
    for process in left:
        process.kill()
    launcher.wait()
    lines = [line for line in (place / f"{name}.txt").read_text().splitlines() if line.startswith("ftlab: ")]
    return Kill(victims, file or f"step {step}", round(seconds, 1), "".join(lines))


def ended(process: psutil.Process) -> bool:
    """Return True if a process has ended, even if its exit status has not been read."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_to_its_end(place: Path, name: str) -> None:
    """Run a recipe to its successful end."""
    assert start(place, name).wait(GIVE_UP) == 0, (place / f"{name}.txt").read_text()[-3000:]


def weights(folder: Path) -> str:
    """Return the sha256 of the weights of a finished run."""
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
