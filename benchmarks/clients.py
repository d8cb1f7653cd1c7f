"""Call a running server with openai, langchain-openai, litellm and curl, also with bodies as Open WebUI sends them.

    ftlab serve smollm2-135m --port 8010
    API_KEY=... python benchmarks/clients.py http://127.0.0.1:8010

Runs in an environment of its own: `pip install openai langchain-openai litellm jsonschema`. Prints a line for each call
that does not behave as docs/server.md says, then the number that do.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import litellm
import openai
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

URL, KEY = f"{sys.argv[1].rstrip('/')}/v1", os.environ["API_KEY"]
ASK = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
CITY = {
    "title": "City",
    "description": "A city.",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "millions": {"type": "integer", "maximum": 40}},
    "required": ["name", "millions"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": CITY | {"title": "weather"}}
TOOL = {"type": "function", "function": WEATHER}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
SHORT = {"max_tokens": 16, "temperature": 0}
NAMED = {"type": "function", "function": {"name": "weather"}}
Check = Callable[[], Any]

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
MODEL = client.models.list().data[0].id
chat = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=80, temperature=0, max_retries=0)


def asked(messages: list | None = None, **parameters: Any) -> Any:
    """Return the answer of the openai client."""
    return client.chat.completions.create(model=MODEL, messages=messages or ASK, **SHORT | parameters)


def completed(prompt: Any = "The capital of France is", **parameters: Any) -> Any:
    """Return the text completion of the openai client."""
    return client.completions.create(model=MODEL, prompt=prompt, **SHORT | parameters)


def through(**parameters: Any) -> Any:
    """Return the answer of litellm."""
    return litellm.completion(model=f"openai/{MODEL}", messages=ASK, api_base=URL, api_key=KEY, **SHORT | parameters)


def curl(path: str, body: dict | None = None, *options: str, key: str = KEY) -> tuple[int, str]:
    """Return the status and the body that curl gets."""
    sent = ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body else []
    command = ["curl", "-s", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {key}", *sent, *options, path]
    text, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    return int(status), text


def refused(call: Check, param: str) -> bool:
    """Return True if a call gets the documented refusal."""
    try:
        call()
    except openai.BadRequestError as error:
        return error.param == param
    return False


def calls(message: Any) -> bool:
    """Return True if a message of the openai client calls the tool with arguments that follow its schema."""
    (call,) = message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), CITY)
    return call.function.name == "weather"


def valid(text: str) -> bool:
    """Return True if a text is JSON that follows the schema."""
    jsonschema.validate(json.loads(text), CITY)
    return True


def round_trip() -> bool:
    """Return True if a tool call, its result and the answer that follows are accepted."""
    message = asked(tools=[TOOL], tool_choice="required", max_tokens=80).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    return bool(asked([*ASK, message.model_dump(exclude_none=True), result], tools=[TOOL]).usage.prompt_tokens)


def streamed_call() -> bool:
    """Return True if a call arrives in a stream."""
    chunks = list(asked(tools=[TOOL], tool_choice=NAMED, max_tokens=80, stream=True))
    return chunks[-1].choices[0].delta.tool_calls[0].function.name == "weather"


def of_openai() -> dict[str, Check]:
    """Return the calls of the openai client."""
    return {
        "models": lambda: client.models.list().data,
        "model": lambda: client.models.retrieve(MODEL).id == MODEL,
        "chat": lambda: asked().choices[0].message.content,
        "stream": lambda: "".join(chunk.choices[0].delta.content or "" for chunk in asked(stream=True)),
        "usage": lambda: list(asked(stream=True, stream_options={"include_usage": True}))[-1].usage.total_tokens,
        "system": lambda: asked([{"role": "system", "content": "Be brief."}, *ASK]).choices[0].message.content,
        "n": lambda: len(asked(n=3, temperature=1).choices) == 3,
        "seed": lambda: len({asked(seed=7, temperature=1).choices[0].message.content for _ in range(2)}) == 1,
        "stop": lambda: "a" not in asked(stop=["a"]).choices[0].message.content,
        "logprobs": lambda: asked(logprobs=True, top_logprobs=3).choices[0].logprobs.content[0].top_logprobs,
        "penalties": lambda: asked(presence_penalty=1, frequency_penalty=1).choices,
        "logit_bias": lambda: asked(logit_bias={"100": -100}).choices,
        "top_k, min_p": lambda: asked(extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}).choices,
        "max_completion_tokens": lambda: asked(max_completion_tokens=3).usage.completion_tokens == 3,
        "tools": lambda: asked(tools=[TOOL]).choices,
        "tool required": lambda: calls(asked(tools=[TOOL], tool_choice="required", max_tokens=80).choices[0].message),
        "tool named": lambda: calls(asked(tools=[TOOL], tool_choice=NAMED, max_tokens=80).choices[0].message),
        "tool none": lambda: asked(tools=[TOOL], tool_choice="none").choices[0].message.content,
        "tool round trip": round_trip,
        "tool stream": streamed_call,
        "json_schema": lambda: valid(asked(response_format=FORMAT, max_tokens=80).choices[0].message.content),
        "json_object": lambda: asked(response_format={"type": "json_object"}).choices[0].message.content[0] == "{",
        "completion": lambda: completed().choices[0].text,
        "completion stream": lambda: "".join(chunk.choices[0].text for chunk in completed(stream=True)),
        "prompts": lambda: len(completed(["a", "b"]).choices) == 2,
        "token ids": lambda: completed([10, 20, 30]).choices[0].text is not None,
        "echo, logprobs": lambda: completed(echo=True, logprobs=1).choices[0].logprobs.token_logprobs[1] < 0,
        "embeddings": lambda: len(client.embeddings.create(model=MODEL, input=["a", "b"]).data) == 2,
        "embeddings as numbers": lambda: client.embeddings.create(model=MODEL, input="a", encoding_format="float").data,
        "refused: functions": lambda: refused(lambda: asked(functions=[WEATHER]), "functions"),
        "refused: audio": lambda: refused(lambda: asked(extra_body={"audio": {"voice": "a"}}), "audio"),
        "refused: image": lambda: refused(
            lambda: asked([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]), "messages"
        ),
        "refused: suffix": lambda: refused(lambda: completed(suffix="x"), "suffix"),
    }


def of_langchain() -> dict[str, Check]:
    """Return the calls of langchain-openai."""
    question = ASK[0]["content"]
    embed = OpenAIEmbeddings(base_url=URL, api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    texts = OpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=8, temperature=0)
    forced = chat.bind_tools([WEATHER], tool_choice="weather")
    return {
        "invoke": lambda: chat.invoke(question).content,
        "stream": lambda: "".join(chunk.content for chunk in chat.stream(question)),
        "batch": lambda: len(chat.batch([question, "Hi"])) == 2,
        "stop": lambda: "a" not in chat.invoke(question, stop=["a"]).content,
        "bind_tools": lambda: chat.bind_tools([WEATHER]).invoke(question) is not None,
        "bind_tools, forced": lambda: forced.invoke(question).tool_calls[0]["name"] == "weather",
        "bind_tools, any": lambda: chat.bind_tools([WEATHER], tool_choice="any").invoke(question).tool_calls,
        "bind_tools, stream": lambda: (
            sum(forced.stream(question), start=next(iter(forced.stream(question)))) is not None
        ),
        "structured output": lambda: chat.with_structured_output(CITY, method="json_schema").invoke(question)["name"],
        "structured, calling": lambda: chat.with_structured_output(CITY, method="function_calling").invoke(question),
        "completions": lambda: texts.invoke("The capital of France is"),
        "completions, batch": lambda: len(texts.generate(["a", "b", "c"]).generations) == 3,
        "embed_documents": lambda: len(embed.embed_documents(["a", "b"])) == 2,
        "embed_query": lambda: len(embed.embed_query("a")) > 10,
    }


def of_litellm() -> dict[str, Check]:
    """Return the calls of litellm."""
    embedding = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY}
    return {
        "completion": lambda: through().choices[0].message.content,
        "stream": lambda: "".join(chunk.choices[0].delta.content or "" for chunk in through(stream=True)),
        "tools": lambda: calls(through(tools=[TOOL], tool_choice="required", max_tokens=80).choices[0].message),
        "json_schema": lambda: valid(through(response_format=FORMAT, max_tokens=80).choices[0].message.content),
        "embedding": lambda: litellm.embedding(input=["a"], encoding_format="float", **embedding).data,
    }


def of_curl() -> dict[str, Check]:
    """Return calls of curl, some with the bodies that Open WebUI sends."""
    base, body = URL.removesuffix("/v1"), {"model": MODEL, "messages": ASK, "max_tokens": 8}
    webui = body | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_id": "1",
        "session_id": "2",
        "id": "3",
    }
    title = {
        "model": MODEL,
        "messages": ASK,
        "stream": False,
        "max_completion_tokens": 8,
        "metadata": {"task": "title"},
    }
    return {
        "chat": lambda: curl(f"{URL}/chat/completions", body)[0] == 200,
        "health": lambda: curl(f"{base}/health")[0] == 200,
        "metrics": lambda: "ftlab_generated_tokens_total" in curl(f"{base}/metrics")[1],
        "tokenize": lambda: json.loads(curl(f"{base}/tokenize", {"model": MODEL, "prompt": "a"})[1])["count"],
        "a wrong key": lambda: curl(f"{URL}/models", key="wrong")[0] == 401,
        "Open WebUI, models": lambda: json.loads(curl(f"{URL}/models")[1])["data"][0]["id"] == MODEL,
        "Open WebUI, chat": lambda: curl(f"{URL}/chat/completions", webui)[1].endswith("data: [DONE]\n\n"),
        "Open WebUI, title": lambda: curl(f"{URL}/chat/completions", title)[0] == 200,
    }


def main() -> None:
    """Make all calls and print those that failed."""
    good = total = 0
    groups = {"openai": of_openai, "langchain": of_langchain, "litellm": of_litellm, "curl": of_curl}
    for name, made in groups.items():
        for what, check in made().items():
            total += 1
            try:
                found, said = check(), ""
            except Exception as error:
                found, said = False, f"{type(error).__name__}: {error}"[:300]
            good += bool(found)
            if not found:
                print(f"{name}, {what}: {said or 'not as documented'}")
    print(f"{good} of {total} calls as documented")
    sys.exit(good < total)


if __name__ == "__main__":
    main()
