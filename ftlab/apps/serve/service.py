"""Turn a validated request into jobs for the engine, and their results into a response."""

import asyncio
import base64
import logging
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError

from ftlab import responses, tokens
from ftlab.apps.serve import scoring
from ftlab.apps.serve.answers import Answer, ChatAnswer, Choice, TextAnswer, event
from ftlab.apps.serve.constraints import Constraint, Constraints
from ftlab.apps.serve.engine import Busy, Engine
from ftlab.apps.serve.job import ADAPTER, Finish, Job, Likelihood, Piece
from ftlab.apps.serve.refusals import Refused
from ftlab.apps.serve.response_answers import ResponseAnswer
from ftlab.apps.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ResponsesRequest,
    Sampling,
    TokenizeRequest,
)
from ftlab.apps.serve.security import Limits
from ftlab.errors import LabError

log = logging.getLogger(__name__)
Message = dict[str, Any]
# Parameters of a request that are fields of a Job under the same name.
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
UNFOLLOWABLE = "the schema became too complex while the answer was generated"
REASONS: dict[Finish | None, Refused] = {
    "waited": Refused(429, "the request waited too long", code="queue_timeout"),
    "cancelled": Refused(429, "the server is stopping, or the client left", code="cancelled"),
    "unfollowable": Refused(400, UNFOLLOWABLE, "response_format", code="invalid_value"),
    "error": Refused(500, "the generation failed", code="internal_error"),
}


@dataclass(frozen=True)
class Served:
    """A model that clients can name.

    Attributes:
        adapter: PEFT's name of its adapter; None for the model without one.
        system: the system turn of its training, for conversations without one.
    """

    adapter: str | None = ADAPTER
    system: Sequence[Message] = ()


class Service:
    """Answers requests with one engine.

    Args:
        models: the names that clients use.
        defaults: fields of a Job that a request does not set.
    """

    def __init__(
        self,
        engine: Engine,
        models: Mapping[str, Served],
        limits: Limits,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine, self.models, self.limits, self.defaults = engine, dict(models), limits, dict(defaults or {})
        self.started = int(time.time())
        self.reader = responses.Reader(engine.tokenizer)
        self.constraints = Constraints(self.reader, engine.vocabulary, engine.ends)
        self.finished: Counter[str] = Counter()
        # A tokenizer must not be used while it is changed, and rendering sets its padding.
        self.rendering = asyncio.Lock()

    def model_entry(self, name: str) -> dict[str, Any]:
        """Return the entry of one model in /v1/models."""
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "ftlab",
            "max_model_len": self.engine.context,
        }

    def served(self, model: str) -> Served:
        """Return the model of a name; a name is only compared with the served ones, never used as a path.

        Raises:
            Refused: 404, no such model.
        """
        if model not in self.models:
            raise Refused(404, f"the models here are {', '.join(self.models)}", "model", "model_not_found")
        return self.models[model]

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """Answer a chat request."""
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        served = self.served(asked.model)
        constraint = await self.in_thread(self.constraint, asked)
        prompt = await self.prompt(served, asked.messages, asked.offered)
        answer = ChatAnswer(
            model=asked.model,
            prompt_tokens=len(prompt),
            ignored=asked.ignored,
            logprobs=bool(asked.logprobs),
            tokenizer=self.engine.tokenizer,
            read=self.call_reader(asked, prompt),
        )
        max_tokens = self.checked([prompt], asked.max_completion_tokens or asked.max_tokens, asked)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        choices = [Choice(index) for index in range(asked.n or 1)]
        shared = self.sampling(asked) | {"adapter": served.adapter, "max_tokens": max_tokens, "logprobs": logprobs}
        return await self.respond(request, asked, answer, choices, [prompt], constraint, shared)

    def constraint(self, request: ChatRequest) -> Constraint | None:
        """Return the constraint on an answer, None without one.

        Raises:
            Refused: 400, an unsupported schema, or one together with tools that may be called.
        """
        followed = request.response_format.followed if request.response_format else None
        if request.forced:
            return self.constraints.call(request.forced)
        if followed is None:
            return None
        if request.offered:
            reason = "response_format and tools cannot be combined; set tool_choice to none or to a tool"
            raise Refused(400, reason, "response_format", "invalid_value")
        return self.constraints.json(followed)

    def call_reader(
        self, request: ChatRequest, prompt: list[int]
    ) -> Callable[[Sequence[int]], responses.Response] | None:
        """Return a function that reads the tool calls in an answer's tokens; None if no tools are offered."""
        if not request.offered:
            return None
        if request.forced:
            decode = partial(self.engine.tokenizer.decode, skip_special_tokens=True)
            return lambda ids: responses.read_json(decode(ids), "", None)

        def read(ids: Sequence[int]) -> responses.Response:
            response = self.reader.read(prompt, ids, request.offered)
            return response._replace(calls=response.calls[: 1 if request.parallel_tool_calls is False else None])

        return read

    async def prompt(self, served: Served, messages: Sequence[Any], tools: list[dict[str, Any]] | None) -> list[int]:
        """Return the token ids of a conversation up to where the answer begins.

        Raises:
            Refused: 400, the chat template refuses it.
        """
        shown = [message.rendered() for message in messages]
        if shown[0]["role"] != "system":
            shown = [*served.system, *shown]
        try:
            return await self.in_thread(tokens.prompt, self.engine.tokenizer, shown, tools)
        except (LabError, TemplateError, TypeError, ValueError, KeyError) as error:
            # A template refuses what its model does not support: a system turn, two user turns in a row.
            reason = (error.what if isinstance(error, LabError) else str(error))[:200]
            raise Refused(400, f"the chat template: {reason}", "messages", "invalid_value") from error

    async def answer(self, request: Request, asked: ResponsesRequest) -> Response:
        """Answer a request of the Responses API, through the equivalent chat request."""
        served, chat = self.served(asked.model), asked.as_chat()
        prompt = await self.prompt(served, chat.messages, None)
        answer = ResponseAnswer(
            model=asked.model,
            prompt_tokens=len(prompt),
            ignored=asked.ignored,
            logprobs=False,
            tokenizer=self.engine.tokenizer,
            asked=asked,
        )
        max_tokens = self.checked([prompt], asked.max_output_tokens, chat)
        shared = self.sampling(chat) | {"adapter": served.adapter, "max_tokens": max_tokens, "logprobs": None}
        return await self.respond(request, chat, answer, [Choice(0)], [prompt], None, shared)

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        """Answer a text completion request."""
        served = self.served(asked.model)
        prompts = await self.tokenized(asked.prompt, "prompt")
        max_tokens = self.checked(prompts, asked.max_tokens, asked)
        answer = TextAnswer(
            model=asked.model,
            prompt_tokens=sum(map(len, prompts)),
            ignored=asked.ignored,
            logprobs=asked.logprobs is not None,
            tokenizer=self.engine.tokenizer,
        )
        choices = [Choice(index) for index in range(len(prompts) * (asked.n or 1))]
        if asked.echo:
            await self.echo(asked, served, prompts, choices)
        shared = self.sampling(asked) | {"adapter": served.adapter, "logprobs": asked.logprobs}
        return await self.respond(request, asked, answer, choices, prompts, None, shared | {"max_tokens": max_tokens})

    async def echo(
        self, asked: CompletionRequest, served: Served, prompts: Sequence[list[int]], choices: Sequence[Choice]
    ) -> None:
        """Begin choices with their prompts, and with their tokens' log probabilities if these are asked for.

        Raises:
            Refused: 400, so many log probabilities that a response would not hold them.
        """
        count, context = asked.n or 1, self.engine.context
        if asked.logprobs is not None and sum(map(len, prompts)) * count > context:
            raise Refused(400, f"echo with logprobs takes at most {context} prompt tokens", "echo", "invalid_value")
        for number, prompt in enumerate(prompts):
            likelihoods: list[Likelihood] = []
            if asked.logprobs is not None:
                scored = partial(scoring.prompt_likelihoods, ids=prompt, count=asked.logprobs)
                likelihoods = await self.call(served, scored)
            for choice in choices[number * count : (number + 1) * count]:
                choice.text = self.engine.tokenizer.decode(prompt)
                choice.likelihoods = list(likelihoods)

    async def embed(self, request: Request, asked: EmbeddingRequest) -> Response:
        """Return the embeddings of texts."""
        served = self.served(asked.model)
        texts = await self.tokenized(asked.input, "input")
        size = self.engine.model.config.hidden_size
        if asked.dimensions not in (None, size):
            raise Refused(400, f"the embeddings of this model have {size} dimensions", "dimensions", "invalid_value")
        if max(map(len, texts)) > self.engine.context:
            raise Refused(400, f"a text is above {self.engine.context} tokens", "input", "context_length_exceeded")
        data = []
        for index, ids in enumerate(texts):
            if await request.is_disconnected():
                raise REASONS["cancelled"]
            vector = await self.call(served, partial(scoring.embedding, ids=ids))
            packed = base64.b64encode(array("f", vector).tobytes()).decode()
            data.append(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": packed if asked.encoding_format == "base64" else vector,
                }
            )
        count = sum(map(len, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "model": asked.model, "data": data, "usage": usage, **asked.remarks})

    async def tokenize(self, asked: TokenizeRequest) -> dict[str, Any]:
        """Return the token ids of a text or a conversation."""
        served = self.served(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise Refused(400, "give either prompt or messages", "prompt", "invalid_value")
        if asked.messages is not None:
            tools = [tool.rendered() for tool in asked.tools or []]
            ids = await self.prompt(served, asked.messages, tools or None)
        else:
            ids = (await self.in_thread(self.engine.tokenizer, asked.prompt)).input_ids
        return {"count": len(ids), "max_model_len": self.engine.context, "tokens": ids, **asked.remarks}

    async def detokenize(self, asked: DetokenizeRequest) -> dict[str, Any]:
        """Return the text of token ids."""
        self.served(asked.model)
        text = await self.in_thread(self.engine.tokenizer.decode, self.known(asked.tokens, "tokens"))
        return {"prompt": text, **asked.remarks}

    async def tokenized(self, texts: Any, param: str) -> list[list[int]]:
        """Return the token ids of a text or of token ids, or of a list of them.

        Raises:
            Refused: 400, there are too many, or tokens that the model does not know.
        """
        several = isinstance(texts, list) and not isinstance(texts[0], int)
        asked = texts if several else [texts]
        if len(asked) > self.limits.texts:
            raise Refused(400, f"{param} holds at most {self.limits.texts} texts here", param, "invalid_value")
        made = []
        for text in asked:
            ids = self.known(text, param) if isinstance(text, list) else None
            made.append(ids or (await self.in_thread(self.engine.tokenizer, text)).input_ids)
        if not all(made):
            raise Refused(400, f"{param} holds a text without tokens", param, "invalid_value")
        return made

    def known(self, ids: list[int], param: str) -> list[int]:
        """Return token ids if all of them are in the vocabulary.

        Raises:
            Refused: 400.
        """
        if max(ids) >= self.engine.vocabulary:
            raise Refused(400, f"tokens are below {self.engine.vocabulary} here", param, "invalid_value")
        return ids

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Use the tokenizer in a thread: a long text would block the event loop."""
        async with self.rendering:
            return await run_in_threadpool(function, *arguments)

    async def call(self, served: Served, function: Callable[[Any], Any]) -> Any:
        """Return the result of `function(model)`, run by the engine.

        Raises:
            Refused: 429, too many wait, or it waited too long; 500, it failed.
        """
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.wrap_future(self.engine.call(served.adapter, function))
        except Busy as busy:
            raise queue_full() from busy
        except TimeoutError as late:
            raise REASONS["waited"] from late
        except Exception as error:
            log.exception("a call failed")
            raise REASONS["error"] from error

    def sampling(self, request: Sampling) -> dict[str, Any]:
        """Return the sampling fields of a Job.

        Raises:
            Refused: 400, `logit_bias` has a token outside the vocabulary.
        """
        bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
        self.known([*bias, 0], "logit_bias")
        values = {name: value for name in SAMPLING if (value := getattr(request, name)) is not None}
        if values.get("top_k") == -1:
            values["top_k"] = 0
        return self.defaults | values | {"logit_bias": bias, "stop": request.stops}

    def checked(self, prompts: Sequence[list[int]], max_tokens: int | None, request: Sampling) -> int:
        """Return how many tokens to generate per answer.

        Raises:
            Refused: 400, more than the limits or the model's context allow.
        """
        limits, context, longest = self.limits, self.engine.context, max(map(len, prompts))
        if len(prompts) * (request.n or 1) > limits.choices:
            raise Refused(400, f"a request has at most {limits.choices} answers here", "n", "invalid_value")
        if max_tokens and max_tokens > limits.max_tokens:
            raise Refused(400, f"max_tokens is at most {limits.max_tokens} here", "max_tokens", "invalid_value")
        room = context - longest
        if not longest or room < (max_tokens or 1):
            reason = f"{longest} prompt tokens and {max_tokens or 1} to generate do not fit into {context}"
            raise Refused(400, reason, "messages", "context_length_exceeded")
        return max_tokens or min(limits.default_tokens, room)

    async def respond(
        self,
        request: Request,
        asked: Sampling,
        answer: Answer,
        choices: Sequence[Choice],
        prompts: Sequence[list[int]],
        constraint: Constraint | None,
        shared: dict[str, Any],
    ) -> Response:
        """Queue a job for each choice, those of the first prompt first, and respond with their results."""
        pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emitter(index: int) -> Callable[[Piece], None]:
            def emit(piece: Piece) -> None:
                if piece.finish:
                    self.finished[piece.finish] += 1
                if not loop.is_closed():
                    loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

            return emit

        count = len(choices) // len(prompts)
        shared["deadline"] = time.monotonic() + self.limits.seconds
        jobs = [
            Job(
                prompt=prompts[choice.index // count],
                emit=emitter(choice.index),
                constraint=constraint.copy() if constraint else None,
                **shared | ({"seed": (shared["seed"] + choice.index) % 2**63} if "seed" in shared else {}),
            )
            for choice in choices
        ]
        try:
            self.engine.submit(jobs)
        except Busy as busy:
            raise queue_full() from busy
        watch = asyncio.create_task(drop_with_client(request, jobs))
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = self.events(answer, choices, jobs, pieces, usage, watch)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            while not all(choice.finish for choice in choices):
                index, piece = await pieces.get()
                choices[index].add(piece)
                if refused := REASONS.get(piece.finish):
                    raise refused
            return JSONResponse(answer.whole(choices))
        finally:
            leave(jobs, watch)

    async def events(
        self,
        answer: Answer,
        choices: Sequence[Choice],
        jobs: list[Job],
        pieces: asyncio.Queue[tuple[int, Piece]],
        usage: bool,
        watch: asyncio.Task[None],
    ) -> AsyncIterator[str]:
        """Yield the server-sent events of a streamed answer."""
        try:
            for choice in choices:
                for chunk in answer.opening(choice):
                    yield event(chunk)
            while not all(choice.finish for choice in choices):
                index, piece = await pieces.get()
                if refused := REASONS.get(piece.finish):
                    yield event(refused.body())
                    return
                choices[index].add(piece)
                for chunk in answer.chunks(choices[index], piece):
                    yield event(chunk)
            if usage:
                yield event(answer.body([], streamed=True, usage=answer.usage(choices)))
            if answer.last:
                yield answer.last
        finally:
            leave(jobs, watch)


def queue_full() -> Refused:
    """Build the refusal of a request that finds the queue full."""
    return Refused(429, "too many requests are waiting", code="queue_full")


def leave(jobs: list[Job], watch: asyncio.Task[None]) -> None:
    """Cancel the jobs of a request."""
    watch.cancel()
    for job in jobs:
        job.cancelled = True


async def drop_with_client(request: Request, jobs: list[Job]) -> None:
    """Wait until the client leaves, then cancel its jobs."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for job in jobs:
        job.cancelled = True
