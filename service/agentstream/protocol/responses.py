"""The requests of OpenAI's Responses API, and their translation into chat completion requests for agents.

Each field is used, passed on, or refused with a 400 that names it, as in ``agentstream.protocol.openai``.
Source: the OpenAI API reference, the types of openai-python 3.57, and the requests of @ai-sdk/openai 3.0.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from agentstream.protocol.jobs import RUN_PREFIX
from agentstream.protocol.openai import ChatCompletionRequest, Name, Refusals, SharedFields, TokenLimit

RESPONSE_ID: Final = re.compile(r"resp_([0-9a-f]{32})")
ITEM_ID: Final = re.compile(r"(?:msg|rs|fc)_([0-9a-f]{32})_([0-9]{1,6})")
SEQUENCE_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_ITEM_PREFIX: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc"}

LOGPROBS: Final = "message.output_text.logprobs"
_NO_LOGPROBS: Final = "log probabilities are not supported"


def response_id(run_id: str) -> str:
    """Return the id of a run in this API: ``resp_`` and the run's 32 hex digits."""
    return "resp_" + run_id.removeprefix(RUN_PREFIX)


def item_id(kind: str, run_id: str, index: int) -> str:
    """Return the id of the item at position ``index`` in the output of a run."""
    return f"{_ITEM_PREFIX[kind]}_{run_id.removeprefix(RUN_PREFIX)}_{index}"


def run_id_of(public_id: str) -> str | None:
    """Return the run id of a response id or an item id; None if ``public_id`` is neither."""
    match = RESPONSE_ID.fullmatch(public_id) or ITEM_ID.fullmatch(public_id)
    return RUN_PREFIX + match[1] if match else None


class _ExtensibleModel(BaseModel):
    model_config = ConfigDict(extra="allow")


class TextContent(_ExtensibleModel):
    """A text part of a message: input text, or output text of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalContent(_ExtensibleModel):
    """The refusal text of an earlier answer."""

    type: Literal["refusal"]
    refusal: str


class ImageContent(_ExtensibleModel):
    """An image, as an https URL or a data URL. Stored files are not supported."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None


Content = Annotated[TextContent | RefusalContent | ImageContent, Field(discriminator="type")]


class MessageItem(_ExtensibleModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Content]


class FunctionCallItem(_ExtensibleModel):
    """A call of a client's tool in an earlier answer."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str


class FunctionOutputItem(_ExtensibleModel):
    """The output of a client's tool for a call."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: str | list[Content]


class ReasoningItem(_ExtensibleModel):
    """The reasoning of an earlier answer. Clients send it back; the model does not get it again."""

    type: Literal["reasoning"]


class ItemReference(_ExtensibleModel):
    """A reference to an item of an earlier response, by its id."""

    type: Literal["item_reference"]
    id: str = Field(pattern=f"^{ITEM_ID.pattern}$")


_REASONING: Final = "reasoning"


def _kind(value: Any) -> str | None:  # noqa: ANN401 -- decoded JSON, or one of the models above
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag(_REASONING)]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
_ITEMS: Final = TypeAdapter(list[InputItem])


class ResponseTool(_ExtensibleModel):
    """A tool of the client: the model may call it, and the client runs it."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(_ExtensibleModel):
    """A tool choice that names the only tool that the model may call."""

    type: Literal["function"]
    name: Name


class PlainFormat(_ExtensibleModel):
    """The answer is text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_ExtensibleModel):
    """The answer is JSON that follows a schema. The schema is passed on unchecked."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Literal["json_schema"]
    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(_ExtensibleModel):
    """The format and verbosity of the answer's text."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: str | None = None


class ReasoningConfig(_ExtensibleModel):
    """The reasoning effort of the model. Its reasoning is sent unchanged; the field ``summary`` has no effect."""

    effort: str | None = None


# For the published JSON schema: an input that has only reasoning items is refused.
_NOT_ONLY_REASONING: Final[dict[str, Any]] = {
    "contains": {"not": {"required": ["type"], "properties": {"type": {"const": _REASONING}}}},
}


class ResponseRequest(SharedFields):
    """A validated ``POST /v1/responses`` body."""

    refused: ClassVar[Refusals] = {
        "messages": ("use input", (None,)),
        "max_tokens": ("use max_output_tokens", (None,)),
        "max_completion_tokens": ("use max_output_tokens", (None,)),
        "response_format": ("use text.format", (None,)),
        "reasoning_effort": ("use reasoning.effort", (None,)),
        "functions": ("use tools", (None, [])),
        "function_call": ("use tool_choice", (None,)),
        "conversation": ("conversations are not supported; send the items as input", (None,)),
        "prompt": ("stored prompts are not supported; send instructions and input", (None,)),
        "context_management": ("compaction is not supported", (None, [])),
        "audio": ("audio output is not supported", (None,)),
        "modalities": ("only the text modality is supported", (None, [], ["text"])),
        "logprobs": (_NO_LOGPROBS, (None, False)),
        "top_logprobs": (_NO_LOGPROBS, (None, 0)),
    }

    input: str | Annotated[list[InputItem], Field(min_length=1, json_schema_extra=_NOT_ONLY_REASONING)]
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, Any] | None = None
    include: list[Annotated[str, Field(json_schema_extra={"not": {"const": LOGPROBS}})]] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: Annotated[str, Field(pattern=f"^{RESPONSE_ID.pattern}$")] | None = None
    store: bool | None = None
    background: bool | None = None

    @property
    def references(self) -> list[str]:
        """The ids of the earlier items that the input refers to."""
        return [item.id for item in self.input if isinstance(item, ItemReference)]

    def as_chat(self, items: Mapping[str, dict[str, Any]], history: Sequence[dict[str, Any]]) -> ChatCompletionRequest:
        """Return the request as agents see it. Only fields that the client sent are set.

        ``items`` maps the ids in ``references`` to output items. ``history`` holds the chat messages of the earlier
        conversation. Raises ValueError (pydantic.ValidationError is one) if the result is not a valid request.
        """
        if LOGPROBS in (self.include or ()):
            message = f"include: {_NO_LOGPROBS}"
            raise ValueError(message)
        fields = self.model_dump(exclude_unset=True, exclude=_NOT_PASSED_ON | set(self.refused))
        messages = [*history, *self._messages(items)]
        if not messages:
            message = "input: has only reasoning items; add a message"
            raise ValueError(message)
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        fields["messages"] = messages
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens
        if self.reasoning is not None and self.reasoning.effort is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        fields |= self._text_fields() | self._tool_fields()
        return ChatCompletionRequest.model_validate(fields, strict=True)

    def echo(self) -> dict[str, Any]:
        """Return the fields that the response object repeats, if the client sent them."""
        sent = self.model_dump(mode="json", by_alias=True, exclude_none=True, include=_ECHOED)
        return {name: value for name, value in sent.items() if name in self.model_fields_set}

    def _messages(self, items: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        found = (items[item.id] if isinstance(item, ItemReference) else item for item in self.input)
        return chat_messages(found)

    def _text_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.text is None:
            return fields
        if self.text.verbosity is not None:
            fields["verbosity"] = self.text.verbosity
        if isinstance(self.text.format, SchemaFormat):
            schema = self.text.format.model_dump(by_alias=True, exclude_unset=True, exclude={"type"})
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.text.format is not None and self.text.format.type != "text":
            fields["response_format"] = {"type": self.text.format.type}
        return fields

    def _tool_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.tools is not None:
            fields["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})}
                for tool in self.tools
            ]
        if isinstance(self.tool_choice, FunctionChoice):
            fields["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        elif self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice
        return fields


# Fields that a chat completion request does not have, or has in another form.
_NOT_PASSED_ON: Final = {
    *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "max_tool_calls", "text", "reasoning"),
    *("include", "truncation", "previous_response_id", "store", "stream_options"),
}
_ECHOED: Final = {
    *("instructions", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "text"),
    *("reasoning", "metadata", "truncation", "previous_response_id", "store", "background"),
    *("temperature", "top_p", "user"),
}


def chat_messages(items: Iterable[InputItem | dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items of a conversation as chat messages. Calls are added to the assistant message before them."""
    messages: list[dict[str, Any]] = []
    for item in _ITEMS.validate_python(list(items)):
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": _chat_content(item.content)})
        elif isinstance(item, FunctionOutputItem):
            content = _chat_content(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        elif isinstance(item, FunctionCallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def _chat_content(content: str | list[Content]) -> str | list[dict[str, Any]]:
    """Return text as one string, which every engine accepts. Return a list of parts only if there are images."""
    if isinstance(content, str):
        return content
    if not any(isinstance(part, ImageContent) for part in content):
        return "".join(_text_of(part) for part in content)
    return [
        {
            "type": "image_url",
            "image_url": part.model_dump(include={"detail"}, exclude_none=True) | {"url": part.image_url},
        }
        if isinstance(part, ImageContent)
        else {"type": "text", "text": _text_of(part)}
        for part in content
    ]


def _text_of(part: TextContent | RefusalContent | ImageContent) -> str:
    return part.text if isinstance(part, TextContent) else part.refusal if isinstance(part, RefusalContent) else ""
