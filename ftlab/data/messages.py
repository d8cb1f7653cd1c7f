"""Convert one turn of a conversation in any common format to a message that chat templates accept."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from ftlab.data.read import DECODER, MAX_DEPTH, Row, depth, empty, kind, suggestion
from ftlab.errors import fail, say

Message = dict[str, Any]
Tags = dict[str, str]

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
# OpenAI's other names for these roles: the current one of `system`, the former one of `tool`.
OPENAI_NAMES = {"developer": ("system_tag", "system"), "function": ("observation_tag", "tool")}
# Role names of other formats that are too different from the right name for a nearest match.
ROLE_ALIASES = {
    "user_tag": ("user", "human", "prompter", "instruction"),
    "assistant_tag": ("assistant", "gpt", "bot", "model", "ai", "chatgpt", "llm"),
    "observation_tag": ("tool", "observation", "function_response", "tool_response", "function", "ipython"),
    "function_tag": ("function_call", "tool_call"),
    "system_tag": ("system", "developer"),
}
# Keys in which formats store the assistant's reasoning.
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
# Whether a turn is trained on: OpenAI's weight, ms-swift's loss and loss_scale, axolotl's train and training (with a
# list of pieces under *_detail), slime's loss_mask.
WEIGHTS = (
    "weight", "loss", "loss_scale", "train", "train_detail", "training", "training_detail", "loss_mask",
    "step_loss_mask",
)  # fmt: skip
# A list of turns as JSON or Python text, the only way for a CSV file to hold one. An answer may be such a
# text; these columns, in which TRL reads lists of turns, must not.
TURNS_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
TURN_COLUMNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
# Keys of a turn for pictures or sounds, as in Ollama.
MEDIA_KEYS = ("image", "images", "video", "videos", "audios")
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_PARTS = ("image", "video", "audio", "input_image", "input_video", "input_audio", "file", "input_file")


def text_of(row: Row, column: str, where: str, *, required: bool = True) -> str:
    """Return the text in `column`, "" where it may be missing.

    Raises:
        LabError: missing, empty, or not a string.
    """
    if column not in row:
        if not required:
            return ""
        raise no_column(row, column, where)
    value = row[column]
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        name = "data_not_one_text" if isinstance(value, list | dict) else "data_not_text"
        raise fail(name, where=where, column=column, got=kind(value))
    if column in TURN_COLUMNS and TURNS_AS_TEXT.match(value):
        raise fail("data_turns_or_text", where=where, column=column)
    if required and not value.strip():
        raise fail("data_empty_text", where=where, column=column)
    return value


def no_column(row: Row, column: str, where: str) -> Exception:
    """Build the error of a row that lacks a column."""
    return fail("data_no_column", where=where, column=column, near=suggestion(column, row))


def messages_of(conversation: object, column: str, tags: Tags, where: str) -> list[Message]:
    """Return the messages of a list of turns; their order is not checked.

    Raises:
        LabError: not a list, an empty one, or a turn that cannot be read, which is named.
    """
    if isinstance(conversation, str) and TURNS_AS_TEXT.match(conversation):
        raise fail("data_turns_as_text", where=where, column=column)
    if not isinstance(conversation, list) or not conversation:
        raise fail("data_no_turns", where=where, column=column, got=kind(conversation))
    return [message_of(turn, tags, turn_place(where, number)) for number, turn in enumerate(conversation, 1)]


def turn_place(where: str, number: int) -> str:
    """Name a turn of a row; turns are counted from 1."""
    return f"{where} (turn {number})"


def message_of(turn: object, tags: Tags, where: str) -> Message:
    """Return one turn with a role that chat templates know."""
    if not isinstance(turn, dict):
        raise fail("data_not_object", where=where, got=kind(turn))
    role = role_of(text_of(turn, tags["role_tag"], where), tags, where)
    for key in MEDIA_KEYS:
        if not empty(turn.get(key)):
            raise fail("data_media_row", where=where, column=key)
    calls = calls_of(turn, where)
    if calls and role != "assistant":
        raise fail("data_tool_call", where=where)
    # A call may come without text, and a tool may return an empty result.
    required = role != "system" and not calls and (role != "tool" or tags["content_tag"] not in turn)
    content = content_of(turn, tags["content_tag"], where, required)
    if role == "system" and not content.strip():
        raise fail("data_empty_system", where=where, column=tags["content_tag"])
    if role == "function":
        content, calls = thought_and_calls(content, where)
        role = "assistant"
    message = {"role": role, "content": content} | ({"tool_calls": calls} if calls else {})
    kept = {key: turn[key] for key in ("name", "tool_call_id") if role == "tool" and isinstance(turn.get(key), str)}
    untrained = {"weight": 0} if not trained(turn, where) and role == "assistant" else {}
    return message | kept | thought_of(turn, content, where, role) | untrained


def role_of(named: str, tags: Tags, where: str) -> str:
    """Return a role by the name that chat templates know.

    Raises:
        LabError: none of the tags has this name; the nearest is suggested.
    """
    for tag, role in ROLES.items():
        if tags.get(tag) == named:
            return role
    tag, name = OPENAI_NAMES.get(named, ("", ""))
    if tag and tags.get(tag) == name and tags["role_tag"] == OPENAI_TAGS["role_tag"]:
        return ROLES[tag]
    known = [tags[tag] for tag in ROLES if tag in tags]
    alias = next((tags[tag] for tag, names in ROLE_ALIASES.items() if named.lower() in names and tag in tags), named)
    raise fail("data_role", where=where, role=named, near=suggestion(alias, known))


def content_of(turn: Row, column: str, where: str, required: bool) -> str:
    """Return the text of a turn; for a list of parts, their joined texts."""
    parts = turn.get(column)
    if isinstance(parts, list):
        turn = turn | {column: "".join(part_text(part, column, where) for part in parts)}
    return text_of(turn, column, where, required=required)


def part_text(part: object, column: str, where: str) -> str:
    """Return the text of one part of a turn's content.

    Raises:
        LabError: a picture, a sound, or any other part that is not text.
    """
    if not isinstance(part, dict):
        raise fail("data_not_one_text", where=where, column=column, got="array")
    type_ = part.get("type", "text")
    if str(type_).removesuffix("_url") in MEDIA_PARTS:
        raise fail("data_media_row", where=where, column=type_)
    if type_ not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise fail("data_part", where=where, type=type_)
    return part["text"]


def thought_of(turn: Row, content: str, where: str, role: str) -> Message:
    """Return the reasoning of an assistant turn as `reasoning_content`, {} if there is none.

    Raises:
        LabError: not a string, or a second, different reasoning text.
    """
    thoughts = {key: turn[key] for key in THOUGHTS if turn.get(key)} if role == "assistant" else {}
    for key, value in thoughts.items():
        if not isinstance(value, str):
            raise fail("data_thought", where=where, column=key, got=kind(value))
    texts = {value for value in thoughts.values() if value.strip()}
    if len(texts) > 1 or (texts and "</think>" in content):
        raise fail("data_two_thoughts", where=where, columns=", ".join(thoughts))
    return {"reasoning_content": texts.pop()} if texts else {}


def trained(turn: Row, where: str) -> bool:
    """Return whether a turn is trained on.

    Raises:
        LabError: a weight other than 0 and 1, or contradicting weights.
    """
    weights = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None and turn[key] != []}
    for key, value in weights.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise fail("data_weight", where=where, key=key, got=short(value))
    if len({bool(value) for value in weights.values()}) > 1:
        raise fail("data_weights", where=where, keys=", ".join(weights))
    return all(weights.values())


def short(value: object) -> str:
    """Return the beginning of a value's JSON text."""
    return json.dumps(value, ensure_ascii=False, default=str)[:40]


def without_weights(messages: Sequence[Message]) -> list[Message]:
    """Return context messages without weights, which have no meaning there."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def not_trained(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose answers are not trained on."""
    return [message | ({"weight": 0} if message["role"] == "assistant" else {}) for message in messages]


def check_trained(messages: Sequence[Message], where: str) -> None:
    """Refuse an example without a trained answer."""
    if not any(message["role"] == "assistant" and "weight" not in message for message in messages):
        raise fail("data_nothing_trained", where=where)


def calls_of(turn: Row, where: str) -> list[Row]:
    """Return the tool calls of an OpenAI turn, the former `function_call` included."""
    calls, former = turn.get("tool_calls"), turn.get("function_call")
    if calls and former:
        raise fail("data_two_calls", where=where)
    return openai_calls(calls or [{"function": former}], where) if calls or former else []


def openai_calls(calls: object, where: str) -> list[Row]:
    """Return the tool calls of an OpenAI turn, their arguments as objects, as chat templates expect them."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise fail("data_tool_call", where=where)
    result = []
    for call in calls:
        if call.get("type") not in (None, "function"):
            raise fail("data_call_type", where=where, type=call["type"])
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        # Some formats write {"name", "arguments"} without the object around them.
        result.append(identity | tool_call(call if call.get("function") is None else call["function"], where))
    return result


def thought_and_calls(content: str, where: str) -> tuple[str, list[Row]]:
    """Return the think block before the calls of a ShareGPT function_call turn ("" without one), and the calls."""
    thought, end, calls = content.partition("</think>") if content.lstrip().startswith("<think>") else ("", "", content)
    return thought + end, function_calls(calls, where)


def function_calls(content: str, where: str) -> list[Row]:
    """Return the calls of a ShareGPT function_call turn, whose value is JSON: one call or a list of them."""
    try:
        decoded = DECODER.decode(content)
    except (ValueError, RecursionError):
        raise fail("data_tool_call", where=where) from None
    calls = decoded if isinstance(decoded, list) else [decoded]
    if not calls:
        raise fail("data_tool_call", where=where)
    return [tool_call(call, where) for call in calls]


def tool_call(function: Any, where: str) -> Row:
    """Return one call: a name, and arguments as an object or as its JSON text. A null in them is a value."""
    try:
        name, arguments = function["name"], function["arguments"] if "arguments" in function else no_arguments(function)
        arguments = DECODER.decode(arguments) if isinstance(arguments, str) else arguments
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError):
        raise fail("data_tool_call", where=where) from None
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise fail("data_tool_call", where=where)
    check_storable(arguments, where)
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def no_arguments(function: Row) -> Row:
    """Return the arguments of a call without `arguments`.

    Raises:
        ValueError: the call has them under another name (`parameters`, `input`).
    """
    if any(isinstance(value, dict | list) for value in function.values()):
        raise ValueError("arguments under another name")
    return {}


def check_storable(value: Any, where: str) -> None:
    """Refuse values that the JSON type of `datasets` cannot hold.

    Integers above 64 bits, infinity, NaN, deep nesting, and types of tables: dates, bytes, decimals.
    """
    if depth(value) > MAX_DEPTH:
        raise fail("data_json", where=where, reason=say("json_depth"))
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list):
            waiting += inner.values() if isinstance(inner, dict) else inner
        elif not isinstance(inner, str | int | float | None):
            raise fail("data_not_json", where=where, got=kind(inner))
        too_big = isinstance(inner, int) and not -(2**63) <= inner < 2**63
        if too_big or (isinstance(inner, float) and not math.isfinite(inner)):
            raise fail("data_number", where=where, got=str(inner)[:24])


def tools_of(row: Row, columns: dict[str, str], where: str) -> dict[str, list[Row] | None]:
    """Return the row's tools as function schemas, None when it has none; {} if its format has no such column."""
    if "tools" not in columns:
        return {}
    value = row.get(columns["tools"])
    if not value:
        return {"tools": None}
    try:
        tools = DECODER.decode(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise fail("data_tools", where=where, column=columns["tools"])
    schemas = [schema(tool) for tool in tools]
    check_storable(schemas, where)
    if not all(isinstance(one["function"], dict) and isinstance(one["function"].get("name"), str) for one in schemas):
        raise fail("data_tools", where=where, column=columns["tools"])
    return {"tools": schemas or None}


def schema(tool: Row) -> Row:
    """Return a tool's description with the object around it that chat templates expect."""
    return tool if tool.get("function") is not None else {"type": "function", "function": tool}


def check_order(messages: list[Message], where: str) -> None:
    """Refuse a conversation that no chat template supports: user side and assistant side must alternate."""
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
        elif role == "user" and open_calls:
            raise fail("data_unanswered_call", where=place)
        else:
            check_ids_answered(open_calls, place)
            open_calls = message.get("tool_calls", [])
        before = role


def answered(result: Message, open_calls: list[Row], where: str) -> list[Row]:
    """Return the calls without a result after a tool's result.

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
    """Raise an error if a call with an id has no result; without ids one result may answer several calls."""
    if any("id" in call for call in open_calls):
        raise fail("data_unanswered_call", where=where)
