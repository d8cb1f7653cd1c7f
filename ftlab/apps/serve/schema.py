"""The request bodies. Every parameter is honoured, refused by name, or ignored and reported as such."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from ftlab.apps.serve.refusals import Refused
from ftlab.data.messages import THOUGHTS

Text = Annotated[str, Field(max_length=1 << 20)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
# What /v1/completions and /v1/embeddings take: a text or token ids, or a list of them.
Texts = (
    Annotated[Text, Field(min_length=1)]
    | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1)]
)
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]

# Parameters that would change the answer and that this server does not support -> values without an effect.
REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "best_of": (1,),
}
# The same of /v1/responses, which keeps nothing between requests and answers with text.
RESPONSES_REFUSED: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "prompt": (),
    "text": ({"format": {"type": "text"}}, {}),
    "include": ([],),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "max_tool_calls": (),
}
NAMES_SAID, NAME_LENGTH = 20, 64
Asked = TypeVar("Asked", bound="Open")


class Strict(BaseModel):
    """A strict base model: "5" and true are not the number 5, and NaN is not a number."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Part(Strict):
    """A part of a message. Text only: an image would have to be fetched from an address that the client sends."""

    type: Literal["text"]
    text: Text


class Function(Strict):
    """The function of a tool call and its arguments."""

    name: Name
    arguments: Text


class ToolCall(Strict):
    """A tool call that the assistant made earlier in the conversation."""

    id: Annotated[str, Field(max_length=256)] = ""
    type: Literal["function"] = "function"
    function: Function

    def rendered(self) -> dict[str, Any]:
        """Return the call in the form that chat templates expect."""
        identity = {"id": self.id} if self.id else {}
        return identity | {"type": self.type, "function": self.function.model_dump()}


class ToolSchema(Strict):
    """A function's name, description and the JSON schema of its arguments."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: ToolSchema
    _own: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def remember(cls, value: dict[str, Any], check: Callable[[dict[str, Any]], "Tool"]) -> "Tool":
        """Return the tool with the object that the client sent."""
        tool = check(value)
        tool._own = value
        return tool

    def rendered(self) -> dict[str, Any]:
        """Return the tool as the client sent it: training renders the keys of a data set's tools in their order too."""
        return self._own


class ToolName(Strict):
    """The name of a tool."""

    name: Name


class ToolChoice(Strict):
    """The tool that the model must call."""

    type: Literal["function"] = "function"
    function: ToolName


class JsonSchema(Strict):
    """The JSON schema that an answer must follow."""

    name: Name
    description: Text | None = None
    body: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Whether an answer is text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def followed(self) -> dict[str, Any] | None:
        """The schema that the answer must follow; None for text.

        Raises:
            Refused: 400, it is missing.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None or self.json_schema.body is None:
            message = "response_format needs json_schema with a schema"
            raise Refused(400, message, "response_format", "invalid_value")
        return self.json_schema.body


class ChatMessage(Strict):
    """One turn of a conversation; unknown keys are kept in `model_extra`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=64)] | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    # Older than tools, which have taken its place.
    function_call: None = None

    def rendered(self) -> dict[str, Any]:
        """Return the message in the form that chat templates expect: as `data.messages` reads it from a data set."""
        parts = self.content if isinstance(self.content, list) else []
        content = "".join(part.text for part in parts) if parts else self.content or ""
        calls = [call.rendered() for call in self.tool_calls or []]
        role = "system" if self.role == "developer" else self.role
        read = {name: getattr(self, name, None) for name in THOUGHTS} if role == "assistant" else {}
        thought = next((text for text in read.values() if isinstance(text, str) and text), None)
        result = {"tool_call_id": self.tool_call_id, "name": self.name} if role == "tool" else {}
        more = {"tool_calls": calls, "reasoning_content": thought} | result
        return {"role": role, "content": content} | {name: value for name, value in more.items() if value}

    @property
    def unread(self) -> list[str]:
        """Names of keys that have a value and are not read."""
        extra = self.model_extra or {}
        of_tools = {} if self.role == "tool" else {"name": self.name, "tool_call_id": self.tool_call_id}
        others = {name: value for name, value in extra.items() if name not in THOUGHTS or self.role != "assistant"}
        return [name for name, value in (of_tools | others).items() if value not in (None, "", [], {})]


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False


class Open(Strict):
    """A request to a model; unknown parameters are kept in `model_extra`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
    refused: ClassVar[dict[str, tuple[Any, ...]]] = REFUSED

    model: Name

    @property
    def ignored(self) -> list[str]:
        """Names of ignored parameters and of ignored keys of messages, truncated to a reasonable length."""
        extra = {name for name in self.model_extra or {} if name not in self.refused}
        extra |= {f"messages.{name}" for message in self.turns for name in message.unread}
        return [name[:NAME_LENGTH] for name in sorted(extra)[:NAMES_SAID]]

    @property
    def turns(self) -> Sequence[ChatMessage]:
        """The messages of the request, if it has any."""
        return ()

    @property
    def remarks(self) -> dict[str, Any]:
        """Response fields that list ignored parameters, {} without any."""
        return {"ignored_parameters": self.ignored} if self.ignored else {}


class Sampling(Open):
    """The parameters that chat and text completions share."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    # Values further from 1 would overflow.
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools in the form that chat templates expect, None if the model must not call any."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.rendered() for tool in self.tools]

    @property
    def turns(self) -> Sequence[ChatMessage]:
        """The messages."""
        return self.messages

    @property
    def forced(self) -> list[dict[str, Any]]:
        """The tools of which the model must call one; [] if it is free to answer.

        Raises:
            Refused: 400, the request has no tool of that name.
        """
        if self.tool_choice in (None, "none", "auto"):
            return []
        tools = self.offered or []
        if isinstance(self.tool_choice, ToolChoice):
            tools = [tool for tool in tools if tool["function"]["name"] == self.tool_choice.function.name]
        if not tools:
            raise Refused(400, "tool_choice names no tool of this request", "tool_choice", "invalid_value")
        return tools


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: Texts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class InputPart(Strict):
    """A part of an input message: only text, as in `Part`."""

    type: Literal["input_text", "output_text"]
    text: Text


class InputMessage(Strict):
    """One turn of the conversation that a response continues."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[InputPart], Field(min_length=1, max_length=64)]

    @property
    def text(self) -> str:
        """Its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponsesRequest(Open):
    """The body of /v1/responses: text in, text out."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = RESPONSES_REFUSED

    input: Annotated[Text, Field(min_length=1)] | Annotated[list[InputMessage], Field(min_length=1, max_length=256)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None

    def as_chat(self) -> ChatRequest:
        """Return the equivalent chat request; the instructions come first."""
        turns: list[tuple[Any, str]] = [("system", self.instructions)] if self.instructions else []
        turns += [("user", self.input)] if isinstance(self.input, str) else [(one.role, one.text) for one in self.input]
        shared = {name: getattr(self, name) for name in ("model", "temperature", "top_p", "stream")}
        messages = [ChatMessage(role=role, content=text) for role, text in turns]
        return ChatRequest.model_construct(messages=messages, **shared)


class EmbeddingRequest(Open):
    """The body of /v1/embeddings."""

    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class TokenizeRequest(Open):
    """The body of /tokenize: a text, or a conversation that is rendered as for a chat request."""

    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None

    @property
    def turns(self) -> Sequence[ChatMessage]:
        """The messages, if it is not a text."""
        return self.messages or ()


class DetokenizeRequest(Open):
    """The body of /detokenize."""

    tokens: TokenIds


def parse_body(kind: type[Asked], body: bytes) -> Asked:
    """Return the request in a body.

    Raises:
        Refused: 400, with the first problem.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:NAME_LENGTH] for part in first["loc"])
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise Refused(
            400, message[:300], param=str(first["loc"][0]) if place else None, code="invalid_value"
        ) from error
    for name, value in (request.model_extra or {}).items():
        if name in kind.refused and value is not None and not harmless(value, kind.refused[name]):
            raise Refused(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    return request


def harmless(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Return True if a value has no effect; False does not count as 0 here."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def components() -> dict[str, Any]:
    """Return the request bodies as OpenAPI components."""
    from pydantic.json_schema import models_json_schema

    requests = (ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest)
    kinds: list[tuple[type[BaseModel], Literal["validation"]]] = [(kind, "validation") for kind in requests]
    return models_json_schema(kinds, ref_template="#/components/schemas/{model}")[1]["$defs"]
