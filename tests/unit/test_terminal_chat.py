"""The chat in the terminal: commands, Ctrl-C, a context that is full, sampling on the command line."""

import io
import json
import stat
import sys
from types import SimpleNamespace

import pytest
import serving

from ftlab.apps import cli, terminal_chat
from ftlab.apps.terminal_chat import Conversation
from ftlab.runs import chat, engines


@pytest.fixture
def asked(monkeypatch):
    """Let the model echo; returns what it was asked."""
    seen = []

    def stream(model, tokenizer, messages, **generation):
        seen.append(([(one["role"], one["content"]) for one in messages], generation))
        yield from ("re: ", messages[-1]["content"])

    monkeypatch.setattr(chat, "stream", stream)
    return seen


@pytest.fixture
def conversation(tiny_model_dir):
    return Conversation("tiny", *serving.load(tiny_model_dir))


def talk(conversation, monkeypatch, *typed: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    terminal_chat.talk(conversation)


def test_a_chat_with_commands(conversation, asked, monkeypatch, tmp_path, capsys):
    file = tmp_path / "talk.jsonl"
    typed = ["one", "", "two", f"/save {file}", "/what", "/clear", "three", "/system Arr.", "/system", "four", "/exit"]
    talk(conversation, monkeypatch, *typed, "five")
    said = [messages for messages, _ in asked]
    assert said == [
        [("user", "one")],
        [("user", "one"), ("assistant", "re: one"), ("user", "two")],
        [("user", "three")],
        [("system", "Arr."), ("user", "four")],
    ]
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert [turn["content"] for turn in row["messages"]] == ["one", "re: one", "two", "re: two"]
    printed = capsys.readouterr().out
    for text in ("512 tokens of context", "re: two\n", "4 turns appended", "/save FILE", "system prompt: Arr."):
        assert text in printed


def test_what_cannot_be_saved_is_said_and_the_chat_goes_on(conversation, asked, monkeypatch, tmp_path, capsys):
    talk(conversation, monkeypatch, "/save x", "one", "/save", f"/save {tmp_path}/no/x", "two")
    printed = capsys.readouterr().out
    assert printed.count("nothing to save yet") == 2 and "cannot write" in printed and len(asked) == 2


def test_ctrl_c_stops_the_answer_and_keeps_what_came(conversation, monkeypatch, capsys):
    def stopped(model, tokenizer, messages, **generation):
        if messages[-1]["content"] == "one":
            yield "It is"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "stream", stopped)
    talk(conversation, monkeypatch, "one", "two")
    # Nothing came for the second question: it is not asked again.
    assert [turn["content"] for turn in conversation.turns] == ["one", "It is"]
    assert "It is (stopped)" in capsys.readouterr().out


def test_a_full_context_drops_the_oldest_turns(conversation, asked, monkeypatch, capsys):
    conversation.system = [{"role": "system", "content": "Arr."}]
    talk(conversation, monkeypatch, "a" * 150, "b" * 150, "c" * 60, "d" * 600)
    assert [messages[1][1][0] for messages, _ in asked] == ["a", "b", "c"]
    assert all(messages[0] == ("system", "Arr.") for messages, _ in asked)
    printed = capsys.readouterr().out
    assert "(2 earliest turns dropped: the context holds 512 tokens)" in printed
    assert "this message is too long" in printed and conversation.turns[-1]["content"].startswith("re: c")
    # The answer never leaves the context.
    prompts = [messages for messages, _ in asked]
    room = [512 - len(conversation.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in prompt], add_generation_prompt=True, return_dict=True,
    )["input_ids"]) for prompt in prompts]  # fmt: skip
    assert [given["max_new_tokens"] for _, given in asked] == [min(256, left) for left in room]


def test_an_engine_s_own_context_counts(conversation):
    conversation.model = engines.Loop(lambda: None, conversation.model.generation_config, 99)
    assert conversation.context == 99


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        ([], {}),
        (["temperature=0"], {"do_sample": False}),
        (["temperature=0.5", "max_new_tokens=7"], {"temperature": 0.5, "do_sample": True, "max_new_tokens": 7}),
        (["top_k=3"], {"top_k": 3, "do_sample": True}),
        (["repetition_penalty=1.2"], {"repetition_penalty": 1.2}),
    ],
)
def test_a_model_takes_sampling_keys_without_a_recipe(tiny_model_dir, asked, monkeypatch, overrides, fields):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert cli.main(["chat", str(tiny_model_dir), *overrides]) == 0
    assert asked[0][1] == {"max_new_tokens": 256} | fields


def test_what_is_typed_is_kept_for_the_next_chat_of_this_user_alone(tmp_path, monkeypatch):
    readline = SimpleNamespace(lines=[], set_history_length=lambda count: None)
    readline.read_history_file = lambda path: readline.lines.extend(path.read_text().splitlines())
    readline.write_history_file = lambda path: path.write_text("one\n")
    monkeypatch.setitem(sys.modules, "readline", readline)
    path = tmp_path / "new" / "history"
    with terminal_chat.history(path):
        pass
    assert not path.exists(), "the input is no terminal"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for _ in range(2):
        with terminal_chat.history(path):
            pass
    assert readline.lines == ["one"] and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_input_that_the_shell_closed_ends_the_chat(conversation, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    terminal_chat.talk(conversation)
