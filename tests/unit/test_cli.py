"""The command line around its verbs: how it is read, what it prints, how it ends."""

import gc
import os
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from ftlab import __version__, catalogue, device, packages
from ftlab.apps import cli, quick_imports
from ftlab.apps.arguments import rewritten
from ftlab.errors import LabError, fail, reason_of
from ftlab.recipe import keys
from ftlab.recipe import read as recipes
from ftlab.recipe.read import choices_of
from ftlab.system_errors import explained

ROOT = Path(__file__).parents[2]
GPU = device.Machine("cuda", "a GPU", "bfloat16", 8, 24 * 2**30, "fast there")


def ftlab(*arguments: str, before: str = "", **options) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, after some lines of Python."""
    code = f"import sys; {before}\nfrom ftlab.apps.cli import main\nsys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=environment, **options)


@pytest.mark.parametrize("own", [None, "0"])
def test_garbage_is_collected_and_functions_compiled_again_after_the_imports_even_where_one_fails(own, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv(quick_imports.NO_COMPILER, raising=False)
    if own:
        monkeypatch.setenv(quick_imports.NO_COMPILER, own)
    frozen = gc.get_freeze_count()
    with pytest.raises(ImportError), quick_imports.quick_imports():
        assert not gc.isenabled() and os.environ[quick_imports.NO_COMPILER] == "1"
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() > frozen and os.environ.get(quick_imports.NO_COMPILER) == own


def test_imports_of_another_thread_are_waited_for():
    events, second_began = [], threading.Event()

    def second():
        second_began.set()
        with quick_imports.quick_imports():
            events.append("second")

    with quick_imports.quick_imports():
        thread = threading.Thread(target=second)
        thread.start()
        second_began.wait()
        thread.join(0.2)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["r.yaml", "--learning_rate", "1e-4"], ["r.yaml", "learning_rate=1e-4"]),
        (["r.yaml", "--learning_rate=1e-4"], ["r.yaml", "learning_rate=1e-4"]),
        (["--learning-rate", "1e-4", "r.yaml"], ["r.yaml", "learning_rate=1e-4"]),
        (["--max_steps", "-1", "r.yaml"], ["r.yaml", "max_steps=-1"]),
        (["--packing", "r.yaml"], ["r.yaml", "packing=true"]),
        (["r.yaml", "--packing", "--plot_loss", "False"], ["r.yaml", "packing=true", "plot_loss=False"]),
        (["r.yaml", "--neat_packing", "--dataset", "a,b"], ["r.yaml", "neat_packing=true", "dataset=a,b"]),
        (["--overwrite_cache", "r.yaml"], ["r.yaml", "overwrite_cache=true"]),
        (["r.yaml", "--preprocessing_num_workers", "16"], ["r.yaml", "preprocessing_num_workers=16"]),
        (["r.yaml", "--fresh", "lora_rank=4"], ["r.yaml", "fresh=true", "lora_rank=4"]),
        (["r.yaml", "a=1", "--as", "trl", "b=2"], ["--as", "trl", "r.yaml", "a=1", "b=2"]),
        (["r.yaml", "--as=trl", "-h"], ["--as=trl", "-h", "r.yaml"]),
    ],
)
def test_a_key_is_an_option_as_in_hugging_faces_scripts(words, expected):
    assert rewritten(words, {"--as": True, "-h": False}) == expected


@pytest.mark.parametrize(
    "words", [["r.yaml", "--learning_rate"], ["--dataset", "--packing", "r.yaml"], ["--dataset", ""]]
)
def test_a_key_without_its_value_is_named(words):
    with pytest.raises(LabError, match=r"this key needs a value") as error:
        rewritten(words, {})
    assert error.value.where in ("--learning_rate", "--dataset")


def test_no_verb_has_an_option_with_the_name_of_a_key():
    known = {f"--{name}" for name in recipes.known()} - {cli.TRUST[1]}
    for name, verb in cli.parser().verbs.items():
        taken = known & {option for action in verb._actions for option in action.option_strings}
        assert not (verb.keys and taken), (name, taken)


def test_key_value_reaches_the_recipe_wherever_it_stands(tiny_recipe, tmp_path, capsys):
    recipes.write(recipes.load(tiny_recipe), tmp_path / "r.yaml")
    path = str(tmp_path / "r.yaml")
    assert cli.main(["recipe", "show", "--lora_rank", "2", path, "--as", "axolotl", "learning_rate=3e-4"]) == 0
    shown = capsys.readouterr().out
    assert "lora_r: 2" in shown and "learning_rate: 0.0003" in shown
    assert cli.main(["memory", path, "--cutoff-len", "64"]) == 0
    assert "2 rows of 64 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version(arguments, capsys):
    assert cli.main(arguments) == 0 and capsys.readouterr().out == f"ftlab {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"], ["help", "train"], ["train", "--help"]])
def test_help_is_asked_for_in_every_way_and_names_the_exit_codes(arguments, capsys):
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ftlab") and "130" in said


@pytest.mark.parametrize(
    ("word", "near"),
    [("trian", "train"), ("exprot", "export"), ("xyzzy", ""), ("", ""), ("api", "serve"), ("webchat", "board")],
)
def test_an_unknown_verb_has_a_suggestion_only_where_one_is_near(word, near, capsys):
    assert cli.main([word]) == 2
    said = capsys.readouterr().err
    assert ("did you mean" in said) == bool(near) and near in said and said.count("\n") == 2


@pytest.mark.parametrize("verb", ["train", "serve"])
def test_keys_are_not_among_the_arguments_that_are_missing(verb, capsys):
    assert cli.main([verb]) == 2
    assert capsys.readouterr().err.endswith(f"required: {'model' if verb == 'serve' else 'RECIPE.yaml'}\n")


@pytest.mark.parametrize("arguments", [["train"], ["recipe", "chekc", "r.yaml"], ["chat", "m", "--backnd", "loop"]])
def test_what_the_parser_refuses_is_bad_input(arguments, capsys):
    assert cli.main(arguments) == 2 and "Traceback" not in capsys.readouterr().err


def verb_that(error: BaseException):
    """Return a stand-in for a verb that raises."""

    def verb(options: object) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (OSError(12, "Cannot allocate memory"), 1, "out of memory"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            1,
            "/a/b: the operating system refused the operation: Permission denied",
        ),
        (OSError(28, "No space left on device", "/a/b"), 1, "/a/b: the disk is full"),
        (ModuleNotFoundError("No module named 'voila'", name="voila"), 2, "pip install 'ftlab[course]'"),
        (ModuleNotFoundError("No module named 'llama_cpp'", name="llama_cpp.x"), 2, "pip install 'ftlab[llamacpp]'"),
        (ModuleNotFoundError("No module named 'surprise'", name="surprise"), 2, "provides the module surprise"),
        (fail("model_no_folder", where="./m"), 2, "./m: folder not found"),
    ],
)
def test_what_the_user_or_the_system_did_has_no_traceback(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(cli, "show_env", verb_that(error))
    assert cli.main(["env"]) == code
    said = capsys.readouterr().err
    assert words in said and said.startswith("ftlab: ") and "Traceback" not in said


@pytest.mark.parametrize("error", [IndexError("list index"), ModuleNotFoundError("no", name="ftlab.runs.gone")])
def test_a_bug_of_ours_keeps_its_traceback_and_says_where_to_report_it(monkeypatch, capsys, error):
    monkeypatch.setattr(cli, "show_env", verb_that(error))
    assert cli.main(["env"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "this is a bug in ftlab" in said and "ftlab env" in said


def test_reasons_are_one_line_of_whole_sentences():
    assert reason_of(ValueError("One.\nTwo.")) == "One." and reason_of(ValueError()) == "ValueError"
    assert reason_of(KeyError("added_tokens")) == "KeyError: 'added_tokens'"
    assert reason_of(ValueError("Bad field 'x':\n  expected int\n")) == "Bad field 'x': expected int"
    assert reason_of(ValueError("A sentence. " * 30)).endswith("A sentence.") and explained(ValueError()) is None


def test_a_reader_that_leaves_is_not_an_error():
    """`ftlab ... | head -c 50`: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ftlab", "version"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    os.close(write)
    assert done.returncode == 141 and done.stderr == b""


def test_a_terminal_without_utf8_gets_escapes():
    done = ftlab("help", "xyzzy", before="print('\u4e2d', file=sys.stderr)", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    chinese = {"PYTHONIOENCODING": "ascii", "FTLAB_LANG": "zh"}
    verb = "import ftlab.apps.cli as c; c.show_version = lambda options: print('\u4e2d')"
    done = ftlab("version", before=verb, env=chinese)
    assert done.returncode == 0 and done.stdout == b"\\u4e2d\n"


def test_closed_streams_are_the_end_of_the_input():
    verb = "import ftlab.apps.cli as c; c.show_version = lambda options: print(*c.lines('you: '))"
    code = f"{verb}; raise SystemExit(c.main(['version']))"
    for closed in ("<&-", ">&- <&-", "</dev/null"):
        line = f'"{sys.executable}" -c "{code}" {closed}'
        done = subprocess.run(line, shell=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and b"Traceback" not in done.stderr, closed


def test_bytes_that_are_not_utf8_are_a_question_all_the_same():
    verb = "import ftlab.apps.cli as c; c.show_version = lambda options: print(len(next(c.lines(''))))"
    done = ftlab("version", before=verb, input=b"\xff\xfe hi\n", env={"PYTHONUTF8": "1"})
    assert (done.returncode, done.stdout) == (0, b"5\n")


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("fastapi", ["serve", "m"], "serve"),
        ("uvicorn", ["serve", "m"], "serve"),
        ("voila", ["board"], "course"),
        ("ipywidgets", ["board"], "course"),
        ("nbformat", ["board"], "course"),
        ("nbformat", ["course", "build", "00"], "course"),
    ],
)
def test_a_verb_without_its_package_names_the_extra(module, arguments, extra):
    done = ftlab(*arguments, before=f"sys.modules['{module}'] = None", cwd=ROOT)
    said = done.stderr.decode()
    assert done.returncode == 2 and f"pip install 'ftlab[{extra}]'" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("changed", "module", "command"),
    [
        ({"quantization_bit": 4}, "bitsandbytes", "pip install 'ftlab[gpu]'"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes", "pip install 'ftlab[gpu]'"),
        ({"optim": "galore_adamw"}, "galore_torch", "pip install 'ftlab[optim]'"),
        ({"optim": "apollo_adamw"}, "apollo_torch", "pip install 'ftlab[optim]'"),
        ({"optim": "schedule_free_adamw"}, "schedulefree", "pip install 'ftlab[optim]'"),
        ({"report_to": "wandb"}, "wandb", "pip install wandb"),
        ({"report_to": ["tensorboard"]}, "tensorboard", "pip install tensorboard"),
        ({"deepspeed": "zero2"}, "deepspeed", "pip install 'ftlab[deepspeed]'"),
        ({"use_liger_kernel": True}, "liger_kernel", "pip install liger-kernel"),
        ({"flash_attn": "fa2"}, "flash_attn", "pip install flash-attn"),
    ],
)
def test_a_recipe_names_the_package_that_it_needs(tiny_recipe, monkeypatch, changed, module, command):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == module else find_spec("json"))
    if module == "tensorboard":
        monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(LabError) as error:
        packages.require_for(recipes.load(tiny_recipe | changed))
    assert error.value.where in changed and error.value.fix == f"{command}, or remove the key"


def test_every_optimizer_is_torchs_or_has_its_package():
    plain = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    values = {"model_name_or_path": "m"}
    for name in choices_of("optim"):
        needed = packages.of_recipe(keys.Recipe(**values, training={"optim": name}))
        assert bool(needed) != (name in plain), name


def test_a_name_nobody_knows_is_not_suggested_to_pip(tiny_recipe):
    assert packages.of_recipe(recipes.load(tiny_recipe | {"report_to": "nonsense"})) == []


def test_env_prints_the_variables_of_ftlab_and_no_others(monkeypatch, capsys):
    monkeypatch.setenv("FTLAB_DTYPE", "float32")
    monkeypatch.setenv("API_KEY", "a-secret-that-must-not-be-pasted")
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    assert f"ftlab {__version__}, Python" in printed and "\nFTLAB_DTYPE=float32\n" in printed
    assert "secret" not in printed


def test_an_example_is_shown_token_by_token_and_its_set_counted(tiny_model_dir, tiny_rows, capsys):
    path = str(tiny_rows / "sft.json")
    assert cli.main(["data", "show", path, "--model", str(tiny_model_dir), "--row", "3"]) == 0
    shown, _, counted = capsys.readouterr().out.partition("\ntraining examples: 12;")
    assert "".join(re.findall("\x1b\\[32m(.*?)\x1b\\[0m", shown, re.DOTALL)) == "It is 2.<|im_end|>"
    assert "What is 0 plus 2?" in re.sub("\x1b\\[\\d+m", "", shown)
    assert "ending with a turn end: 100%" in counted


@pytest.mark.parametrize("row", ["0", "13", "-1"])
def test_an_example_outside_the_set_is_refused_with_the_set_s_size(row, tiny_model_dir, tiny_rows, capsys):
    assert cli.main(["data", "show", str(tiny_rows / "sft.json"), "--model", str(tiny_model_dir), "--row", row]) == 2
    assert f"example {row} does not exist: the data set has 12" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "line"), [("bf16", "on this machine: True; this GPU supports"), ("lora_rank", "")])
def test_a_key_is_explained_with_what_this_machine_makes_of_it(key, line, monkeypatch, capsys):
    monkeypatch.setattr(device, "describe", lambda: GPU)
    assert cli.main(["recipe", "explain", key]) == 0
    said = capsys.readouterr().out
    assert said.startswith(key) and ("on this machine" in said) == bool(line) and line in said


def test_models_are_listed_with_a_star_where_they_need_more_than_this_machine(monkeypatch, capsys):
    monkeypatch.setattr(device, "describe", lambda: GPU)
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("name "))
    rows = {line.split()[0]: line.split()[2:6] for line in lines[header + 1 : -1]}
    assert lines[-1] == "* = more than the memory of this machine"
    assert list(rows) == [model.name for model in catalogue.MODELS]
    run, qlora, lora, full = rows["llama3-8b"]
    assert float(qlora) < float(run) < float(lora) and full.endswith("*"), "LoRA fits into 24 GiB, not all weights"
    assert not any("*" in cell for cell in rows["smollm2-135m"])


def test_fresh_is_true_or_false(capsys):
    assert cli.main(["train", "r.yaml", "fresh=perhaps"]) == 2
    assert "`fresh` cannot be 'perhaps'\n  fix: use one of: true, false" in capsys.readouterr().err


def test_a_check_says_which_keys_it_translated(tiny_recipe, tmp_path, capsys):
    recipes.write(recipes.load(tiny_recipe), tmp_path / "r.yaml")
    assert cli.main(["recipe", "check", str(tmp_path / "r.yaml"), "warmup_ratio=0.1"]) == 0
    said = capsys.readouterr().out
    assert "warmup_ratio" in said.splitlines()[0] and said.endswith("r.yaml: valid recipe\n")
