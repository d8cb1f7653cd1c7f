"""Read files of other frameworks: which framework it is, its keys and their places. Nothing is executed.

YAML and JSON are read as mappings, shell commands word by word, scripts and notebooks by their syntax tree.
"""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ftlab.data import decoding
from ftlab.errors import fail, say
from ftlab.recipe import strict_yaml
from ftlab.recipe.frameworks.alpaca_lora import ALPACA_LORA
from ftlab.recipe.frameworks.axolotl import AXOLOTL
from ftlab.recipe.frameworks.llamafactory import LLAMA_FACTORY_V1, saved_by_board
from ftlab.recipe.frameworks.peft import PEFT
from ftlab.recipe.frameworks.swift import SWIFT
from ftlab.recipe.frameworks.table import Framework, Values
from ftlab.recipe.frameworks.trl import TRL, VERBS
from ftlab.recipe.frameworks.unsloth import UNSLOTH
from ftlab.recipe.frameworks.verl import VERL
from ftlab.recipe.training_fields import FIELDS

MAX_BYTES = 5_000_000
# Files of Windows' shells, in which a backslash belongs to a path.
WINDOWS = (".cmd", ".bat", ".ps1")
COMMANDS, SCRIPTS = (".sh", ".bash", ".txt", *WINDOWS), (".py", ".ipynb")
# Keys that a recipe, and so LLaMA-Factory's YAML, has and TRL's lacks; and keys of which TRL's has at least one.
NOT_TRL = {"stage", "dataset", "finetuning_type", "lora_rank", "template", "cutoff_len", "lora_target"}
ONLY_TRL = {
    "dataset_name", "datasets", "use_peft", "lora_r", "load_in_4bit", "load_in_8bit", "dtype", "attn_implementation",
    "lora_target_modules", "dataset_config", "dataset_train_split", "assistant_only_loss", "completion_only_loss",
}  # fmt: skip
ONLY_V1 = {
    "train_dataset", "peft_config", "model_class", "dist_config", "quant_config", "sample_backend", "kernel_config",
    "init_config", "global_batch_size",
}  # fmt: skip
ONLY_SWIFT = {"dataset", "tuner_type", "train_type", "rlhf_type", "model_type", "split_dataset_ratio", "adapters"}
# A recipe, with ftlab's own keys.
OWN = Framework(names={}, values={}, stages={}, tunings={}, title="LLaMA-Factory")
# Words that end the options of a command: pipes, redirections, the next command.
ENDS = re.compile(r"[12&]?>|\||;|&$")
# The end of a line that the next one continues: a shell's, cmd's and PowerShell's.
CONTINUED = re.compile(r"(?:\\|(?<=\s)[\^`])\n")
# A here-document: input of a command, not a command itself.
WRITTEN = re.compile(r"^cat > (\S+) <<'(?:END)'\n(.*?)^END$", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1([^\n]*)\n.*?^\s*\2$", re.DOTALL | re.MULTILINE)
# Calls in a script whose keyword arguments are settings.
CALLS = ("from_pretrained", "get_peft_model", "get_chat_template", "load_dataset", "train_on_responses_only")
# The name of their first positional argument.
FIRST = {"from_pretrained": "model_name", "load_dataset": "path"}
CONFIG = re.compile(r"(?:(SFT|DPO|KTO|ORPO|GRPO|RLOO|Reward)(?:Config|Trainer)|TrainingArguments)")
STAGES = {"SFT": "sft", "DPO": "dpo", "KTO": "kto", "ORPO": "orpo", "GRPO": "grpo", "RLOO": "rloo", "Reward": "rm"}
# Keyword arguments whose values are the script's own objects.
OBJECTS = {
    "model", "tokenizer", "processing_class", "train_dataset", "eval_dataset", "args", "data_collator", "peft_config",
    "callbacks", "formatting_func", "compute_metrics", "token", "ref_model",
}  # fmt: skip


class Source(NamedTuple):
    """A file of another framework: its keys, their places (`file:line`), and keys that are computed at run time."""

    framework: Framework
    values: Values
    places: dict[str, str]
    computed: tuple[str, ...] = ()


def recognize(path: Path) -> Source:
    """Read a file as a recipe, such as LLaMA-Factory's own YAML, or as a run of another framework.

    Raises:
        LabError: a file that cannot be read, or a command or script without a training.
    """
    if path.suffix in COMMANDS:
        return command(text_of(path), str(path))
    if path.suffix in SCRIPTS:
        return script(code_of(path), str(path))
    values, lines = strict_yaml.read(path)
    if "compute_environment" in values:
        raise fail("recipe_not_a_run", where=str(path), what="accelerate")
    return mapping(values, {key: f"{path}:{line}" for key, line in lines.items()})


def mapping(values: Values, places: dict[str, str]) -> Source:
    """Return the framework of a mapping by its keys, and its values."""
    keys = {name for name, value in values.items() if value is not None}
    if any(str(name).startswith("top.") for name in keys):
        return Source(OWN, board(values, places), {})
    if "peft_type" in keys:
        return Source(PEFT, values, places)
    if "base_model" in keys:
        return Source(AXOLOTL, booleans(values), places)
    if "model_name_or_path" in keys:
        trl = keys & ONLY_TRL and not keys & NOT_TRL
        return Source(TRL, booleans(values), places) if trl else Source(OWN, values, places)
    if "model" in keys and keys & ONLY_V1:
        return Source(LLAMA_FACTORY_V1, values, places)
    swift = keys & {"model", "model_id_or_path"} and keys & ONLY_SWIFT
    return Source(SWIFT, booleans(values), places) if swift else Source(OWN, values, places)


def board(values: Values, places: dict[str, str]) -> Values:
    """Read a file saved by LLaMA-Factory's Board.

    Raises:
        LabError: extra arguments that cannot be read.
    """
    try:
        return saved_by_board(values)
    except ValueError as error:
        raise fail("recipe_yaml", where=places.get("train.extra_args", ""), reason=str(error)) from None


def booleans(values: Values) -> Values:
    """Convert YAML 1.1's words for true and false to booleans: these frameworks read YAML 1.1."""
    words = {"yes": True, "on": True, "no": False, "off": False}
    return {
        name: words.get(value.lower(), value) if isinstance(value, str) and not name.endswith("_strategy") else value
        for name, value in values.items()
    }


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises:
        LabError: no such file, too big, not UTF-8.
    """
    if not path.is_file():
        raise strict_yaml.no_file(path)
    if path.stat().st_size > MAX_BYTES:
        raise fail("recipe_too_big", where=str(path), limit=MAX_BYTES // 1000)
    return decoding.text_of(path)


def command(text: str, where: str) -> Source:
    """Read the one training command of a shell script.

    Raises:
        LabError: no such command, several, or words that only the shell can compute.
    """
    variables: dict[str, str] = {}
    matches: list[tuple[list[str], tuple[str, str, int], dict[str, str]]] = []
    bare = "\n".join(uncommented(line) for line in HEREDOC.sub(r"\3", text).splitlines())
    lines = CONTINUED.sub(" ", bare).splitlines()
    for command_words in (words for line in lines for words in commands(line, where)):
        words = [expand(word, variables) for word in command_words if word not in ("nohup", "&")]
        words = words[words[:1] == ["export"] :]
        assigned = {}
        while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
            name, _, value = words.pop(0).partition("=")
            assigned[name] = value
        if words and words[0].startswith("--"):
            raise fail("recipe_command", where=where, reason=say("command_ends", word=words[0]))
        if start := starter(words):
            matches.append((words, start, variables | assigned))
        elif not words:
            variables |= assigned
    if len(matches) != 1:
        raise fail("recipe_command", where=where, reason=say("command_several" if matches else "command_none"))
    own = {match[1]: match[2] for match in WRITTEN.finditer(text)}
    source = options(*matches[0], where, own)
    return source._replace(computed=unknown_processes(*matches[0]))


def commands(line: str, where: str) -> list[list[str]]:
    """Return the words of each command of a line: `cd there && train it; echo done` has three.

    Raises:
        LabError: an unclosed quote.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
    lexer.whitespace_split, lexer.commenters = True, ""
    lexer.escape = "" if Path(where).suffix in WINDOWS else lexer.escape
    result: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word in ("&&", "||", ";"):
                result.append([])
            else:
                result[-1].append(word)
    except ValueError:
        raise fail("recipe_command", where=where, reason=say("command_quote")) from None
    return [words for words in result if words]


def uncommented(line: str) -> str:
    """Return a line of a shell script without its comment; in `rows#500` the # is part of the word."""
    quote = ""
    for place, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote and not (quote == '"' and line[place - 1] == "\\") else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and (not place or line[place - 1].isspace()):
            return line[:place]
    return line


def expand(word: str, variables: dict[str, str]) -> str:
    """Return a word in which the shell variables that the file itself sets are expanded."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], match[0]), word)


def starter(words: list[str]) -> tuple[str, str, int] | None:
    """Return (framework, verb, where its options start) of a command, None for any other command."""
    names = [Path(word).name for word in words]
    for place, name in enumerate(names):
        after = names[place + 1] if place + 1 < len(names) else ""
        if name in ("llamafactory-cli", "lmf"):
            return "llamafactory", after, place + 2
        # `pip install trl` starts nothing.
        if name in ("swift", "axolotl", "trl") and (place == 0 or words[place - 1] == "run"):
            return name, after, place + 2
        if name in ("axolotl.cli.train", "swift.cli.sft", "swift.cli.pt", "swift.cli.rlhf"):
            return name.partition(".")[0], name.rpartition(".")[2], place + 1
        if name == "verl.trainer.main_ppo" or words[place].endswith("verl/trainer/main_ppo.py"):
            return "verl", "", place + 1
        if name == "finetune.py":
            return "alpaca-lora", "", place + 1
        folder, stem = Path(words[place]).parent.as_posix(), Path(name).stem
        if name in ("train_bash.py", "train.py") and folder.endswith("src"):
            return "llamafactory", "train", place + 1
        if name.endswith(".py") and folder.endswith("swift/cli"):
            return "swift", stem, place + 1
        if name.endswith(".py") and folder.endswith("scripts") and stem in VERBS:
            return "trl", stem, place + 1
    return None


def options(
    words: list[str], start: tuple[str, str, int], environment: dict[str, str], where: str, written: dict[str, str]
) -> Source:
    """Return the keys of a command; `start` is the result of `starter`, `written` are the files that the script writes.

    Raises:
        LabError: a verb other than training, a word that only a shell could compute, a word that is not an option.
    """
    name, verb, place = start
    if unset := next((word for word in words[place:] if "$" in word or "`" in word), None):
        raise fail("recipe_command", where=where, reason=say("command_shell", word=unset))
    values, bare = pairs(words[place:], where)
    values |= launched(words[:place], environment)
    file = next((word for word in bare if word.endswith((".yaml", ".yml", ".json")) and "=" not in word), None)
    config = values.pop("config", None) or file
    for word in bare:
        key, equals, value = word.partition("=")
        if word != config and not equals:
            raise fail("recipe_command", where=where, reason=say("command_word", word=word))
        values |= {key.lstrip("+"): strict_yaml.parse(value, where)} if equals else {}
    if config:
        own = written.get(str(config))
        read = strict_yaml.parse(own, where) if own is not None else strict_yaml.read(Path(str(config)))[0]
        values = read | values
    return source_of(name, verb, values, where)


def source_of(name: str, verb: str, values: Values, where: str) -> Source:
    """Return a command's keys with those implied by its verb."""
    known: dict[str, tuple[Framework | None, dict[str, Values]]] = {
        "llamafactory": (None, {"train": {}}),
        "swift": (SWIFT, {"sft": {}, "pt": {"stage": "pt"}, "rlhf": {"rlhf_type": values.get("rlhf_type", "dpo")}}),
        "axolotl": (AXOLOTL, {"train": {}}),
        "trl": (TRL, {verb: {"stage": stage} for verb, stage in VERBS.items()}),
        "alpaca-lora": (ALPACA_LORA, {"": {}}),
        "verl": (VERL, {"": {}}),
    }
    framework, verbs = known[name]
    if verb not in verbs:
        raise fail("recipe_command", where=where, reason=say("command_verb", name=name, verb=verb))
    places = dict.fromkeys(values, where)
    if framework is None:
        # LLaMA-Factory's own keys, in its old format or its new one.
        return mapping(values, places)
    return Source(framework, booleans(values) | verbs[verb], places)


def pairs(words: list[str], where: str) -> tuple[Values, list[str]]:
    """Return the options of a command, and the remaining words."""
    values: Values = {}
    bare: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if ENDS.match(word):
            break
        if not word.startswith("--"):
            bare.append(word)
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        inline = [text] if equals else []
        while not equals and rest and not (rest[0].startswith("--") or ENDS.match(rest[0])):
            inline.append(rest.pop(0))
        parsed = [part_of(text, where) for text in inline]
        name = name.replace("-", "_")
        if not parsed and name.startswith("no_") and name[3:] in FIELDS:
            # argparse's way to turn a switch off.
            values[name[3:]] = False
        else:
            values[name] = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
    return values, bare


def part_of(text: str, where: str) -> Any:
    """Return one value of a command line: a number, true, a list, or text."""
    lowered = {"True": True, "False": False, "None": None}
    if text in lowered:
        return lowered[text]
    if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false|null|[\[{].*", text, re.IGNORECASE | re.DOTALL):
        return strict_yaml.parse(text, where)
    return text


def unknown_processes(words: list[str], start: tuple[str, str, int], environment: dict[str, str]) -> tuple[str, ...]:
    """Return launcher options about processes that depend on a shell or on several machines."""
    text = " ".join(words[: start[2]])
    count = re.findall(rf"{PROCESSES}\D[^ ]*", text)
    count += [f"NPROC_PER_NODE={value}" for value in [environment.get("NPROC_PER_NODE", "")] if "$" in value]
    nodes = re.findall(r"--(?:nnodes|num_nodes|num_machines)[ =](?!1\b)[^ ]+", text)
    nodes += [f"NNODES={value}" for value in [environment.get("NNODES", "1")] if value != "1"]
    return (*count, *nodes)


PROCESSES = r"--(?:nproc[-_]per[-_]node|num_processes|num_gpus)[ =]"


def launched(words: list[str], environment: dict[str, str]) -> Values:
    """Return the number of processes that a launcher, or swift's environment, asks for."""
    text = " ".join(words)
    match = re.search(rf"{PROCESSES}(\d+)", text)
    count = match[1] if match else environment.get("NPROC_PER_NODE", "")
    return {"nproc_per_node": int(count)} if count.isdigit() else {}


def code_of(path: Path) -> str:
    """Return the Python code of a script, or of a notebook's cells, without IPython's own syntax."""
    text = text_of(path)
    if path.suffix == ".py":
        return text
    try:
        cells = json.loads(text)["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise fail("recipe_yaml", where=str(path), reason=say("not_a_notebook")) from None
    lines = "\n".join(source for source in sources if not source.startswith("%%")).splitlines()
    return "\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in lines)


def script(code: str, where: str) -> Source:
    """Return the literal settings of an unsloth script.

    Raises:
        LabError: not Python, or no unsloth model in it.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = (isinstance(error, SyntaxError) and error.lineno) or 1
        raise fail("recipe_script", where=where, reason=say("script_syntax", line=line)) from None
    constants = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    values: Values = {}
    places: dict[str, str] = {}
    unread: list[str] = []
    calls = sorted(settings(tree), key=lambda call: call[1])
    for _, line, keywords in calls:
        for name, node in keywords:
            value = literal(node, constants) if name else UNKNOWN
            if value is UNKNOWN or values.get(name, value) != value:
                unread.append(name or f"**{ast.unparse(node)}")
            elif name not in values:
                values[name] = value
                # In a notebook, lines are counted per cell.
                places[name] = f"{where}:{line}" if where.endswith(".py") else where
    if any(call.endswith("TrainingArguments") for call, _, _ in calls):
        # TRL's own configs have a different default.
        values.setdefault("learning_rate", 5e-5)
    if not any(call.startswith("Fast") for call, _, _ in calls):
        raise fail("recipe_script", where=where, reason=say("script_no_model"))
    return Source(UNSLOTH, values, places, tuple(dict.fromkeys(unread)))


UNKNOWN = object()


def settings(tree: ast.Module) -> Iterator[tuple[str, int, list[tuple[str, ast.expr]]]]:
    """Yield (name, line, keyword arguments) of the calls with settings; the key is "" for `**kwargs`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        whole = ast.unparse(node.func)
        name = whole.rpartition(".")[2]
        config = CONFIG.fullmatch(name)
        keywords = [(one.arg or "", one.value) for one in node.keywords if one.arg not in OBJECTS]
        if name == "from_pretrained" and not whole.startswith("Fast"):
            continue
        if name in FIRST and node.args:
            keywords.append((FIRST[name], node.args[0]))
        if config and config[1]:
            keywords.append(("stage", ast.Constant(STAGES[config[1]])))
        if name == "train_on_responses_only":
            keywords = [(name, ast.Constant(True))]
        if name in CALLS or config:
            yield whole, node.lineno, keywords


def literal(node: ast.expr, constants: dict[str, ast.expr]) -> Any:
    """Return the value of a literal, or of a name bound to one; UNKNOWN for values computed at run time."""
    if isinstance(node, ast.Name) and node.id in constants:
        node = constants[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return UNKNOWN
