"""Recipes nobody would write: one line each, at once, with nothing run and nothing of the environment shown."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftlab.apps import cli
from ftlab.data import dataset_info
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import sharding, translated_keys

CASES = os.environ.get("FTLAB_CASES")
SECRET = "a-secret-of-the-environment"
GOOD = """\
model_name_or_path: smollm2-135m
stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity_en
template: chatml
cutoff_len: 256
output_dir: runs/fuzz
learning_rate: 1.0e-4
num_train_epochs: 1.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
eval_strategy: steps
eval_steps: 10
"""
PIECES = [
    *"{}[]&*!|>'\"%@`:,#-?\t\n\0\x07\u2028", "null", "~", "true", "no", ".nan", "-.inf", "1e999", "0x10", "0o7",
    "1_000", "2026-01-01", "99999-99-99", "-1", "9" * 400, "<<", "<<: *x", "&a ", "*a", "!!binary x",
    "!!python/name:os.system ", "!!python/object/apply:os.system ['touch canary'] ", "${HOME}",
    "${oc.env:FTLAB_SECRET}", "$(touch canary)", "`touch canary`", "../" * 40, "/etc/passwd", "{{ self }}", "--- ",
    "... ", "%YAML 9.9\n", "\ufeff", "模型", "a" * 5000, "[" * 50, "{a: " * 50, "- " * 30, "? ", ": : :",
    "stage: ppoo", "deepspeed: /etc/passwd", "trust_remote_code: true",
]  # fmt: skip
NAMES = st.sampled_from(
    sorted(recipes.known())
    + sorted(translated_keys.RENAMED)
    + sorted(translated_keys.DROPPED)
    + sorted(translated_keys.OUT_OF_REACH)
)
VALUES = st.one_of(st.sampled_from(PIECES), st.text(max_size=20), st.floats().map(str), st.integers().map(str))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Change a good recipe a few times: pieces put in, lines dropped, doubled, swapped or given another value."""
    lines = GOOD.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["insert", "drop", "double", "value", "key", "cut"])):
            case "insert":
                at = draw(st.integers(0, len(lines[place])))
                lines[place] = lines[place][:at] + draw(st.sampled_from(PIECES)) + lines[place][at:]
            case "drop" if len(lines) > 1:
                del lines[place]
            case "double":
                lines.append(lines[place])
            case "value":
                lines[place] = f"{lines[place].partition(':')[0]}: {draw(VALUES)}"
            case "key":
                lines.append(f"{draw(NAMES)}: {draw(VALUES)}")
            case "cut":
                lines[place] = lines[place][: draw(st.integers(0, len(lines[place])))]
    return "\n".join(lines) + "\n"


def verdict(path: Path) -> str:
    """Return "" for a recipe that is taken, or the message that refuses it; anything else is raised."""
    try:
        recipes.check(path)
        return ""
    except LabError as error:
        assert error.exit_code == 2
        return str(error)


@pytest.fixture(scope="session")
def allowed_seconds(tmp_path_factory) -> float:
    """Return 300 times the processor seconds in which a good recipe is read, here and now: machines differ."""
    path = tmp_path_factory.mktemp("good") / "good.yaml"
    path.write_text(GOOD)
    return 300 * min(seconds_and_result(lambda: verdict(path))[0] for _ in range(5))


def seconds_and_result(call):
    before = time.process_time()
    result = call()
    return time.process_time() - before, result


def quickly(call, allowed: float):
    """Return what a call returns, which must take less than the allowed processor seconds.

    Imports and garbage collection slow one call, an attack that works slows each.
    """
    taken = []
    for _ in range(3):
        seconds, result = seconds_and_result(call)
        if seconds < allowed:
            return result
        taken.append(seconds)
    raise AssertionError(f"three calls took {taken} seconds, each more than {allowed}")


# The same cases in every run; FTLAB_CASES asks for that many others, drawn anew.
@settings(
    max_examples=int(CASES or 2000),
    derandomize=not CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(text=mutated())
def test_mutated_recipes(tmp_path_factory, allowed_seconds, text):
    os.environ["FTLAB_SECRET"] = SECRET
    place = tmp_path_factory.getbasetemp()
    path = place / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    said = quickly(lambda: verdict(path), allowed_seconds)
    assert SECRET not in said and len(said.splitlines()) <= 3 and len(said) < 1500
    assert not (Path.cwd() / "canary").exists() and not (place / "canary").exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        GOOD + "run_name: !!python/object/apply:os.system ['touch canary']\n",
        GOOD + "run_name: !!python/name:os.system\n",
        GOOD + "<<: {a: b}\n",
        "a: " + "[" * 100_000,
        "{" * 90_000,
    ],
    ids=["alias bomb", "object", "name", "merge", "deep list", "deep mapping"],
)
def test_known_attacks_are_refused_at_once(tmp_path, monkeypatch, capsys, allowed_seconds, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    assert quickly(lambda: cli.main(["recipe", "check", "r.yaml"]), allowed_seconds) == 2
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said and len(said) < 1500 and os.listdir(tmp_path) == ["r.yaml"]


@pytest.mark.parametrize(
    "reference", ["${oc.env:FTLAB_SECRET}", "${FTLAB_SECRET}", "$FTLAB_SECRET", "%(FTLAB_SECRET)s"]
)
def test_the_environment_is_not_put_in(tmp_path, monkeypatch, capsys, reference):
    monkeypatch.setenv("FTLAB_SECRET", SECRET)
    (tmp_path / "r.yaml").write_text(GOOD.replace("identity_en", f'"{reference}"'))
    assert cli.main(["recipe", "check", str(tmp_path / "r.yaml")]) == 2
    said = "".join(capsys.readouterr())
    assert SECRET not in said and reference in said


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "the text is UTF-16"),
        ("utf-16-le", "the text is UTF-16-LE"),
        ("utf-32", "the text is UTF-32"),
        ("gb18030", "probably GBK"),
    ],
)
@pytest.mark.parametrize("name", ["r.yaml", "r.sh", "r.ipynb", "zero.json", "dataset_info.json"])
def test_a_text_in_another_encoding_is_named_with_the_command_that_converts_it(tmp_path, encoding, said, name):
    path = tmp_path / name
    path.write_bytes("# 中文注释，说明如何训练\nmodel_name_or_path: m\n".encode(encoding))
    ways = {
        "zero.json": lambda: sharding.read(str(path), "deepspeed", "deepspeed"),
        "dataset_info.json": lambda: dataset_info.read_info(tmp_path),
    }
    with pytest.raises(LabError) as caught:
        ways.get(name, lambda: recipes.check(path))()
    assert said in caught.value.what and caught.value.where == f"{path}:1" and caught.value.exit_code == 2
    given = encoding.removesuffix("-le") if encoding != "utf-16-le" else encoding
    assert f"`iconv -f {given} -t utf-8 {path}`" in caught.value.fix
