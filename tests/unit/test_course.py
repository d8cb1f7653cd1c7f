"""From a lesson's source to its notebooks, to its outcomes."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

from ftlab.apps import cli, course, lesson_files, notebooks
from ftlab.errors import LabError, speaking

SOURCE = """# %% [markdown] id="title"
# # 07 · A test lesson

# %% [markdown] id="title" lang="zh" of="{digest}"
# # 07 · 测试课

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"

# %% id="work"
from ftlab import checks
from ftlab.apps import course

course.record({{"answer": 42}})
assert PROFILE == "smoke", PROFILE
print(PROFILE)

# %% id="exercise" tags=["exercise"]
answer = {answer}

checks.check_lora_parameters(answer)
"""


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """A course of one lesson in a folder of its own."""
    (tmp_path / "notebooks" / "source").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "notebooks" / "source" / "07_test.py"
    path.write_text(SOURCE.format(digest=notebooks.digest("# 07 · A test lesson"), answer=16896), encoding="utf-8")
    return path


def built(path: Path) -> nbformat.NotebookNode:
    notebooks.build(lesson_files.lessons()[0])
    return nbformat.read(path, as_version=4)


def test_both_editions_share_code_and_differ_in_prose(lesson, tmp_path):
    english = built(tmp_path / "notebooks" / "07_test.ipynb")
    chinese = nbformat.read(tmp_path / "notebooks" / "zh" / "07_test.ipynb", as_version=4)
    nbformat.validate(english)
    assert [cell.id for cell in english.cells] == ["title", "parameters", "work", "exercise"]
    assert (english.cells[0].source, chinese.cells[0].source) == ("# 07 · A test lesson", "# 07 · 测试课")
    assert english.cells[1:] == chinese.cells[1:]
    assert english.cells[1].metadata.tags == ["parameters"] and english.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("address", ["https://github.com/me/course", "https://github.com/me/course.git"])
def test_a_published_course_opens_on_colab(lesson, tmp_path, monkeypatch, address):
    path = tmp_path / "notebooks" / "07_test.ipynb"
    assert built(path).cells[0].source == "# 07 · A test lesson"
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
    colab = "https://colab.research.google.com/github/me/course/blob/main/notebooks"
    for name, place in (("07_test.ipynb", f"{colab}/07_test.ipynb"), ("zh/07_test.ipynb", f"{colab}/zh/07_test.ipynb")):
        built(path)
        first = nbformat.read(path.parent / name, as_version=4).cells[0].source
        assert first.startswith("[![Open in Colab]") and f"]({place})\n\n# 07" in first
    monkeypatch.setenv("FTLAB_REPOSITORY", "https://example.org/elsewhere")
    assert built(path).cells[0].source == "# 07 · A test lesson"


def test_outputs_stay_until_code_changes(lesson, tmp_path):
    path = tmp_path / "notebooks" / "07_test.ipynb"
    notebook = built(path)
    for cell in notebooks.code_cells(notebook):
        cell.outputs = [nbformat.v4.new_output("stream", text="kept")]
    nbformat.write(notebook, path)
    lesson.write_text(lesson.read_text().replace("A test lesson", "A test").replace("of=", "off="))
    with pytest.raises(LabError, match="older English"):
        built(path)
    lesson.write_text(SOURCE.format(digest=notebooks.digest("# 07 · A test lesson"), answer=16896))
    assert built(path).cells[2].outputs[0].text == "kept"
    lesson.write_text(lesson.read_text().replace("print(PROFILE)", "print(1)"))
    above, changed, below = notebooks.code_cells(built(path))
    assert above.outputs[0].text == "kept" and changed.outputs == below.outputs == []


def test_outputs_stay_when_another_profile_changes():
    rows = 'profiles = {{\n    "smoke": ("{}", 2),\n    "cpu": ("{}", 24),\n}}'

    def shown(name, smoke, cpu):
        return notebooks.printed_by(nbformat.v4.new_code_cell(rows.format(smoke, cpu), id=name))

    assert shown("profile", "whole", "whole") == shown("profile", "short", "whole")
    assert shown("profile", "whole", "whole") != shown("profile", "whole", "short")
    assert shown("other", "whole", "whole") != shown("other", "short", "whole")


@pytest.mark.parametrize("broken", ['id="title"', 'id="parameters"'])
def test_a_cell_without_its_own_id_is_refused(lesson, broken):
    lesson.write_text(lesson.read_text().replace('id="work"', broken))
    with pytest.raises(LabError, match="id that is unique"):
        notebooks.build(lesson_files.lessons()[0])


def test_a_run_collects_outcomes_and_writes_the_summary(lesson, tmp_path, capsys):
    notebooks.build(lesson_files.lessons()[0])
    assert cli.main(["course", "run", "--profile", "smoke"]) == 0
    summary = json.loads((tmp_path / "runs" / "course" / "summary.json").read_text())
    (row,) = summary["notebooks"]
    assert summary["profile"] == "smoke" and summary["machine"]["cores"] >= 1
    assert (row["name"], row["status"], row["outcomes"]) == ("07_test", "ok", {"answer": 42.0})
    assert row["seconds"] > 0 and row["peak_memory_bytes"] > 2**20
    assert "answer 42" in capsys.readouterr().out


def test_a_failing_lesson_is_reported_and_fails_the_run(lesson, tmp_path, capsys):
    lesson.write_text(lesson.read_text().replace('PROFILE = "cpu"', 'PROFILE = "cpu"\nseed = 0'))
    lesson.write_text(lesson.read_text().replace('{"answer": 42}', '{"answer": 42 + seed}'))
    notebooks.build(lesson_files.lessons()[0])
    assert cli.main(["course", "run", "07", "--profile", "cpu", "--seed", "3"]) == 1
    (row,) = json.loads((tmp_path / "runs" / "course" / "summary-seed3.json").read_text())["notebooks"]
    assert (row["status"], row["outcomes"]) == ("failed", {"answer": 45.0})
    said = capsys.readouterr().out
    assert "AssertionError: cpu" in said and "07_test              failed" in said


def test_a_run_prints_nothing_that_libraries_say(lesson, tmp_path):
    """Neither the kernel about its sockets, nor bitsandbytes about its import, nor the profiler about its work."""
    noisy = [
        "import bitsandbytes, torch, warnings",
        "from ftlab import memory",
        "with memory.measure_peak_bytes():",
        "    torch.ones(2)",
        "warnings.warn('`gradient_checkpointing` is deprecated and will be removed', FutureWarning)",
    ]
    lesson.write_text(lesson.read_text().replace("print(PROFILE)", "\n".join(noisy)))
    notebooks.build(lesson_files.lessons()[0])
    # ipykernel hands on what is written below Python only outside pytest; and no socket's path has room for this.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    deep = tmp_path.joinpath(*["deep" * 10] * 4)
    deep.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "ftlab", "course", "run"],
        env=inherited | {"TMPDIR": str(deep)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["running", "notebook", "07_test"]
    executed = nbformat.read(tmp_path / "runs" / "course" / "07_test.ipynb", as_version=4)
    assert [output for cell in notebooks.code_cells(executed) for output in cell.outputs if "name" in output] == []


def test_a_kernel_talks_through_socket_files_of_this_user():
    with notebooks.kernel_settings() as settings:
        prefix = Path(settings["config"].KernelManager.ip)
        assert settings["config"].KernelManager.transport == "ipc"
        # 104 bytes on macOS, the number and the terminating zero included.
        assert len(str(prefix)) + 4 < 104 and prefix.parent.stat().st_mode & 0o077 == 0
    assert not prefix.parent.exists()


def test_exercises_are_checked_in_the_learner_s_copy(lesson, capsys):
    notebooks.build(lesson_files.lessons()[0])
    assert cli.main(["course", "check", "7"]) == 0
    lesson.write_text(lesson.read_text().replace("16896", "1 / 0"))
    notebooks.build(lesson_files.lessons()[0])
    assert cli.main(["course", "check", "07"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["course", "run", "99"], "lesson 99 does not exist"),
        (["course", "run", "--profile", "huge"], "unknown profile `huge`"),
        (["course", "check", "12"], "lesson 12 does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(lesson, capsys, arguments, message):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "fix:" in said and "Traceback" not in said


def test_record_does_nothing_outside_a_run(monkeypatch, tmp_path):
    monkeypatch.delenv("FTLAB_OUTCOMES", raising=False)
    course.record({"x": 1})


def test_the_command_line_outside_the_course_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lesson_files, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert cli.main(["course", "list"]) == 2
    assert "course not found" in capsys.readouterr().err


def test_outcomes_are_printed_beside_their_bands(monkeypatch, capsys):
    monkeypatch.delenv("FTLAB_OUTCOMES", raising=False)
    course.record({"right": 0.93, "other": 7}, {"right": (0.9, 1)})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == ["✓", "right", "0.93", "expected", "0.9", "to", "1"]


@pytest.mark.parametrize("value", [0.89, 1.01, float("nan")])
def test_an_outcome_outside_its_band_fails_the_course_s_own_run_alone(monkeypatch, tmp_path, capsys, value):
    monkeypatch.delenv("FTLAB_OUTCOMES", raising=False)
    course.record({"right": value}, {"right": (0.9, 1)})
    said = capsys.readouterr().out
    assert said.startswith("✗ right") and "A changed model" in said
    monkeypatch.setenv("FTLAB_OUTCOMES", str(tmp_path / "outcomes.json"))
    with pytest.raises(LabError, match="right: outcomes outside their bands"):
        course.record({"right": value}, {"right": (0.9, 1)})
    assert "right" in json.loads((tmp_path / "outcomes.json").read_text())


@pytest.mark.parametrize(
    ("html", "lasting"),
    [
        ("<progress value='1'>", False),
        ("<progress value='1'><table><tr><td>0.5</td></tr></table>", True),
        ("<b>x</b>", True),
    ],
)
def test_a_bare_progress_bar_is_not_committed(html, lasting):
    output = nbformat.v4.new_output("display_data", data={"text/html": html, "text/plain": ""})
    assert notebooks.is_lasting(output) == lasting


class Ran:
    """Stands for a kernel that ran a notebook: its third code cell wrote to both streams, drew and showed a widget."""

    def __init__(self, notebook, **settings):
        self.notebook = notebook

    def execute(self, **settings):
        view = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox()"}
        picture = {"image/png": png(Image.new("RGBA", (9, 9)))}
        notebooks.code_cells(self.notebook)[1].outputs = [
            nbformat.v4.new_output("stream", text="kept"),
            nbformat.v4.new_output("stream", name="stderr", text="a warning"),
            nbformat.v4.new_output("display_data", data=view),
            nbformat.v4.new_output("display_data", data=picture),
        ]


def test_a_clean_run_commits_text_and_pictures_in_both_editions(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr("nbclient.NotebookClient", Ran)
    assert cli.main(["course", "build", "--run"]) == 0
    for path in ("07_test.ipynb", "zh/07_test.ipynb"):
        work = notebooks.code_cells(nbformat.read(tmp_path / "notebooks" / path, as_version=4))[1]
        assert [output.output_type for output in work.outputs] == ["stream", "display_data"]
        assert work.outputs[0].text == "kept" and "image/png" in work.outputs[1].data


def test_an_image_too_large_to_commit_is_refused_and_the_run_is_not_lost(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr("nbclient.NotebookClient", Ran)
    monkeypatch.setattr(notebooks, "MAX_PICTURE_BYTES", 60)
    with pytest.raises(LabError, match="larger than") as error:
        notebooks.build(lesson_files.lessons()[0], execute=True)
    written = notebooks.code_cells(nbformat.read(tmp_path / "notebooks" / "07_test.ipynb", as_version=4))
    assert error.value.where == "work" and written[1].outputs[0].text == "kept"


def test_a_run_that_fails_is_kept_and_the_committed_notebook_stays(lesson, tmp_path, monkeypatch):
    class Failed(Ran):
        def execute(self, **settings):
            super().execute(**settings)
            raise CellExecutionError("an outcome outside its band", "LabError", "tuned: 0.5")

    committed = built(tmp_path / "notebooks" / "07_test.ipynb")
    monkeypatch.setattr("nbclient.NotebookClient", Failed)
    with pytest.raises(LabError, match="outside its band") as error:
        notebooks.build(lesson_files.lessons()[0], execute=True)
    kept = nbformat.read(error.value.where, as_version=4)
    assert notebooks.code_cells(kept)[1].outputs[0].text == "kept"
    assert nbformat.read(tmp_path / "notebooks" / "07_test.ipynb", as_version=4) == committed


@pytest.mark.parametrize("verb", ["run", "build"])
def test_a_kernel_that_the_system_ends_is_said_in_one_line(verb, lesson, capsys):
    lesson.write_text(lesson.read_text().replace("from ftlab.apps import course", "import os\nos.kill(os.getpid(), 9)"))
    notebooks.build(lesson_files.lessons()[0])
    assert cli.main(["course", verb, *(["--run"] if verb == "build" else [])]) == 1
    told = "".join(capsys.readouterr())
    assert "memory was used up" in told and {"run": "07_test.ipynb", "build": "failed.ipynb"}[verb] in told
    assert "Traceback" not in told and "bug in ftlab" not in told


@pytest.mark.parametrize("known", [CellTimeoutError("slow"), DeadKernelError("dead")])
def test_what_cleaning_up_after_a_kernel_raises_hides_nothing(known):
    later = AssertionError()
    later.__context__ = known
    assert notebooks.lost_kernel(later, "x.ipynb").where == "x.ipynb"
    assert notebooks.lost_kernel(AssertionError(), "x.ipynb") is None


def test_the_lessons_are_listed_with_their_titles(lesson, capsys):
    assert cli.main(["course", "list"]) == 0
    assert capsys.readouterr().out == "07 · A test lesson\n"
    with speaking("zh"):
        assert cli.main(["course", "list"]) == 0
    assert capsys.readouterr().out == "07 · 测试课\n"


@pytest.mark.parametrize(("alpha", "kept"), [(255, False), (254, True)])
def test_a_picture_loses_its_alpha_channel_where_it_hides_nothing(alpha, kept):
    image = Image.new("RGBA", (30, 20), (200, 10, 30, 255))
    image.putpixel((3, 4), (1, 2, 3, alpha))
    smaller = notebooks.without_alpha(png(image))
    assert (smaller == png(image)) == kept
    assert Image.open(io.BytesIO(base64.b64decode(smaller))).convert("RGBA").tobytes() == image.tobytes()


def png(image: Image.Image) -> str:
    """Return a picture as a notebook holds it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
