"""A real server over a tiny random model, for the tests that talk HTTP to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ftlab.apps.serve import app, run
from ftlab.apps.serve.engine import Engine
from ftlab.apps.serve.security import Limits
from ftlab.apps.serve.service import Served

TOKEN = "a-token-for-tests-0123456789"
CHAT = "/v1/chat/completions"


@dataclass
class Server:
    """A running server.

    Attributes:
        url: where it listens, without `/v1`.
        http: a client that sends the token.
    """

    url: str
    http: httpx.Client
    engine: Engine
    app: FastAPI

    def chat(self, text: str = "hi", **parameters: Any) -> httpx.Response:
        """Ask one thing, for four tokens unless `parameters` say otherwise."""
        messages = [{"role": "user", "content": text}]
        return self.http.post(CHAT, json={"model": "tiny", "messages": messages, "max_tokens": 4} | parameters)

    def works(self) -> bool:
        """Say whether a good request is answered."""
        response = self.chat()
        return response.status_code == 200 and response.json()["choices"][0]["finish_reason"] in ("stop", "length")


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the tiny model in float32, in which a row's numbers hardly depend on its neighbours."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(), AutoTokenizer.from_pretrained(folder)


@contextmanager
def serving(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits | None = None,
    origins: frozenset[str] = frozenset(),
    **options: Any,
) -> Iterator[Server]:
    """Serve a model under the name "tiny"; `options` go to the engine."""
    engine = Engine(model, tokenizer, **options)
    models = {"tiny": Served()} | ({"tiny-base": Served(None)} if isinstance(model, PeftModel) else {})
    made = app.create(engine, models, TOKEN, limits, origins=origins)
    try:
        with run.running(made) as url, httpx.Client(base_url=url, headers=bearer(), timeout=300) as client:
            yield Server(url, client, engine, made)
    finally:
        engine.close()


def bearer(token: str = TOKEN) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the JSON events of a streamed answer, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]
