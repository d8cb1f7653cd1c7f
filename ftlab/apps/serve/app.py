"""The routes: an OpenAI-compatible API over one engine, and a page to try it."""

import asyncio
import base64
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException

from ftlab import responses, tokens
from ftlab.apps.serve import schema
from ftlab.apps.serve.answers import Answer, Choice, Refused, event, refusal
from ftlab.apps.serve.batch import Finish, Job, Piece
from ftlab.apps.serve.engine import Busy, Engine
from ftlab.apps.serve.schema import ChatRequest, CompletionRequest, Sampling
from ftlab.apps.serve.security import Guard, Limits, body
from ftlab.errors import LabError
from ftlab.runs import chat

BASE = "-base"


def create(
    engine: Engine,
    name: str,
    token: str,
    limits: Limits | None = None,
    names: frozenset[str] = frozenset(),
    any_address: bool = False,
    system: Sequence[dict[str, Any]] = (),
) -> FastAPI:
    """Return the application.

    Args:
        name: what clients call the model; with an adapter, `name` + "-base" is the model without it.
        token: what a client must send.
        names: host names besides this machine's own that a client may use.
        any_address: whether clients may use plain IP addresses other than loopback.
        system: the turn that the model was trained to see first, for conversations without a system turn.
    """
    app = FastAPI(title="ftlab serve", docs_url=None, redoc_url=None, redirect_slashes=False)
    limits = limits or Limits()
    app.state.service = Service(engine, name, limits, system)
    app.add_middleware(Guard, token=token, names=names, any_address=any_address, limits=limits)
    add_errors(app)
    add_routes(app, app.state.service)
    return app


def add_errors(app: FastAPI) -> None:
    """Give every error OpenAI's shape; what went wrong inside is logged and not told."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        response = refusal(
            Refused(error.status_code, str(error.detail), code=str(error.detail).lower().replace(" ", "_"))
        )
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def inside(request: Request, error: Exception) -> Response:
        return refusal(Refused(500, "the server failed", code="internal_error"))


def add_routes(app: FastAPI, service: "Service") -> None:
    """Add the routes, described for OpenAPI clients."""

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Name the models that answer here."""
        return {"object": "list", "data": [service.model_entry(name) for name in service.names]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """Describe one model."""
        service.adapter_of(model)
        return service.model_entry(model)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return whether the engine is running, and its load."""
        engine = service.engine
        return {"status": "ok", "running": engine.running, "waiting": len(engine.waiting)}

    @app.post("/v1/chat/completions", openapi_extra=takes("ChatRequest"), responses=ERRORS)
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        asked = schema.parse_body(ChatRequest, await body(request, service.limits))
        return await service.chat(request, asked)

    @app.post("/v1/completions", openapi_extra=takes("CompletionRequest"), responses=ERRORS)
    async def complete(request: Request) -> Response:
        """Continue a text."""
        asked = schema.parse_body(CompletionRequest, await body(request, service.limits))
        return await service.complete(request, asked)

    page, policy = chat_page()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document.setdefault("components", {}).setdefault("schemas", {}).update(schema.components())
        return document

    # FastAPI documents replacing the method as the way to extend its schema.
    app.openapi = openapi  # type: ignore[method-assign]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "the request cannot be followed",
        401: "no token, or a wrong one",
        403: "wrong Host or Origin",
        404: "no such model",
        408: "the body took too long",
        413: "the body is too large",
        415: "not application/json",
        429: "the queue is full",
    }.items()
}


def takes(name: str) -> dict[str, Any]:
    """Return the OpenAPI description of a body that the route reads itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


def chat_page() -> tuple[str, str]:
    """Return the page and a policy under which only its own script and style run, and only this server is asked."""
    page = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    rules = [f"{tag}-src 'sha256-{digest}'" for tag, digest in hashes.items()]
    closed = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    return page, "; ".join([*closed, "frame-ancestors 'none'", *rules])


class Service:
    """From a checked request to jobs, and from what they give to a response."""

    def __init__(self, engine: Engine, name: str, limits: Limits, system: Sequence[dict[str, Any]] = ()) -> None:
        self.system = list(system)
        self.engine, self.name, self.limits = engine, name, limits
        self.names = [name, name + BASE] if chat.switchable(engine.model) else [name]
        self.started = int(time.time())
        self.reader = responses.Reader(engine.tokenizer)
        # A tokenizer must not be changed and used concurrently; rendering sets its padding.
        self.rendering = asyncio.Lock()

    def model_entry(self, name: str) -> dict[str, Any]:
        """Return what /v1/models says about one model."""
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "ftlab",
            "max_model_len": self.engine.context,
        }

    def adapter_of(self, model: str) -> bool:
        """Return True if the adapter is on for a model name; a name is compared with those served and never opened.

        Raises:
            Refused: 404, no such model.
        """
        if model not in self.names:
            raise Refused(404, f"the models here are {', '.join(self.names)}", "model", "model_not_found")
        return model == self.name

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """Answer a chat request."""
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        adapter = self.adapter_of(asked.model)
        messages = [message.rendered() for message in asked.messages]
        if adapter and messages[0]["role"] != "system":
            messages = [*self.system, *messages]
        try:
            prompt = await self.render(tokens.prompt, self.engine.tokenizer, messages, asked.offered)
        except (LabError, TemplateError, TypeError, ValueError, KeyError) as error:
            # A template refuses what its model does not know: a system turn, two user turns in a row.
            reason = (error.what if isinstance(error, LabError) else str(error))[:200]
            raise Refused(400, f"the chat template: {reason}", "messages", "invalid_value") from error
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        wanted = asked.max_completion_tokens or asked.max_tokens
        read = partial(self.reader.read, prompt, tools=asked.offered) if asked.offered else None
        return await self.answer(request, asked, prompt, wanted, adapter, True, logprobs, read)

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        """Answer a text completion request."""
        adapter = self.adapter_of(asked.model)
        prompt = await self.render(lambda: self.engine.tokenizer(asked.prompt).input_ids)
        return await self.answer(request, asked, prompt, asked.max_tokens, adapter, False, None)

    async def render(self, function: Callable[..., list[int]], *arguments: Any) -> list[int]:
        """Tokenize in a thread: a long text would block the event loop."""
        async with self.rendering:
            return await run_in_threadpool(function, *arguments)

    async def answer(
        self,
        request: Request,
        asked: Sampling,
        prompt: list[int],
        wanted: int | None,
        adapter: bool,
        chat: bool,
        logprobs: int | None,
        read: Callable[[Sequence[int]], responses.Response] | None = None,
    ) -> Response:
        """Queue the jobs of a request and respond with what they give."""
        max_tokens, count = self.checked(len(prompt), wanted, asked)
        pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emitter(index: int) -> Callable[[Piece], None]:
            def emit(piece: Piece) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

            return emit

        jobs = [
            Job(
                prompt=prompt,
                emit=emitter(index),
                max_tokens=max_tokens,
                temperature=1.0 if asked.temperature is None else asked.temperature,
                top_p=1.0 if asked.top_p is None else asked.top_p,
                stop=asked.stops,
                seed=None if asked.seed is None else (asked.seed + index) % 2**63,
                logprobs=logprobs,
                adapter=adapter,
                deadline=time.monotonic() + self.limits.seconds,
            )
            for index in range(count)
        ]
        try:
            self.engine.submit(jobs)
        except Busy as busy:
            raise Refused(429, "too many requests are waiting", code="queue_full") from busy
        identity = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        wants = logprobs is not None
        answer = Answer(identity, asked.model, chat, len(prompt), asked.ignored, wants, self.engine.tokenizer, read)
        watch = asyncio.create_task(drop_with_client(request, jobs))
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = self.events(answer, jobs, pieces, usage, watch)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            choices = [Choice(index) for index in range(count)]
            while not all(choice.finish for choice in choices):
                index, piece = await pieces.get()
                choices[index].add(piece)
                if refused := REASONS.get(piece.finish):
                    raise refused
            return JSONResponse(answer.whole(choices))
        finally:
            leave(jobs, watch)

    def checked(self, prompt_tokens: int, wanted: int | None, asked: Sampling) -> tuple[int, int]:
        """Return how many tokens to generate per answer, and how many answers.

        Raises:
            Refused: 400, more than the limits or the model's context allow.
        """
        limits, context, count = self.limits, self.engine.context, asked.n or 1
        if count > limits.choices:
            raise Refused(400, f"n is at most {limits.choices} here", "n", "invalid_value")
        if wanted and wanted > limits.max_tokens:
            raise Refused(400, f"max_tokens is at most {limits.max_tokens} here", "max_tokens", "invalid_value")
        room = context - prompt_tokens
        if not prompt_tokens or room < (wanted or 1):
            said = f"{prompt_tokens} prompt tokens and {wanted or 1} to generate do not fit into {context}"
            raise Refused(400, said, "messages", "context_length_exceeded")
        return wanted or min(limits.default_tokens, room), count

    async def events(
        self,
        answer: Answer,
        jobs: list[Job],
        pieces: asyncio.Queue[tuple[int, Piece]],
        usage: bool,
        watch: asyncio.Task[None],
    ) -> AsyncIterator[str]:
        """Yield the server-sent events of a streamed answer."""
        choices = [Choice(index) for index in range(len(jobs))]
        try:
            if answer.chat:
                for choice in choices:
                    yield event(answer.first(choice.index))
            while not all(choice.finish for choice in choices):
                index, piece = await pieces.get()
                if refused := REASONS.get(piece.finish):
                    yield event(refused.body())
                    return
                choices[index].add(piece)
                if answer.read is None:
                    yield event(answer.chunk(index, piece))
                elif piece.finish:
                    yield event(answer.last(choices[index]))
            if usage:
                yield event(answer.body([], streamed=True, usage=answer.usage(choices)))
            yield "data: [DONE]\n\n"
        finally:
            leave(jobs, watch)


REASONS: dict[Finish | None, Refused] = {
    "waited": Refused(429, "the request waited too long", code="queue_timeout"),
    "cancelled": Refused(429, "the server is stopping, or the client left", code="cancelled"),
    "error": Refused(500, "the generation failed", code="internal_error"),
}


def leave(jobs: list[Job], watch: asyncio.Task[None]) -> None:
    """End what a request started."""
    watch.cancel()
    for job in jobs:
        job.cancelled = True


async def drop_with_client(request: Request, jobs: list[Job]) -> None:
    """Wait until the client leaves, then cancel its jobs."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for job in jobs:
        job.cancelled = True
