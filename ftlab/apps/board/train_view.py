"""What the training panel shows around its fields: readouts, command, code, buttons, progress, the plot."""

import html
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ftlab.apps.board import controls
from ftlab.apps.board.estimates import Readouts
from ftlab.apps.board.form import Form
from ftlab.apps.board.named_widgets import actions, bad, button, empty, field, heading, pre, row
from ftlab.apps.board.settings_files import SettingsFiles
from ftlab.apps.board.words import Words
from ftlab.runs.folder import Summary

READOUTS = ("trained_weights", "tokens_per_step", "estimated_time", "predicted_memory")


class View:
    """The widgets of the training panel, and how they show values."""

    def __init__(self, words: Words, form: Form) -> None:
        self.words = words
        self.start = button(words, "start", "success", "play")
        self.stop = button(words, "stop", "danger", "stop")
        self.stop.disabled = True
        self.open, self.extend = button(words, "open"), button(words, "extend")
        self.write_code = button(words, "refresh_code")
        self.new_folder = widgets.Button(tooltip=words.tip("new_folder"), layout={"width": "auto", "display": "none"})
        self.new_folder.add_class("ft-new-folder")
        self.fresh = widgets.Checkbox(
            description=words("fresh"), tooltip=words.tip("fresh"), indent=False, layout={"width": "auto"}
        )
        self.fresh.add_class("ft-fresh")
        self.bar = widgets.IntProgress()
        self.status = widgets.HTML(html.escape(words("ready"))).add_class("ft-status")
        self.readouts = widgets.HTML(listed(words, dict.fromkeys(READOUTS, words("counting")))).add_class("ft-readouts")
        self.command = widgets.HTML().add_class("ft-command")
        self.code = widgets.HTML().add_class("ft-code")
        self.plot = widgets.Image(format="png").add_class("ft-plot")
        self.legend = widgets.HTML()
        self.no_plot = widgets.HTML(empty(words("plot_empty")))
        self.earlier, self.compare = (field(words, name, widgets.Dropdown()) for name in ("earlier", "compare"))
        self.folder_message = widgets.HTML().add_class("ft-folder")
        self.settings = SettingsFiles(words, form)
        self.box = self.laid_out(form)

    def laid_out(self, form: Form) -> widgets.VBox:
        """Return the whole view: the settings, their cost and results beside them, the buttons below."""
        words = self.words
        folded = widgets.Accordion(
            [self.command, widgets.VBox([self.write_code, self.code]), self.settings.box],
        )
        folded.titles = tuple(words(name) for name in ("group_command", "group_code", "group_settings"))
        runs = row(self.earlier, self.open, self.extend)
        beside = [
            self.readouts,
            self.legend,
            self.plot,
            self.no_plot,
            heading(words("group_runs")),
            runs,
            row(self.compare),
            folded,
        ]
        columns = widgets.Box([form.box, widgets.VBox(beside)]).add_class("ft-columns")
        buttons = [self.start, self.stop, self.fresh, self.bar, self.status, self.folder_message, self.new_folder]
        return widgets.VBox([columns, actions(*buttons)]).add_class("ftlab-train")

    def say(self, name: str, /, **values: object) -> None:
        """Show a text of the table next to the buttons."""
        text = self.words(name, **values)
        content = bad(text) if name in ("failed", "ended", "wrong") else html.escape(text)
        self.status.value = f'<span role="status" data-state="{name}">{content}</span>'

    def draw(self, png: bytes, legend: str) -> None:
        """Show a picture of loss curves and its legend, or a hint while there are none."""
        self.plot.value, self.legend.value = png, legend
        self.plot.layout.display, self.no_plot.layout.display = ("", "none") if png else ("none", "")

    def show_command(self, values: dict[str, Any], fresh: bool) -> None:
        """Show command and YAML."""
        self.command.value = pre(command(values, " fresh=true" if fresh else ""))

    def show_code(self, code: str) -> None:
        """Show a script."""
        self.code.value = pre(code)

    def show_readouts(self, readouts: Readouts) -> None:
        """Show the four figures in a row."""
        words = self.words
        cells = dict.fromkeys(READOUTS, words("unknown"))
        cells["estimated_time"] = words("no_pace")
        if readouts.trained is not None and readouts.weights:
            share = f"{readouts.trained / readouts.weights:.2%}"
            cells["trained_weights"] = words(
                "of_weights", trained=f"{readouts.trained:,}", total=f"{readouts.weights:,}", share=share
            )
        if readouts.tokens_per_step is not None:
            cells["tokens_per_step"] = f"{readouts.tokens_per_step:,.0f}"
        if readouts.seconds is not None and readouts.pace:
            figures = {"minutes": f"{readouts.seconds / 60:,.1f}", "rate": f"{readouts.pace.tokens_per_second:,.0f}"}
            cells["estimated_time"] = words("minutes", steps=f"{readouts.steps:,}", run=readouts.pace.run, **figures)
        over = False
        if readouts.needed_bytes is not None:
            over = readouts.needed_bytes > readouts.memory_bytes
            name = "memory_over" if over else "memory_of"
            cells["predicted_memory"] = words(name, needed=gib(readouts.needed_bytes), there=gib(readouts.memory_bytes))
        self.readouts.value = listed(words, cells, "predicted_memory" if over else "")

    def offer(self, state: str, detail: str, possible: bool, free: Path) -> None:
        """Show what Start would do in the run folder as it is."""
        words = self.words
        self.start.disabled = not possible
        goes_on = state == "unfinished" and not self.fresh.value
        self.start.description = words("go_on" if goes_on else "start")
        self.start.tooltip = words.tip("go_on" if goes_on else "start")
        taken = state in ("other", "foreign")
        self.new_folder.layout.display = "" if taken else "none"
        self.new_folder.description = words("new_folder", folder=str(free))
        text = words("bad_folder_other", changed=detail) if state == "other" else detail if state == "foreign" else ""
        self.folder_message.value = bad(text)
        if state == "wrong":
            self.say("wrong", keys=detail)
        if state in ("new", "finished", "unfinished"):
            self.say({"new": "ready"}.get(state, state), **({"step": detail} if state == "unfinished" else {}))

    def under_way(self, running: bool) -> None:
        """Switch the buttons between a running training and none."""
        self.stop.disabled = not running
        if running:
            self.start.disabled = True
            self.bar.value = 0

    def progress(
        self, step: int, total: int, loss: float | None, each: float | None, rate: float | None, memory_bytes: int
    ) -> None:
        """Show the progress of a training.

        Args:
            each: seconds per step. rate: tokens per second.
        """
        self.bar.max, self.bar.value = total, min(step, total)
        self.say(
            "running",
            step=step,
            total=total,
            loss="-" if loss is None else f"{loss:.3f}",
            rate="-" if rate is None else f"{rate:,.0f}",
            left="-" if each is None else clock(each * (total - step)),
            memory=gib(memory_bytes),
        )

    def list_runs(self, runs: Sequence[Summary]) -> None:
        """Fill both lists, and keep the selection if it still exists."""
        nothing = (self.words("nothing"), None)
        options = [nothing] + [(self.name_of(run), run.folder) for run in runs]
        for chooser in (self.earlier, self.compare):
            before = chooser.value
            chooser.options = options
            chooser.value = before if before in [folder for _, folder in options] else None

    def name_of(self, run: Summary) -> str:
        """Return a run as the lists show it."""
        state = self.words("run_finished" if run.finished else "run_unfinished")
        loss = "" if run.loss is None else f", {run.loss:.3f}"
        return f"{run.folder.name} ({state}, {run.step}{loss})"


def listed(words: Words, cells: dict[str, str], wrong: str = "") -> str:
    """Return named figures as a list in HTML, the one named `wrong` as an error."""
    shown = "".join(
        f"<div><dt>{html.escape(words(name))}</dt><dd>{bad(text) if name == wrong else html.escape(text)}</dd></div>"
        for name, text in cells.items()
    )
    return f"<dl>{shown}</dl>"


def command(values: dict[str, Any], overrides: str = "", verb: str = "train") -> str:
    """Return shell commands that write the YAML to a file and run it."""
    text = controls.yaml_lines(values)
    end = "EOF"
    while end in text.splitlines():
        end += "_"
    place = values.get("output_dir") or values.get("export_dir") or verb
    name = shlex.quote(f"{Path(str(place)).name}.yaml")
    return f"cat > {name} <<'{end}'\n{text}{end}\nftlab {verb} {name}{overrides}\n"


class Cell(str):
    """A table cell that already is HTML; other text is escaped."""


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text, its first column bold."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for first, *rest in rows:
        cells = [cell if isinstance(cell, Cell) else f"<td>{html.escape(cell)}</td>" for cell in rest]
        lines.append(f"<th>{html.escape(first)}</th>" + "".join(cells))
    return '<table class="ft-grid" tabindex="0">' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def gib(count: int) -> str:
    """Return bytes in a readable unit.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds.

    >>> clock(75.2)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
