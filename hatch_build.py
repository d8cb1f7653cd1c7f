"""What a wheel carries beside the package: the course that `ftlab course start` lays out."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CourseFiles(BuildHookInterface):
    """Put lessons, data and recipes into ftlab/course of a wheel; an editable install reads them in the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files. The Chinese notebooks are built on the learner's machine: they hold the same pictures."""
        if version == "editable":
            return
        root = Path(self.root)
        folders = [root / name for name in ("notebooks/source", "data", "recipes")]
        for path in [
            *root.glob("notebooks/*.*"),
            *folders,
            root / "constraints.txt",
            root / "benchmarks" / "methods.json",
        ]:
            build_data["force_include"][str(path)] = f"ftlab/course/{path.relative_to(root).as_posix()}"
