"""The container files agree with the project: what they copy and install exists, and no port is open to others."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_project import PROJECT, ROOT

FILES = sorted((ROOT / "docker").glob("Dockerfile*"))
COMPOSE = YAML(typ="safe").load((ROOT / "docker" / "compose.yaml").read_text())
PINS = (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_the_wheel_gets_all_it_carries(file):
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert not [name for name in names if not (ROOT / name).exists()]
    carried = re.findall(r'"([\w./]+)"', (ROOT / "hatch_build.py").read_text().partition("folders = [")[2])
    assert {name.partition("/")[0] for name in carried if (ROOT / name).exists()} <= {
        name.partition("/")[0] for name in names
    }


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_extras_and_python_are_the_project_s(file):
    text = file.read_text()
    (extras,) = re.findall(r"ftlab-\*\.whl\)\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]) and "course" in extras.split(",")
    assert set(re.findall(r"(?:python:|-py)(\d\.\d+)", text)) == {PROJECT["requires-python"].removeprefix(">=")}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_stage_that_installs_takes_the_mirror_of_the_manual(file):
    """An argument that a stage does not declare is not in the environment of its RUN lines."""
    told = re.findall(r"--build-arg (\w+)=", (ROOT / "docs" / "docker.md").read_text())
    assert set(told) == {"PIP_INDEX_URL", "TORCH_INDEX"}
    _, *stages = re.split(r"^FROM ", file.read_text(), flags=re.MULTILINE)
    installing = [stage for stage in stages if "RUN pip" in stage]
    assert installing and all("\nARG PIP_INDEX_URL\n" in stage.partition("RUN pip")[0] for stage in installing)
    assert file.name != "Dockerfile" or "\nARG TORCH_INDEX=\n" in installing[-1]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_packages_are_pinned_and_the_user_is_not_root(file):
    text = file.read_text()
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs and all("-c /tmp/constraints.txt" in line for line in installs)
    assert text.index("USER 1000") > text.rindex("pip install") and "--uid 1000" in text


def test_an_untested_image_says_so():
    assert "UNTESTED" in (ROOT / "docker" / "Dockerfile.npu").read_text()
    told = (ROOT / "docs" / "ascend.md").read_text()
    torch = re.search(r"^torch==([\d.]+)", PINS, re.MULTILINE)[1]
    assert f"torch=={torch} torch-npu=={torch}" in told


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_on_the_loopback_address_and_has_a_token(name):
    service = COMPOSE["services"][name]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (token,) = service["environment"].values()
    assert token.startswith("${FTLAB_TOKEN:?") and service["cap_drop"] == ["ALL"]
    assert (ROOT / "docker" / service["build"]["dockerfile"].removeprefix("docker/")).is_file()
    assert {volume.partition(":")[0] for volume in service["volumes"]} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["board", "serve"])
def test_a_service_s_command_is_one_that_the_program_knows(name):
    from ftlab.apps import cli

    program, *words = COMPOSE["services"][name]["command"]
    options = cli.parser().parse_args(words)
    inside = COMPOSE["services"][name]["ports"][0].rpartition(":")[2]
    # Of `serve`, allow_remote is the list of names that clients may use.
    assert program == "ftlab" and options.allow_remote in (True, []) and options.host == "0.0.0.0"
    # None: no variable names another.
    assert str(options.port or {"board": 8866, "serve": 8000}[name]) == inside


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_hadolint_reports_nothing(file):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
