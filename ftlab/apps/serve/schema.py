"""What a request may say. Every parameter is honoured, refused by name, or ignored and said so."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftlab.apps.serve.answers import Refused

Text = Annotated[str, Field(max_length=1 << 20)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]

# Parameters that would change the answer and that this server cannot follow -> values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
NAMES_SAID, NAME_LENGTH = 20, 64
Asked = TypeVar("Asked", bound="Sampling")


class Strict(BaseModel):
    """Numbers are numbers: "5" and true are not 5, and NaN is none."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Part(Strict):
    """A part of a message. Only text: an image would have to be fetched from an address that the client names."""

    type: Literal["text"]
    text: Text


class Function(Strict):
    """What a tool call called."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Text


class ToolCall(Strict):
    """A call that the assistant made earlier in the conversation."""

    id: Annotated[str, Field(max_length=256)] = ""
    type: Literal["function"] = "function"
    function: Function


class ToolSchema(Strict):
    """What a tool is called, what it does, and the JSON schema of its arguments."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: ToolSchema


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=64)] | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None

    def rendered(self) -> dict[str, Any]:
        """Return the message as chat templates know it."""
        parts = self.content if isinstance(self.content, list) else []
        content = "".join(part.text for part in parts) if parts else self.content or ""
        calls = [call.model_dump() for call in self.tool_calls or []]
        role = "system" if self.role == "developer" else self.role
        more = {"tool_calls": calls} | {
            name: getattr(self, name) for name in ("reasoning_content", "tool_call_id", "name")
        }
        return {"role": role, "content": content} | {name: value for name, value in more.items() if value}


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False


class Sampling(Strict):
    """The parameters that chat and text completions share; an unknown one is kept in `model_extra`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def ignored(self) -> list[str]:
        """Names of parameters without effect, cut to a reasonable length."""
        extra = (name for name in self.model_extra or {} if name not in REFUSED)
        return [name[:NAME_LENGTH] for name in sorted(extra)[:NAMES_SAID]]


class ChatRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates know them, None where the model is not to call any."""
        if not self.tools or (self.model_extra or {}).get("tool_choice") == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: Annotated[Text, Field(min_length=1)]
    logprobs: None = None


def parse_body(kind: type[Asked], body: bytes) -> Asked:
    """Return the request in a body.

    Raises:
        Refused: 400, with the first thing that is wrong.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:NAME_LENGTH] for part in first["loc"])
        said = f"{place}: {first['msg']}" if place else first["msg"]
        raise Refused(400, said[:300], param=str(first["loc"][0]) if place else None, code="invalid_value") from error
    for name, value in (request.model_extra or {}).items():
        if name in REFUSED and value is not None and not harmless(value, REFUSED[name]):
            raise Refused(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    return request


def harmless(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Return True if a value requests nothing; False does not count as 0 here."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def components() -> dict[str, Any]:
    """Return the request bodies as OpenAPI components."""
    from pydantic.json_schema import models_json_schema

    kinds: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (ChatRequest, "validation"),
        (CompletionRequest, "validation"),
    ]
    return models_json_schema(kinds, ref_template="#/components/schemas/{model}")[1]["$defs"]
