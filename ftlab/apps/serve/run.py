"""Start the server: in the foreground for `ftlab serve`, or in a thread for a notebook and the tests."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

import uvicorn
from starlette.types import ASGIApp
from transformers.utils.logging import disable_progress_bar

from ftlab import embedded
from ftlab.apps.ports import port_of
from ftlab.apps.serve import app, loading, security
from ftlab.apps.serve.engine import Engine
from ftlab.errors import fail, say

# Above this new connections are refused, so that idle ones cannot exhaust the file descriptors.
CONNECTIONS = 512
T = TypeVar("T")


def serve(
    model_name_or_path: str,
    adapters: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    remote_names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
    origins: Sequence[str] = (),
    overrides: Sequence[str] = (),
    backend: str | None = None,
) -> None:
    """Serve a model until interrupted.

    Args:
        model_name_or_path, adapters, name, overrides, backend: see `loading.load`.
        host: address to bind; API_HOST or 127.0.0.1 if None.
        port: port to bind; API_PORT or 8000 if None, 0 for any free one.
        remote_names: None allows loopback only; a list, even an empty one, allows other addresses and gives the
            host names, besides IP addresses, that clients may use for this machine.
        trust_remote_code: run the code that comes with the model.
        origins: origins whose pages may use the server from a browser.
    Raises:
        LabError: the address must be loopback and is not, or is taken; the API key is weak.
    """
    host = host or os.environ.get("API_HOST") or "127.0.0.1"
    port = port_of("API_PORT", 8000) if port is None else port
    if remote_names is None and not security.resolves_to_loopback(host):
        raise fail("serve_remote", where=host)
    allowed = frozenset(security.allowed_origin(origin) for origin in origins)
    bound = listen(host, port)
    token, note = security.token(embedded.cache_dir() / "serve")
    if not sys.stderr.isatty():
        disable_progress_bar()

    def load() -> tuple[loading.Loaded, Engine]:
        loaded = loading.load(model_name_or_path, adapters, name, overrides, trust_remote_code, backend)
        return loaded, Engine(loaded.model, loaded.tokenizer, backend=loaded.backend)

    loaded, engine = in_thread(load)
    application = app.create(
        engine,
        loaded.served,
        token,
        loaded.limits,
        names=frozenset([*(remote_names or []), host]),
        any_address=remote_names is not None,
        origins=allowed,
        defaults=loaded.defaults,
    )
    print(say("serve_started", models=", ".join(loaded.served), address=address(bound)), note, sep="\n", flush=True)
    try:
        server(application).run(sockets=[bound])
    finally:
        engine.close()


def in_thread(function: Callable[[], T]) -> T:
    """Return what a function returns, called in a thread that ends; Ctrl-C does not wait for it.

    OpenMP keeps workers for every thread that has computed, and once there are more of them than cores its barriers
    sleep, which made llama.cpp in the engine's thread three times slower on two cores.
    """
    result: Future[T] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        # Raised where the result is read.
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    return result.result()


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded, so that a port in use is reported immediately.

    Raises:
        LabError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise fail("serve_bind", where=f"{host}:{port}", reason=getattr(error, "strerror", None) or error) from error


def address(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(application: ASGIApp) -> uvicorn.Server:
    """Return a server that logs no requests: a request line may contain a secret by mistake."""
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


@contextmanager
def running(application: ASGIApp, port: int = 0) -> Iterator[str]:
    """Run an application on loopback in a thread and yield its URL."""
    bound = listen("127.0.0.1", port)
    beside = server(application)
    thread = Thread(target=beside.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not beside.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address(bound)
    finally:
        beside.should_exit = True
        thread.join()
