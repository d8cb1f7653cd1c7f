"""What a model wrote, read back: calls as calls under every chat template that shows tools, thoughts apart."""

import json
import re
from importlib import resources

import pytest
import tiny

from ftlab import responses, tokens

TEMPLATES = {
    path.name.removesuffix(".jinja"): path.read_text()
    for path in (resources.files("trl") / "chat_templates").iterdir()
    if path.name.endswith(".jinja") and not path.name.endswith("_training.jinja")
}
SHOWING = sorted(name for name, text in TEMPLATES.items() if "tools" in text)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"type": "string"}},
        },
    },
}
ARGUMENTS = {"city": "Oslo, Norway", "days": 3, "unit": "7"}


def under(name):
    """Return the byte tokenizer with a chat template and the control tokens in it."""
    tokenizer = tiny.make_tokenizer()
    if name != "chatml":
        tokenizer.chat_template = TEMPLATES[name]
        control = sorted(set(re.findall(r"<[|｜][^<>{}' ]*[|｜]>|<end_of_turn>", TEMPLATES[name])))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *control]})
    return tokenizer


@pytest.fixture
def tokenizer():
    return under("chatml")


def written(tokenizer, **message):
    """Return the prompt and the answer that training would show a model."""
    turns = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", **message}]
    return responses.split(tokens.encode(tokenizer, {"messages": turns, "tools": [TOOL]})[-1])


def calling(*arguments):
    """Return an assistant message that calls the tool once for each arguments."""
    calls = [{"name": "weather", "arguments": one} for one in arguments]
    return {"tool_calls": [{"id": f"call0000{i}", "type": "function", "function": one} for i, one in enumerate(calls)]}


def test_the_list_is_not_empty():
    assert len(SHOWING) >= 25 and {"qwen3", "llama3_1", "gptoss", "gemma4", "muse_glimmer", "lfm2"} <= set(SHOWING)


@pytest.mark.parametrize("name", ["chatml", *SHOWING])
def test_a_call_is_read_back_under_its_template(name):
    tokenizer = under(name)
    reader = responses.Reader(tokenizer)
    prompt, answer = written(tokenizer, **calling(ARGUMENTS))
    wanted = reader.read(prompt, answer, [TOOL])
    assert wanted.calls == [{"name": "weather", "arguments": ARGUMENTS}] and wanted.content == ""
    turned = dict(reversed(ARGUMENTS.items()))
    whole = ARGUMENTS | {"days": 3.0}
    for arguments, same in ((turned, True), (whole, True), (ARGUMENTS | {"days": 4}, False), ({"city": "Oslo"}, False)):
        assert reader.read(*written(tokenizer, **calling(arguments)), [TOOL]).equals(wanted) is same
    assert not reader.read(prompt, tokens.end_ids(tokenizer)).equals(wanted)


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "gemma4", "lfm2_2_5"])
def test_several_calls_are_compared_one_by_one(name):
    tokenizer = under(name)
    reader = responses.Reader(tokenizer)
    both = reader.read(*written(tokenizer, **calling({"city": "Oslo"}, {"city": "Rome"})))
    assert [call["arguments"]["city"] for call in both.calls] == ["Oslo", "Rome"]
    one = reader.read(*written(tokenizer, **calling({"city": "Oslo"})))
    assert not both.equals(one) and not one.equals(both) and both.equals(both)


def test_json_calls_are_read_however_they_are_written(tokenizer):
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    turned = {"arguments": {"city": "Oslo"}, "name": "weather"}
    for text in (
        json.dumps(call),
        json.dumps(turned, indent=2),
        f"<tool_call>\n{json.dumps(turned)}\n</tool_call>",
        json.dumps({"name": "weather", "parameters": {"city": "Oslo"}}),
        json.dumps(call | {"arguments": '{"city": "Oslo"}'}),
        f"[TOOL_CALLS][{json.dumps(call)}]",
    ):
        assert responses.read_json(text, "", None).calls == [call], text
    # Answers in JSON that are not calls, and a call that was cut off.
    others = (
        '{"name": "Anna", "arguments": "none"}',
        '{"name": "Anna", "parameters": [1]}',
        '{"name": "a", "arguments": 5}',
    )
    for text in (
        '{"name": "Anna", "city": "Oslo"}',
        '{"name": "weather"}',
        json.dumps(call)[:-3],
        "{ not JSON",
        *others,
    ):
        assert responses.read_json(text, "", None) == responses.Response("", text, [])


@pytest.mark.parametrize("name", ["chatml", "qwen3", "deepseek_r1_distill", "qwen3_5_think"])
def test_a_thought_does_not_count(name):
    tokenizer = under(name)
    reader = responses.Reader(tokenizer)
    long, short = (written(tokenizer, content="4", reasoning_content=thought) for thought in ("2 and 2 is 4.", "easy"))
    none = written(tokenizer, content="4")
    assert [reader.read(*one).content for one in (long, short, none)] == ["4"] * 3
    assert reader.read(*long).equals(reader.read(*none)) and reader.read(*short).equals(reader.read(*long))
    assert not reader.read(*long).equals(reader.read(*written(tokenizer, content="5")))


def test_nothing_matches_an_empty_answer(tokenizer):
    reader = responses.Reader(tokenizer)
    empty = reader.read([], [tokenizer.eos_token_id])
    assert empty.content == "" and not empty.equals(empty)
    # A thought that never ends is all there is.
    assert reader.read([], tokenizer("<think>hm").input_ids).content == "<think>hm"
