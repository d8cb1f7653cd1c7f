"""Sampling parameters, list prompts, echo, embeddings, tokens and counters, as clients see them."""

import asyncio
import json
from types import SimpleNamespace

import openai
import pytest
import serving
import torch

from ftlab.apps.serve import service as serving_service
from ftlab.apps.serve.refusals import Refused
from ftlab.apps.serve.security import Limits

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def server(tiny_model_dir):
    with serving.serving(*serving.load(tiny_model_dir)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=serving.TOKEN, max_retries=0) as made:
        yield made


def ids_of(server, text: str) -> list[int]:
    return server.engine.tokenizer(text).input_ids


def test_every_sampling_parameter_reaches_the_engine(server, client):
    plain = client.completions.create(**GREEDY, prompt="hello").choices[0].text
    (wanted,) = ids_of(server, "Q")
    biased = client.completions.create(**GREEDY, prompt="hello", logit_bias={str(wanted): 100})
    assert biased.choices[0].text == "QQQQQQ"
    # Each is strong enough to end the repetition.
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}):
        once = client.completions.create(**GREEDY, prompt="hello", logit_bias={str(wanted): 1.5}, **penalty)
        assert once.choices[0].text.count("Q") < 6
    for cut in ({"top_k": 1}, {"min_p": 1.0}, {"top_k": -1, "top_p": 0}, {"extra": 1, "top_k": 1}):
        sampled = client.completions.create(**GREEDY | {"temperature": 1}, prompt="hello", extra_body=cut)
        assert sampled.choices[0].text == plain
    other = client.completions.create(**GREEDY, prompt="hello", extra_body={"repetition_penalty": 10})
    assert other.choices[0].text != plain


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [99_999]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 300}, "prompt"),
        ({"prompt": ["a"] * 17, "n": 2}, "n"),
        ({"prompt": ["a" * 300] * 2, "echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(server, change, param):
    refused = server.http.post("/v1/completions", json=GREEDY | {"prompt": "hello"} | change)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param


def test_a_list_of_prompts_is_answered_in_order(server, client):
    alone = [client.completions.create(**GREEDY, prompt=text) for text in ("hello", "bye")]
    together = client.completions.create(**GREEDY, prompt=["hello", "bye"], n=2)
    texts = [one.choices[0].text for one in alone]
    assert [choice.text for choice in together.choices] == [texts[0], texts[0], texts[1], texts[1]]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert together.usage.prompt_tokens == 8 and together.usage.completion_tokens == 24
    tokens = [ids_of(server, "hello"), ids_of(server, "bye")]
    assert [choice.text for choice in client.completions.create(**GREEDY, prompt=tokens).choices] == texts
    assert client.completions.create(**GREEDY, prompt=tokens[0]).choices[0].text == texts[0]


def test_echo_gives_the_prompt_and_how_likely_it_was(server, client, monkeypatch):
    monkeypatch.setattr("ftlab.apps.serve.scoring.CHUNK", 2)
    plain = client.completions.create(**GREEDY, prompt="hello").choices[0].text
    (choice,) = client.completions.create(**GREEDY, prompt="hello", echo=True, logprobs=2).choices
    assert choice.text == "hello" + plain
    likely = choice.logprobs
    assert likely.tokens[:5] == list("hello") and likely.text_offset[:6] == [0, 1, 2, 3, 4, 5]
    assert likely.token_logprobs[0] is None and likely.top_logprobs[0] is None and len(likely.top_logprobs[1]) == 2
    ids = ids_of(server, "hello")
    with torch.inference_mode():
        expected = server.engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = [float(expected[place - 1, ids[place]]) for place in range(1, 5)]
    assert likely.token_logprobs[1:5] == pytest.approx(found, abs=1e-4) and len(likely.tokens) == 11
    chunks = [
        chunk.choices[0]
        for chunk in client.completions.create(**GREEDY, prompt="hello", echo=True, logprobs=2, stream=True)
    ]
    assert "".join(chunk.text for chunk in chunks) == choice.text and chunks[0].text == "hello"
    assert [offset for chunk in chunks for offset in chunk.logprobs.text_offset] == likely.text_offset
    assert client.completions.create(**GREEDY, prompt="hello", echo=True).choices[0].logprobs is None


def test_embeddings_are_the_mean_of_the_last_hidden_states(server, client):
    model = server.engine.model
    made = client.embeddings.create(model="tiny", input=["hello", "bye"], encoding_format="float")
    for text, one in zip(("hello", "bye"), made.data, strict=True):
        with torch.inference_mode():
            hidden = model(torch.tensor([ids_of(server, text)]), output_hidden_states=True).hidden_states[-1]
        expected = torch.nn.functional.normalize(hidden[0].mean(0), dim=0)
        assert one.embedding == pytest.approx(expected.tolist(), abs=1e-5)
    assert [one.index for one in made.data] == [0, 1] and made.usage.prompt_tokens == 8
    # The client's own default is base64.
    packed = client.embeddings.create(model="tiny", input=ids_of(server, "bye"), dimensions=64, user="me")
    assert packed.data[0].embedding == pytest.approx(made.data[1].embedding, abs=1e-6)
    assert packed.ignored_parameters == ["user"]
    for wrong in ({"dimensions": 7}, {"input": ["x" * 600]}, {"input": [99_999]}, {"model": "gpt-4"}):
        with pytest.raises(openai.APIStatusError) as caught:
            client.embeddings.create(**{"model": "tiny", "input": "x"} | wrong)
        assert caught.value.param == next(iter(wrong))


def test_texts_to_tokens_and_back(server):
    counted = server.http.post("/tokenize", json={"model": "tiny", "prompt": "añ"}).json()
    assert counted == {"count": 3, "max_model_len": 512, "tokens": ids_of(server, "añ")}
    back = server.http.post("/detokenize", json={"model": "tiny", "tokens": counted["tokens"]}).json()
    assert back == {"prompt": "añ"}
    asked = {"model": "tiny", "prompt": "a", "add_special_tokens": False}
    assert server.http.post("/tokenize", json=asked).json()["ignored_parameters"] == ["add_special_tokens"]
    messages = [{"role": "user", "content": "hi"}]
    asked = {"model": "tiny", "messages": messages}
    assert server.http.post("/tokenize", json=asked).json()["count"] == server.chat().json()["usage"]["prompt_tokens"]
    tool = {"type": "function", "function": {"name": "clock"}}
    assert server.http.post("/tokenize", json=asked | {"tools": [tool]}).json()["count"] > 60
    for wrong in ({}, {"prompt": "a", "messages": messages}, {"tokens": [1]}):
        assert server.http.post("/tokenize", json={"model": "tiny"} | wrong).status_code == 400
    assert server.http.post("/detokenize", json={"model": "tiny", "tokens": [99_999]}).status_code == 400


def test_metrics_count_what_the_engine_did(server):
    def value(name: str) -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)

    names = ("ftlab_prompt_tokens_total", "ftlab_generated_tokens_total", 'ftlab_answers_total{reason="length"}')
    before = [value(name) for name in names]
    server.http.post("/v1/completions", json=GREEDY | {"prompt": "hello", "n": 2})
    assert [value(name) - one for name, one in zip(names, before, strict=True)] == [10, 12, 2]
    assert value("ftlab_answers_running") == value("ftlab_answers_waiting") == 0
    assert server.http.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_a_recipe_s_sampling_is_the_default_of_a_request(server, monkeypatch):
    (wanted,) = ids_of(server, "Q")
    service = server.app.state.service
    monkeypatch.setattr(service, "defaults", {"temperature": 0.0, "top_k": 5})
    asked = SimpleNamespace(**dict.fromkeys(serving_service.SAMPLING), logit_bias={str(wanted): 1.0}, stops=[])
    assert service.sampling(asked) == {"temperature": 0.0, "top_k": 5, "logit_bias": {wanted: 1.0}, "stop": []}
    asked.temperature = 0.5
    assert service.sampling(asked)["temperature"] == 0.5


def test_a_call_that_waits_too_long_or_finds_the_queue_full_is_a_429(server, monkeypatch):
    service = server.app.state.service
    monkeypatch.setattr(service, "limits", Limits(seconds=0))
    with pytest.raises(Refused, match="waited too long"):
        asyncio.run(service.call(serving_service.Served(), lambda model: 1))
    monkeypatch.setattr(server.engine, "max_queue", 0)
    with pytest.raises(Refused, match="too many requests"):
        asyncio.run(service.call(serving_service.Served(), lambda model: 1))


def test_a_call_that_fails_is_a_500_and_harms_nobody(server, monkeypatch):
    monkeypatch.setattr("ftlab.apps.serve.scoring.embedding", lambda model, ids: 1 / 0)
    assert server.http.post("/v1/embeddings", json={"model": "tiny", "input": "x"}).status_code == 500
    assert server.works()


def test_a_client_that_left_gets_no_more_embeddings(server):
    async def gone() -> bool:
        return True

    asked = serving_service.EmbeddingRequest.model_validate_json(json.dumps({"model": "tiny", "input": "x"}))
    with pytest.raises(Refused, match="client left"):
        asyncio.run(server.app.state.service.embed(SimpleNamespace(is_disconnected=gone), asked))
