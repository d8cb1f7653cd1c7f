"""The API as OpenAI's own client sees it."""

import asyncio
import copy
import json
import re
import time
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import serving
import torch
from jinja2 import TemplateError
from peft import LoraConfig, get_peft_model

from ftlab import tokens
from ftlab.apps.serve import schema
from ftlab.apps.serve.batch import Batch, PaddedBatch
from ftlab.apps.serve.job import Job
from ftlab.apps.serve.security import Limits
from ftlab.apps.serve.service import Served, drop_with_client
from ftlab.data import formats
from ftlab.errors import LabError

ROOT = Path(__file__).parents[2]
ASKED = [{"role": "user", "content": "hello"}]
GREEDY = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(tiny_model_dir):
    with serving.serving(*serving.load(tiny_model_dir)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=serving.TOKEN, max_retries=0) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_chat_is_greedy_at_temperature_0_and_counts_its_tokens(client, server):
    first, second = (client.chat.completions.create(**GREEDY) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.choices[0].message.role == "assistant" and first.choices[0].finish_reason == "length"
    assert first.usage.completion_tokens == 12
    prompt = server.engine.tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)
    assert first.usage.prompt_tokens == len(prompt["input_ids"])


def test_a_stream_adds_up_to_the_whole_answer(client):
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices


def test_the_responses_api_answers_as_chat_does(client, server):
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    asked = {"model": "tiny", "temperature": 0, "max_output_tokens": 12}
    response = client.responses.create(input="hello", **asked)
    assert response.output_text == whole and response.usage.output_tokens == 12
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    assert client.responses.create(input=parts, **asked).output_text == whole
    told = [{"role": "system", "content": "Be brief."}, *ASKED]
    same = client.chat.completions.create(**GREEDY | {"messages": told}).choices[0].message.content
    assert client.responses.create(input="hello", instructions="Be brief.", **asked).output_text == same
    events = list(client.responses.create(input="hello", stream=True, **asked))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events if not event.type.endswith("delta")]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[-1].response.output_text == whole and events[-1].response.usage.output_tokens == 12
    assert not server.http.post("/v1/responses", json=asked | {"input": "hi", "stream": True}).text.count("[DONE]")


@pytest.mark.parametrize("status", ["incomplete", "completed"])
def test_the_stream_of_a_response_has_a_final_response(client, server, monkeypatch, status):
    if status == "completed":
        # Any token ends the answer.
        for batch in server.engine.batches.values():
            monkeypatch.setattr(batch, "ends", frozenset(range(server.engine.vocabulary)))
    with client.responses.stream(model="tiny", input="hello", temperature=0, max_output_tokens=12) as stream:
        final = stream.get_final_response()
    assert final.status == status
    if status == "incomplete":
        assert final.usage.output_tokens == 12 and final.incomplete_details.reason == "max_output_tokens"
    else:
        assert final.usage.output_tokens == 1 and final.incomplete_details is None


def test_a_tool_of_the_responses_api_is_the_documented_refusal(client):
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
    for choice in ("required", {"type": "function", "name": "weather"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model="tiny", input="hello", tools=[tool], tool_choice=choice)
        assert refused.value.code == "unsupported_parameter" and refused.value.param in ("tools", "tool_choice")


@pytest.mark.parametrize("name", schema.RESPONSES_REFUSED)
def test_what_responses_cannot_follow_is_refused_by_name(server, name):
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 2}
    error = server.http.post("/v1/responses", json=body | {name: [{"type": "web_search"}]}).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    for value in (*schema.RESPONSES_REFUSED[name], None):
        assert server.http.post("/v1/responses", json=body | {name: value}).status_code == 200
    answer = server.http.post("/v1/responses", json=body | {"store": False, "user": "me"}).json()
    assert answer["ignored_parameters"] == ["store", "user"]


def test_stop_ends_the_answer_before_it(client):
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    stop = whole[3:5]
    for stops in (stop, ["never this", stop]):
        cut = client.chat.completions.create(**GREEDY, stop=stops)
        assert cut.choices[0].message.content == whole[: whole.index(stop)]
        assert cut.choices[0].finish_reason == "stop"


def test_n_and_seed(client):
    sampled = GREEDY | {"temperature": 1, "n": 3, "seed": 5}
    one, two = (client.chat.completions.create(**sampled) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert [choice.index for choice in one.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == [choice.message.content for choice in two.choices]
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**sampled, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_logprobs(client):
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == 12
    assert all(one.top_logprobs[0].logprob == one.logprob <= 0 and len(one.top_logprobs) == 2 for one in content)
    assert client.chat.completions.create(**GREEDY).choices[0].logprobs is None


def test_completions(client):
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=6, temperature=0)
    chunks = client.completions.create(model="tiny", prompt="hello", max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert answer.usage.prompt_tokens == 5 and answer.usage.completion_tokens == 6


def test_a_conversation_with_parts_a_developer_and_a_tool(client):
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What time "}, {"type": "text", "text": "is it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12:00", "tool_call_id": "1"},
    ]
    assert client.chat.completions.create(**GREEDY | {"messages": messages}).usage.prompt_tokens > 40


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


@pytest.fixture
def written(server, monkeypatch):
    """Let the model write a text; returns a function that sets it."""
    texts = {}

    def forward(batch, ids, rows, cache):
        target = [*server.engine.tokenizer(texts["now"]).input_ids, server.engine.tokenizer.eos_token_id]
        likeliest = torch.tensor([target[len(row.generated)] for row in rows])
        return torch.nn.functional.one_hot(likeliest, len(server.engine.tokenizer)).float()

    monkeypatch.setattr(PaddedBatch, "forward", forward)
    return lambda text: texts.update(now=text)


def test_tools_are_in_the_prompt_and_calls_come_back(server, client, written):
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Weather?"}],
        "max_tokens": 120,
        "temperature": 0,
    }
    written(f"{CALL}\n{CALL.replace('Oslo', 'Rome')}")
    plain = client.chat.completions.create(**request)
    assert plain.choices[0].message.content.startswith('{"name"') and plain.choices[0].finish_reason == "stop"
    offered = client.chat.completions.create(**request, tools=[TOOL])
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens + 100
    (choice,) = offered.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    calls = choice.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Oslo"}),
        ("weather", {"city": "Rome"}),
    ]
    assert len({call.id for call in calls}) == 2
    unwanted = client.chat.completions.create(**request, tools=[TOOL], tool_choice="none")
    assert unwanted.usage.prompt_tokens == plain.usage.prompt_tokens and not unwanted.choices[0].message.tool_calls


def test_text_is_streamed_up_to_a_call_which_arrives_whole(client, written):
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Weather?"}],
        "max_tokens": 120,
        "temperature": 0,
    }
    written("One moment. " + CALL)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**request, tools=[TOOL], stream=True)]
    assert {chunk.finish_reason for chunk in chunks[:-1]} == {None} and chunks[-1].finish_reason == "tool_calls"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "One moment. " and len(chunks) > 5
    assert json.loads(chunks[-1].delta.tool_calls[0].function.arguments) == {"city": "Oslo"}
    written(CALL[:-5])
    (choice,) = client.chat.completions.create(**request, tools=[TOOL]).choices
    assert choice.message.content == CALL[:-5] and not choice.message.tool_calls and choice.finish_reason == "stop"


def test_an_earlier_call_is_rendered_as_training_does(server):
    turns = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    row = formats.sharegpt(
        {"messages": [*turns, {"role": "assistant", "content": "ok"}]},
        {"messages": "messages"},
        formats.OPENAI_TAGS,
        "x",
    )
    tokenizer = copy.deepcopy(server.engine.tokenizer)
    asked = schema.ChatRequest.model_validate_json(json.dumps({"model": "tiny", "messages": turns})).messages
    for template in ("chatml", "qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "glm4moe"):
        if template != "chatml":
            tokenizer.chat_template = (resources.files("trl") / "chat_templates" / f"{template}.jinja").read_text()
        assert tokens.prompt(tokenizer, [one.rendered() for one in asked]) == tokens.prompt(
            tokenizer, row["messages"][:-1]
        )


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "llama3_1", "glm4moe"])
def test_tools_and_reasoning_are_rendered_as_training_does(server, template):
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "default": None}}}
    tool = {"function": {"parameters": parameters, "strict": True, "name": "weather"}, "type": "function"}
    call = {"function": {"name": "weather", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "Weather?", "name": "Ann"},
        {"role": "assistant", "content": None, "reasoning": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    body = {"model": "tiny", "messages": turns, "tools": [tool], "user": "me"}
    asked = schema.parse_body(schema.ChatRequest, json.dumps(body).encode())
    assert asked.ignored == ["messages.name", "user"]
    row = formats.sharegpt(
        {"messages": [*turns, {"role": "assistant", "content": "ok"}], "tools": [tool]},
        {"messages": "messages", "tools": "tools"},
        formats.OPENAI_TAGS,
        "x",
    )
    tokenizer = copy.deepcopy(server.engine.tokenizer)
    tokenizer.chat_template = (resources.files("trl") / "chat_templates" / f"{template}.jinja").read_text()
    served = tokens.prompt(tokenizer, [one.rendered() for one in asked.messages], asked.offered)
    assert tokenizer.decode(served) == tokenizer.decode(tokens.prompt(tokenizer, row["messages"][:-1], row["tools"]))


def test_keys_of_messages_that_are_not_read_are_said_or_refused(server):
    ask = {"role": "user", "content": "Hi"}
    kept = server.chat(messages=[ask | {"name": "Ann", "cache_control": {"type": "ephemeral"}, "refusal": None}])
    assert kept.json()["ignored_parameters"] == ["messages.cache_control", "messages.name"]
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    refused = server.chat(messages=[ask, old, ask])
    assert refused.status_code == 400 and "function_call" in refused.json()["error"]["message"]


def test_a_conversation_without_a_system_turn_begins_as_the_run_was_trained(server, client):
    request = GREEDY | {"max_tokens": 1}
    counts = []
    for system in ([], [{"role": "system", "content": "Arr."}]):
        server.app.state.service.models["tiny"] = Served(system=system)
        counts.append(client.chat.completions.create(**request).usage.prompt_tokens)
    own = [{"role": "system", "content": "Hm."}, *ASKED]
    assert client.chat.completions.create(**request | {"messages": own}).usage.prompt_tokens == counts[1] - 1
    server.app.state.service.models["tiny"] = Served()
    assert counts[1] == counts[0] + len(server.engine.tokenizer("<|im_start|>system\nArr.<|im_end|>\n").input_ids)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 500}, openai.BadRequestError, "messages"),
        ({"n": 33}, openai.BadRequestError, "n"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
        ({"frequency_penalty": 2.5}, openai.BadRequestError, "frequency_penalty"),
    ],
)
def test_errors_name_the_parameter(client, change, error, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**GREEDY | change)
    assert caught.value.param == param and caught.value.body["message"]


def test_a_wrong_key_is_an_authentication_error(server):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize("name", schema.REFUSED)
def test_what_cannot_be_followed_is_refused_unless_it_asks_for_nothing(server, name):
    refused = server.chat(**{name: "something"})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_parameter"
    for value in (*schema.REFUSED[name], None):
        assert server.chat(**{name: value}).status_code == 200


def test_what_is_ignored_is_said(server):
    answer = server.chat(user="me", min_tokens=3, store=False)
    assert answer.json()["ignored_parameters"] == ["min_tokens", "store", "user"]
    assert "ignored_parameters" not in server.chat().json()
    streamed = serving.events(server.chat(user="me", stream=True))
    assert all(event["ignored_parameters"] == ["user"] for event in streamed)


def test_the_page_of_the_docs_lists_every_parameter():
    page = (ROOT / "docs" / "server.md").read_text()
    said = {kind: set(re.findall(rf"^\| `(\w+)` \| {kind}", page, re.MULTILINE)) for kind in ("honoured", "refused")}
    honoured = set(schema.ChatRequest.model_fields) | set(schema.CompletionRequest.model_fields)
    assert said == {"honoured": honoured, "refused": set(schema.REFUSED)}


def test_paths_and_methods_that_are_not_there_have_openai_s_error_shape(server):
    for response, status in ((server.http.get("/v2"), 404), (server.http.get(serving.CHAT), 405)):
        error = response.json()["error"]
        assert response.status_code == status and set(error) == {"message", "type", "param", "code"}


def test_an_adapter_adds_the_base_as_a_second_model(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    with serving.serving(tuned, tokenizer) as server:
        assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == ["tiny", "tiny-base"]
        told = [server.chat(model=name, temperature=0).json()["choices"] for name in ("tiny", "tiny-base")]
        assert told[0] != told[1]


def test_a_full_queue_is_429_and_the_client_may_come_again(tiny_model_dir):
    with serving.serving(*serving.load(tiny_model_dir), max_batch=1, max_queue=1) as server:
        refused = server.chat(n=2)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert refused.headers["retry-after"] == "1"
        assert server.works()


def test_a_client_that_leaves_stops_its_generation(server):
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 450, "n": 16, "temperature": 1}
    with server.http.stream("POST", serving.CHAT, json=body | {"stream": True}) as response:
        next(response.iter_lines())
        assert server.engine.busy
    quiet(server)
    with pytest.raises(openai.APITimeoutError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=serving.TOKEN, max_retries=0, timeout=0.1).post(
            "/chat/completions", body=body, cast_to=object
        )
    quiet(server)
    assert server.works()


def quiet(server) -> None:
    """Wait until nothing runs, long before 16 answers of 450 tokens are written; the limit ends a test that hangs."""
    end = time.monotonic() + 300
    made = server.engine.generated
    while server.engine.busy:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert server.engine.generated - made < 16 * 300, "it generated to the end for nobody"


def test_a_slow_body_is_refused(tiny_model_dir):
    import socket
    from http.client import HTTPResponse
    from urllib.parse import urlsplit

    with serving.serving(*serving.load(tiny_model_dir), limits=Limits(body_seconds=2)) as server:
        place = urlsplit(server.url)
        with socket.create_connection((place.hostname, place.port)) as connection:
            head = f"POST {serving.CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {serving.TOKEN}\r\n"
            connection.sendall((head + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{").encode())
            answer = HTTPResponse(connection)
            answer.begin()
            # Headers and body may come in one packet or in two.
            assert answer.status == 408 and b'"code":"timeout"' in answer.read()
        assert server.works()


def test_what_fails_inside_is_a_500_that_tells_nothing(server, monkeypatch):
    monkeypatch.setattr(server.app.state.service, "checked", lambda *_: 1 / 0)
    response = server.chat()
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "the server failed", "type": "server_error", "param": None, "code": "internal_error",
    }  # fmt: skip


def test_the_page_is_shown_without_a_token_and_holds_none(server):
    import httpx

    page = httpx.get(server.url)
    assert page.status_code == 200 and serving.TOKEN not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(src|href)=|https?://|localStorage|sessionStorage", page.text)
    assert page.headers["cache-control"] == "no-store"


def test_no_answer_repeats_the_token(server):
    answers = [server.chat(user=1), server.http.get("/v1/models"), server.http.get("/openapi.json")]
    assert not any(serving.TOKEN in answer.text + json.dumps(dict(answer.headers)) for answer in answers)


def test_a_conversation_that_the_template_refuses_is_a_400(server, monkeypatch):
    def refuse(*_):
        raise TemplateError("roles must alternate")

    monkeypatch.setattr("ftlab.tokens.prompt", refuse)
    response = server.chat()
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the chat template: roles must alternate"
    monkeypatch.setattr("ftlab.tokens.prompt", lambda *_: (_ for _ in ()).throw(LabError("two user turns", "turn 2")))
    assert server.chat().json()["error"]["message"] == "the chat template: two user turns"


def test_a_stream_whose_generation_fails_ends_with_the_error(server, monkeypatch):
    monkeypatch.setattr(Batch, "step", lambda self: 1 / 0)
    lines = [line for line in server.chat(stream=True).text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    monkeypatch.undo()
    assert server.works()


def test_a_streamed_answer_without_a_call_arrives_as_text(server):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    lines = [line for line in server.chat(stream=True, tools=tools).text.splitlines() if line]
    (last,) = json.loads(lines[-2].removeprefix("data: "))["choices"]
    assert (
        last["finish_reason"] in ("stop", "length")
        and "tool_calls" not in last["delta"]
        and lines[-1] == "data: [DONE]"
    )


def test_jobs_are_cancelled_when_the_client_has_left_and_not_before():
    job, messages = Job([1], print, 1), [{"type": "http.disconnect"}, {"type": "http.request"}]
    seen = []

    async def receive():
        seen.append(job.cancelled)
        return messages.pop()

    asyncio.run(drop_with_client(SimpleNamespace(receive=receive), [job]))
    assert seen == [False, False] and job.cancelled
