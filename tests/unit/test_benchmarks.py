"""The benchmarks' own arithmetic; what they measure is not a test's business."""

import json
import re

import pytest

from benchmarks import __main__ as command
from benchmarks import board, generate, headline, levers, memory, methods, plot, start, train, turns
from ftlab.apps.board import page
from ftlab.runs import dataset

PAGE = (headline.FOLDER / "README.md").read_text(encoding="utf-8")


def test_medians_and_spread():
    found = {"a": [{"speed": 2.0, "loss": 1.0}, {"speed": 4.0, "loss": 3.0}, {"speed": 3.0, "loss": 2.0}]}
    assert turns.medians(found) == {"a": {"speed": 3.0, "loss": 2.0, "spread": pytest.approx(2 / 3)}}


def test_variants_take_turns_there_and_back(monkeypatch):
    order = []
    monkeypatch.setattr(turns, "once", lambda module, variant, *rest: order.append(variant) or {"speed": 1.0})
    turns.in_turns("module", ["a", "b"], 2)
    assert order == ["a", "b", "b", "a"]


def test_a_variant_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="failed"):
        turns.once("json.tool", "no such file")


def test_the_counted_weights_are_those_of_the_embedded_model():
    # SmolLM2-135M: 134,515,008 weights, of which the norms (61 x 576) are no matrices.
    assert train.LINEAR_WEIGHTS + train.HEAD_WEIGHTS + 61 * 576 == 134_515_008


@pytest.mark.parametrize("method", train.VARIANTS)
def test_every_recipe_trains_on_the_rows_of_the_other_variants(method, tmp_path):
    trained, _ = dataset.read_splits(train.recipe_of(method, 4, 8, str(tmp_path)))
    assert len(trained) == 96 and trained[0]["messages"][-1]["content"]


def test_generate_compares_engines_with_plain_generate_and_llama_cpp():
    rates = {"huggingface": 40.0, "loop": 42.0, "int8": 70.0, "int4": 84.0}
    batch = {"tokens_per_second": 320.0, "alone": 40.0}
    assert generate.ratios(rates, batch) == {"best of transformers / generate": 2.1, "16 at once / alone": 8.0}
    found = generate.ratios(rates | {"llama.cpp": 168.0, "llama.cpp-q4": 210.0}, batch)
    assert found["best engine / best of llama.cpp"] == 1 and found["best of transformers / best of llama.cpp"] == 0.4


def test_a_panel_that_trains_in_a_process_is_timed(tiny_recipe, monkeypatch, capsys):
    monkeypatch.setattr(page, "BEGINNING", tiny_recipe | {"lr_scheduler_type": "constant"})
    board.main("process", 400)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"slider_seconds", "first_plot_seconds", "steps_after_stop", "stop_seconds", "step_seconds"}


def test_a_picture_has_one_panel_per_table(tmp_path):
    table = {"ftlab": {"speed": 3.0, "spread": 0.1}, "trl": {"speed": 1.0, "spread": 0.0}}
    found = {"tables": {"lora": {"4": table, "8": table}}, "ratios": {"lora_vs_trl": 3.0}}
    assert [title for title, _ in plot.tables(found)] == ["lora, batch 4", "lora, batch 8"]
    assert [title for title, _ in plot.tables({"dpo": table, "ratios": {}})] == ["dpo"]
    source = tmp_path / "found.json"
    source.write_text(json.dumps(found), encoding="utf-8")
    plot.main([str(source)], str(tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_begins_with_the_headline_ratios_and_their_picture(tmp_path):
    assert PAGE.startswith(f"# Benchmarks\n\n{headline.table()}\n\n![") and "(headline.png)" in PAGE
    headline.draw(tmp_path / "headline.png")
    assert (tmp_path / "headline.png").read_bytes().startswith(b"\x89PNG")
    assert (headline.FOLDER / "headline.png").stat().st_size < 100_000


def test_the_page_lists_every_benchmark_and_those_of_make_bench():
    section = PAGE.partition("## How to run")[2].partition("## Details")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(command.NAMES)
    modules = {name.removesuffix(".py") for name in re.findall(r"benchmarks[./](\w+(?:\.py)?)", section)}
    assert {"serve", "clients", "page_loads", "methods"} <= modules
    make = (turns.ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.search(r"for name in (.*); do \$\(BIN\)/python -m benchmarks", make)[1].split()
    assert f"`make bench` runs {'twelve' if len(names) == 12 else len(names)} of them" in section.replace("\n", " ")
    assert set(names) == set(re.findall(r"`(\w+)`", section.partition("of them:")[2].partition(".")[0]))


def test_the_page_says_how_many_settings_of_memory_are_compared():
    methods_and_stages = (
        [len(list(memory.method_cells(method))) for method in memory.METHODS],
        [len(sizes) for sizes in memory.STAGES.values()],
    )
    wanted = "{} settings of the SFT methods, {} of the other stages".format(*map(sum, methods_and_stages))
    assert wanted in PAGE


def test_the_largest_error_of_memory_is_that_of_all_tables():
    section = PAGE.partition("### Memory")[2].partition("Not measured")[0]
    first, second = (
        max(abs(float(value)) for value in re.findall(r"([+-]\d+\.\d+)% \|", part))
        for part in section.split("The other stages")
    )
    assert f"{first}% for the SFT methods and {second}% for the other stages" in PAGE.replace("\n", " ")


def test_the_rates_of_the_methods_are_those_of_the_search():
    found = json.loads((headline.FOLDER / "methods.json").read_text(encoding="utf-8"))
    for method, losses in found.items():
        rate = min(losses, key=losses.get)
        edge = "yes" if rate in (min(losses, key=float), max(losses, key=float)) else ""
        assert " ".join(f"| {method} | {rate} | {losses[rate]} | {edge} |".split()) in " ".join(PAGE.split())
    assert found.keys() <= methods.CENTRES.keys() and "ten methods" in PAGE and len(methods.CENTRES) - len(found) == 10


def test_the_slowdowns_are_named_as_the_command_prints_them():
    section = PAGE.partition("python -m benchmarks levers")[2].partition("Tried and rejected")[0]
    assert not [name for name in levers.VARIANTS if levers.VARIANTS[name] and f"`{name}`" not in section]


def test_the_seconds_of_imports_are_added_up_by_package():
    heading = "import time: self [us] | cumulative | imported package\n"
    lines = "import time:   2000000 |    2500000 | a\nfetching\nimport time:    500000 |     500000 |   a.b"
    assert start.by_package(heading + lines) == {"a": 2.5}
