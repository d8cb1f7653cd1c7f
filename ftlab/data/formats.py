"""Convert examples of every common format to the shapes TRL trains on, one function per format."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ftlab.data.messages import (
    OPENAI_TAGS,
    SHAREGPT_TAGS,
    Message,
    Tags,
    check_order,
    check_trained,
    message_of,
    messages_of,
    no_column,
    not_trained,
    text_of,
    tools_of,
    without_weights,
)
from ftlab.data.read import DECODER, Row, kind
from ftlab.errors import fail

Columns = dict[str, str]

ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


class Format(NamedTuple):
    """A conversion to TRL's shape: the function, the columns that it returns, and those of an entry that it reads."""

    convert: Callable[[Row, Columns, Tags, str], Row]
    gives: tuple[str, ...]
    reads: tuple[str, ...]


def optional_text(row: Row, columns: Columns, name: str, where: str) -> str:
    """Return the text of an optional column."""
    return text_of(row, columns[name], where, required=False) if name in columns else ""


def tags_of(conversation: object) -> Tags:
    """Return the tags of a conversation's turns."""
    first = conversation[0] if isinstance(conversation, list) and conversation else None
    return OPENAI_TAGS if isinstance(first, dict) and "role" in first else SHAREGPT_TAGS


def is_messages(value: object) -> bool:
    """Return whether a value is a list of messages, as TRL writes prompts and answers."""
    return isinstance(value, list) and any(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)


def prompt_of(row: Row, columns: Columns, where: str) -> list[Message]:
    """Return the turns of an alpaca row up to its answer: system, history, then instruction and input.

    TRL's rows may hold a list of messages instead of the instruction; the answers in it are not trained on.
    """
    asked = question_of(row, columns, where)
    system = optional_text(row, columns, "system", where)
    messages = [{"role": "system", "content": system}] if system.strip() and asked[0]["role"] != "system" else []
    for question, answer in history_of(row, columns, where):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages += asked
    if messages[-1]["role"] not in ("user", "tool"):
        raise fail("data_prompt_end", where=where, role=messages[-1]["role"])
    return messages


def question_of(row: Row, columns: Columns, where: str) -> list[Message]:
    """Return the messages of a row's prompt column: one for a string, or the list itself."""
    content, query = row.get(columns["prompt"]), optional_text(row, columns, "query", where)
    if is_messages(content) and not query.strip():
        return not_trained(messages_of(content, columns["prompt"], tags_of(content), f"{where} ({columns['prompt']})"))
    prompt = text_of(row, columns["prompt"], where, required=not query.strip())
    return [{"role": "user", "content": "\n".join(part for part in (prompt, query) if part)}]


def answer_of(row: Row, column: str, where: str) -> list[Message]:
    """Return the messages of an answer: one of a text or of an object, or those of a list."""
    if column not in row:
        raise no_column(row, column, where)
    content = [row[column]] if isinstance(row[column], dict) else row[column]
    choices = next((name for name in ("choices", "options") if isinstance(row.get(name), list | dict)), "")
    if choices and isinstance(content, int) and not isinstance(content, bool):
        raise fail("data_choices", where=where, column=column, choices=choices)
    if not is_messages(content):
        return [{"role": "assistant", "content": text_of(row, column, where)}]
    place = f"{where} ({column})"
    messages = messages_of(content, column, tags_of(content), place)
    if messages[-1]["role"] != "assistant":
        raise fail("data_side_role", where=place, role=messages[-1]["role"])
    return messages


def history_of(row: Row, columns: Columns, where: str) -> list[list[str]]:
    """Return the earlier [question, answer] pairs of an alpaca row; a CSV file has them as JSON text."""
    pairs = row.get(columns["history"]) if "history" in columns else None
    # A CSV file writes "no history" as an empty cell.
    if pairs is None or pairs == "":
        return []
    try:
        pairs = DECODER.decode(pairs) if isinstance(pairs, str) else pairs
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part.strip() for part in pair)
        for pair in pairs
    ):
        raise fail("data_history", where=where, column=columns["history"])
    return pairs


def alpaca(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """instruction, input, output, system, history (or TRL's prompt and completion) -> messages, tools."""
    answer = answer_of(row, columns["response"], where)
    return {"messages": conversation(prompt_of(row, columns, where), answer, where)} | tools_of(row, columns, where)


def conversation(prompt: list[Message], answer: list[Message], where: str) -> list[Message]:
    """Join a prompt and its answer, which must have a trained turn."""
    check_side(answer, where)
    messages = [*prompt, *answer]
    check_order(messages, where)
    check_trained(answer, where)
    return messages


def check_side(answer: Sequence[Message], where: str) -> None:
    """Refuse an answer that does not begin with an assistant turn."""
    if answer[0]["role"] != "assistant":
        raise fail("data_side_role", where=where, role=answer[0]["role"])


def raw_text(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """One column of text -> text, for continued pre-training."""
    return {"text": text_of(row, columns["prompt"], where)}


def alpaca_preference(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """instruction, input, chosen, rejected (texts or TRL's lists of messages) -> prompt, chosen, rejected, tools."""
    chosen, rejected = (answer_of(row, columns[side], where) for side in ("chosen", "rejected"))
    if not chosen[0]["role"] == rejected[0]["role"] == "assistant":
        prompt, chosen, rejected = whole_conversations(row, columns, chosen, rejected, where)
    elif "prompt" in columns:
        prompt = prompt_of(row, columns, where)
    else:
        raise fail("data_no_prompt", where=where)
    return preference(prompt, chosen, rejected, where) | tools_of(row, columns, where)


def whole_conversations(
    row: Row, columns: Columns, chosen: list[Message], rejected: list[Message], where: str
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return prompt, chosen and rejected of two conversations that begin with the same messages.

    Raises:
        LabError: they don't, or the row also has a different prompt.
    """
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)) - 1)
    prompt = without_weights(chosen[:shared])
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise fail("data_no_shared_prompt", where=where)
    if "prompt" in columns and row.get(columns["prompt"]) is not None:
        question = [bare(one) for one in without_weights(question_of(row, columns, where))]
        if question != [bare(one) for one in prompt[-len(question) :]] or history_of(row, columns, where):
            raise fail("data_other_prompt", where=where, column=columns["prompt"])
    system = optional_text(row, columns, "system", where)
    if system.strip() and prompt[0]["role"] != "system":
        prompt.insert(0, {"role": "system", "content": system})
    return prompt, chosen[shared:], rejected[shared:]


def preference(prompt: list[Message], chosen: list[Message], rejected: list[Message], where: str) -> Row:
    """Build a preference row; equal sides teach nothing and are refused."""
    if [bare(one) for one in chosen] == [bare(one) for one in rejected]:
        raise fail("data_equal_sides", where=where)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        conversation(prompt, side, f"{where} ({name})")
        if any("weight" in message for message in side):
            raise fail("data_side_weight", where=f"{where} ({name})")
    return {"prompt": without_weights(prompt), "chosen": chosen, "rejected": rejected}


def bare(message: Message) -> Message:
    """Return a message without the white space around its text."""
    return {**message, "content": message["content"].strip()}


def alpaca_kto(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """instruction, input, output, kto_tag (or TRL's prompt, completion, label) -> prompt, completion, label, tools."""
    fields = alpaca(row, columns, tags, where)
    answers = len(answer_of(row, columns["response"], where))
    return kto(fields["messages"], answers, label(row, columns, where), where) | tools_of(row, columns, where)


def kto(messages: list[Message], answers: int, liked: bool, where: str) -> Row:
    """Build a KTO row whose last `answers` messages are judged."""
    prompt, completion = messages[:-answers], messages[-answers:]
    if any("weight" in message for message in completion):
        raise fail("data_side_weight", where=where)
    return {"prompt": without_weights(prompt), "completion": completion, "label": liked}


def label(row: Row, columns: Columns, where: str) -> bool:
    """Return the KTO label: True for a desirable answer."""
    if columns["kto_tag"] not in row:
        raise no_column(row, columns["kto_tag"], where)
    value = row[columns["kto_tag"]]
    if not isinstance(value, bool):
        raise fail("data_kto_tag", where=where, column=columns["kto_tag"], got=kind(value))
    return value


def turns(row: Row, columns: Columns, tags: Tags, where: str) -> list[Message]:
    """Return the messages of a ShareGPT or OpenAI row, roles and order checked.

    Raises:
        LabError: naming the turn: unknown role, wrong order, empty content, a tool result without a call.
    """
    column = columns["messages"]
    if column not in row:
        raise no_column(row, column, where)
    messages = messages_of(row[column], column, tags, where)
    check_order(messages, where)
    system = optional_text(row, columns, "system", where)
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def answered_turns(row: Row, columns: Columns, tags: Tags, where: str) -> list[Message]:
    """Return the messages of a ShareGPT or OpenAI row that end with an answer."""
    messages = turns(row, columns, tags, where)
    if messages[-1]["role"] != "assistant":
        raise fail("data_no_answer", where=where, role=messages[-1]["role"])
    return messages


def sharegpt(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """conversations of from/value (or messages of role/content) -> messages, tools."""
    messages = answered_turns(row, columns, tags, where)
    check_trained(messages, where)
    return {"messages": messages} | tools_of(row, columns, where)


def sharegpt_preference(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """conversations that end with a question, chosen and rejected answers -> prompt, chosen, rejected, tools."""
    prompt = turns(row, columns, tags, where)
    if prompt[-1]["role"] not in ("user", "tool"):
        raise fail("data_prompt_end", where=where, role=prompt[-1]["role"])
    chosen, rejected = (side_of(row, columns[side], side, tags, where) for side in ("chosen", "rejected"))
    return preference(prompt, chosen, rejected, where) | tools_of(row, columns, where)


def side_of(row: Row, column: str, side: str, tags: Tags, where: str) -> list[Message]:
    """Return the messages of a chosen or rejected answer: an object as in LLaMA-Factory, or TRL's list."""
    place = f"{where} ({side})"
    if column not in row:
        raise no_column(row, column, where)
    if is_messages(row[column]):
        messages = messages_of(row[column], column, tags, place)
    else:
        messages = [message_of(row[column], tags, place)]
    check_side(messages, place)
    return messages


def sharegpt_kto(row: Row, columns: Columns, tags: Tags, where: str) -> Row:
    """conversations, kto_tag -> prompt, completion, label, tools."""
    messages = answered_turns(row, columns, tags, where)
    return kto(messages, 1, label(row, columns, where), where) | tools_of(row, columns, where)


def format_of(formatting: str, ranking: bool, columns: Columns) -> Format:
    """Return the format of a registry entry."""
    chat = formatting != "alpaca"
    tools = ("tools",) if "tools" in columns else ()
    reads = ("messages", "system", "tools") if chat else ("prompt", "query", "history", "system", "tools")
    answer = () if chat else ("response",)
    if ranking:
        convert, gives = sharegpt_preference if chat else alpaca_preference, ("prompt", "chosen", "rejected", *tools)
        result = Format(convert, gives, (*reads, "chosen", "rejected"))
    elif "kto_tag" in columns:
        convert, gives = sharegpt_kto if chat else alpaca_kto, ("prompt", "completion", "label", *tools)
        result = Format(convert, gives, (*reads, *answer, "kto_tag"))
    elif chat or "response" in columns:
        result = Format(sharegpt if chat else alpaca, ("messages", *tools), (*reads, *answer))
    else:
        result = Format(raw_text, ("text",), ("prompt",))
    return result
