"""OpenAI's chat completion models: requests, messages, tools, usage and answers.

Each field of a request is used, passed on to the agent (unknown fields too, see ``extra``), or refused
with a 400 that names it. No field is dropped silently.
Source: the OpenAI API reference, and requests recorded from 17 stock clients.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

# No CR, LF, NUL or other control characters: model names end up in headers, logs and SSE lines.
Name = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
ImageDetail = Literal["auto", "low", "high", "original"]

_MAX_INTEGER: Final = 2**63 - 1  # JSON readers, ours included, turn integers over 64 bits into floats


def _whole(value: object) -> object:
    """Return 10 for 10.0. To JSON Schema, and to JSON writers with one number type, both are the same integer."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_INTEGER
    return int(value) if isinstance(value, float) and whole else value


# ``Field`` comes before the validator. In the other order pydantic leaves the bounds out of the JSON schema.
TokenLimit = Annotated[int, Field(ge=1, le=_MAX_INTEGER), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=-_MAX_INTEGER, le=_MAX_INTEGER), BeforeValidator(_whole)]

# Parameters that this service cannot fulfil. It refuses them instead of ignoring them. Each has the reason for the
# refusal, and the values that mean "off"; these are accepted.
Refusals = Mapping[str, tuple[str, tuple[Any, ...]]]
_REFUSED: Final[Refusals] = {
    "audio": ("audio output is not supported", (None,)),
    "logprobs": ("log probabilities are not supported", (None, False)),
    "top_logprobs": ("log probabilities are not supported", (None, 0)),
    "modalities": ("only the text modality is supported", (None, [], ["text"])),
    "store": ("stored completions are not supported", (None, False)),
}


# Rules of the validators below that the types of the fields do not express. The published JSON schema contains them.
_MESSAGE_RULES: Final[dict[str, Any]] = {
    "allOf": [
        {
            "if": {"properties": {"role": {"enum": ["assistant", "function"]}}},
            "else": {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
        },
        {
            "if": {"properties": {"role": {"const": "tool"}}},
            "then": {"required": ["tool_call_id"], "properties": {"tool_call_id": {"type": "string", "minLength": 1}}},
        },
        {
            "if": {"properties": {"role": {"const": "function"}}},
            "then": {"required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}},
        },
    ],
}

_STREAM_RULE: Final[dict[str, Any]] = {
    "if": {"required": ["stream_options"], "properties": {"stream_options": {"type": "object"}}},
    "then": {"required": ["stream"], "properties": {"stream": {"const": True}}},
}
_SOME: Final[dict[str, Any]] = {"type": "array", "minItems": 1}
_CHOICE_RULES: Final[tuple[dict[str, Any], ...]] = (
    {
        "if": {
            "required": ["tool_choice"],
            "properties": {"tool_choice": {"anyOf": [{"const": "required"}, {"type": "object"}]}},
        },
        "then": {"required": ["tools"], "properties": {"tools": _SOME}},
    },
    {
        "if": {"required": ["function_call"], "properties": {"function_call": {"type": "object"}}},
        "then": {"required": ["functions"], "properties": {"functions": _SOME}},
    },
    {"not": {"required": ["tools", "functions"], "properties": {"tools": _SOME, "functions": _SOME}}},
)


def _describe_request(schema: dict[str, Any], model: "type[SharedFields]") -> None:
    schema["properties"] |= {
        name: {"description": reason, "enum": list(harmless)} for name, (reason, harmless) in model.refused.items()
    }
    schema["allOf"] = [_STREAM_RULE, *model.rules]


class ImageUrl(BaseModel):
    """The address of an image: an https URL or a data URL."""

    model_config = ConfigDict(extra="allow")

    url: str = Field(min_length=1)
    detail: ImageDetail | None = None


class TextPart(BaseModel):
    """A text content part."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """An image content part. It is passed on to engines that accept images."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(BaseModel):
    """The refusal text of an earlier answer. Agents get it as a text part."""

    model_config = ConfigDict(extra="allow")

    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]


class FunctionCall(BaseModel):
    """The function name and arguments of an earlier tool call."""

    name: str
    arguments: str = ""


class ToolCall(BaseModel):
    """A tool call of an earlier assistant message."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


def _text_of(part: TextPart | ImagePart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal if isinstance(part, RefusalPart) else ""


class ChatMessage(BaseModel):
    """One message of the conversation.

    Agents get neither the role ``function`` nor ``function_call``: see ``agentstream.protocol.older_forms``.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_MESSAGE_RULES)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None

    @model_validator(mode="after")
    def _content_fits_role(self) -> Self:
        if self.content is None and self.role not in {"assistant", "function"}:
            message = f"a {self.role} message needs content"
            raise ValueError(message)
        if self.role == "tool" and not self.tool_call_id:
            message = "a tool message needs tool_call_id"
            raise ValueError(message)
        if self.role == "function" and not self.name:
            message = "a function message needs the name of its function"
            raise ValueError(message)
        return self

    @property
    def text(self) -> str:
        """The text of the content. Text parts are joined, images are left out."""
        if isinstance(self.content, list):
            return "".join(map(_text_of, self.content))
        return self.content or ""


class FunctionDefinition(BaseModel):
    """The description of a function for the model. ``parameters`` is a JSON schema; it is passed on unchecked."""

    model_config = ConfigDict(extra="allow")

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(BaseModel):
    """A tool of the client: the model may call it, and the client runs it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(BaseModel):
    """The function of a named tool choice."""

    model_config = ConfigDict(extra="allow")

    name: Name


class NamedToolChoice(BaseModel):
    """A tool choice that names the only tool that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: FunctionName


class AllowedTools(BaseModel):
    """The tools that the model may call, out of all tools of the request."""

    model_config = ConfigDict(extra="allow")

    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice]


class AllowedToolsChoice(BaseModel):
    """A tool choice that names several tools. Agents get these tools only, and ``mode`` as the tool choice."""

    model_config = ConfigDict(extra="allow")

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class StreamOptions(BaseModel):
    """``stream_options`` of a streamed request."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class SharedFields(BaseModel):
    """The request fields that all three APIs share."""

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra=_describe_request)

    refused: ClassVar[Refusals] = {}
    rules: ClassVar[tuple[dict[str, Any], ...]] = ()  # of validators, for the published JSON schema

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: Annotated[Literal[1], BeforeValidator(_whole)] | None = None
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(json_schema_extra={"maxItems": 4})] | None = None
    user: str | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)

    @field_validator("stop")
    @classmethod
    def _at_most_four_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 4:  # noqa: PLR2004 -- OpenAI's limit
            message = "at most 4 stop sequences are allowed"
            raise ValueError(message)
        return stop

    @model_validator(mode="after")
    def _refuse_unsupported_fields(self) -> Self:
        extra = self.extra
        for name, (reason, harmless) in self.refused.items() if extra else ():
            if extra.get(name) not in harmless:
                message = f"{name}: {reason}"
                raise ValueError(message)
        if self.stream_options is not None and not self.stream:
            message = "stream_options: only allowed when stream is true"
            raise ValueError(message)
        return self

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that this model does not declare, as the client sent them."""
        return self.model_extra or {}

    @property
    def include_usage(self) -> bool:
        """Whether the client asked for usage in a separate chunk, which is OpenAI's form."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionRequest(SharedFields):
    """A validated ``POST /v1/chat/completions`` body. Agents get it as ``run.request``.

    Fields that are not declared here are kept and passed on: see ``extra``. Agents get ``functions`` and
    ``function_call``, the older form of tools, as ``tools`` and ``tool_choice``.
    """

    refused: ClassVar[Refusals] = _REFUSED
    rules: ClassVar[tuple[dict[str, Any], ...]] = _CHOICE_RULES

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedToolChoice | AllowedToolsChoice, Field(discriminator="type")]
        | None
    ) = None
    functions: list[FunctionDefinition] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    background: bool | None = None

    @model_validator(mode="after")
    def _refuse_tool_choice_without_tools(self) -> Self:
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            message = "tool_choice: only allowed with tools"
            raise ValueError(message)
        if self.tools and self.functions:
            message = "functions: the older form of tools; send either tools or functions"
            raise ValueError(message)
        if not self.functions and isinstance(self.function_call, FunctionName):
            message = "function_call: only allowed with functions"
            raise ValueError(message)
        return self

    @property
    def output_token_limit(self) -> int | None:
        """The value of ``max_completion_tokens``, else of its older name ``max_tokens``."""
        return self.max_completion_tokens or self.max_tokens


class Usage(BaseModel):
    """Token counts of a run, summed over its turns."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    total_tokens: int = Field(default=0, ge=0)


def estimate_usage(messages: list[ChatMessage], content_characters: int) -> Usage:
    """Return the estimate of the original bridge: one token for 4 characters.

    Each message, each tool call in a message and the answer count as at least 1 token.
    """
    prompt = 0
    for message in messages:
        prompt += max(1, len(message.text) // 4)
        for call in message.tool_calls or ():
            prompt += max(1, len(call.function.arguments) // 4)
    completion = max(1, content_characters // 4)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def completion_body(  # noqa: PLR0913 -- the fields of the wire object
    *,
    run_id: str,
    created: int,
    model: str,
    status: str,
    content: str,
    finish_reason: str | None,
    usage: dict[str, int],
    reasoning: str = "",
    tool_calls: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return a ``chat.completion`` object. ``usage`` always has its three keys, because the llm client needs them.

    ``status`` is not a field of OpenAI's: queued, in_progress, completed, failed or cancelled. ``finish_reason`` is
    None until the run ends. If a message only calls tools, its content is null, as in OpenAI's API.
    """
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if tool_calls:
        message |= {"content": content or None, "tool_calls": list(tool_calls)}
    return {
        "id": run_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "status": status,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": finish_reason,
            },
        ],
        "usage": usage,
    }
