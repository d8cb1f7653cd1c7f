"""Messages to the text of a model's own chat template: the one place that calls `apply_chat_template`.

Training, checking, evaluation, chat and the server render through this file. What a template cannot show is moved
to where it can, by the same rules for all of them, so that a model is prompted with exactly the text it was trained on:

- Control tokens inside a message (`<|im_end|>` typed by a user) are escaped: they look the same but end no turn.
- `arguments` of a tool call are objects, JSON text is parsed; a template that needs them as text gets text.
- Tools go into the system turn if the template has no place for them, calls into the content.
- Reasoning (`reasoning_content`) goes into the field that the template reads, else as `<think>` into the content.
- If the template refuses a system turn or a tool's result, it becomes part of the next user turn, or one itself.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ftlab.control_tokens import harmless
from ftlab.errors import fail, reason_of, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Tools = list[dict[str, Any]] | str | None

# What templates raise on conversations that they do not support.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
TOOLS = "You can call these tools. To call one, answer with its name and arguments as JSON, nothing else:\n"
# A shorter text may occur in a template by chance.
SHORT = 12
# Stands for an answer where only the template's text around it matters; no text contains it.
PLACEHOLDER = "\ue0f1"


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Tools = None,
    add_generation_prompt: bool = False,
    **options: bool,
) -> str:
    """Return the text of a conversation under the tokenizer's chat template.

    Args:
        options: further variables of the template, such as `enable_thinking`.
    Raises:
        LabError: the tokenizer has no template, or its template refuses the conversation; the reason is named.
    """
    if tokenizer.chat_template is None:
        raise fail("tokens_no_template", where=tokenizer.name_or_path)
    schemas = json.loads(tools) if isinstance(tools, str) else tools
    template = tokenizer.get_chat_template(tools=schemas)
    control = control_tokens(tokenizer)
    shown = [shown_message(escaped(message, control), template) for message in messages]
    if schemas and not shows_tools(tokenizer, template):
        shown, schemas = with_tools_said(shown, schemas), None
    in_parts = wants_parts(tokenizer, template)

    def written(conversation: list[Message]) -> str:
        """Return the template's rendering of a conversation."""
        return tokenizer.apply_chat_template(
            [as_parts(message) for message in conversation] if in_parts else conversation,
            tools=schemas or None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **options,
        )

    marked = with_marks(shown)
    reason = ""
    for adapted in ADAPTED:
        try:
            text = written(adapted(shown))
            # A name or a short text may occur by chance: `f` is in `<｜end▁of▁sentence｜>`.
            missing = left_out(text, shown) or (left_out(written(adapted(marked)), marked) if marked != shown else 0)
        except TEMPLATE_ERRORS as error:
            reason = reason or reason_of(error)
            continue
        if not missing:
            return text
        reason = reason or say("tokens_left_out", number=missing, role=shown[missing - 1]["role"])
    raise fail("tokens_template", reason=reason)


def left_out(text: str, messages: Sequence[Message]) -> int:
    """Return the number, from 1, of the first message that a rendered conversation leaves out; 0 if it has them all.

    Earlier reasoning may be left out. The messages must be in order, the system turn anywhere.
    """
    at = 0
    for number, message in enumerate(messages, 1):
        if any(text.find(call["function"]["name"], at) < 0 for call in message.get("tool_calls", [])):
            return number
        content = parted(message)[1].strip()
        start = 0 if message["role"] == "system" else at
        # Some templates write a tool's result as JSON.
        position = max(text.find(form, start) for form in (content, json.dumps(content, ensure_ascii=False)[1:-1]))
        if position >= 0:
            at = at if message["role"] == "system" else position + len(content)
        elif "tool_calls" not in message:
            return number
    return 0


def with_marks(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation in which calls and short texts are replaced by unique marks that occur in no text."""
    number = itertools.count()

    def mark() -> str:
        return f"{PLACEHOLDER}{next(number)}{PLACEHOLDER}"

    marked = []
    for message in messages:
        calls = message.get("tool_calls", [])
        renamed = [call | {"function": call["function"] | {"name": mark()}} for call in calls]
        thought, text = parted(message)
        content = {"content": thought + mark()} if 0 < len(text.strip()) < SHORT else {}
        marked.append(message | content | ({"tool_calls": renamed} if calls else {}))
    return marked


def parted(message: Message) -> tuple[str, str]:
    """Return the content of a message up to the end of its reasoning, and the rest, which a template must show."""
    thought, end, content = message["content"].rpartition("</think>" if message["role"] == "assistant" else "\x00")
    return thought + end, content


@lru_cache(maxsize=8)
def shows_tools(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Return True if a template writes the description of a tool, in a conversation with a system turn or without.

    One that refuses this conversation is assumed to write them if it uses `tools`.
    """
    function = {"name": PLACEHOLDER, "description": "a", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": function}
    system, user = ({"role": role, "content": "a"} for role in ("system", "user"))
    refused = False
    for messages in ([user], [system, user]):
        try:
            text = tokenizer.apply_chat_template(messages, tools=[tool], chat_template=template, tokenize=False)
        except TEMPLATE_ERRORS:
            refused = True
            continue
        if PLACEHOLDER in text:
            return True
    return refused and "tools" in template


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return the texts that the tokenizer reads as control tokens, single characters left out."""
    return controls_of(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def controls_of(tokenizer: "PreTrainedTokenizerBase", size: int) -> tuple[str, ...]:
    """Return `control_tokens`, cached for a tokenizer of `size` tokens."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = special | set(tokenizer.all_special_tokens)
    # Chat templates look for the reasoning between these.
    return tuple(sorted(token for token in tokens - {"<think>", "</think>"} if len(token) > 1))


def escaped(value: Any, control: tuple[str, ...]) -> Any:
    """Return a message with the control tokens in its texts made harmless."""
    if isinstance(value, str):
        return harmless(value, control) if any(token in value for token in control) else value
    if isinstance(value, dict):
        return {name: inner if name == "role" else escaped(inner, control) for name, inner in value.items()}
    return [escaped(inner, control) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=8)
def wants_parts(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Return True if a template shows a message only as a list of parts, as those of vision models do."""
    message = {"role": "user", "content": PLACEHOLDER}
    shown = []
    for turn in (message, as_parts(message)):
        try:
            shown.append(PLACEHOLDER in tokenizer.apply_chat_template([turn], chat_template=template, tokenize=False))
        except TEMPLATE_ERRORS:
            shown.append(False)
    return shown == [False, True]


def as_parts(message: Message) -> Message:
    """Return a message whose content is a list with one part of text."""
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def shown_message(message: Message, template: str) -> Message:
    """Return a message with what `template` would leave out moved to where it looks."""
    shown = {name: value for name, value in message.items() if name != "weight" and value is not None}
    shown.setdefault("content", "")
    if shown["role"] == "assistant":
        shown = with_thought(shown, template)
    if not shown.get("tool_calls"):
        return {name: value for name, value in shown.items() if name != "tool_calls"}
    shown["tool_calls"] = [with_parsed_arguments(call) for call in shown["tool_calls"]]
    return shown if "tool_calls" in template else with_calls_said(shown)


def with_thought(message: Message, template: str) -> Message:
    """Return an assistant message with its reasoning where `template` reads it."""
    shown = dict(message)
    thought = shown.pop("reasoning_content", "")
    reads = next((name for name in ("reasoning_content", "thinking") if reads_field(template, name)), "")
    inside = THOUGHT.match(shown["content"])
    if not thought and inside and reads:
        thought, shown["content"] = inside[1].strip(), shown["content"][inside.end() :]
    if not thought.strip():
        return shown
    if reads:
        return shown | {reads: thought}
    return shown | {"content": f"<think>\n{thought.strip()}\n</think>\n\n{shown['content']}"}


def reads_field(template: str, name: str) -> bool:
    """Return True if a template reads this field of a message."""
    return (
        re.search(rf"\.{name}\b|\[['\"]{name}['\"]\]|['\"]{name}['\"] in |get\(['\"]{name}['\"]", template) is not None
    )


def with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call whose arguments, if they are a JSON object as text, are parsed."""
    function = dict(call["function"])
    function["arguments"] = parsed(function.get("arguments", {}))
    return {**call, "function": function}


def parsed(arguments: Any) -> Any:
    """Return the value of JSON text, the text itself where it is not JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def with_calls_said(message: Message) -> Message:
    """Return an assistant message whose tool calls are written into its content, a line of JSON each."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return kept | {"content": "\n".join(filter(None, [message["content"], *calls]))}


def with_tools_said(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """Return a conversation whose system turn describes the tools, for a template that has no place for them."""
    schemas = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    system = [messages[0]["content"]] if messages and messages[0]["role"] == "system" else []
    said = {"role": "system", "content": "\n\n".join([*filter(None, system), TOOLS + schemas])}
    return [said, *messages[len(system) :]]


def unchanged(messages: list[Message]) -> list[Message]:
    """Return the conversation unchanged."""
    return messages


def with_arguments_as_text(messages: list[Message]) -> list[Message]:
    """Return a conversation whose tool arguments are JSON text, for templates that join them to other text."""
    return [
        message
        | {
            "tool_calls": [
                call | {"function": call["function"] | {"arguments": text_of(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
        }
        if "tool_calls" in message
        else message
        for message in messages
    ]


def text_of(arguments: Any) -> str:
    """Return tool arguments as JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def with_system_in_user(messages: list[Message]) -> list[Message]:
    """Return a conversation with the system turn moved into the first user turn, as LLaMA-Factory does for Gemma."""
    if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
        return messages
    system, user, *rest = messages
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]


def with_plain_roles(messages: list[Message]) -> list[Message]:
    """Return a conversation of user and assistant turns alone: tools' results as user turns, calls as content."""
    plain: list[Message] = []
    for message in messages:
        if message["role"] == "tool" and plain and plain[-1]["role"] == "user":
            plain[-1] = plain[-1] | {"content": f"{plain[-1]['content']}\n{message['content']}"}
        elif message["role"] == "tool":
            plain.append({"role": "user", "content": message["content"]})
        else:
            plain.append(with_calls_said(message) if "tool_calls" in message else message)
    return plain


# Tried in this order until the template accepts the conversation.
ADAPTED: tuple[Callable[[list[Message]], list[Message]], ...] = (
    unchanged,
    with_arguments_as_text,
    with_system_in_user,
    with_plain_roles,
    lambda messages: with_plain_roles(with_system_in_user(messages)),
)
