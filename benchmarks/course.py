"""Seconds and memory of every lesson, executed headlessly in the smoke profile: as `make course` does."""

import json
from typing import Any

from ftlab.apps import course, lesson_files


def measure(repeats: int, steps: int) -> dict[str, Any]:
    """Run the course once and return its summary; the lessons print their own table."""
    course.run([], "smoke")
    summary = json.loads((lesson_files.root() / "runs" / "course" / "summary.json").read_text(encoding="utf-8"))
    rows = summary["notebooks"]
    failed = [row["name"] for row in rows if row["status"] != "ok"]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    ratios = {
        "course_minutes": sum(row["seconds"] for row in rows) / 60,
        "course_slowest_notebook_minutes": max(row["seconds"] for row in rows) / 60,
    }
    return {"course": rows, "ratios": ratios}
