"""The check of a GPU: its plan under a fake clock, its report, and every part of it on the CPU with tiny models."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import gpu
from benchmarks.gpu import models, needs, report, schedule, speed, works
from benchmarks.gpu.parts import Part, Place, parts
from benchmarks.gpu.worker import Worker
from ftlab.recipe import read as recipes
from ftlab.recipe.memory_needs import sizes

ROOT = Path(__file__).parents[2]


class Fake:
    """A clock, and a worker that lets it run as long as each part is said to take."""

    def __init__(self, took: dict[str, float]) -> None:
        self.now, self.took, self.asked = 100.0, took, []

    def clock(self) -> float:
        return self.now

    def ask(self, name: str, limit: float) -> dict:
        self.asked.append(name)
        self.now += min(self.took[name], limit)
        if self.took[name] > limit:
            return {"status": "stopped", "reason": f"stopped after {limit:.0f} s"}
        return {"status": "ok", "figures": {}}


def part(name: str, seconds: float, packages=(), after=()) -> Part:
    return Part(name, "works", seconds, lambda place: {}, packages, after)


def plan(fake: Fake, seconds: float, *planned: Part) -> list[dict]:
    return list(schedule.results(planned, fake, seconds, fake.clock))


def test_what_does_not_fit_is_skipped_by_name_and_what_fits_behind_it_runs():
    fake = Fake({"a": 10, "c": 5})
    first, second, third = plan(fake, 60, part("a", 10), part("b", 55), part("c", 5))
    assert (first["status"], first["seconds"], third["status"]) == ("ok", 10, "ok")
    assert (second["part"], second["status"]) == ("b", "skipped")
    assert second["reason"] == "takes about 55 s, 50 s are left" and fake.asked == ["a", "c"]


def test_a_slow_machine_corrects_the_estimates():
    """Three parts take twice their estimate: the fourth is expected to take 20 s, of which 19 are left."""
    fake = Fake({"a": 10, "b": 10, "c": 10})
    *_, last = plan(fake, 49, part("a", 5), part("b", 5), part("c", 5), part("d", 10))
    assert last["status"] == "skipped" and last["reason"] == "takes about 20 s, 19 s are left"


def test_a_part_that_overruns_is_stopped_and_the_next_one_runs():
    fake = Fake({"a": 1000, "b": 5})
    first, second = plan(fake, 300, part("a", 10), part("b", 5))
    assert first["status"] == "stopped" and first["seconds"] == schedule.LEAST_SECONDS
    assert second["status"] == "ok"


def test_one_minute_is_one_minute_however_slow_the_machine_is():
    for slower in (0.5, 1, 4, 100):
        fake = Fake({planned.name: slower * planned.seconds for planned in parts()})
        done = plan(fake, 60, *(planned._replace(packages=()) for planned in parts()))
        assert fake.now <= 160 and len(done) == len(parts())
        assert all(row["status"] in ("ok", "stopped", "skipped") for row in done)
        # The most telling parts come first.
        assert [row["part"] for row in done[:3]] == ["matrix rate and bandwidth", "make 135M", "sft lora 135M"]
        assert slower > 1 or {row["status"] for row in done[:8]} == {"ok"}


def test_a_missing_package_skips_its_parts_alone(monkeypatch):
    monkeypatch.setattr(schedule, "installed", lambda module: module != "bitsandbytes")
    fake = Fake({planned.name: 0.0 for planned in parts()})
    done = plan(fake, 1000, *parts())
    lost = {row["part"] for row in done if row["status"] == "skipped"}
    assert lost == {planned.name for planned in parts() if "qlora" in planned.name} and len(lost) > 4
    assert all(row["reason"] == "not installed: bitsandbytes" for row in done if row["part"] in lost)


def test_a_package_inside_a_missing_one_is_missing_too():
    assert schedule.installed("importlib.metadata")
    assert not schedule.installed("no_such_package.inner") and not schedule.installed("no_such_package")


def test_what_needs_a_failed_part_is_skipped():
    fake = Fake({"a": 1000})
    _, second = plan(fake, 300, part("a", 10), part("b", 5, after=("a",)))
    assert second["status"] == "skipped" and second["reason"] == "needs the result of: a"


def test_every_part_stands_behind_what_it_needs():
    seen: set[str] = set()
    for planned in parts():
        assert set(planned.after) <= seen and planned.name not in seen
        seen.add(planned.name)
    assert sum(planned.group == "memory" for planned in parts()) >= 12
    assert sum(planned.seconds for planned in parts()) < 9 * 60


@pytest.mark.parametrize(("size", "weights"), [("135M", 134_515_008), ("1B", 1_235_814_400), ("7B", 7_615_616_512)])
def test_models_have_the_sizes_of_their_namesakes(size, weights):
    family, shape = models.SIZES[size]
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).num_parameters() == weights


def test_the_tokenizer_has_a_text_for_every_token_of_the_model():
    tokenizer = models.make_tokenizer(3000)
    assert len(tokenizer) == 3000 and all(map(tokenizer.decode, range(3000)))
    assert tokenizer.decode(tokenizer("What is a volcano? 火山")["input_ids"]) == "What is a volcano? 火山"
    # Trained on data/: far fewer tokens than bytes.
    assert len(tokenizer("In short, a volcano is an opening in the ground.")["input_ids"]) < 20


def test_a_weight_without_gradient_is_found():
    look, layer = works.Look(), torch.nn.Linear(2, 2)
    look.on_train_begin(None, None, None, model=layer)
    layer.weight.grad = torch.ones(2, 2)
    layer.bias.grad = torch.zeros(2)
    look.on_pre_optimizer_step(None, None, None)
    assert set(look.unreached) == {"bias"} and look.trained == 2
    layer.bias.grad = torch.tensor([float("inf"), 0])
    look.on_pre_optimizer_step(None, None, None)
    assert set(look.unreached) == {"bias"}, "an overflow of float16 is not a gradient"


def test_the_difference_of_two_adapters_is_a_share_of_their_length():
    one, other = {"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, 4.5])}
    assert works.difference(one, other) == pytest.approx(0.1) and works.difference(one, one) == 0


def test_float16_is_forced_inside_its_part_alone(monkeypatch):
    monkeypatch.setenv("FTLAB_DTYPE", "float32")
    with works.forced("float16"):
        assert os.environ["FTLAB_DTYPE"] == "float16"
    assert os.environ["FTLAB_DTYPE"] == "float32"
    with works.forced(""):
        assert "FTLAB_DTYPE" not in os.environ


def test_needed_flops_of_the_tiny_model(tiny_model_dir):
    """2 layers of 64: linear layers 36,864 + ..., counted by hand below; 10 tokens a row, 4 of 8 tokens trained."""
    run = recipes.load({"model_name_or_path": str(tiny_model_dir)})
    linear = 2 * (64 * 64 + 64 * 32 + 64 * 32 + 64 * 64 + 3 * 64 * 128)
    adapters = 2 * 16 * (128 + 96 + 96 + 128 + 3 * 192)
    attention = 6 * 2 * 64 * 10
    head = 64 * sizes(str(tiny_model_dir)).vocabulary
    figures = {"tokens_per_step": 8.0, "trained_tokens_per_second": 2.0, "seconds_per_step": 2.0}
    expected = 8 * (4 * linear + 6 * adapters + attention) + 4 * 4 * head
    assert speed.needed_flops(run, figures, [10, 10]) == expected


FOUND = {
    "about": {"name": "Test GPU", "memory_gib": 80.0, "versions": {"torch": "2.11"}, "date": "2026-11-28",
              "minutes": 8.0, "dry": False},
    "parts": [
        {"number": 1, "part": "matrix rate and bandwidth", "group": "card", "status": "ok", "seconds": 1.0,
         "figures": {"dtype": "bfloat16", "matrix_tflops": 800.0, "copy_gb_per_second": 3000.0}},
        {"number": 2, "part": "sft lora 135M", "group": "works", "status": "ok", "seconds": 5.0,
         "figures": {"steps": 5, "first_loss": 11.0, "last_loss": 10.5, "trained_tensors": 420,
                     "seconds_per_step": 0.1, "dtype": "bfloat16", "peak_gib": 1.5}},
        {"number": 3, "part": "memory lora 4 x 512 135M", "group": "memory", "status": "ok", "seconds": 2.0,
         "figures": {"error": -0.03, "predicted_mib": 970.0, "measured_mib": 1000.0}},
        {"number": 4, "part": "speed ftlab 1B", "group": "speed", "status": "ok", "seconds": 9.0,
         "figures": {"tokens_per_second": 40000.0, "seconds_per_step": 0.1, "model_tflops": 200.0, "peak_gib": 9.0,
                     "settings": "defaults"}},
        {"number": 5, "part": "decode 1B", "group": "speed", "status": "ok", "seconds": 3.0,
         "figures": {"huggingface_tokens_per_second": 50.0, "loop_tokens_per_second": 100.0,
                     "roof_tokens_per_second": 1000.0}},
        {"number": 6, "part": "sft full 1B", "group": "works", "status": "failed", "seconds": 3.0,
         "reason": "OutOfMemoryError: CUDA out of memory"},
    ],
}  # fmt: skip


def test_the_table_is_ready_for_the_readme():
    lines = report.markdown(FOUND).splitlines()
    assert "### GPU: Test GPU, 2026-11-28" in lines
    assert "`python -m benchmarks gpu --minutes 8`: 5 of 6 parts. torch 2.11." in lines
    assert "| sft lora 135M | 5 | 0.1 | 1.5 | 11 | 10.5 | trained_tensors 420, dtype bfloat16 |" in lines
    assert "| lora 4 x 512 135M | 970 / 1000 | -3.0% |" in lines
    # 200 of 800 TFLOP/s; 100 of 1000 tokens per second.
    assert "| ftlab 1B | 4e+04 | 0.1 | 200 | 25.0% | 9 | defaults |" in lines
    assert "| 1B | 50 | 100 | 1000 | 10.0% |" in lines
    assert "- sft full 1B: failed: OutOfMemoryError: CUDA out of memory" in lines


def test_a_table_of_nothing_says_so():
    assert "0 of 0 parts" in report.markdown(FOUND | {"parts": []})


def test_needs_lists_versions_sizes_and_the_way_to_carry_them(monkeypatch):
    monkeypatch.setattr(needs, "ROOTS", ("ruamel.yaml", "no-such-package"))
    text = needs.table()
    assert f"ruamel-yaml          {version('ruamel.yaml'):<12}    0.1 MB" in text
    assert "no-such-package      -            not installed here" in text
    assert "below 64 MB" in text and "pydantic-core==" in text and " torch==" not in text
    assert "pip download --no-deps" in text and "index-url" not in text


def test_requirements_of_extras_and_of_other_systems_do_not_count():
    assert needs.normalized("typing_extensions >=4 ; python_version < '3.13'") == "typing-extensions"
    assert needs.normalized("pytest ; extra == 'dev'") == needs.normalized("colorama; sys_platform == 'win32'") == ""


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_minutes_must_be_above_zero(minutes, capsys):
    assert gpu.main(minutes, None, True, False) == 2
    assert "--minutes" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_refused_before_anything_runs(tmp_path, capsys):
    assert gpu.main(1, tmp_path / "missing" / "gpu.json", True, False) == 2
    assert gpu.main(1, tmp_path, True, False) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("No such file or directory") and second.endswith("it is a folder")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_does_not_end_the_check(tmp_path, capsys):
    gpu.keep({"parts": []}, tmp_path / "missing" / "gpu.json")
    assert capsys.readouterr().err.count("\n") == 1


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", "gpu", *arguments]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_keeps_earlier_results(tmp_path):
    target = tmp_path / "gpu.json"
    target.write_text("{}")
    done = subprocess.run(command("--json", str(target)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("no GPU") and done.stderr.count("\n") == 1
    assert target.read_text() == "{}" and list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_a_dry_run_executes_every_part(tmp_path):
    target = tmp_path / "gpu.json"
    # Far more time than it takes: no part is left out because the machine is busy.
    done = subprocess.run(
        command("--dry-run", "--minutes", "30", "--json", str(target)), cwd=ROOT, capture_output=True, text=True
    )
    found = json.loads(target.read_text())
    open_parts = {row["part"]: row["reason"] for row in found["parts"] if row["status"] != "ok"}
    assert not open_parts and done.returncode == 0, done.stderr
    assert [row["part"] for row in found["parts"]] == [planned.name for planned in parts()]
    assert found["about"]["dry"] and found["about"]["versions"]["torch"] == torch.__version__
    for row in found["parts"]:
        assert set(row) == {"number", "part", "group", "status", "seconds", "figures"} and row["figures"]
    figures = {row["part"]: row["figures"] for row in found["parts"]}
    assert figures["resume 135M"]["difference"] == 0, "a CPU adds in the same order every time"
    assert figures["sft lora 135M"]["last_loss"] < figures["sft lora 135M"]["first_loss"]
    assert report.markdown(found).strip() in done.stdout and not done.stderr


@pytest.mark.slow
def test_a_part_that_is_stopped_leaves_a_worker_for_the_next_one(tmp_path):
    worker = Worker(Place(tmp_path, True))
    try:
        assert "versions" in worker.start(300)
        stopped = worker.ask("make 135M", 0.0)
        assert stopped["status"] == "stopped" and worker.process is None
        assert worker.ask("make 135M", 300)["status"] == "ok"
        worker.process.kill()
        died = worker.ask("make 1B", 300)
        assert died["status"] == "failed" and "the process died (exit code -9)" in died["reason"]
    finally:
        worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_a_check_that_is_killed_leaves_whole_results_and_no_files(tmp_path, monkeypatch, ended):
    target = tmp_path / "gpu.json"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpu, "SHARED", tmp_path / "none")
    running = subprocess.Popen(command("--dry-run", "--json", str(target)), cwd=ROOT, stdout=subprocess.PIPE)
    running.stdout.readline()
    running.stdout.readline()
    running.send_signal(ended)
    assert running.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 130}[ended]
    assert json.loads(target.read_text())["parts"][0]["status"] == "ok"
    # The pipe closes when the last process that writes into it has ended: the child is gone as well.
    printed = running.stdout.read().decode()
    assert ("### GPU" in printed) == (ended == signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
