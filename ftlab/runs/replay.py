"""Replay: a model's own answers to general prompts, to mix into its fine-tune so that it forgets less."""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ftlab import evaluate, manifests, tokens
from ftlab.data import dataset_info, registry
from ftlab.errors import fail, say
from ftlab.runs import chat

Messages = list[dict[str, Any]]
# Statements about itself, which a fine-tune may want to change.
OF_ITSELF = re.compile(r"\b(AI|chatbot|assistant|language model)\b|人工智能|助手|语言模型")
NAME = re.compile(r"[\w.-]+")
MAX_SAMPLES, MAX_NEW_TOKENS = 200, 128


class Replay(NamedTuple):
    """A data set that was generated.

    Attributes:
        path: its file.
        asked: how many prompts were asked.
        kept: how many answers are in the file.
        dropped: key of the message with the reason -> how many answers were left out.
    """

    path: Path
    asked: int
    kept: int
    dropped: Mapping[str, int]

    def __str__(self) -> str:
        lines = [say("replay_written", path=self.path, asked=self.asked, kept=self.kept, name=self.path.stem)]
        return "\n".join(lines + [f"  {say(reason)}: {count}" for reason, count in self.dropped.items()])


def write(
    name: str,
    prompts: str = "general_en",
    dataset_dir: str | Path = "data",
    *,
    model: str = "smollm2-135m",
    max_samples: int = MAX_SAMPLES,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 42,
    trust_remote_code: bool = False,
) -> Replay:
    """Generate a model's answers to general prompts and register them as a data set; reproducible by `seed`.

    Answers are greedy. Those that are empty, unfinished, repetitive or about the model itself are left out.
    Source: Yang et al. 2024, "Self-distillation bridges distribution gap" (arXiv 2402.13669).

    Args:
        name: of the new data set: it becomes `dataset_dir`/`name`.jsonl and an entry of dataset_info.json.
        prompts: registry names or paths, separated by commas; only their prompts are used, not their answers.
        max_samples: prompts to ask, drawn at random.
        max_new_tokens: longer answers count as unfinished.
    Raises:
        LabError: the name is invalid or taken, there are no such prompts or model, or no answer could be kept.
    """
    folder = Path(dataset_dir)
    refuse_name(name, folder)
    questions = drawn(prompts, folder, max_samples, seed)
    network, tokenizer = chat.load(model, trust_remote_code=trust_remote_code)
    ids = evaluate.generate_ids(
        network, tokenizer, [tokens.prompt(tokenizer, one) for one in questions], max_new_tokens
    )
    ends = evaluate.end_ids(network, tokenizer)
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    reasons = [problem(text, bool(one) and one[-1] in ends) for text, one in zip(texts, ids, strict=True)]
    rows = [row(*pair) for *pair, reason in zip(questions, texts, reasons, strict=True) if not reason]
    dropped = Counter(filter(None, reasons))
    if not rows:
        said = ", ".join(f"{say(reason)}: {count}" for reason, count in dropped.items())
        raise fail("replay_none_kept", where=prompts, asked=len(questions), reasons=said)
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows]
    manifests.write_text(folder / f"{name}.jsonl", "".join(lines))
    dataset_info.register(name, {"file_name": f"{name}.jsonl", "formatting": "openai"}, folder)
    return Replay(folder / f"{name}.jsonl", len(questions), len(rows), dropped)


def refuse_name(name: str, folder: Path) -> None:
    """Refuse a name that is not a valid file name, or that is already taken."""
    if not NAME.fullmatch(name) or name.startswith("."):
        raise fail("replay_name", where="NAME", name=name)
    if not folder.is_dir():
        raise fail("data_no_folder", where=str(folder))
    taken = dataset_info.read_info(folder) if (folder / dataset_info.INFO).is_file() else {}
    if name in taken or (folder / f"{name}.jsonl").exists():
        raise fail("data_name_taken", where=str(folder), name=name)


def drawn(prompts: str, folder: Path, max_samples: int, seed: int) -> list[Messages]:
    """Return up to `max_samples` different prompts in random order: the turns before the first answer of each row."""
    examples = registry.load(prompts, folder, on_bad_rows="drop")
    if not {"messages", "prompt"} & set(examples.column_names):
        raise fail("replay_no_prompts", where=prompts)
    column = "messages" if "messages" in examples.column_names else "prompt"
    different = {json.dumps(opening(turns)): opening(turns) for turns in examples[column]}
    return random.Random(seed).sample(list(different.values()), min(max_samples, len(different)))


def opening(messages: Messages) -> Messages:
    """Return the turns of a conversation before its first answer, as role and content.

    >>> opening([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return [{"role": one["role"], "content": one["content"]} for one in messages[: answers[0] if answers else None]]


def problem(answer: str, ended: bool) -> str:
    """Return the key of the message why an answer is left out, "" if it is kept.

    >>> problem("Paris.", True), problem("The the the the the the the the the", True), problem("I am an AI.", True)
    ('', 'replay_repetitive', 'replay_of_itself')
    """
    words = answer.casefold().split()
    if not words:
        return "replay_empty"
    if not ended:
        return "replay_unfinished"
    if len(words) > 8 and len(set(words)) < 0.6 * len(words):
        return "replay_repetitive"
    return "replay_of_itself" if OF_ITSELF.search(answer) else ""


def row(prompt: Messages, answer: str) -> dict[str, Any]:
    """Return a training example as ShareGPT-style messages."""
    return {"messages": [*prompt, {"role": "assistant", "content": answer}]}
