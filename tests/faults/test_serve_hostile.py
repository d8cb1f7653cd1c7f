"""Hostile requests: none breaks the server, each gets the right refusal, a good one is answered afterwards."""

import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import requests
import schemathesis
import serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ftlab.apps.serve.security import Limits

CASES = int(os.environ.get("FTLAB_FUZZ_CASES", "400"))
GOOD: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tiny_model_dir):
    with serving.serving(*serving.load(tiny_model_dir), limits=Limits(max_tokens=64, default_tokens=4)) as running:
        yield running


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def changed(**parameters: Any) -> dict[str, Any]:
    """Return a request that is good but for some parameters."""
    return {"content": json.dumps(GOOD | parameters), "headers": JSON}


def raw(text: str | bytes) -> dict[str, Any]:
    return {"content": text, "headers": JSON}


def good(**headers: str) -> dict[str, Any]:
    """Return a good request with bad headers."""
    return {"content": json.dumps(GOOD), "headers": JSON | headers}


def endless() -> Iterator[bytes]:
    """Yield a body of 100 MB that does not say its length."""
    for _ in range(100):
        yield b" " * 1_000_000


IMAGE = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
FETCH = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}]
HOSTILE: dict[str, tuple[int, dict[str, Any]]] = {
    "negative max_tokens": (400, changed(max_tokens=-1)),
    "zero max_tokens": (400, changed(max_tokens=0)),
    "huge max_tokens": (400, changed(max_tokens=2**31)),
    "max_tokens beyond 64 bits": (400, raw(json.dumps(GOOD).replace("2}", "1" + "0" * 400 + "}"))),
    "max_tokens of 5,000 digits": (400, raw(json.dumps(GOOD).replace("2}", "9" * 5000 + "}"))),
    "max_tokens as text": (400, changed(max_tokens="5")),
    "max_tokens as true": (400, changed(max_tokens=True)),
    "max_tokens as a fraction": (400, changed(max_tokens=1.5)),
    "NaN temperature": (400, changed(temperature=float("nan"))),
    "infinite temperature": (400, changed(temperature=float("inf"))),
    "temperature 1e999": (400, raw(json.dumps(GOOD)[:-1] + ', "temperature": 1e999}')),
    "negative temperature": (400, changed(temperature=-0.1)),
    "top_p above 1": (400, changed(top_p=1.1)),
    "n of a million": (400, changed(n=1_000_000)),
    "negative n": (400, changed(n=-1)),
    "seed beyond 64 bits": (400, changed(seed=2**64)),
    "five stop strings": (400, changed(stop=["a"] * 5)),
    "empty stop string": (400, changed(stop="")),
    "a long stop string": (400, changed(stop="x" * 10_000)),
    "top_logprobs of the vocabulary": (400, changed(logprobs=True, top_logprobs=49152)),
    "messages is text": (400, changed(messages="hi")),
    "a thousand messages": (400, changed(messages=user("x") * 1000)),
    "an unknown role": (400, changed(messages=[{"role": "root", "content": "x"}])),
    "content is a number": (400, changed(messages=user(5))),
    "a prompt beyond the context": (400, changed(messages=user("x " * 5000))),
    "half a character": (400, raw(json.dumps(GOOD).replace('"hi"', '"\\ud800"'))),
    "bytes that are no UTF-8": (400, raw(json.dumps(GOOD).encode().replace(b"hi", b"\xff\xfe"))),
    "no JSON": (400, raw("<xml/>")),
    "an empty body": (400, raw("")),
    "a list": (400, raw("[]")),
    "deep JSON": (400, raw('{"model": "tiny", "messages": ' + "[" * 100_000 + "]" * 100_000 + "}")),
    "deep JSON under an unknown name": (400, raw('{"x": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}")),
    "100 MB": (413, raw(b" " * 100_000_000)),
    "100 MB of unknown length": (413, {"content": endless(), "headers": JSON}),
    "a model that is a file": (404, changed(model="../../etc/passwd")),
    "a model that is an address": (404, changed(model="http://127.0.0.1:1/model")),
    "a picture that is a file": (400, changed(messages=user(IMAGE))),
    "a picture that is an address": (400, changed(messages=user(FETCH))),
    "another Host": (403, good(Host="evil.example")),
    "a Host that looks local": (403, good(Host="localhost.evil.example:8000")),
    "another Origin": (403, good(Origin="https://evil.example")),
    "no Origin": (403, good(Origin="null")),
    "a form": (415, {"data": {"model": "tiny", "messages": "hi"}}),
    "JSON as text": (415, {"content": json.dumps(GOOD), "headers": {"Content-Type": "text/plain"}}),
    "no content type": (415, {"content": json.dumps(GOOD)}),
    "no token": (401, good(Authorization="")),
    "a wrong token": (401, good(Authorization="Bearer " + "x" * 28)),
    "the token in the wrong scheme": (401, good(Authorization=f"Basic {serving.TOKEN}")),
    "a token with the right beginning": (401, good(Authorization=f"Bearer {serving.TOKEN[:-1]}")),
    "bytes for a token": (401, good(Authorization="Bearer \u00ff\u00fe")),
}


SELF = {"$ref": "#"}
PATTERNS = {"type": "string", "allOf": [{"pattern": f".*{i}.*"} for i in range(30)]}
ENDLESS = {"$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}},
           "$ref": "#/$defs/a"}  # fmt: skip


def formatted(schema: Any) -> dict[str, Any]:
    """Return a chat request for JSON that follows a schema."""
    return GOOD | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def calling(schema: Any) -> dict[str, Any]:
    """Return a chat request that forces a call with arguments that follow a schema."""
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    return GOOD | {"tools": [tool], "tool_choice": "required"}


EMBEDDED, COMPLETED, RESPONDED = "/v1/embeddings", "/v1/completions", "/v1/responses"
ELSEWHERE: dict[str, tuple[str, int, dict[str, Any]]] = {
    "a schema that refers to a file": (serving.CHAT, 400, formatted({"$ref": "file:///etc/passwd"})),
    "a schema that refers to an address": (serving.CHAT, 400, formatted({"$ref": "http://127.0.0.1:1/x"})),
    "a schema that refers to itself": (serving.CHAT, 400, formatted(SELF)),
    "a schema without an end": (serving.CHAT, 400, formatted(ENDLESS)),
    "a schema of many patterns": (serving.CHAT, 400, formatted(PATTERNS)),
    "a schema of half a megabyte": (serving.CHAT, 400, formatted({"enum": ["x" * 500_000]})),
    "a schema that is a list": (serving.CHAT, 400, formatted([1])),
    "a pattern without an end": (serving.CHAT, 200, formatted({"type": "string", "pattern": "(.*a.{200}){5}"})),
    "a tool whose arguments refer to a file": (serving.CHAT, 400, calling({"$ref": "file:///etc/passwd"})),
    "a tool of many patterns": (serving.CHAT, 400, calling({"properties": {"a": PATTERNS}})),
    "a tool named like a grammar": (
        serving.CHAT, 200, GOOD | {"tools": [{"type": "function", "function": {"name": 'x"}\nstart: /.*/'}}],
                                   "tool_choice": "required"}),
    "a bias that is not finite": (serving.CHAT, 400, GOOD | {"logit_bias": {"1": 1e300}}),
    "a bias on every token": (serving.CHAT, 400, GOOD | {"logit_bias": {str(i): -100 for i in range(5000)}}),
    "a penalty that overflows": (serving.CHAT, 400, GOOD | {"repetition_penalty": 1e-300}),
    "tokens that are not there": (COMPLETED, 400, {"model": "tiny", "prompt": [2**40]}),
    "negative tokens": (COMPLETED, 400, {"model": "tiny", "prompt": [-1]}),
    "a thousand prompts": (COMPLETED, 400, {"model": "tiny", "prompt": ["a"] * 1000}),
    "a mixed list of prompts": (COMPLETED, 400, {"model": "tiny", "prompt": ["a", [1]]}),
    "an embedding beyond the context": (EMBEDDED, 400, {"model": "tiny", "input": "x " * 5000}),
    "a thousand embeddings": (EMBEDDED, 400, {"model": "tiny", "input": ["a"] * 1000}),
    "an embedding of nothing": (EMBEDDED, 400, {"model": "tiny", "input": ""}),
    "an embedding of a file": (EMBEDDED, 404, {"model": "/etc/passwd", "input": "x"}),
    "tokens of another model": ("/tokenize", 404, {"model": "../x", "prompt": "x"}),
    "a response to a picture": (
        RESPONDED, 400, {"model": "tiny", "input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "file:///etc/passwd"}]}]}),
    "a response to a file": (RESPONDED, 404, {"model": "/etc/passwd", "input": "x"}),
    "a response to a thousand messages": (
        RESPONDED, 400, {"model": "tiny", "input": [{"role": "user", "content": "x"}] * 1000}),
    "a response beyond the context": (RESPONDED, 400, {"model": "tiny", "input": "x " * 5000}),
    "a response to an earlier one": (RESPONDED, 400, {"model": "tiny", "input": "x", "previous_response_id": "../x"}),
    "text of negative tokens": ("/detokenize", 400, {"model": "tiny", "tokens": [-1]}),
    "text of tokens that are not there": ("/detokenize", 400, {"model": "tiny", "tokens": [2**70]}),
}  # fmt: skip


class Watch:
    """Says which files and connections any thread but the tests' own opens while `on`."""

    def __init__(self) -> None:
        self.on, self.seen, self.tests = False, [], threading.get_ident()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens = event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
        if opens and self.on and threading.get_ident() != self.tests:
            self.seen.append((event, arguments[:2]))


WATCH = Watch()


@pytest.fixture
def watched(server):
    assert server.works(), "what is imported on the first request is imported now"
    assert server.http.post(serving.CHAT, json=formatted({"type": "boolean"})).status_code == 200
    WATCH.seen.clear()
    WATCH.on = True
    yield WATCH.seen
    WATCH.on = False


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_harms_nobody(server, watched, name):
    status, request = HOSTILE[name]
    headers = {k: v.encode("latin-1") for k, v in request.get("headers", {}).items()}
    with httpx.Client(base_url=server.url, headers=serving.bearer(), timeout=300) as client:
        response = client.post(serving.CHAT, **request | {"headers": headers})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert len(response.content) < 2000 and "root:" not in response.text and serving.TOKEN not in response.text
    assert watched == [], "the server opened something for this request"
    assert server.works()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_hostile_schema_or_text_is_refused_and_harms_nobody(server, watched, name):
    path, status, body = ELSEWHERE[name]
    response = server.http.post(path, json=body)
    assert response.status_code == status
    if status != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert len(response.content) < 2000 and "root:" not in response.text
    assert watched == [], "the server opened something for this request"
    assert server.works()


@pytest.mark.parametrize(
    "path",
    ["/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/..%2f..%2fetc/passwd",
     "/file:///etc/passwd", "//evil.example/", "/v1/models/", "/?url=http://127.0.0.1:1", "/static/../chat.html"],
)  # fmt: skip
def test_no_path_is_opened_and_none_redirects(server, watched, path):
    with socket.create_connection(urlsplit(server.url).netloc.split(":")) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {serving.TOKEN}\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    status = int(answer.split()[1])
    assert status == (200 if path.startswith("/?") else 404) and "root:" not in answer
    assert watched == []


@pytest.mark.parametrize(
    "text",
    ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "\x00\x01\r\n\r\n",
     "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 200_000 + "\r\n\r\n",
     "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
     "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
)  # fmt: skip
def test_broken_http_is_refused(server, text):
    with socket.create_connection(urlsplit(server.url).netloc.split(":"), timeout=300) as connection:
        connection.sendall(text.encode("latin-1"))
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:
            answer = b""
    assert not answer or answer.split()[1][:1] == b"4"
    assert server.works()


def test_a_preflight_from_elsewhere_is_not_allowed(server):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = httpx.options(server.url + serving.CHAT, headers=headers)
    assert response.status_code == 403 and not any("access-control" in name for name in response.headers)


def fuzzing(cases: int) -> settings:
    """Return hypothesis' settings for that many cases, the same in every run."""
    return settings(
        max_examples=max(1, cases), deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def closed(described: Any) -> Any:
    """Return a part of an OpenAPI document without parameters of other names.

    Drawing names and JSON for them took five times as long as all that is described, and the other fuzzes send them.
    """
    if isinstance(described, list):
        return [closed(one) for one in described]
    if not isinstance(described, dict):
        return described
    inner = {name: closed(one) for name, one in described.items()}
    return inner | ({"additionalProperties": False} if inner.get("type") == "object" and "properties" in inner else {})


# What shares its checks with chat and completions needs fewer cases.
MANY = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


# 5,000 requests in `make test-slow`: drawing one takes longer than answering it.
@pytest.mark.parametrize("cases", [150, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.lengthy])])
def test_no_request_that_the_schema_describes_fails_the_server(server, cases):
    schema = schemathesis.openapi.from_dict(closed(server.app.openapi()))
    statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()

            @fuzzing(cases if operation.path in MANY else cases // 8)
            @given(case=operation.as_strategy())
            def ask(case: schemathesis.Case) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "tiny"
                response = case.call(base_url=server.url, headers=serving.bearer(), session=session)
                statuses[case.operation.path][response.status_code] += 1
                assert response.status_code < 500, case.body

            ask()
    total = sum(seen.total() for seen in statuses.values())
    print(f"{total} cases of the schema, by status: { {path: dict(seen) for path, seen in statuses.items()} }")
    for path in MANY:
        assert statuses[path].total() >= cases and statuses[path][200] and statuses[path][400], path
    assert server.works()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*GOOD, "temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "logprobs",
                         "top_logprobs", "tools", "max_completion_tokens", "top_k", "min_p", "presence_penalty",
                         "repetition_penalty", "logit_bias", "tool_choice", "parallel_tool_calls",
                         "response_format"]) | st.text()  # fmt: skip
# Of /v1/responses, completions and embeddings.
OTHER_NAMES = ["instructions", "max_output_tokens", "previous_response_id", "text", "echo", "suffix", "best_of",
               "encoding_format", "dimensions"]  # fmt: skip


KEYWORDS = st.sampled_from(["type", "properties", "items", "anyOf", "allOf", "enum", "const", "pattern", "$ref",
                            "minimum", "required", "additionalProperties", "maxItems", "format"])  # fmt: skip
SCHEMAS = st.recursive(
    st.sampled_from(["object", "string", "array", "integer", "#", "a+", True, 1, -1.5, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=3),
    max_leaves=12,
).filter(lambda schema: isinstance(schema, dict))


def test_no_json_schema_fails_the_server(server):
    statuses: Counter[int] = Counter()

    @fuzzing(CASES // 4)
    @given(schema=SCHEMAS, forced=st.booleans())
    def ask(schema: dict[str, Any], forced: bool) -> None:
        response = server.http.post(serving.CHAT, json=calling(schema) if forced else formatted(schema))
        statuses[response.status_code] += 1
        assert response.status_code in (200, 400), response.text

    ask()
    print(f"{statuses.total()} schemas, by status: {dict(statuses)}")
    assert statuses[200] and statuses[400] and server.works()


ANY = {
    serving.CHAT: GOOD,
    COMPLETED: {"model": "tiny", "prompt": "hi", "max_tokens": 2},
    RESPONDED: {"model": "tiny", "input": "hi", "max_output_tokens": 2},
    EMBEDDED: {"model": "tiny", "input": "hi"},
}


@pytest.mark.parametrize("path", ANY)
def test_no_parameter_fails_the_server_whatever_its_value(server, path):
    statuses: Counter[int] = Counter()

    @fuzzing(CASES if path == serving.CHAT else CASES // 4)
    @given(change=st.dictionaries(NAMES | st.sampled_from([*ANY[path], *OTHER_NAMES]), VALUES, min_size=1, max_size=3))
    def ask(change: dict[str, Any]) -> None:
        response = server.http.post(path, content=json.dumps(ANY[path] | change), headers=JSON)
        statuses[response.status_code] += 1
        assert response.status_code in (200, 400, 404), response.text

    ask()
    print(f"{statuses.total()} cases of any value at {path}, by status: {dict(statuses)}")
    assert statuses[200] and statuses[400] and server.works()


def test_32_clients_of_whom_some_leave(tiny_model_dir):
    with serving.serving(*serving.load(tiny_model_dir)) as server:
        failures: list[Any] = []
        process = psutil.Process()

        def client(number: int, rounds: int) -> None:
            chance = random.Random(number)
            with httpx.Client(base_url=server.url, headers=serving.bearer(), timeout=300) as mine:
                for _ in range(rounds):
                    leaves = chance.random() < 0.3
                    body = GOOD | {"stream": True, "max_tokens": chance.randint(1, 40), "temperature": 1}
                    with mine.stream("POST", serving.CHAT, json=body) as response:
                        lines = response.iter_lines()
                        if response.status_code != 200:
                            failures.append(response.status_code)
                        elif leaves:
                            next(lines)
                        elif [line for line in lines if line][-1] != "data: [DONE]":
                            failures.append("cut short")

        def all_at_once(rounds: int) -> None:
            threads = [threading.Thread(target=client, args=(i, rounds)) for i in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        all_at_once(1)
        before = len(process.open_files()), process.num_threads()
        all_at_once(3)
        assert failures == []
        assert server.works()
        while server.engine.busy:
            time.sleep(0.01)
        assert len(process.open_files()) <= before[0] and process.num_threads() <= before[1] + 2
