"""LLaMA-Factory's token ids and labels beside ftlab's, on the sets of tests/golden/llamafactory.json.

Runs the converters, templates and processors of an unpacked LLaMA-Factory; nothing else of it is imported, so this
needs no model, and works with the libraries of this environment. The results are written into the golden file as text,
trained parts between ⟦ and ⟧; a unit test compares them with ftlab without LLaMA-Factory.
"""

import contextlib
import copy
import importlib
import importlib.resources
import io
import itertools
import json
import re
import sys
import tempfile
import unittest.mock
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from ftlab import models
from ftlab.data import encoding, registry
from ftlab.recipe import templates
from ftlab.tokens import IGNORED

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "llamafactory.json"
# For each template of LLaMA-Factory's: its name there, the model's own chat template (none: a base model), eos and bos.
FAMILIES = {
    "qwen": ("qwen", "qwen2_5", "<|im_end|>", None),
    "qwen3": ("qwen3", "qwen3", "<|im_end|>", None),
    "qwen3_nothink": ("qwen3_nothink", "qwen3_instruct_2507", "<|im_end|>", None),
    "llama3": ("llama3", "llama3", "<|eot_id|>", "<|begin_of_text|>"),
    "llama3.1": ("llama3", "llama3_1", "<|eot_id|>", "<|begin_of_text|>"),
    "chatml": ("chatml", None, "<|im_end|>", None),
    "alpaca": ("alpaca", None, "<|endoftext|>", None),
    "default": ("default", None, "<|endoftext|>", None),
    "plain": ("qwen3_nothink", None, "<|im_end|>", None),
}
CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# Added tokens of Qwen's that are text to its tokenizer.
WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
WORDS_OF_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROCESSORS = {
    "sft": ("supervised", "SupervisedDatasetProcessor"),
    "pair": ("pairwise", "PairwiseDatasetProcessor"),
    "feedback": ("feedback", "FeedbackDatasetProcessor"),
    "text": ("pretrain", "PretrainDatasetProcessor"),
}
Case = dict[str, Any]
Side = list[tuple[list[int], list[int]]]


def measure(repeats: int, steps: int, command: str = "") -> dict[str, Any]:
    """Rewrite the golden file; print how many of its cases are equal, also with a tokenizer that has merges.

    Args:
        command: the folder that contains the package `llamafactory`.
    Raises:
        SystemExit: no folder is given; a difference has no reason, or a reason no difference.
    """
    if not command:
        raise SystemExit("--llamafactory names the folder of an unpacked LLaMA-Factory")
    import_from(Path(command))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    byte_level = importlib.import_module("tests.tiny").make_tokenizer
    golden["cases"] = [compared(case, golden["sets"][case["set"]], byte_level) for case in golden["cases"]]
    GOLDEN.write_text(written(golden), encoding="utf-8")
    alike = [case for case in golden["cases"] if "why" not in case]
    merged = [equal(case, golden["sets"][case["set"]], with_merges) for case in alike]
    for case in itertools.compress(alike, (not one for one in merged)):
        print(f"with merges other ids: {case['set']} under {case['template']} {case.get('options', '')}")
    print(f"{len(golden['cases'])} cases, {len(golden['cases']) - len(alike)} with a difference that has a reason")
    return {"ratios": {"equal, of those without": 1.0, "equal, with merges": sum(merged) / len(merged)}}


def compared(case: Case, data: Case, base: Callable[[], PreTrainedTokenizerBase]) -> Case:
    """Return a case with the texts that both sides give, ftlab's only where it differs."""
    tokenizer = family_of(case["template"], base())
    found = {name: case[name] for name in ("set", "template", "options", "why") if name in case}
    found["llamafactory"] = [marked(tokenizer, *one) for one in theirs(case, data, base)]
    own = [marked(tokenizer, *one) for one in ours(case, data, base)]
    differs = own != [without_line_break(text, case, data) for text in found["llamafactory"]]
    if differs != ("why" in case):
        raise SystemExit(f"{'no reason' if differs else 'no difference'}: {json.dumps(found, indent=1)}\nftlab: {own}")
    return found | ({"ftlab": own} if differs else {})


def equal(case: Case, data: Case, base: Callable[[], PreTrainedTokenizerBase]) -> bool:
    """Return True if both sides give the same ids and labels."""
    found = [side(case, data, base) for side in (ours, theirs)]
    tokenizer = family_of(case["template"], base())
    own, other = ([marked(tokenizer, *one) for one in side] for side in found)
    alike = own == [without_line_break(text, case, data) for text in other]
    return alike and all(ids == more[: len(ids)] for (ids, _), (more, _) in zip(*found, strict=True))


def without_line_break(text: str, case: Case, data: Case) -> str:
    """Return LLaMA-Factory's text with what it trains behind the token that ends an answer not trained on."""
    if case.get("options", {}).get("train_on_prompt"):
        return text
    kept = "" if data["stage"] in ("pair", "feedback") else r"\2"
    return re.sub(r"(<\|im_end\|>|<\|endoftext\|>)(\n+)⟧", rf"\1⟧{kept}", text)


def marked(tokenizer: PreTrainedTokenizerBase, input_ids: list[int], labels: list[int]) -> str:
    """Return the text of a training example, trained parts between ⟦ and ⟧."""
    parts = itertools.groupby(zip(input_ids, labels, strict=True), lambda pair: pair[1] != IGNORED)
    texts = [(trained, tokenizer.decode([token for token, _ in pairs])) for trained, pairs in parts]
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in texts)


def family_of(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer the control tokens and the chat template of a family of models."""
    _, own, eos, bos = FAMILIES[name]
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL, "<|begin_of_text|>"]})
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    tokenizer.eos_token, tokenizer.bos_token = eos, bos
    folder = importlib.resources.files("trl") / "chat_templates"
    tokenizer.chat_template = (folder / f"{own}.jinja").read_text(encoding="utf-8") if own else None
    return tokenizer


@lru_cache(maxsize=1)
def with_merges() -> PreTrainedTokenizerBase:
    """Return the embedded model's tokenizer, but words and line breaks parted as Qwen's and Llama 3's part them."""
    tokenizer = AutoTokenizer.from_pretrained(models.fetch("smollm2-135m"))
    words = [pre_tokenizers.Split(Regex(WORDS_OF_QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    return tokenizer


def ours(case: Case, data: Case, base: Callable[[], PreTrainedTokenizerBase]) -> Side:
    """Return ids and labels of each training example that a set gives in ftlab."""
    tokenizer = family_of(case["template"], base())
    if tokenizer.chat_template is None:
        templates.apply(FAMILIES[case["template"]][0], tokenizer)
    how = encoding.Encoding(**case.get("options", {}))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.json").write_text(json.dumps(data["rows"]))
        (Path(folder) / "dataset_info.json").write_text(json.dumps({"set": data["entry"] | {"file_name": "rows.json"}}))
        with contextlib.redirect_stdout(io.StringIO()):
            rows = registry.rows_of("set", folder)
    made = [one for row in rows for one in encoding.shown(tokenizer, row, how)]
    return [(one["input_ids"], one["labels"]) for one in made]


def theirs(case: Case, data: Case, base: Callable[[], PreTrainedTokenizerBase]) -> Side:
    """Return ids and labels of each training example that a set gives in LLaMA-Factory."""
    settings = SimpleNamespace(
        template=FAMILIES[case["template"]][0], tool_format=None, enable_thinking=True, preserve_thinking=False,
        **({"cutoff_len": 2048, "train_on_prompt": False, "mask_history": False, "default_system": None,
            "packing": False, "media_dir": ""} | case.get("options", {})),
    )  # fmt: skip
    tokenizer = family_of(case["template"], base())
    # It writes `default_system` into a table that is shared by the whole process.
    with unittest.mock.patch.object(part("template"), "TEMPLATES", copy.deepcopy(part("template").TEMPLATES)):
        template = part("template").get_template_and_fix_tokenizer(tokenizer, settings)
    attributes = part("parser").DatasetAttr("file", dataset_name="set")
    attributes.join(data["entry"])
    convert = part("converter").get_dataset_converter(attributes.formatting, attributes, settings)
    columns = {name: None for name in vars(attributes).values() if isinstance(name, str)}
    examples = [convert(columns | row) for row in data["rows"]]
    module, name = PROCESSORS[data["stage"]]
    processor = getattr(part(f"processor.{module}"), name)(template, tokenizer, None, settings)
    found = processor.preprocess_dataset({key: [one[key] for one in examples] for key in examples[0]})
    if data["stage"] == "text":
        return [(ids, ids) for ids in found["input_ids"]]
    prefixes = ("chosen_", "rejected_") if data["stage"] == "pair" else ("",)
    sides = [zip(found[f"{one}input_ids"], found[f"{one}labels"], strict=True) for one in prefixes]
    return [one for pair in zip(*sides, strict=True) for one in pair]


def part(name: str) -> ModuleType:
    """Return a module of LLaMA-Factory's data code."""
    return importlib.import_module(f"llamafactory.data.{name}")


def import_from(folder: Path) -> None:
    """Make LLaMA-Factory's data code importable alone: its other modules need libraries that text does not."""
    log = SimpleNamespace(**dict.fromkeys(("info_rank0", "warning_rank0", "warning_rank0_once"), lambda _: None))
    plugin = SimpleNamespace(
        process_messages=lambda messages, *_: messages, process_token_ids=lambda ids, labels, *_: (ids, labels)
    )
    modules: dict[str, dict[str, Any]] = {
        "": {"__path__": [str(folder / "llamafactory")]},
        ".data": {"__path__": [str(folder / "llamafactory" / "data")]},
        ".data.mm_plugin": {"get_mm_plugin": lambda *_, **__: plugin},
        ".extras": {"__path__": []},
        ".extras.logging": {"get_logger": lambda _: log},
        ".extras.constants": {"IGNORE_INDEX": IGNORED, "DATA_CONFIG": "dataset_info.json"},
        ".extras.misc": {"use_modelscope": lambda: False, "use_openmind": lambda: False},
    }
    for name, content in modules.items():
        module = sys.modules[f"llamafactory{name}"] = ModuleType(f"llamafactory{name}")
        vars(module).update(content)
    # Its tool prompt for Llama 3 contains the date.
    part("tool_utils").datetime = SimpleNamespace(now=lambda: datetime(2024, 7, 26))


def written(golden: Case) -> str:
    """Return the golden file's text, a line for each row and each case."""
    sets = (f"{json.dumps(name)}: {json.dumps(one, ensure_ascii=False)}" for name, one in golden["sets"].items())
    cases = (json.dumps(case, ensure_ascii=False) for case in golden["cases"])
    return '{"sets": {\n' + ",\n".join(sets) + '\n},\n"cases": [\n' + ",\n".join(cases) + "\n]}\n"
