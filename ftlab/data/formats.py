"""Rows of every common format to the shapes TRL trains on, one function per format."""

import difflib
import json
from collections.abc import Callable
from typing import Any

from ftlab.data.read import Row, kind
from ftlab.errors import fail

Message = dict[str, Any]

ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT_COLUMNS = {"messages": "conversations"}
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
# Columns that a row may lack.
OPTIONAL = ("query", "system", "history", "tools")


class Columns(dict[str, str]):
    """What a format calls its columns: our name -> the file's name."""


def text_of(row: Row, column: str, where: str, *, required: bool = True) -> str:
    """Return the text in `column`, "" where it may be missing.

    Raises:
        LabError: missing, empty, not a string, or holding half a character (a lone surrogate).
    """
    if column not in row:
        if not required:
            return ""
        near = difflib.get_close_matches(column, [str(name) for name in row], n=1, cutoff=0.5)
        raise fail("data_no_column", where=where, column=column, near=near[0] if near else ", ".join(map(str, row)))
    value = row[column]
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise fail("data_not_text", where=where, column=column, got=kind(value))
    if required and not value.strip():
        raise fail("data_empty_text", where=where, column=column)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise fail("data_surrogate", where=where, column=column)
    return value


def alpaca_messages(row: Row, columns: Columns, where: str) -> list[Message]:
    """Return the turns of an alpaca row up to its answer: system, history, then instruction and input."""
    system = text_of(row, columns["system"], where, required=False) if "system" in columns else ""
    messages = [{"role": "system", "content": system}] if system else []
    for pair in history_of(row, columns, where):
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    query = text_of(row, columns["query"], where, required=False) if "query" in columns else ""
    prompt = text_of(row, columns["prompt"], where, required=not query)
    return [*messages, {"role": "user", "content": "\n".join(part for part in (prompt, query) if part)}]


def history_of(row: Row, columns: Columns, where: str) -> list[list[str]]:
    """Return the earlier [question, answer] pairs of an alpaca row."""
    history = row.get(columns.get("history", "history")) if "history" in columns else None
    pairs = history or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part.strip() for part in pair)
        for pair in pairs
    ):
        raise fail("data_history", where=where)
    return pairs


def alpaca(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """instruction, input, output, system, history -> messages."""
    answer = {"role": "assistant", "content": text_of(row, columns["response"], where)}
    return {"messages": [*alpaca_messages(row, columns, where), answer]}


def raw_text(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """One column of text -> text, for continued pre-training."""
    return {"text": text_of(row, columns["prompt"], where)}


def alpaca_preference(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """instruction, input, chosen, rejected -> prompt, chosen, rejected."""
    chosen, rejected = (text_of(row, columns[side], where) for side in ("chosen", "rejected"))
    return preference(alpaca_messages(row, columns, where), chosen, rejected, where)


def preference(prompt: list[Message], chosen: str, rejected: str, where: str) -> Row:
    """Build a preference row; equal sides teach nothing and are refused."""
    if chosen.strip() == rejected.strip():
        raise fail("data_equal_sides", where=where)
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt} | {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}


def alpaca_kto(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """instruction, input, output, kto_tag -> prompt, completion, label."""
    answer = {"role": "assistant", "content": text_of(row, columns["response"], where)}
    return {"prompt": alpaca_messages(row, columns, where), "completion": [answer]} | label_of(row, columns, where)


def label_of(row: Row, columns: Columns, where: str) -> dict[str, bool]:
    """Return the KTO label: was this answer liked?"""
    value = row.get(columns["kto_tag"])
    if not isinstance(value, bool):
        raise fail("data_kto_tag", where=where, column=columns["kto_tag"], got=kind(value))
    return {"label": value}


def turns(row: Row, columns: Columns, tags: dict[str, str], where: str) -> list[Message]:
    """Return the messages of a ShareGPT or OpenAI row, roles and order checked.

    Raises:
        LabError: naming the turn: unknown role, wrong order, empty content, a tool result nobody asked for.
    """
    conversation = row.get(columns["messages"])
    if not isinstance(conversation, list) or not conversation:
        raise fail("data_no_turns", where=where, column=columns["messages"], got=kind(conversation))
    messages = [message_of(turn, tags, f"{where}: turn {number}") for number, turn in enumerate(conversation, 1)]
    system = text_of(row, columns["system"], where, required=False) if "system" in columns else ""
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    check_order(messages, where)
    return messages


def message_of(turn: object, tags: dict[str, str], where: str) -> Message:
    """Return one turn under the roles that chat templates know."""
    if not isinstance(turn, dict):
        raise fail("data_not_object", where=where, got=kind(turn))
    named = text_of(turn, tags["role_tag"], where)
    roles = {
        tags[tag]: role
        for tag, role in (
            ("user_tag", "user"),
            ("assistant_tag", "assistant"),
            ("observation_tag", "tool"),
            ("function_tag", "function"),
            ("system_tag", "system"),
        )
        if tag in tags
    }
    if named not in roles:
        near = difflib.get_close_matches(named, roles, n=1, cutoff=0.4)
        raise fail("data_role", where=where, role=named, near=near[0] if near else ", ".join(roles))
    role = roles[named]
    if role == "assistant" and turn.get("tool_calls"):
        return {"role": role, "content": turn.get("content") or "", "tool_calls": checked_calls(turn, where)}
    content = text_of(turn, tags["content_tag"], where)
    return function_call(content, where) if role == "function" else {"role": role, "content": content}


def checked_calls(turn: Row, where: str) -> list[Row]:
    """Return the tool calls of an OpenAI turn."""
    calls = turn["tool_calls"]
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) and "name" in call["function"]
        for call in calls
    ):
        raise fail("data_tool_call", where=where)
    return [tool_call(call["function"]["name"], call["function"].get("arguments", {})) for call in calls]


def function_call(content: str, where: str) -> Message:
    """Return a ShareGPT function_call turn, whose value is JSON, as an assistant's tool call."""
    try:
        call = json.loads(content)
        return {"role": "assistant", "content": "", "tool_calls": [tool_call(call["name"], call["arguments"])]}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise fail("data_tool_call", where=where) from None


def tool_call(name: str, arguments: object) -> Row:
    """Build a tool call; its arguments stay text, because every tool has other ones and a table column has one type."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "function": {"name": name, "arguments": written}}


def check_order(messages: list[Message], where: str) -> None:
    """Refuse a conversation that no chat template could mean: user side and assistant side must alternate."""
    body = messages[1:] if messages[0]["role"] == "system" else messages
    for number, message in enumerate(body):
        place = f"{where}: turn {number + 1 + len(messages) - len(body)}"
        before = body[number - 1] if number else None
        if message["role"] == "system":
            raise fail("data_system_late", where=place)
        asked = message["role"] in ("user", "tool")
        several_results = message["role"] == "tool" and before is not None and before["role"] == "tool"
        if asked != (number % 2 == 0) and not several_results:
            raise fail("data_alternate", where=place, role=message["role"])
        called = before is not None and ("tool_calls" in before or before["role"] == "tool")
        if message["role"] == "tool" and not called:
            raise fail("data_unasked_result", where=place)
        if message["role"] == "user" and before is not None and "tool_calls" in before:
            raise fail("data_unanswered_call", where=place)


def tools_of(row: Row, columns: Columns, where: str) -> dict[str, str]:
    """Return the row's tools as JSON text, {} when it has none."""
    value = row.get(columns.get("tools", ""))
    if not value:
        return {}
    try:
        tools = json.loads(value) if isinstance(value, str) else value
        if not isinstance(tools, list):
            raise ValueError
    except (ValueError, RecursionError):
        raise fail("data_tools", where=where, column=columns["tools"]) from None
    return {"tools": json.dumps(tools, ensure_ascii=False)}


def sharegpt(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """conversations of from/value (or messages of role/content) -> messages, tools."""
    messages = turns(row, columns, tags, where)
    if messages[-1]["role"] != "assistant":
        raise fail("data_no_answer", where=where, role=messages[-1]["role"])
    return {"messages": messages} | tools_of(row, columns, where)


def sharegpt_preference(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """conversations that end with a question, chosen and rejected answers -> prompt, chosen, rejected."""
    prompt = turns(row, columns, tags, where)
    if prompt[-1]["role"] not in ("user", "tool"):
        raise fail("data_prompt_end", where=where, role=prompt[-1]["role"])
    sides = []
    for side in ("chosen", "rejected"):
        message = message_of(row.get(columns[side]), tags, f"{where}: {side}")
        if message["role"] != "assistant":
            raise fail("data_side_role", where=f"{where}: {side}", role=message["role"])
        sides.append(message["content"])
    return preference(prompt, *sides, where)


def sharegpt_kto(row: Row, columns: Columns, tags: dict[str, str], where: str) -> Row:
    """conversations, kto_tag -> prompt, completion, label."""
    messages = sharegpt(row, columns, tags, where)["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:]} | label_of(row, columns, where)


def converter(formatting: str, ranking: bool, columns: Columns) -> Callable[[Row, Columns, dict[str, str], str], Row]:
    """Return the function for a registry entry."""
    chat = formatting != "alpaca"
    if ranking:
        return sharegpt_preference if chat else alpaca_preference
    if "kto_tag" in columns:
        return sharegpt_kto if chat else alpaca_kto
    if chat:
        return sharegpt
    return alpaca if "response" in columns else raw_text
