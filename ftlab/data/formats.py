"""Rows of every common format to the shapes TRL trains on, one function per format."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ftlab.data.read import MAX_DEPTH, TOO_DEEP, Row, depth, kind, nearest
from ftlab.errors import fail

Message = dict[str, Any]
Columns = dict[str, str]
Tags = dict[str, str]

ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
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
ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}
# What other formats call a role: too unlike the right name for a nearest match by letters.
ROLE_ALIASES = {
    "user_tag": ("user", "human", "prompter", "instruction"),
    "assistant_tag": ("assistant", "gpt", "bot", "model", "ai", "chatgpt", "llm"),
    "observation_tag": ("tool", "observation", "function_response", "ipython"),
    "function_tag": ("function_call", "tool_call", "function"),
    "system_tag": ("system",),
}


class Format(NamedTuple):
    """How a row becomes TRL's: the function, and the columns that it gives."""

    convert: Callable[[Row, Columns, Tags, str], Row]
    gives: tuple[str, ...]


def text_of(row: Row, column: str, where: str, *, required: bool = True) -> str:
    """Return the text in `column`, "" where it may be missing.

    Raises:
        LabError: missing, empty, or not a string.
    """
    if column not in row:
        if not required:
            return ""
        raise fail("data_no_column", where=where, column=column, near=nearest(column, row))
    value = row[column]
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise fail("data_not_text", where=where, column=column, got=kind(value))
    if required and not value.strip():
        raise fail("data_empty_text", where=where, column=column)
    return value


def optional_text(row: Row, columns: Columns, name: str, where: str) -> str:
    """Return the text of a column that the format or the row may lack."""
    return text_of(row, columns[name], where, required=False) if name in columns else ""


def alpaca_messages(row: Row, columns: Columns, where: str) -> list[Message]:
    """Return the turns of an alpaca row up to its answer: system, history, then instruction and input."""
    system = optional_text(row, columns, "system", where)
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for question, answer in history_of(row, columns, where):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    query = optional_text(row, columns, "query", where)
    prompt = text_of(row, columns["prompt"], where, required=not query.strip())
    return [*messages, {"role": "user", "content": "\n".join(part for part in (prompt, query) if part)}]


def history_of(row: Row, columns: Columns, where: str) -> list[list[str]]:
    """Return the earlier [question, answer] pairs of an alpaca row."""
    pairs = row.get(columns["history"]) if "history" in columns else None
    # A CSV file writes "no history" as an empty cell.
    if pairs is None or pairs == "":
        return []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part.strip() for part in pair)
        for pair in pairs
    ):
        raise fail("data_history", where=where, column=columns["history"])
    return pairs


def alpaca(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """instruction, input, output, system, history -> messages."""
    answer = {"role": "assistant", "content": text_of(row, columns["response"], where)}
    return {"messages": [*alpaca_messages(row, columns, where), answer]}


def raw_text(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """One column of text -> text, for continued pre-training."""
    return {"text": text_of(row, columns["prompt"], where)}


def alpaca_preference(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """instruction, input, chosen, rejected -> prompt, chosen, rejected."""
    chosen, rejected = (
        {"role": "assistant", "content": text_of(row, columns[side], where)} for side in ("chosen", "rejected")
    )
    return preference(alpaca_messages(row, columns, where), chosen, rejected, where)


def preference(prompt: list[Message], chosen: Message, rejected: Message, where: str) -> Row:
    """Build a preference row; equal sides teach nothing and are refused."""
    if {**chosen, "content": chosen["content"].strip()} == {**rejected, "content": rejected["content"].strip()}:
        raise fail("data_equal_sides", where=where)
    return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def alpaca_kto(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """instruction, input, output, kto_tag -> prompt, completion, label."""
    answer = {"role": "assistant", "content": text_of(row, columns["response"], where)}
    return {"prompt": alpaca_messages(row, columns, where), "completion": [answer], "label": label(row, columns, where)}


def label(row: Row, columns: Columns, where: str) -> bool:
    """Return the KTO label: was this answer liked?"""
    if columns["kto_tag"] not in row:
        raise fail("data_no_column", where=where, column=columns["kto_tag"], near=nearest(columns["kto_tag"], row))
    value = row[columns["kto_tag"]]
    if not isinstance(value, bool):
        raise fail("data_kto_tag", where=where, column=columns["kto_tag"], got=kind(value))
    return value


def turns(row: Row, columns: Columns, tags: Tags, where: str) -> list[Message]:
    """Return the messages of a ShareGPT or OpenAI row, roles and order checked.

    Raises:
        LabError: naming the turn: unknown role, wrong order, empty content, a tool result nobody asked for.
    """
    column = columns["messages"]
    if column not in row:
        raise fail("data_no_column", where=where, column=column, near=nearest(column, row))
    conversation = row[column]
    if not isinstance(conversation, list) or not conversation:
        raise fail("data_no_turns", where=where, column=column, got=kind(conversation))
    messages = [message_of(turn, tags, turn_place(where, number)) for number, turn in enumerate(conversation, 1)]
    check_order(messages, where)
    system = optional_text(row, columns, "system", where)
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def turn_place(where: str, number: int) -> str:
    """Name a turn of a row; turns are counted from 1."""
    return f"{where} (turn {number})"


def message_of(turn: object, tags: Tags, where: str) -> Message:
    """Return one turn under the roles that chat templates know."""
    if not isinstance(turn, dict):
        raise fail("data_not_object", where=where, got=kind(turn))
    role = role_of(text_of(turn, tags["role_tag"], where), tags, where)
    calls = turn.get("tool_calls")
    if calls and role != "assistant":
        raise fail("data_tool_call", where=where)
    # A call may come without words, and a tool may answer with none.
    required = not calls and (role != "tool" or tags["content_tag"] not in turn)
    content = text_of(turn, tags["content_tag"], where, required=required)
    if role == "function":
        return {"role": "assistant", "content": "", "tool_calls": function_calls(content, where)}
    if calls:
        return {"role": role, "content": content, "tool_calls": openai_calls(calls, where)}
    kept = {key: turn[key] for key in ("name", "tool_call_id") if role == "tool" and isinstance(turn.get(key), str)}
    return {"role": role, "content": content} | kept


def role_of(named: str, tags: Tags, where: str) -> str:
    """Return a role under the name that chat templates know.

    Raises:
        LabError: none of the tags has this name; the nearest is suggested.
    """
    for tag, role in ROLES.items():
        if tags.get(tag) == named:
            return role
    known = [tags[tag] for tag in ROLES if tag in tags]
    near = next((tags[tag] for tag, names in ROLE_ALIASES.items() if named.lower() in names and tag in tags), "")
    raise fail("data_role", where=where, role=named, near=near or nearest(named, known))


def openai_calls(calls: object, where: str) -> list[Row]:
    """Return the tool calls of an OpenAI turn, their arguments as objects, as chat templates expect them."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise fail("data_tool_call", where=where)
    made = []
    for call in calls:
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append(identity | tool_call(call.get("function"), where))
    return made


def function_calls(content: str, where: str) -> list[Row]:
    """Return the calls of a ShareGPT function_call turn, whose value is JSON: one call or a list of them."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise fail("data_tool_call", where=where) from None
    calls = found if isinstance(found, list) else [found]
    if not calls:
        raise fail("data_tool_call", where=where)
    return [tool_call(call, where) for call in calls]


def tool_call(function: object, where: str) -> Row:
    """Return one call: a name, and arguments as an object or as its JSON text."""
    try:
        name, arguments = function["name"], function.get("arguments", {})
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError):
        raise fail("data_tool_call", where=where) from None
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise fail("data_tool_call", where=where)
    check_storable(arguments, where)
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def check_storable(value: Any, where: str) -> None:
    """Refuse what the JSON type of `datasets` cannot hold: whole numbers above 64 bits, infinity, NaN, deep nesting."""
    if depth(value) > MAX_DEPTH:
        raise fail("data_json", where=where, reason=TOO_DEEP)
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list):
            waiting += inner.values() if isinstance(inner, dict) else inner
        too_big = isinstance(inner, int) and not -(2**63) <= inner < 2**63
        if too_big or (isinstance(inner, float) and not math.isfinite(inner)):
            raise fail("data_number", where=where, got=str(inner)[:24])


def check_order(messages: list[Message], where: str) -> None:
    """Refuse a conversation that no chat template could mean: user side and assistant side must alternate."""
    first = int(messages[0]["role"] == "system")
    open_calls: list[Row] = []
    before = "assistant"
    for number, message in enumerate(messages[first:], first + 1):
        place, role = turn_place(where, number), message["role"]
        if role == "system":
            raise fail("data_system_late", where=place)
        if role == "tool":
            open_calls = answered(message, open_calls, place)
        elif (role == "user") != (before == "assistant"):
            raise fail("data_alternate", where=place, role=role)
        elif role == "user" and open_calls and before == "assistant":
            raise fail("data_unanswered_call", where=place)
        else:
            check_ids_answered(open_calls, place)
            open_calls = message.get("tool_calls", [])
        before = role


def answered(result: Message, open_calls: list[Row], where: str) -> list[Row]:
    """Return the calls still open after a tool's result.

    Raises:
        LabError: the result answers no open call.
    """
    if not open_calls:
        raise fail("data_unasked_result", where=where)
    if "tool_call_id" not in result or not any("id" in call for call in open_calls):
        return open_calls[1:]
    left = [call for call in open_calls if call.get("id") != result["tool_call_id"]]
    if len(left) == len(open_calls):
        raise fail("data_unasked_result", where=where)
    return left


def check_ids_answered(open_calls: list[Row], where: str) -> None:
    """Refuse to go on while a call with an id waits; without ids one result may answer several calls."""
    if any("id" in call for call in open_calls):
        raise fail("data_unanswered_call", where=where)


def tools_of(row: Row, columns: Columns, where: str) -> dict[str, list[Row] | None]:
    """Return the row's tools as function schemas, None when it has none."""
    value = row.get(columns["tools"]) if "tools" in columns else None
    if not value:
        return {"tools": None}
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise fail("data_tools", where=where, column=columns["tools"])
    schemas = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    check_storable(schemas, where)
    if not all(isinstance(one["function"], dict) and isinstance(one["function"].get("name"), str) for one in schemas):
        raise fail("data_tools", where=where, column=columns["tools"])
    return {"tools": schemas or None}


def sharegpt(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """conversations of from/value (or messages of role/content) -> messages, tools."""
    messages = turns(row, columns, tags, where)
    if messages[-1]["role"] != "assistant":
        raise fail("data_no_answer", where=where, role=messages[-1]["role"])
    return {"messages": messages} | tools_of(row, columns, where)


def sharegpt_preference(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """conversations that end with a question, chosen and rejected answers -> prompt, chosen, rejected, tools."""
    prompt = turns(row, columns, tags, where)
    if prompt[-1]["role"] not in ("user", "tool"):
        raise fail("data_prompt_end", where=where, role=prompt[-1]["role"])
    sides = []
    for side in ("chosen", "rejected"):
        if columns[side] not in row:
            raise fail("data_no_column", where=where, column=columns[side], near=nearest(columns[side], row))
        message = message_of(row[columns[side]], tags, f"{where} ({side})")
        if message["role"] != "assistant":
            raise fail("data_side_role", where=f"{where} ({side})", role=message["role"])
        sides.append(message)
    return preference(prompt, *sides, where) | tools_of(row, columns, where)


def sharegpt_kto(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """conversations, kto_tag -> prompt, completion, label, tools."""
    made = sharegpt(row, columns, tags, where)
    messages = made.pop("messages")
    return {"prompt": messages[:-1], "completion": messages[-1:], "label": label(row, columns, where)} | made


def format_of(formatting: str, ranking: bool, columns: Columns) -> Format:
    """Return the format of a registry entry."""
    chat = formatting != "alpaca"
    tools = ("tools",) if chat else ()
    if ranking:
        return Format(sharegpt_preference if chat else alpaca_preference, ("prompt", "chosen", "rejected", *tools))
    if "kto_tag" in columns:
        return Format(sharegpt_kto if chat else alpaca_kto, ("prompt", "completion", "label", *tools))
    if chat:
        return Format(sharegpt, ("messages", *tools))
    return Format(alpaca, ("messages",)) if "response" in columns else Format(raw_text, ("text",))
