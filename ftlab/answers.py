"""Where an answer begins and ends in the text of a chat template."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ftlab.control_tokens import pattern
from ftlab.errors import fail
from ftlab.rendering import PLACEHOLDER, THOUGHT, Message, Tools, control_tokens, escaped, render


class Answer(NamedTuple):
    """One answer as text: the prompt, the text to generate, and what the template writes after it."""

    prompt: str
    text: str
    tail: str
    ended: bool


def answer(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply: Sequence[Message], tools: Tools = None
) -> Answer:
    """Return an answer as text: the prompt, the text to generate, and what the template writes after it.

    A placeholder in its place shows where the answer begins, so that no text in it can be mistaken for the
    template's. A generation prompt may say more than the template writes before an answer: R1's opens the thought.
    Then the answer continues from there and ends the reasoning.

    Args:
        messages: the messages before the answer.
        reply: the answer: an assistant message, or several with other turns between them.
    Raises:
        LabError: the template refuses the conversation, or leaves the answer out.
    """
    check_thought(tokenizer, reply[0])
    # Some templates turn thinking off by default (Qwen3.5's smaller models); for an answer with reasoning it is on.
    for options in ({}, {"enable_thinking": True}):
        whole = render(tokenizer, [*messages, *reply], tools, **options)
        marked = render(tokenizer, [*messages, {"role": "assistant", "content": PLACEHOLDER}], tools, **options)
        prompt = render(tokenizer, messages, tools, add_generation_prompt=True, **options)
        history = render(tokenizer, messages, tools, **options)
        start = start_of_answer(history, prompt, marked.partition(PLACEHOLDER)[0])
        if start and whole.startswith(start):
            break
    else:
        raise fail("tokens_no_answer")
    opened = prompt[len(start) :] if prompt.startswith(start) else ""
    written = with_thought_written(tokenizer, reply[0], whole[len(start) :], opened)
    check_written(tokenizer, messages, reply, tools, written)
    end = end_of_turn(tokenizer)
    at = written.rfind(end) if end else -1
    text = written[: at + len(end)] if at >= 0 else written
    return Answer(prompt, text, written[len(text) :], at >= 0 or text.endswith(control_tokens(tokenizer)))


def start_of_answer(history: str, prompt: str, opening: str) -> str:
    """Return the text of a conversation up to where its answer begins, "" if that is unclear.

    The model saw what the conversation shares with the prompt, up to the generation prompt. Some
    templates remove earlier text once an answer follows (gpt-oss the reasoning before a tool call): there the
    answer begins after the last generation prompt.

    Args:
        history: the messages before the answer.
        prompt: the same with the generation prompt.
        opening: the same with all that is written before the answer's text.

    >>> start_of_answer("<u>hi", "<u>hi<a><think>", "<u>hi<a>")
    '<u>hi<a>'
    >>> start_of_answer("<u>hi<t>hm", "<u>hi<t>hm<a>", "<u>hi<a><final>")
    '<u>hi<a>'
    """
    shared, before = common_prefix(prompt, opening), common_prefix(prompt, history)
    if len(shared) >= len(before):
        return shared
    overlap = prompt[len(before) :]
    at = opening.rfind(overlap)
    return opening[: at + len(overlap)] if overlap.strip() and at >= 0 else ""


def check_written(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    reply: Sequence[Message],
    tools: Tools,
    written: str,
) -> None:
    """Refuse an answer whose text the template leaves out; `render` has looked for its calls.

    Raises:
        LabError: it does, alone or beside a tool call, as Llama 3.1's.
    """
    # An earlier turn too, whether it is trained on or not: the model would read a conversation without its text.
    for number, message in enumerate(turns := [*messages, reply[0]]):
        content = thought_and_content(tokenizer, message)[1]
        if content and message.get("tool_calls"):
            # Short texts are found in a call too: the place of a text is looked for without it.
            beside = message | {"content": PLACEHOLDER}
            if PLACEHOLDER not in render(tokenizer, [*turns[:number], beside], tools):
                raise fail("tokens_text_beside_call", text=content[:60])
    if content not in written:
        raise fail("tokens_end_of_thought" if "</think>" in content else "tokens_no_answer")


def check_thought(tokenizer: PreTrainedTokenizerBase, message: Message) -> None:
    """Refuse an answer that ends inside its reasoning, if the template writes reasoning: it would open a second one.

    Raises:
        LabError: it begins with `<think>` and has no `</think>`.
    """
    content = (message.get("content") or "").lstrip()
    if content.startswith("<think>") and "</think>" not in content and "</think>" in str(tokenizer.chat_template):
        raise fail("tokens_open_thought")


def with_thought_written(tokenizer: PreTrainedTokenizerBase, message: Message, written: str, opened: str) -> str:
    """Return an answer with the thought that its template leaves out, or that the generation prompt began.

    Args:
        written: what the template writes of the message, from where it and the generation prompt part.
        opened: what the generation prompt says from there on, such as `<think>` and a line break.
    """
    thought, _ = thought_and_content(tokenizer, message)
    is_open = opened.strip().endswith("<think>")
    if thought in written and not is_open:
        return written
    rest = THOUGHT.sub("", written, count=1)
    start = ("" if opened.endswith("\n") else "\n") if is_open else "<think>\n"
    return f"{start}{thought}\n</think>\n\n{rest.lstrip() if thought else rest}"


def thought_and_content(tokenizer: PreTrainedTokenizerBase, message: Message) -> tuple[str, str]:
    """Return the reasoning and the content of an assistant message as its template writes them, stripped."""
    shown = escaped(message, control_tokens(tokenizer))
    content = shown.get("content") or ""
    inside = THOUGHT.match(content)
    thought = shown.get("reasoning_content") or (inside[1] if inside else "")
    return thought.strip(), (content[inside.end() :] if inside else content).strip()


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text with which the chat template ends an answer, "" where it writes no token for that."""
    return end_of_turn_under(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def end_of_turn_under(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return `end_of_turn`, worked out once for a tokenizer and a template.

    It ends with the last control token that follows an answer whether or not another turn follows; if there
    is none in common (gpt-oss writes `<|return|>` or `<|end|>`), with the first one after the last answer.
    """
    question, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": PLACEHOLDER}
    last, followed = (
        render(tokenizer, turns).partition(PLACEHOLDER)[2] for turns in ([question, reply], [question, reply, question])
    )
    if not control_tokens(tokenizer):
        return ""
    control = pattern(control_tokens(tokenizer))
    ends = [one.end() for one in control.finditer(common_prefix(last, followed))]
    ends = ends[-1:] or [one.end() for one in control.finditer(last)][:1]
    return last[: ends[0]] if ends else ""


def common_prefix(first: str, second: str) -> str:
    """Return the longest text with which both begin."""
    size = next((n for n, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), None)
    return first[:size] if size is not None else min(first, second, key=len)
