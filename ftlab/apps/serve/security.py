"""Access control and limits: the API key, the Host and Origin of a request, its size and time limits."""

import asyncio
import contextlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import stat
import string
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ftlab.apps.serve.refusals import Refused, refusal
from ftlab.errors import fail, say

TOKEN_BITS = 128
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# The page contains no secret, and a browser cannot send a key before the page has asked for it.
OPEN_PATHS = frozenset({"/"})


@dataclass(frozen=True)
class Limits:
    """The limits of one request.

    Attributes:
        body_bytes: size of a request's body.
        body_seconds: time to send it.
        max_tokens: tokens that may be generated per answer.
        default_tokens: tokens generated if the request does not say.
        choices: answers per request.
        texts: prompts, or texts to embed, per request.
        seconds: time from the request to its last token, waiting included.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 15
    max_tokens: int = 2048
    default_tokens: int = 256
    choices: int = 32
    texts: int = 256
    seconds: float = 300


def token(folder: Path) -> tuple[str, str]:
    """Return the API key, and a note on it for the user.

    `API_KEY` if it is set; else the key in `folder`, created on first use in a file that only its owner can read.

    Raises:
        LabError: API_KEY is too easy to guess, or others may read the file.
    """
    if "API_KEY" in os.environ:
        api_key = os.environ["API_KEY"]
        if bits(api_key) < TOKEN_BITS:
            raise fail("serve_weak_token", where="API_KEY", bits=TOKEN_BITS, example="openssl rand -hex 32")
        return api_key, say("serve_key_given")
    path = folder / "token"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = secrets.token_urlsafe(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return kept(path), say("serve_key_kept", path=path)
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
    # If the output goes to a file or a notebook, the key would stay there.
    if os.isatty(1):
        return key, say("serve_key_shown", key=key, path=path)
    return key, say("serve_key_new", path=path)


def kept(path: Path) -> str:
    """Return the API key in a file, if it is strong and nobody else can read it."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
            state = os.fstat(file.fileno())
            text = file.read(1024).strip()
    except OSError as error:
        raise fail("serve_open_token", where=str(path)) from error
    private = stat.S_ISREG(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
    if not private or bits(text) < TOKEN_BITS:
        raise fail("serve_open_token", where=str(path))
    return text


def bits(text: str) -> float:
    """Return an upper bound of a key's entropy in bits; 0 if it cannot be sent in a header or has few characters.

    >>> bits("0123456789abcdef" * 2), bits("correct horse"), bits("a" * 64)
    (128.0, 0.0, 0.0)
    """
    if not re.fullmatch(r"[!-~]+", text) or len(set(text)) < 8:
        return 0.0
    return len(text) * (4.0 if set(text) <= set(string.hexdigits) else 6.0)


def resolves_to_loopback(host: str) -> bool:
    """Return True if `host` resolves to loopback addresses only: a server there is reachable from this machine alone.

    Raises:
        LabError: the name has no address.
    """
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise fail("serve_bind", where=host, reason=error.strerror or error) from error
    return all(ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_loopback for entry in addresses)


def allowed_origin(text: str) -> str:
    """Return an origin that `--allow-origin` names.

    Raises:
        LabError: it is not just a scheme, a host and a port; a wildcard would allow every page.
    """
    if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", text):
        raise fail("serve_origin", where=text)
    return text


class Guard:
    """Middleware in front of every route: refuses a request before its body is read.

    Args:
        token: what `Authorization: Bearer` must carry.
        names: host names a client may use. A page elsewhere can point its own domain at this machine (DNS
            rebinding), so other names are refused.
        origins: origins, as `https://app.example`, whose pages may send requests.
        any_address: whether plain IP addresses are allowed too: rebinding needs a name, rented machines have addresses.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        names: frozenset[str],
        any_address: bool,
        limits: Limits,
        origins: frozenset[str] = frozenset(),
    ) -> None:
        self.app, self.token, self.limits, self.origins = app, token.encode(), limits, origins
        self.names, self.any_address = LOCAL_NAMES | {name.lower() for name in names}, any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in SAFE_HEADERS if h[0] not in present)]
            await send(message)

        try:
            self.check(scope)
        except Refused as refused:
            with contextlib.suppress(TimeoutError):
                await drained(receive, self.limits)
            return await refusal(refused)(scope, receive, guarded)
        await self.app(scope, receive, guarded)

    def check(self, scope: Scope) -> None:
        """Check the headers of a request.

        Raises:
            Refused: 400, 401, 403, 413 or 415.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.knows(hosts[0]):
            raise Refused(403, "this server does not answer to that Host", code="wrong_host")
        origins = set(headers.getlist("origin")) - self.origins
        if origins and {address_of(origin) for origin in origins} != {hosts[0].lower()}:
            raise Refused(403, "requests from other origins are refused", code="wrong_origin")
        if scope["path"] not in OPEN_PATHS and not self.permits(headers.getlist("authorization")):
            raise Refused(401, "send the server's API key: Authorization: Bearer API_KEY", code="invalid_api_key")
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if kind != "application/json":
                raise Refused(415, "only application/json is accepted", code="unsupported_media_type")
        if int(headers.get("content-length") or 0) > self.limits.body_bytes:
            raise too_large(self.limits)

    def knows(self, host: str) -> bool:
        """Return True if a Host header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            return self.any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def permits(self, authorizations: list[str]) -> bool:
        """Return True if a request has the API key; the comparison takes constant time."""
        scheme, _, credentials = (authorizations[0] if len(authorizations) == 1 else "").partition(" ")
        right = hmac.compare_digest(credentials.strip().encode("latin-1", "replace"), self.token)
        return right and scheme.lower() == "bearer"


SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


def address_of(origin: str) -> str:
    """Return the `host:port` of an Origin header; "" if it has none, as in `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def too_large(limits: Limits) -> Refused:
    """Build the refusal of a body above the limit."""
    return Refused(413, f"the body is above {limits.body_bytes} bytes", code="request_too_large")


async def drained(receive: Receive, limits: Limits, most_bytes: int = 256 << 20) -> None:
    """Throw a refused body away, so that a client which is still sending can read the response."""
    taken = 0
    async with asyncio.timeout(limits.body_seconds):
        while taken < most_bytes:
            message = await receive()
            taken += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return


async def body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: 413 for one above the limit, 408 for one that takes too long.
    """
    read = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                read += chunk
                if len(read) > limits.body_bytes:
                    raise too_large(limits)
    except TimeoutError as error:
        raise Refused(408, f"the body took more than {limits.body_seconds:g} s", code="timeout") from error
    return bytes(read)
