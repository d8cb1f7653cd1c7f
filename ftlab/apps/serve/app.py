"""The routes: an OpenAI-compatible API over one engine, and a page to try it."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ftlab.apps.serve import metrics, schema
from ftlab.apps.serve.engine import Engine
from ftlab.apps.serve.refusals import Refused, refusal
from ftlab.apps.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from ftlab.apps.serve.security import Guard, Limits, body
from ftlab.apps.serve.service import Served, Service


def create(
    engine: Engine,
    models: Mapping[str, Served],
    token: str,
    limits: Limits | None = None,
    names: frozenset[str] = frozenset(),
    any_address: bool = False,
    origins: frozenset[str] = frozenset(),
    defaults: Mapping[str, Any] | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        models: the names that clients use.
        token: the API key that clients must send.
        names: host names besides this machine's own that a client may use.
        any_address: whether clients may use plain IP addresses other than loopback.
        origins: other origins whose pages may use this server from a browser.
        defaults: fields of a Job, where a request does not set them.
    """
    app = FastAPI(title="ftlab serve", docs_url=None, redoc_url=None, redirect_slashes=False)
    limits = limits or Limits()
    app.state.service = Service(engine, models, limits, defaults)
    app.add_middleware(Guard, token=token, names=names, any_address=any_address, limits=limits, origins=origins)
    if origins:
        # The outermost middleware: it answers a browser's preflight request, which has no API key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    add_errors(app)
    add_routes(app, app.state.service)
    return app


def add_errors(app: FastAPI) -> None:
    """Return every error in OpenAI's format; internal errors are logged, not sent."""

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


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes, described for OpenAPI clients."""
    add_state(app, service)
    add_answers(app, service)
    add_tokens(app, service)
    add_page(app)
    describe_bodies(app)


def add_state(app: FastAPI, service: Service) -> None:
    """Add the routes that tell the models and the load."""

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [service.model_entry(name) for name in service.models]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """Describe one model."""
        service.served(model)
        return service.model_entry(model)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return whether the engine is running, and its load."""
        engine = service.engine
        return {"status": "ok", "running": engine.running, "waiting": len(engine.waiting)}

    @app.get("/metrics")
    async def measured() -> Response:
        """Return counts and loads in the text format of Prometheus."""
        return PlainTextResponse(metrics.text(service), media_type=metrics.TYPE)


def add_answers(app: FastAPI, service: Service) -> None:
    """Add the routes on which the model runs."""

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

    @app.post("/v1/responses", openapi_extra=takes("ResponsesRequest"), responses=ERRORS)
    async def answer(request: Request) -> Response:
        """Answer a text or a conversation, in the shape of OpenAI's Responses API."""
        asked = schema.parse_body(ResponsesRequest, await body(request, service.limits))
        return await service.answer(request, asked)

    @app.post("/v1/embeddings", openapi_extra=takes("EmbeddingRequest"), responses=ERRORS)
    async def embed(request: Request) -> Response:
        """Return the mean of each text's last hidden states, scaled to length 1."""
        asked = schema.parse_body(EmbeddingRequest, await body(request, service.limits))
        return await service.embed(request, asked)


def add_tokens(app: FastAPI, service: Service) -> None:
    """Add the routes of the tokenizer."""

    @app.post("/tokenize", openapi_extra=takes("TokenizeRequest"), responses=ERRORS)
    async def tokenize(request: Request) -> dict[str, Any]:
        """Return the token ids of a text or a conversation."""
        return await service.tokenize(schema.parse_body(TokenizeRequest, await body(request, service.limits)))

    @app.post("/detokenize", openapi_extra=takes("DetokenizeRequest"), responses=ERRORS)
    async def detokenize(request: Request) -> dict[str, Any]:
        """Return the text of token ids."""
        return await service.detokenize(schema.parse_body(DetokenizeRequest, await body(request, service.limits)))


def add_page(app: FastAPI) -> None:
    """Add the page to try the server."""
    page, policy = chat_page()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def describe_bodies(app: FastAPI) -> None:
    """Add the request bodies, which the routes read themselves, to the OpenAPI description."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {}).setdefault("schemas", {}).update(schema.components())
        return document

    # FastAPI documents replacing the method as the way to extend its schema.
    app.openapi = openapi  # type: ignore[method-assign]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "an invalid or unsupported request",
        401: "no API key, or a wrong one",
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
    """Return the page, with a policy that allows only its own script and style, and requests to this server only."""
    folder = Path(__file__).parent
    page, rules = (folder / "chat.html").read_text(encoding="utf-8"), []
    for name, tag in (("chat.css", "style"), ("chat.js", "script")):
        text = (folder / name).read_text(encoding="utf-8")
        page = page.replace(f"/* {name} */", text)
        rules.append(f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    closed = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    return page, "; ".join([*closed, "frame-ancestors 'none'", *rules])
