"""From a lesson's text source to its notebooks: English and Chinese, the same code, the same outputs."""

import base64
import contextlib
import hashlib
import io
import itertools
import os
import re
import resource
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
from nbformat import NotebookNode
from traitlets.config import Config

from ftlab import device
from ftlab.apps.lesson_files import LANGUAGES, Lesson, root
from ftlab.errors import LabError, fail

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
COLAB = "https://colab.research.google.com"
MAX_PICTURE_BYTES = 100_000


def edition(lesson: Lesson, language: str) -> NotebookNode:
    """Build one language edition from the text source, without outputs.

    Every cell has an `id`. A prose cell may be followed by its Chinese twin (`lang="zh"`), which carries in `of` the
    digest of the English text that it translates; the Chinese edition shows the twin in its place.
    Raises:
        LabError: a cell has no id or a duplicate one, or a twin translates an older English text.
    """
    source = jupytext.reads(lesson.source.read_text(encoding="utf-8"), fmt="py:percent")
    cells: list[NotebookNode] = []
    digests: dict[str, str] = {}
    for cell in source.cells:
        name = cell.metadata.get("id")
        where = f"{lesson.source.name}: cell {name or cell.source.splitlines()[0][:40]!r}"
        if cell.metadata.get("lang") == "zh":
            if name != cells[-1].id or cell.metadata.get("of") != digests[name]:
                raise fail("course_stale_twin", where=where, digest=digests.get(name, ""))
            if language == "zh":
                cells[-1].source = cell.source
            continue
        if not name or name in digests:
            raise fail("course_cell_id", where=where)
        digests[name] = digest(cell.source)
        make = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
        tags = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        cells.append(make(cell.source, id=name, metadata=tags))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def build(lesson: Lesson, execute: bool = False) -> None:
    """Write both editions of a lesson.

    Outputs come from a clean top-to-bottom run when `execute` is set; otherwise those of the notebook on disk are
    kept, down to the first code cell that has changed since. The metadata keep the minutes of the last run on a machine
    with bfloat16 instructions, and of the last one without.

    Raises:
        LabError: a picture is too big to be committed; both editions are written all the same.
    """
    english = edition(lesson, "en")
    began = clocks()
    outputs = run_clean(english) if execute else kept_outputs(lesson, english)
    # With other work on the machine the wall time is too long; on several cores the processor time is.
    spent = round(float(min(clocks() - began)) / 60, 1)
    recorded = minutes(lesson) | ({device.describe().dtype: spent} if execute else {})
    for language in LANGUAGES:
        notebook = edition(lesson, language)
        if recorded:
            notebook.metadata["ftlab"] = {"minutes": recorded}
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = outputs.get(cell.id, ([], None))
        notebook.cells[0].source = badge(lesson, language) + notebook.cells[0].source
        path = lesson.notebook(language)
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
    # After writing: a run takes minutes, and the next build keeps the cells above that one.
    refuse_big_pictures(notebook)


def badge(lesson: Lesson, language: str) -> str:
    """Return the line that opens an edition on Colab, "" while the course's repository is not set."""
    _, on_github, place = repository(lesson.source.parents[2] / "pyproject.toml").partition("github.com/")
    if not on_github:
        return ""
    path = f"{place}/blob/main/{LANGUAGES[language]}/{lesson.name}.ipynb"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{path})\n\n"


def repository(file: Path) -> str:
    """Return the address of the course's repository, "" if it is not set.

    FTLAB_REPOSITORY, else `Repository` of [project.urls] in pyproject.toml: an address such as
    https://github.com/NAME/ftlab, whose default branch is `main`.
    """
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    address = os.environ.get("FTLAB_REPOSITORY") or project.get("urls", {}).get("Repository", "")
    return address.rstrip("/").removesuffix(".git")


def clocks() -> np.ndarray:
    """Return the seconds of the wall clock, and of the processor in the programs started here that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.monotonic(), children.ru_utime + children.ru_stime])


def minutes(lesson: Lesson) -> dict[str, float]:
    """Return dtype -> minutes of the last run in it that the notebook on disk records."""
    if not lesson.notebook().is_file():
        return {}
    return dict(nbformat.read(lesson.notebook(), as_version=4).metadata.get("ftlab", {}).get("minutes", {}))


def kept_outputs(lesson: Lesson, built: NotebookNode) -> dict[str, tuple[list, int | None]]:
    """Return cell id -> (outputs, execution count) of the notebook on disk, for the cells above the first changed one.

    A cell's output depends only on the cells above it and on the profile that ran, not on the smoke profile's row.
    """
    if not lesson.notebook().is_file():
        return {}
    old = code_cells(nbformat.read(lesson.notebook(), as_version=4))
    pairs = zip(old, code_cells(built), strict=False)
    same = itertools.takewhile(lambda pair: printed_by(pair[0]) == printed_by(pair[1]), pairs)
    return {cell.id: (cell.outputs, cell.execution_count) for cell, _ in same}


def printed_by(cell: NotebookNode) -> tuple[str, str]:
    """Return what a cell's outputs depend on: its id and its source, in `profile` without the smoke row."""
    smoke = r'^    "smoke": .*\n'
    return cell.id, re.sub(smoke, "", cell.source, flags=re.MULTILINE) if cell.id == "profile" else cell.source


def run_clean(notebook: NotebookNode) -> dict[str, tuple[list, int | None]]:
    """Execute `notebook` in a fresh kernel and return the outputs that belong on the web.

    Raises:
        LabError: a cell failed, an outcome is outside its band, or the kernel died; what ran until then is kept.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    place = {"metadata": {"path": str(root())}}
    with kernel_settings() as settings, tempfile.TemporaryDirectory() as folder:
        # Panels display a picture, because nobody clicks; an outcome outside its band is an error.
        env = os.environ | {"FTLAB_HEADLESS": "1", "FTLAB_OUTCOMES": f"{folder}/outcomes.json"}
        client = NotebookClient(
            notebook, timeout=1800, resources=place, record_timing=False, coalesce_streams=True, **settings
        )
        try:
            client.execute(env=env)
        except CellExecutionError as error:
            raise fail("course_run_failed", where=keep(notebook), exit_code=1, reason=str(error)) from None
        except Exception as error:
            if lost := lost_kernel(error, keep(notebook)):
                raise lost from None
            raise
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if is_lasting(output)]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = without_alpha(output["data"]["image/png"])
    return {cell.id: (cell.outputs, cell.execution_count) for cell in code_cells(notebook)}


def lost_kernel(error: BaseException, where: str) -> LabError | None:
    """Return the message for a kernel that died, or a cell that took too long; None for any other exception."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    # nbclient's own clean-up after a kernel may fail as well.
    both = (error, error.__context__)
    if any(isinstance(one, DeadKernelError) for one in both):
        return fail("course_kernel_died", where=where, exit_code=1)
    if any(isinstance(one, CellTimeoutError) for one in both):
        return fail("course_kernel_slow", where=where, exit_code=1)
    return None


def keep(notebook: NotebookNode) -> str:
    """Write a failed notebook to the runs folder and return its path: its outputs show why it failed."""
    path = root() / "runs" / "failed.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return str(path)


def without_alpha(picture: str) -> str:
    """Return a PNG, in base64, without its alpha channel if every pixel is opaque: the same picture in fewer bytes."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode != "RGBA" or image.getchannel("A").getextrema() != (255, 255):
        return picture
    smaller = io.BytesIO()
    image.convert("RGB").save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def refuse_big_pictures(notebook: NotebookNode) -> None:
    """Raise an error if a picture in the outputs is too big for the repository.

    Raises:
        LabError: naming the cell.
    """
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if len(output.get("data", {}).get("image/png", "")) * 3 / 4 > MAX_PICTURE_BYTES:
                raise fail("course_big_picture", where=cell.id, limit=MAX_PICTURE_BYTES // 1000)


@contextlib.contextmanager
def kernel_settings() -> Iterator[dict[str, Any]]:
    """Yield the kernel options of a `NotebookClient`: socket files instead of TCP, and quiet libraries.

    Every user of the machine can connect to a TCP port, and ipykernel warns of it; the folder of the socket files can
    be opened by this user alone.
    """
    # The path of a socket has room for 104 bytes on macOS, 108 on Linux; TMPDIR may be longer.
    place = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ftlab-", dir=place) as folder:
        transport = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        yield {
            "config": transport,
            # ftlab silences the warnings of its libraries about each other; a lesson imports some of them before it.
            # Before a shutdown the kernel is interrupted, which it reports as an error if it was not busy.
            "extra_arguments": ["--IPKernelApp.exec_lines=import ftlab; del ftlab", "--IPKernelApp.log_level=CRITICAL"],
            # On a busy machine the last outputs of a cell may take longer than the usual four seconds.
            "iopub_timeout": 120,
        }


def is_lasting(output: NotebookNode) -> bool:
    """Return True if an output is readable on the web: progress bars and widget views are not."""
    if output.output_type == "stream":
        return output.name == "stdout"
    data = output.get("data", {})
    # A trainer's table of losses comes with its progress bar; without it there is only the bar.
    bar_alone = "<progress" in data.get("text/html", "") and "<tr" not in data["text/html"]
    return "application/vnd.jupyter.widget-view+json" not in data and not bar_alone


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(text: str) -> str:
    """Return the short digest that ties a translation to its original; white space does not count."""
    return hashlib.sha256(re.sub(r"\s+", " ", text).strip().encode()).hexdigest()[:8]
