"""Results as a line, as JSON, and as tables for benchmarks/README.md."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def line(result: dict[str, Any]) -> str:
    """Return one result as one line."""
    said = result.get("reason") or ", ".join(f"{name} {shown(value)}" for name, value in result["figures"].items())
    return f"{result['number']:>3} {result['part']:<40} {result['status']:<8}{result['seconds']:>6.1f} s  {said}"


def shown(value: Any) -> str:
    """Return a figure with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(found: dict[str, Any], target: Path) -> None:
    """Replace the JSON file at once, so that a run that is killed leaves a whole one."""
    try:
        partial(target).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        os.replace(partial(target), target)
    finally:
        partial(target).unlink(missing_ok=True)


def partial(target: Path) -> Path:
    """Return the file that becomes the target once it is whole."""
    return target.with_name(f"{target.name}.partial")


def markdown(found: dict[str, Any]) -> str:
    """Return the section of benchmarks/README.md for one machine and date."""
    about, parts = found["about"], found["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    done = [part for part in parts if part["status"] == "ok"]
    groups = {
        group: [part for part in done if part["group"] == group] for group in ("card", "works", "memory", "speed")
    }
    lines = [
        f"\n### GPU: {about['name']}, {about['date']}\n",
        f"`python -m benchmarks gpu --minutes {about['minutes']:g}`: {len(done)} of {len(parts)} parts. {versions}.\n",
        *card_lines(groups["card"]),
        *works_lines(groups["works"]),
        *memory_lines(groups["memory"]),
        *speed_lines(groups["speed"], rate_of(parts)),
        *open_lines(part for part in parts if part["status"] != "ok"),
    ]
    return "\n".join(lines)


def rate_of(parts: list[dict[str, Any]]) -> float:
    """Return the measured matrix rate in TFLOP/s, 0 where it was not measured."""
    return next((part["figures"]["matrix_tflops"] for part in parts if "matrix_tflops" in part.get("figures", {})), 0.0)


def card_lines(parts: list[dict[str, Any]]) -> list[str]:
    """Return the machine's own limits in words."""
    return [
        "Matrix products {dtype} {matrix_tflops:.4g} TFLOP/s, memory copy {copy_gb_per_second:.4g} GB/s.\n".format(
            **part["figures"]
        )
        for part in parts
        if "matrix_tflops" in part["figures"]
    ]


def works_lines(parts: list[dict[str, Any]]) -> list[str]:
    """Return the table of what worked."""
    names = ("steps", "seconds_per_step", "peak_gib", "first_loss", "last_loss")
    lines = []
    for part in parts:
        figures = part["figures"]
        rest = [f"{name} {shown(value)}" for name, value in figures.items() if name not in names]
        lines.append(row(part["part"], *(shown(figures.get(name, "-")) for name in names), ", ".join(rest)))
    return table(("works", "steps", "s a step", "peak GiB", "first loss", "last loss", "beside"), lines)


def memory_lines(parts: list[dict[str, Any]]) -> list[str]:
    """Return the table of predicted and measured memory, with the largest and the mean error."""
    lines = [
        row(
            part["part"].removeprefix("memory "),
            "{predicted_mib:.0f} / {measured_mib:.0f}".format(**part["figures"]),
            f"{part['figures']['error']:+.1%}",
        )
        for part in parts
    ]
    errors = [abs(part["figures"]["error"]) for part in parts]
    summary = [f"Largest error {max(errors):.1%}, mean {sum(errors) / len(errors):.1%}.\n"] if errors else []
    return table(("memory", "MiB, predicted / measured", "error"), lines) + summary


def speed_lines(parts: list[dict[str, Any]], rate: float) -> list[str]:
    """Return the tables of training and of decoding; utilisation is a share of the measured matrix rate."""
    trained = [
        row(
            part["part"].removeprefix("speed "),
            *(shown(part["figures"][name]) for name in ("tokens_per_second", "seconds_per_step", "model_tflops")),
            f"{part['figures']['model_tflops'] / rate:.1%}" if rate else "-",
            shown(part["figures"].get("peak_gib", "-")),
            part["figures"]["settings"],
        )
        for part in parts
        if "model_tflops" in part["figures"]
    ]
    decoded = [
        row(part["part"].removeprefix("decode "), *cells(part["figures"]))
        for part in parts
        if "roof_tokens_per_second" in part["figures"]
    ]
    head = ("LoRA, batch 8", "tokens/s", "s a step", "TFLOP/s", "MFU", "peak GiB", "settings")
    return table(head, trained) + table(
        ("decode", "generate tokens/s", "loop tokens/s", "memory roof", "share"), decoded
    )


def cells(figures: dict[str, float]) -> list[str]:
    """Return the figures of decoding; the share is the faster way's of the roof."""
    names = ("huggingface_tokens_per_second", "loop_tokens_per_second", "roof_tokens_per_second")
    best = max(figures.get(name, 0.0) for name in names[:2])
    return [*(shown(figures.get(name, "-")) for name in names), f"{best / figures[names[2]]:.1%}"]


def open_lines(parts: Iterable[dict[str, Any]]) -> list[str]:
    """Return the list of what failed, was stopped or left out."""
    return [f"- {part['part']}: {part['status']}: {part['reason']}" for part in parts]


def table(head: tuple[str, ...], lines: list[str]) -> list[str]:
    """Return a Markdown table, nothing where it has no lines."""
    return [row(*head), row(*("---" for _ in head)), *lines, ""] if lines else []


def row(*values: str) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(values)} |"
