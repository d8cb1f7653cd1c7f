"""Responses in the format of OpenAI's API: complete, or as streamed chunks."""

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from ftlab.apps.serve.job import Likelihood, Piece
from ftlab.responses import Response
from ftlab.runs.chat import Until

# The characters that a tool call may begin with.
CALL_BEGINS = ("{", "<", "[")


@dataclass
class Choice:
    """One answer while it is generated.

    Attributes:
        read: number of characters of the tokens whose log probabilities were sent.
        told: the text that was streamed, if tools are offered.
        before_call: holds text back from the first character that a call may begin with.
    """

    index: int
    text: str = ""
    tokens: int = 0
    finish: str | None = None
    likelihoods: list[Likelihood] = field(default_factory=list)
    ids: Sequence[int] = ()
    read: int = 0
    told: str = ""
    before_call: Until = field(default_factory=lambda: Until(CALL_BEGINS))

    def add(self, piece: Piece) -> None:
        """Add the result of a step."""
        self.ids = piece.ids
        self.text += piece.text
        self.tokens = piece.tokens
        self.finish = piece.finish
        if piece.likelihood:
            self.likelihoods.append(piece.likelihood)


@dataclass(frozen=True, kw_only=True)
class Answer(ABC):
    """What all parts of one answer share.

    Attributes:
        ignored: parameters of the request that had no effect.
        logprobs: whether the request asked for log probabilities.
        last: the event that ends a stream.
    """

    last: ClassVar[str] = "data: [DONE]\n\n"

    model: str
    prompt_tokens: int
    ignored: Sequence[str]
    logprobs: bool
    tokenizer: PreTrainedTokenizerBase
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return one finished choice."""

    @abstractmethod
    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the chunks that a streamed choice begins with."""

    @abstractmethod
    def chunks(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks for a piece, which `choice` has already added."""

    @abstractmethod
    def envelope(self, streamed: bool) -> dict[str, str]:
        """Return the answer's id and kind."""

    def body(self, choices: list[dict[str, Any]], streamed: bool, **more: Any) -> dict[str, Any]:
        """Return the fields around the choices, with the ignored parameters if there are any."""
        extra = {"ignored_parameters": list(self.ignored)} if self.ignored else {}
        shared = {"created": self.created, "model": self.model, "choices": choices}
        return self.envelope(streamed) | shared | extra | more

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the complete response."""
        return self.body([self.choice(c) for c in choices], streamed=False, usage=self.usage(choices))

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """Count tokens: each prompt once, the completions of all choices."""
        completion_tokens = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }

    def text_of(self, token: int) -> str:
        """Return the text of a token alone."""
        return self.tokenizer.decode([token])


@dataclass(frozen=True, kw_only=True)
class ChatAnswer(Answer):
    """An answer of /v1/chat/completions.

    Attributes:
        read: reads the tool calls in an answer's tokens; None where no tools were offered.
    """

    read: Callable[[Sequence[int]], Response] | None = None

    def envelope(self, streamed: bool) -> dict[str, str]:
        """Return the answer's id and kind."""
        return {"id": f"chatcmpl-{self.id}", "object": "chat.completion" + ".chunk" * streamed}

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return one finished choice."""
        said = self.said(choice)
        finish = "tool_calls" if "tool_calls" in said else choice.finish
        message = {"role": "assistant", "refusal": None, **said}
        return {
            "index": choice.index,
            "message": message,
            **self.likely(choice.likelihoods),
            "finish_reason": finish,
        }

    def said(self, choice: Choice) -> dict[str, Any]:
        """Return the message of a finished answer: its text, or its tool calls and the text around them."""
        response = self.read(choice.ids) if self.read and choice.ids else None
        if response is None or not response.calls:
            return {"content": choice.text}
        calls = [
            {
                "id": secrets.token_hex(5)[:9],
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
            }
            for call in response.calls
        ]
        return {"content": response.content or None, "tool_calls": calls}

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the chunk with the role."""
        return [self.delta(choice.index, {"role": "assistant", "content": ""}, [], None)]

    def chunks(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks for a piece; with tools, text that may be a call waits until the end of the answer."""
        if self.read is None:
            delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
            likelihoods = [piece.likelihood] if piece.likelihood else []
            return [self.delta(choice.index, delta, likelihoods, piece.finish)]
        if not piece.finish:
            text = choice.before_call.push(piece.text)
            choice.told += text
            return [self.delta(choice.index, {"content": text}, [], None)] if text else []
        whole = self.said(choice)
        calls = [{**call, "index": index} for index, call in enumerate(whole.get("tool_calls", []))]
        rest = (whole["content"] or "").removeprefix(choice.told.strip() if calls else choice.told)
        left = {name: value for name, value in (("content", rest), ("tool_calls", calls)) if value}
        return [self.delta(choice.index, left, choice.likelihoods, "tool_calls" if calls else piece.finish)]

    def delta(
        self, index: int, content: dict[str, Any], likelihoods: Sequence[Likelihood], finish: str | None
    ) -> dict[str, Any]:
        """Return a chunk."""
        return self.body(
            [{"index": index, "delta": content, **self.likely(likelihoods), "finish_reason": finish}], streamed=True
        )

    def likely(self, likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
        """Return the `logprobs` of a choice: null unless asked for."""
        if not self.logprobs:
            return {"logprobs": None}
        return {"logprobs": {"content": [self.likelihood(one) for one in likelihoods], "refusal": None}}

    def likelihood(self, one: Likelihood) -> dict[str, Any]:
        """Return the log probabilities of one position."""
        top = [self.token(token, logprob) for token, logprob in one.top]
        return {**self.token(one.token, one.logprob), "top_logprobs": top}

    def token(self, token: int, logprob: float | None) -> dict[str, Any]:
        """Return a token with its log probability."""
        text = self.text_of(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}


@dataclass(frozen=True, kw_only=True)
class TextAnswer(Answer):
    """An answer of /v1/completions."""

    def envelope(self, streamed: bool) -> dict[str, str]:
        """Return the answer's id and kind, the same whether it is streamed or not."""
        return {"id": f"cmpl-{self.id}", "object": "text_completion"}

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return one finished choice."""
        return self.part(choice, choice.text, choice.likelihoods)

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the chunk of the prompt, if it is echoed."""
        return self.streamed(choice, choice.text, choice.likelihoods) if choice.text else []

    def chunks(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunk for a piece."""
        return self.streamed(choice, piece.text, [piece.likelihood] if piece.likelihood else [])

    def streamed(self, choice: Choice, text: str, likelihoods: Sequence[Likelihood]) -> list[dict[str, Any]]:
        """Return a chunk."""
        return [self.body([self.part(choice, text, likelihoods)], streamed=True)]

    def part(self, choice: Choice, text: str, likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
        """Return a complete choice, or a part of one."""
        likely = self.likely(choice, likelihoods) if self.logprobs else None
        return {"index": choice.index, "text": text, "logprobs": likely, "finish_reason": choice.finish}

    def likely(self, choice: Choice, likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
        """Return `logprobs` in the completions API's format; a prompt's first token has none."""
        texts = [self.text_of(one.token) for one in likelihoods]
        offsets = []
        for text in texts:
            offsets.append(choice.read)
            choice.read += len(text)
        tops = [{self.name_of(token): finite(logprob) for token, logprob in one.top} or None for one in likelihoods]
        logprobs = [finite(one.logprob) for one in likelihoods]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def name_of(self, token: int) -> str:
        """Return the text of a token; its vocabulary entry if it is only part of a character."""
        text = self.text_of(token)
        return self.tokenizer.convert_ids_to_tokens(token) if "\N{REPLACEMENT CHARACTER}" in text else text


def finite(logprob: float | None) -> float | None:
    """Return a log probability; -9999 for -inf, because JSON has no infinity."""
    return None if logprob is None else max(logprob, -9999.0)


def event(content: dict[str, Any]) -> str:
    """Return a server-sent event, named where its content has a type."""
    line = f"event: {content['type']}\n" if "type" in content else ""
    return f"{line}data: {json.dumps(content, ensure_ascii=False)}\n\n"
