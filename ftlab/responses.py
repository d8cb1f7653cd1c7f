"""Parse what a model generated: reasoning, text and tool calls.

Every chat template has its own syntax for calls. It is detected by rendering a call and
trying which reader parses it back, so small differences between templates do not matter.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing.response_parser import parse_response

from ftlab import tokens
from ftlab.errors import LabError

# TRL's descriptions of the syntaxes that are not JSON, and one that it lacks (Muse Glimmer's).
TRL_SYNTAXES = ("qwen3_5", "nemotron_3", "glm4moe", "gptoss", "lfm2_2_5", "gemma4")
ATEM = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start|>assistant",
    "fields": {
        "tool_calls": {
            "open_pattern": r'(\s*to=\S+<\|message\|>)?(<atem:function_calls>)?\s*<atem:invoke name="(?P<name>[^"]+)">',
            "close_pattern": r"</atem:invoke>\s*(</atem:function_calls>)?\s*",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r'<atem:parameter name="(?P<key>[^"]+)">(?P<value>.*?)</atem:parameter>'},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}
# With the brackets of Mistral's list of calls.
WRAPPERS = re.compile(r"</?tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|\[[\s,]*\]")
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
PROBE_CALL = {"name": "probe_tool", "arguments": {"city": "Oslo", "days": 3}}
PROBE = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00000", "type": "function", "function": PROBE_CALL}],
    },
]


class Response(NamedTuple):
    """One answer.

    Attributes:
        content: the text without reasoning, tool calls, and end-of-turn tokens.
        calls: {"name": str, "arguments": dict} of every tool call, in the order written.
    """

    thought: str
    content: str
    calls: list[dict[str, Any]]

    def equals(self, other: "Response") -> bool:
        """Return True if two answers are equal; empty answers never are.

        If there are calls, only they count: name and arguments, whatever the order of the keys.
        """
        if self.calls or other.calls:
            return [canonical(call) for call in self.calls] == [canonical(call) for call in other.calls]
        return bool(self.content.strip()) and self.content.strip() == other.content.strip()


# (answer text, prompt text, tools) -> Response.
Read = Callable[[str, str, list | None], Response]


class Reader:
    """A reader of a model's answers under a tokenizer's chat template.

    Attributes:
        written: a call of PROBE_TOOL as the template writes it, "" if it writes no calls.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ends = [tokenizer.decode([token]) for token in tokens.end_ids(tokenizer)]
        self.written, self.parse = self.found()

    def read(self, prompt: Sequence[int], answer: Sequence[int], tools: list | None = None) -> Response:
        """Parse an answer's token ids, given the token ids of its prompt.

        Args:
            tools: JSON schemas; some templates write "3" and 3 alike, and only the schema tells them apart.
        """
        text = self.tokenizer.decode(answer)
        try:
            response = self.parse(text, self.tokenizer.decode(prompt), tools)
        except (ValueError, TypeError, KeyError):
            # An incomplete call.
            response = read_json(text, "", tools)
        if not response.calls and not response.content.strip():
            # Unfinished reasoning: all of it counts as the answer.
            response = Response("", text, [])
        return response._replace(content=self.without_end(response.content).strip())

    def may_equal(self, prefix: Sequence[int], expected: Response) -> bool:
        """Return True if an answer that begins with these token ids may still equal the expected one.

        True if not only the text decides (calls, omitted reasoning, spaces moved by decoding).
        """
        simple = self.parse is read_json and not self.tokenizer.clean_up_tokenization_spaces
        if not simple or expected.calls or "think" in str(self.tokenizer.chat_template):
            return True
        # The first tokens of a multi-byte character decode to this one.
        text = self.without_end(self.tokenizer.decode(prefix)).rstrip("\ufffd")
        return expected.content.strip().startswith(text.strip())

    def without_end(self, text: str) -> str:
        """Return a text without the tokens that end an answer."""
        end = next((end for end in self.ends if end and text.rstrip().endswith(end)), None)
        return self.without_end(text.rstrip().removesuffix(end)) if end else text

    def found(self) -> tuple[str, Read]:
        """Return a call as this template writes it, and the reader that parses it back; by default that of JSON."""
        try:
            encoded = tokens.encode(self.tokenizer, {"messages": PROBE, "tools": [PROBE_TOOL]})[-1]
        except (LabError, ValueError, TypeError, KeyError):
            return "", read_json
        prompt, answer = map(self.tokenizer.decode, split(encoded))
        for reader in readers(self.tokenizer):
            try:
                if reader(answer, prompt, [PROBE_TOOL]).calls == [PROBE_CALL]:
                    return self.without_end(answer), reader
            except (ValueError, TypeError, KeyError):
                continue
        return "", read_json


def split(example: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Return the prompt of an encoded example's last trained answer, and the ids of that answer."""
    trained = [label != tokens.IGNORED for label in example["labels"]]
    end = len(trained) - trained[::-1].index(True)
    start = end - trained[:end][::-1].index(False) if False in trained[:end] else 0
    return example["input_ids"][:start], example["input_ids"][start:end]


def readers(tokenizer: PreTrainedTokenizerBase) -> Iterator[Read]:
    """Yield the readers to try: the tokenizer's own, JSON, then the others that are known."""
    # Imported here: a lesson that only scores text does not need TRL.
    from trl import chat_template_utils

    if own := getattr(tokenizer, "response_template", None):
        yield by_syntax(own)
    yield read_json
    for name in TRL_SYNTAXES:
        yield by_syntax(getattr(chat_template_utils, f"{name}_template"))
    yield by_syntax(ATEM)


def by_syntax(syntax: dict[str, Any]) -> Read:
    """Return the reader of a syntax given as a `response_template` of transformers."""

    def read(text: str, prompt: str, tools: list | None) -> Response:
        parsed = parse_response(text, syntax, prefix=prompt, tools=tools)
        thought = parsed.get("reasoning_content") or parsed.get("thinking") or ""
        calls = [call["function"] for call in parsed.get("tool_calls", [])]
        return Response(thought, parsed.get("content") or "", [as_call(call) for call in calls])

    return read


def read_json(text: str, prompt: str, tools: list | None) -> Response:
    """Read calls that are JSON objects with a name and arguments, alone or in `<tool_call>` tags."""
    before, closed, after = text.rpartition("</think>")
    thought, text = (before.replace("<think>", "").strip(), after) if closed else ("", text)
    content, calls, place = "", [], 0
    while (start := text.find("{", place)) >= 0:
        content += text[place:start]
        try:
            value, place = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            value, place = None, start + 1
        if is_call(value):
            calls.append(as_call(value))
        else:
            content += text[start:place]
    content = WRAPPERS.sub("", content + text[place:]) if calls else content + text[place:]
    return Response(thought, content.strip(), calls)


def is_call(value: Any) -> bool:
    """Return True for {"name": ..., "arguments": ...}; Llama 3.1 says `parameters`, Mistral adds an `id`.

    >>> is_call({"name": "f", "arguments": "{}"}), is_call({"name": "Bob", "parameters": "tall"})
    (True, False)
    """
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and len(value.keys() - {"id"}) == 2
        and bool({"arguments", "parameters"} & set(value))
        and isinstance(arguments_of(value), dict)
    )


def as_call(value: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as a dictionary, whether given as an object or as JSON text."""
    return {"name": value["name"], "arguments": arguments_of(value)}


def arguments_of(value: dict[str, Any]) -> Any:
    """Return the arguments of a call, parsed if they are a JSON object as text; anything else unchanged."""
    arguments = value.get("arguments", value.get("parameters")) or {}
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


def canonical(value: Any) -> str:
    """Return a canonical JSON text: the order of keys does not matter, 1.0 equals 1, true does not.

    >>> canonical({"b": True, "a": [1.0, 0.5]})
    '{"a": [1, 0.5], "b": true}'
    """
    return json.dumps(with_whole_numbers(value), sort_keys=True, ensure_ascii=False)


def with_whole_numbers(value: Any) -> Any:
    """Return a JSON value in which integral floats are integers."""
    if isinstance(value, dict):
        return {name: with_whole_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_whole_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
