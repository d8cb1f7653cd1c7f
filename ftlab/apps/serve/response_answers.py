"""A response in the format of OpenAI's Responses API: one message with one text, complete or as typed events."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

from ftlab.apps.serve.answers import Answer, Choice
from ftlab.apps.serve.job import Piece
from ftlab.apps.serve.schema import ResponsesRequest


@dataclass(frozen=True, kw_only=True)
class ResponseAnswer(Answer):
    """An answer of /v1/responses.

    Attributes:
        asked: the request; the response repeats parts of it.
        numbers: the numbers of the events of a stream.
    """

    last: ClassVar[str] = ""

    asked: ResponsesRequest
    numbers: Iterator[int] = field(default_factory=count)

    def envelope(self, streamed: bool) -> dict[str, str]:
        """Return the answer's id and kind."""
        return {"id": f"resp_{self.id}", "object": "response"}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the complete response."""
        return self.response(choices[0])

    def response(self, choice: Choice) -> dict[str, Any]:
        """Return the response in its current state: in progress, completed, or incomplete if cut at the token limit."""
        cut = choice.finish == "length"
        status = ("incomplete" if cut else "completed") if choice.finish else "in_progress"
        usage = {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": choice.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + choice.tokens,
        }
        shared = {
            name: getattr(self.asked, name) for name in ("instructions", "max_output_tokens", "temperature", "top_p")
        }
        return {
            **self.envelope(False),
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self.choice(choice)] if choice.finish else [],
            **shared,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "metadata": {},
            "usage": usage if choice.finish else None,
            **self.asked.remarks,
        }

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return the message, which has no content until it begins."""
        status = ("incomplete" if choice.finish == "length" else "completed") if choice.finish else "in_progress"
        content = [self.part(choice.text)] if choice.finish else []
        return {"type": "message", "id": self.item, "role": "assistant", "status": status, "content": content}

    @property
    def item(self) -> str:
        """The id of the message."""
        return f"msg_{self.id}"

    def part(self, text: str) -> dict[str, Any]:
        """Return the content of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the events before the first text."""
        return [
            self.told("created", response=self.response(choice)),
            self.told("in_progress", response=self.response(choice)),
            self.told("output_item.added", output_index=0, item=self.choice(choice)),
            self.in_text("content_part.added", part=self.part("")),
        ]

    def chunks(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        """Return the event of a piece; for the last one, also those that end the response."""
        events = [self.in_text("output_text.delta", delta=piece.text, logprobs=[])] if piece.text else []
        if not piece.finish:
            return events
        return [
            *events,
            self.in_text("output_text.done", text=choice.text, logprobs=[]),
            self.in_text("content_part.done", part=self.part(choice.text)),
            self.told("output_item.done", output_index=0, item=self.choice(choice)),
            # openai's client, up to 3.57 at least, has no final response after response.incomplete; see the status.
            self.told("completed", response=self.response(choice)),
        ]

    def in_text(self, kind: str, **more: Any) -> dict[str, Any]:
        """Return an event about the text of the message."""
        return self.told(kind, item_id=self.item, output_index=0, content_index=0, **more)

    def told(self, kind: str, **more: Any) -> dict[str, Any]:
        """Return an event."""
        return {"type": f"response.{kind}", "sequence_number": next(self.numbers), **more}
