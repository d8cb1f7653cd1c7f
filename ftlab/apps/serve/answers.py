"""What the server says, in the shapes of OpenAI's API: errors, answers, streamed chunks."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from transformers import PreTrainedTokenizerBase

from ftlab.apps.serve.batch import Likelihood, Piece
from ftlab.responses import Response


class Refused(Exception):
    """A request that is not answered, with its HTTP status and, where one is to blame, the parameter."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Return the body of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(refused: Refused) -> JSONResponse:
    """Return the response to a refused request."""
    extra = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 413: {"Connection": "close"}}
    return JSONResponse(refused.body(), refused.status, headers=extra.get(refused.status))


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    text: str = ""
    tokens: int = 0
    finish: str | None = None
    likelihoods: list[Likelihood] = field(default_factory=list)
    ids: Sequence[int] = ()

    def add(self, piece: Piece) -> None:
        """Take in what a step gave."""
        self.ids = piece.ids
        self.text += piece.text
        self.tokens = piece.tokens
        self.finish = piece.finish
        if piece.likelihood:
            self.likelihoods.append(piece.likelihood)


@dataclass(frozen=True)
class Answer:
    """What all parts of one answer share.

    Attributes:
        chat: whether a chat or a text completion was asked for.
        ignored: parameters of the request that had no effect.
        logprobs: whether the chat request asked for log probabilities.
        read: reads the tool calls in an answer's tokens; None where no tools were offered.
    """

    id: str
    model: str
    chat: bool
    prompt_tokens: int
    ignored: Sequence[str]
    logprobs: bool
    tokenizer: PreTrainedTokenizerBase
    read: Callable[[Sequence[int]], Response] | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, choices: list[dict[str, Any]], streamed: bool, **more: Any) -> dict[str, Any]:
        """Return the envelope around choices; it says which parameters were ignored, if any were."""
        kind = ("chat.completion.chunk" if streamed else "chat.completion") if self.chat else "text_completion"
        said = {"ignored_parameters": list(self.ignored)} if self.ignored else {}
        shared = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return shared | said | more

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        return self.body([self.choice(c) for c in choices], streamed=False, usage=self.usage(choices))

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return one finished choice."""
        finish: str | None = choice.finish
        if self.chat:
            said = self.said(choice)
            finish = "tool_calls" if "tool_calls" in said else finish
            content: dict[str, Any] = {"message": {"role": "assistant", "refusal": None, **said}}
        else:
            content = {"text": choice.text}
        return {"index": choice.index, **content, **self.likely(choice.likelihoods), "finish_reason": finish}

    def said(self, choice: Choice) -> dict[str, Any]:
        """Return what a finished answer says: its text, or its tool calls and the text around them."""
        response = self.read(choice.ids) if self.read and choice.ids else None
        if response is None or not response.calls:
            return {"content": choice.text}
        calls = [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
            }
            for call in response.calls
        ]
        return {"content": response.content or None, "tool_calls": calls}

    def first(self, index: int) -> dict[str, Any]:
        """Return the chunk that opens a streamed chat answer."""
        delta = {"role": "assistant", "content": ""}
        return self.body([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}], streamed=True)

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return one streamed piece."""
        delta = {"content": piece.text} if piece.text else {}
        content = {"delta": delta} if self.chat else {"text": piece.text}
        likely = self.likely([piece.likelihood] if piece.likelihood else [])
        return self.body([{"index": index, **content, **likely, "finish_reason": piece.finish}], streamed=True)

    def last(self, choice: Choice) -> dict[str, Any]:
        """Return a streamed answer in one piece: whether it is a tool call is known at its end."""
        whole = self.choice(choice)
        delta = {name: value for name, value in whole.pop("message").items() if name in ("content", "tool_calls")}
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
        return self.body([{**whole, "delta": delta}], streamed=True)

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """Count tokens: of the prompt once, of all choices together."""
        made = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def likely(self, likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
        """Return the `logprobs` of a choice: null unless asked for."""
        if not self.logprobs:
            return {"logprobs": None}
        return {"logprobs": {"content": [self.likelihood(one) for one in likelihoods], "refusal": None}}

    def likelihood(self, one: Likelihood) -> dict[str, Any]:
        """Return the log probabilities of one position."""
        top = [self.token(token, logprob) for token, logprob in one.top]
        return {**self.token(one.token, one.logprob), "top_logprobs": top}

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        """Return a token with its log probability; one that cannot happen has -9999, for JSON has no infinity."""
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def event(content: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
