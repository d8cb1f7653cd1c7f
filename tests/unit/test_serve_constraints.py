"""Answers that must follow a schema or be a call do, whatever the model would rather say."""

import json
import re
from importlib import resources
from threading import Thread

import jsonschema
import openai
import pytest
import serving
import torch
from transformers import AutoTokenizer

from ftlab import responses
from ftlab.apps.serve import constraints
from ftlab.apps.serve.batch import PaddedBatch, Row
from ftlab.apps.serve.job import Job
from ftlab.apps.serve.refusals import Refused

pytest.importorskip("llguidance")
ASKED = [{"role": "user", "content": "Weather?"}]
# Each value is bounded: a random model would write a string for ever.
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome", "北京"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "days", "tags"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "clock"}}
# As published with Mistral-7B-Instruct-v0.3, without its checks of the order of turns.
MISTRAL = """{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{%- for message in messages %}{%- if message["role"] == "user" %}
{%- if tools is not none and message == user_messages[-1] %}{{- "[AVAILABLE_TOOLS] " + tools | tojson +
"[/AVAILABLE_TOOLS]" }}{%- endif %}{{- "[INST] " + message["content"] + "[/INST]" }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- "[TOOL_CALLS] [" }}
{%- for tool_call in message.tool_calls %}{%- if tool_call.id | length != 9 %}{{- raise_exception("id") }}{%- endif %}
{%- set out = tool_call.function | tojson %}{{- out[:-1] }}{{- ', "id": "' + tool_call.id + '"}' }}
{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}{%- endfor %}
{%- elif message["role"] == "assistant" %}{{- " " + message["content"] + eos_token }}
{%- elif message["role"] == "tool" %}{{- '[TOOL_RESULTS] {"content": ' + message.content | string + "}" }}
{%- endif %}{%- endfor %}"""


@pytest.fixture(scope="module")
def server(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)
    # A token is a byte, and tools are in the prompt.
    model.config.max_position_embeddings = 4096
    with serving.serving(model, tokenizer) as running:
        yield running


def client_of(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=serving.TOKEN, max_retries=0)


def formatted(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema, "strict": True}}


def test_100_of_100_answers_follow_the_schema(server):
    asked = {"temperature": 1.5, "max_tokens": 80, "response_format": formatted(SCHEMA)}
    texts = []
    for seed, count in ((1, 32), (50, 32), (100, 32), (150, 4)):
        answer = server.chat(**asked, n=count, seed=seed).json()
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
        texts += [choice["message"]["content"] for choice in answer["choices"]]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(texts) == 100 and len(set(texts)) > 90


def test_greedy_answers_of_others_in_the_batch_are_unchanged(server):
    alone = server.chat(temperature=0, max_tokens=40).json()["choices"]
    asked = {"temperature": 1, "n": 8, "max_tokens": 60, "response_format": formatted(SCHEMA)}
    crowd = [Thread(target=server.chat, kwargs=asked | {"seed": seed}) for seed in range(2)]
    for thread in crowd:
        thread.start()
    together = server.chat(temperature=0, max_tokens=40).json()["choices"]
    for thread in crowd:
        thread.join()
    assert together == alone


def test_json_object_and_streaming(server):
    asked = {"response_format": {"type": "json_object"}, "temperature": 0, "max_tokens": 30, "logprobs": True}
    (choice,) = server.chat(**asked).json()["choices"]
    assert choice["message"]["content"].startswith("{")
    parts = [event["choices"][0]["delta"] for event in serving.events(server.chat(**asked, stream=True))]
    assert "".join(part.get("content", "") for part in parts) == choice["message"]["content"]
    assert server.chat(response_format={"type": "text"}).status_code == 200


def test_the_client_s_own_structured_output(server):
    from pydantic import BaseModel, ConfigDict

    class Day(BaseModel):
        model_config = ConfigDict(extra="forbid")
        sunny: bool
        rain: bool

    with client_of(server) as client:
        parsed = client.chat.completions.parse(
            model="tiny", messages=ASKED, response_format=Day, max_tokens=40, temperature=0
        )
    assert isinstance(parsed.choices[0].message.parsed, Day)


HOSTILE = {
    "a remote $ref": {"$ref": "http://127.0.0.1:9/x.json"},
    "a file as $ref": {"$ref": "file:///etc/passwd"},
    "a $ref to itself": {"$ref": "#"},
    "endless nesting": {"$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}},
                                        "required": ["x"]}}, "$ref": "#/$defs/a"},
    "a huge enum": {"enum": [f"v{i}" for i in range(20_000)]},
    "many alternatives": {"anyOf": [{"type": "object", "properties": {f"p{i}": {}}} for i in range(1_500)]},
    "many patterns at once": {"type": "string", "allOf": [{"pattern": f".*{i}.*"} for i in range(30)]},
    "look-ahead": {"type": "string", "pattern": "(?=.*a)b"},
    "no such type": {"type": "what"},
    "a type that is a number": {"type": 5},
    "an unknown keyword": {"type": "array", "uniqueItems": True},
    "nothing fits": {"type": "integer", "minimum": 5, "maximum": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_that_cannot_be_followed_is_a_400(server, name):
    refused = server.chat(response_format=formatted(HOSTILE[name]), max_tokens=8)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "response_format"
    assert "root:" not in refused.text and len(refused.text) < 600


def test_a_schema_that_becomes_too_complex_ends_its_own_answer_only(tiny_model_dir):
    model, tokenizer = serving.load(tiny_model_dir)

    class Complex:
        def allowed(self, scores):
            raise constraints.Unfollowable

    pieces, others = [], []
    batch = PaddedBatch(model, frozenset(), 0)
    batch.joining = [
        Row(Job([1], pieces.append, 4, constraint=Complex()), tokenizer),
        Row(Job([1], others.append, 2, temperature=0.0), tokenizer),
    ]
    batch.join()
    assert pieces[-1].finish == "unfollowable" and len(batch.rows) == 1
    batch.step()
    assert others[-1].finish == "length"


def under(template: str, folder) -> tuple:
    """Return the tiny model and its tokenizer with a chat template and the control tokens in it."""
    model, tokenizer = serving.load(folder)
    if template == "mistral":
        tokenizer.chat_template = MISTRAL
        control = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    elif template == "chatml":
        control = []
    else:
        tokenizer.chat_template = (resources.files("trl") / "chat_templates" / f"{template}.jinja").read_text()
        control = sorted(set(re.findall(r"<\|[^<>{}' ]*\|>", tokenizer.chat_template)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *control]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


@pytest.mark.parametrize("template", ["chatml", "qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "mistral"])
def test_a_call_is_forced_answered_and_read_back(tiny_model_dir, template):
    with serving.serving(*under(template, tiny_model_dir)) as server, client_of(server) as client:
        server.engine.model.config.max_position_embeddings = 8192
        asked = {"model": "tiny", "messages": ASKED, "tools": [OTHER, TOOL], "max_tokens": 200, "temperature": 1}
        named = {"type": "function", "function": {"name": "weather"}}
        (choice,) = client.chat.completions.create(**asked, tool_choice=named, seed=1).choices
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        assert not choice.message.content
        streamed = [
            chunk.choices[0]
            for chunk in client.chat.completions.create(**asked, tool_choice=named, seed=1, stream=True)
        ]
        (again,) = streamed[-1].delta.tool_calls
        assert again.function.arguments == call.function.arguments and again.function.name == "weather"
        # The second turn: the call and its result are shown, and the answer may be anything.
        result = {"role": "tool", "tool_call_id": call.id, "content": '"sunny"'}
        turns = [*ASKED, choice.message.model_dump(exclude_none=True), result]
        final = client.chat.completions.create(**asked | {"messages": turns, "max_tokens": 4, "temperature": 0})
        assert final.usage.prompt_tokens > 100
        assert (template == "qwen3_5_think") == (server.app.state.service.reader.parse is not responses.read_json)


def test_required_takes_any_of_the_tools(server):
    # As pydantic writes a nested model: the reference is to the tool's own schema.
    nested = {"$defs": {"Zone": {"enum": ["UTC"]}}, "type": "object", "properties": {"zone": {"$ref": "#/$defs/Zone"}},
              "required": ["zone"], "additionalProperties": False}  # fmt: skip
    tools = [TOOL, {"type": "function", "function": {"name": 'now "é"', "parameters": nested}}]
    answer = server.chat(tools=tools, tool_choice="required", n=16, max_tokens=200, temperature=1.5, seed=3).json()
    names = {choice["message"]["tool_calls"][0]["function"]["name"] for choice in answer["choices"]}
    assert names == {"weather", 'now "é"'}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": HOSTILE["look-ahead"]}}],
          "tool_choice": "required"}, "tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_forced_is_refused_by_name(server, change, param):
    refused = server.chat(**change)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param


def test_one_call_where_parallel_calls_are_not_wanted(server, monkeypatch):
    both = responses.Response("", "", [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}])
    monkeypatch.setattr(responses.Reader, "read", lambda *arguments, **named: both)
    for wanted, count in ((None, 2), (True, 2), (False, 1)):
        answer = server.chat(tools=[OTHER], parallel_tool_calls=wanted, temperature=0).json()
        assert len(answer["choices"][0]["message"]["tool_calls"]) == count


def test_without_llguidance_one_line_says_what_to_install(server, monkeypatch):
    monkeypatch.setattr(constraints, "find_spec", lambda name: None)
    refused = server.chat(response_format={"type": "json_object"}).json()["error"]
    assert "pip install 'ftlab[serve]'" in refused["message"] and refused["param"] == "response_format"


def test_a_tokenizer_that_llguidance_cannot_read_is_refused(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    made = constraints.Constraints(responses.Reader(tokenizer), len(tokenizer), [tokenizer.eos_token_id])
    made.reader.tokenizer = object()
    with pytest.raises(Refused, match="tokenizer"):
        made.json({"type": "object"})


def test_only_allowed_tokens_keep_their_scores(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    # The model may have more rows than the tokenizer has tokens.
    made = constraints.Constraints(responses.Reader(tokenizer), len(tokenizer) + 6, [tokenizer.eos_token_id])
    constraint = made.json({"enum": ["ab"]})
    for expected in ['"', "a", "b", '"']:
        (token,) = constraint.copy().allowed(torch.zeros(len(tokenizer) + 6)).isfinite().nonzero()[:, 0].tolist()
        assert tokenizer.decode([token]) == expected
        over = constraint.take(token)
    assert over
