"""The export panel: merge an adapter, choose the format, see its cost and that the result is the same model."""

import json
from pathlib import Path
from typing import Any

import torch

from ftlab import device, embedded, errors, system_errors
from ftlab.apps.board import estimates, train_view
from ftlab.apps.board.chat_panel import WHOLE, tuned
from ftlab.apps.board.controls import EXPORTED
from ftlab.apps.board.form import Form
from ftlab.apps.board.recipe_task import Task
from ftlab.apps.board.words import Words
from ftlab.errors import fail
from ftlab.recipe.keys import Recipe
from ftlab.runs import export
from ftlab.runs.export import Export
from ftlab.runs.watch import Watch


class ExportPanel:
    """An adapter merged into its base, by the code of `ftlab export`.

    Args:
        source: the keys of a recipe, of which its model and what begins with `export_` are taken.
        runs: the folder of runs whose adapters are offered, and which the new folder is put into.
        lang: "en" or "zh"; None takes FTLAB_LANG.
    Attributes:
        task: form, button and result.
        done: the last export, None before it.
    """

    def __init__(
        self, source: dict[str, Any] | None = None, runs: str | Path = "runs", lang: str | None = None
    ) -> None:
        self.words, self.runs = Words(lang), Path(runs)
        self.done: Export | None = None
        preset = source or {}
        values = {key: preset[key] for key in (*EXPORTED, "template") if preset.get(key) is not None}
        values.setdefault("model_name_or_path", embedded.NAME)
        values.setdefault("export_dir", str(self.runs / "merged"))
        with errors.speaking(self.words.lang):
            form = Form(values, self.words, roots=(Path.cwd(), self.runs), table=EXPORTED)
        self.task = Task(
            self.words, form, "export", "export_start", self.look, "export_dir", self.export, "export_start_empty",
            lambda _: Watch(None), settled=self.exported,
        )  # fmt: skip
        self.list_adapters()
        self.box = self.task.box.add_class("ftlab-export")

    def list_adapters(self) -> None:
        """Offer the runs that have trained weights, one that has just ended included."""
        self.task.form.controls["adapter_name_or_path"].options = tuple(map(str, tuned(self.runs, WHOLE)))

    def take_over(self, before: "ExportPanel") -> None:
        """Show another panel's settings and verification."""
        # Asked about the folder while the form is filled.
        self.done = before.done
        self.task.take_over(before.task)
        if self.done:
            self.task.result.value = self.table(self.done)

    def exported(self, recipe: Recipe) -> str:
        """Return that the folder holds this panel's last export, "" if it is another folder, or it is gone."""
        place = Path(recipe.export_dir or "").expanduser()
        there = self.done is not None and place.resolve() == self.done.folder.resolve() and any(place.glob("*"))
        return self.words("export_there") if there else ""

    def look(self, recipe: Recipe) -> str:
        """Return the memory and disk space that the export needs.

        Raises:
            LabError: the folder is in use, or memory or disk space is too small.
        """
        target, place = export.empty_target(recipe), estimates.folder_of(recipe)
        decoder = estimates.decoder_of(recipe, place)
        if decoder is None:
            return self.words("unknown")
        weights, free, dtype = decoder.parameters, system_errors.free_bytes(target), format_of(recipe, place)
        disk, memory = export.disk_bytes(weights, dtype, recipe), export.memory_bytes(weights, dtype, recipe)
        there = device.describe().memory_bytes
        if disk > free:
            raise fail("export_space", where="export_dir", needed=f"{disk / 1e6:.0f}", free=f"{free / 1e6:.0f}")
        cells = {"export_disk": (disk, free), "export_memory": (memory, there)}
        rows = [
            [
                self.words(name),
                self.words(
                    "memory_over" if need > has else "memory_of", needed=train_view.gib(need), there=train_view.gib(has)
                ),
            ]
            for name, (need, has) in cells.items()
        ]
        return train_view.grid(["", ""], rows)

    def export(self, recipe: Recipe) -> str:
        """Export, and return how the result compares with the live model."""
        done = self.done = export.export(recipe, self.task.watch)
        self.task.outcome = ("exported", {"folder": str(done.folder)})
        return self.table(done)

    def table(self, done: Export) -> str:
        """Return the verification as a table."""
        figures = {
            "export_folder": str(done.folder),
            "export_merged": f"{done.merge_difference:.1e}",
            "export_reloaded": f"{done.reload_difference:.1e}",
            "export_total": f"{done.total_difference:.1e}",
            "export_greedy": f"{done.greedy_equal_share:.0%}",
        }
        if done.gguf:
            figures["export_gguf_file"] = done.gguf.name
        if done.gguf_difference is not None:
            figures["export_gguf_difference"] = f"{done.gguf_difference:.1e}"
        return train_view.grid(["", ""], [[self.words(name), text] for name, text in figures.items()])


def format_of(recipe: Recipe, place: str | None) -> torch.dtype:
    """Return the dtype that is written; bfloat16 if it depends on a base that is not on this machine yet."""
    name = recipe.export_dtype
    if name == "auto" and place:
        config = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
        name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, "bfloat16" if name == "auto" else name)
