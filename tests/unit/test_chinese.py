"""With FTLAB_LANG=zh everything that a user reads is Chinese: no English sentence, but names of keys and products."""

import argparse
import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from ftlab import errors
from ftlab.apps import arguments, cli
from ftlab.errors import LabError
from ftlab.recipe import coming_from, explain, hub_token, keys, to_frameworks, to_verl, translated_keys
from ftlab.recipe import read as recipes

# Three English words in a row are a sentence; between backticks or quotes there are keys, values and commands.
SENTENCE = re.compile(r"[A-Za-z][a-z']*(?: [a-z'][a-z']*){2,}")
BASE = {"model_name_or_path": "m"}


@pytest.fixture(autouse=True)
def in_chinese(monkeypatch):
    monkeypatch.setenv("FTLAB_LANG", "zh")


def english(text: str) -> list[str]:
    """Return the English sentences of a text."""
    return SENTENCE.findall(re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"", "", text))


def test_sentences_are_found():
    assert english("这是 the wrong one，`not this one` 也不是 'nor that one'") == ["the wrong one"]
    assert not english("请用 LoRA Plus 或 bf16、fp16")


EXPLAINED = [*keys.Recipe.model_fields, *keys.TRAINING_HINTS, *translated_keys.RENAMED, *translated_keys.DROPPED]
EXPLAINED += [*translated_keys.OUT_OF_REACH, *keys.REFUSED_TRAINING, *explain.RESOLVED_MEANING, hub_token.KEY]


@pytest.mark.parametrize("name", sorted({*EXPLAINED} - {"training"}))
def test_explanations_are_chinese(name):
    text = explain.explain(name)
    assert text.startswith(f"{name}：") and re.search("[\u4e00-\u9fff]", text) and not english(text)


def test_every_key_has_a_chinese_meaning_and_no_other():
    assert explain.chinese().keys() == keys.Recipe.model_fields.keys() | keys.TRAINING_HINTS.keys()


WRONG: list[Any] = ["x", "", 3, -7, 1.5, -0.5, True, [], ["x"], [1], {}, {"a": []}, {1: None}, 10**15, 1e30]
ALL = sorted({*keys.Recipe.model_fields, *keys.TRAINING_HINTS, *recipes.RESOLVED} - {"training"})


@pytest.mark.parametrize("name", ALL)
def test_refusals_of_values_are_chinese(name):
    for value in WRONG:
        try:
            _, notes = recipes.read(BASE | {name: value})
        except LabError as error:
            notes = [str(error)]
        assert not any(english(note) for note in notes), (value, notes)


FRAMEWORKS = {title: framework for title, (framework, _) in coming_from.READ.items()}


@pytest.mark.parametrize("title", FRAMEWORKS)
def test_reasons_of_other_frameworks_are_chinese(title):
    framework = FRAMEWORKS[title]
    tables = framework.dropped, framework.refused, framework.unsaid, framework.unsaid_in_sft, framework.nulls
    for name, message in (pair for table in tables for pair in table.items()):
        text = translated_keys.reason(message, name)
        assert re.search("[\u4e00-\u9fff]", text) and not english(text), text
    for name, read in framework.read.items():
        for value in [*WRONG, "all", "grpo", "simpo", [{"path": "a/b", "type": "alpaca", "train_on_eos": "last"}]]:
            try:
                result = read(value, {name: value})
                text = result[1] if isinstance(result, tuple) else ""
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                text = str(error) if type(error) is ValueError and not str(error).startswith("invalid literal") else ""
            assert not english(text), (name, value, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.sh", "swift sft --model $MODEL --dataset a.json\n"),
        ("s.sh", "swift sft --model 'm\n"),
        ("s.sh", "swift sft --model m\nswift sft --model n\n"),
        ("s.sh", "echo done\n"),
        ("s.sh", "swift sft \\\n  # none\n  --model m\n"),
        ("s.sh", "swift infer --model m\n"),
        ("s.sh", "swift sft nothing --model m\n"),
        ("s.py", "def f(:\n"),
        ("s.py", "print(1)\n"),
        ("s.ipynb", "[]"),
        ("s.yaml", "model: m\ntuner_type: lora\nloss_type: ''\n"),
        ("s.yaml", "- a\n- b\n"),
        ("s.yaml", "[" * 40),
        ("s.yaml", "base_model: m\nrl: grpo\nadapter: [1]\nqat: true\nnothing_known: 1\n"),
    ],
)
def test_refusals_of_files_are_chinese(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(LabError) as error:
        recipes.load(path)
    assert not english(str(error.value).replace(str(path), "")), error.value


def test_comments_in_the_files_of_other_frameworks_are_chinese():
    sft = BASE | {"dataset": "identity_en", "output_dir": "runs/x", "use_eaft_loss": True, "flash_attn": "fa2"}
    ppo = BASE | {"dataset": "identity_en", "output_dir": "runs/x", "stage": "ppo", "reward_funcs": "exact_answer"}
    names = ("llamafactory", "swift", "axolotl", "alpaca-lora")
    texts = [to_frameworks.show(recipes.read(sft)[0], name) for name in names]
    texts.append(to_verl.script(recipes.read(ppo)[0]))
    # After the first here-document there is code.
    comments = [line for text in texts for line in text.partition("<<")[0].splitlines() if line.startswith("# ")]
    assert len(comments) > 8 and not any(english(line) for line in comments), comments


def test_reasons_of_the_machine_are_chinese():
    from ftlab.recipe import machine_defaults

    for reasons in machine_defaults.REASONS.values():
        for message in reasons.values():
            assert not english(errors.say(message, tokens=512))


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser, and those of its verbs."""
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(inner for action in verbs for verb in action.choices.values() for inner in parsers(verb))]


def test_help_is_chinese():
    with arguments.in_language():
        everything = parsers(cli.parser())
        assert len(everything) > 25
        for parser in everything:
            assert not english(parser.format_help().replace(parser.prog, "ftlab")), parser.prog


@pytest.mark.parametrize(
    "line",
    ["", "train", "launch r.yaml --on x", "chat m --port", "chat", "nothing", "compare a b --max-samples 0", "env --x",
     "models --x=1", "env --autodl=1", "train r.yaml --learning-rate", "recipe explain lora_rnak",
     "recipe show no.yaml"],
)  # fmt: skip
def test_refusals_of_the_command_line_are_chinese(line, capsys):
    assert cli.main(line.split()) in (0, 2)
    said = "".join(capsys.readouterr())
    assert re.search("[\u4e00-\u9fff]", said) and not english(said), said


@pytest.mark.parametrize("line", ["env --x", "nothing", "chat --help", "models --x=1"])
def test_argparse_stays_english_for_other_programs(line, capsys):
    assert cli.main(line.split()) in (0, 2)
    capsys.readouterr()
    assert argparse._("usage: ") == "usage: " and "usage: other" in argparse.ArgumentParser("other").format_help()


# Texts of argparse about mistakes in the program, or about what these parsers do not have.
NOT_SHOWN = re.compile(
    r"defined|invalid (argument|option string|conflict)|mutually|ambiguous|callable|can't open|merge|dest=|subparser"
    r"|unknown parser|one of the arguments|with mode|not allowed with|unexpected option"
)


def test_argparse_s_texts_are_messages():
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(argparse))) if isinstance(node, ast.Call)]
    texts = [node.args[0] for node in calls if isinstance(node.func, ast.Name) and node.func.id == "_"]
    values = {str(text.value) for text in texts if isinstance(text, ast.Constant)}
    shown = {text for text in values if not NOT_SHOWN.search(text)}
    assert shown == {errors.messages()[key]["en"] for key in arguments.TEXTS}


# Files whose English sentences are not messages to a user.
ENGLISH_FILES = {
    "apps/serve": "answers of an API, which programs read",
    "checks": "texts that a solution is tried on",
    "recipe/keys.py": "meanings, in Chinese in meanings_zh.toml",
    "recipe/templates.py": "chat templates",
    "recipe/coming_from.py": "a page of the documentation",
    "recipe/to_": "scripts",
    "runs/clusters.py": "scripts",
    "runs/ppo.py": "fields of a config",
    "runs/export.py": "model card",
}
ENGLISH_TEXTS = re.compile(
    r"loss per trained token|No space left| memory$|Connection |from ftlab\.| is missing in "
    r"|only a file used|unexpected end of data|multibyte|another name|^Expecting|^Unterminated|^Invalid control"
    r"|integer string|documentation of TrainingArguments|call these tools|Here is a question|lighthouse"
    r"|are not allowed$|^could not find|^unexpected end of stream|cannot start|^unknown escape|^must be in"
    r"|^while scanning"
    r"|a scale|three quotes|End a kernel|made with ftlab|weights were trained"
)


def test_no_message_stands_in_the_code():
    root = Path(cli.__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).as_posix().startswith(tuple(ENGLISH_FILES)):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)]
        docstrings = {id(node.body[0].value) for node in scopes if node.body and isinstance(node.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                text = node.value
                assert not SENTENCE.search(text) or ENGLISH_TEXTS.search(text), f"{path.name}:{node.lineno}: {text!r}"
