"""The input items of the Responses API, and their translation into chat messages.

item                                            chat message
==============================================  ================================================================
message                                         a message of the same role
function_call, custom_tool_call                 a tool call in the assistant message before it
function_call_output, custom_tool_call_output   a message of role tool
reasoning                                       none: models do not see it again
additional_tools, tool_search_output            none: their tools are added to those of the request
configuration_update                            none: its fields replace those of the request
mcp_approval_request, mcp_approval_response     none, if the run that asked is one of this server: it knows them
any other, for example web_search_call          a message with the item as text

Approval responses at the end of the input answer a run that waits (``agentstream.protocol.responses``).
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, NamedTuple

import orjson
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from agentstream.protocol.interrupts import MAX_REASON_CHARACTERS, NAME
from agentstream.protocol.jobs import RUN_PREFIX
from agentstream.protocol.openai import ImageDetail
from agentstream.protocol.response_config import ReasoningConfig, TextConfig
from agentstream.protocol.response_tools import ExtensibleModel, ResponseTool, agent_name, wrap_input

# A run that was parked has several responses: the first without a number, the second with the number 1.
RESPONSE_ID: Final = re.compile(r"resp_([0-9a-f]{32})(?:_([1-9][0-9]{0,3}))?")
# The form of an item's id: prefix, run, number of the response unless it is the first one, position in its output.
ITEM_ID: Final = re.compile(r"(?:msg|rs|fc|ctc)_([0-9a-f]{32})(?:_([1-9][0-9]{0,3}))?_[0-9]{1,6}")
# The same for an approval request. It ends with the id of the interrupt.
APPROVAL_ID: Final = re.compile(rf"mcpr_([0-9a-f]{{32}})(?:_([1-9][0-9]{{0,3}}))?_({NAME.pattern})")
# A longer text without any space is data, such as an image in base64.
MAX_WORD_CHARACTERS: Final = 2000
APPROVAL_REQUEST: Final = "mcp_approval_request"
_DATA: Final = re.compile(r"[A-Za-z0-9+/=_-]+")
_ITEM_PREFIX: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    APPROVAL_REQUEST: "mcpr",
}


class Segment(NamedTuple):
    """A part of a run that is one response: number 0 from its start, number n after its n-th stay as a parked run."""

    run_id: str
    number: int


def response_id(run_id: str, segment: int = 0) -> str:
    """Return the id of a response: ``resp_`` and the run's 32 hex digits, then the segment if it is not the first."""
    return f"resp_{run_id.removeprefix(RUN_PREFIX)}{f'_{segment}' if segment else ''}"


def item_id(kind: str, run_id: str, name: int | str, segment: int = 0) -> str:
    """Return the id of an item in the output of a response: ``name`` is its position, or the id of its interrupt."""
    own = f"_{segment}" if segment else ""
    return f"{_ITEM_PREFIX[kind]}_{run_id.removeprefix(RUN_PREFIX)}{own}_{name}"


def segment_of(public_id: str) -> Segment | None:
    """Return the run and the segment of a response id or an item id; None if ``public_id`` is neither."""
    match = RESPONSE_ID.fullmatch(public_id) or ITEM_ID.fullmatch(public_id) or APPROVAL_ID.fullmatch(public_id)
    return Segment(RUN_PREFIX + match[1], int(match[2] or 0)) if match else None


def interrupt_id_of(approval_id: str) -> str | None:
    """Return the id of the interrupt that an approval request of this server shows; None if it is no such id."""
    match = APPROVAL_ID.fullmatch(approval_id)
    return match[3] if match else None


class TextContent(ExtensibleModel):
    """A text part of a message: input text, or output text of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalContent(ExtensibleModel):
    """The refusal text of an earlier answer."""

    type: Literal["refusal"]
    refusal: str


class ImageContent(ExtensibleModel):
    """An image, as an https URL or a data URL. Stored files are not supported."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    detail: ImageDetail | None = None


Content = Annotated[TextContent | RefusalContent | ImageContent, Field(discriminator="type")]


class MessageItem(ExtensibleModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Content]


class FunctionCallItem(ExtensibleModel):
    """A call of a client's function in an earlier answer."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    namespace: str | None = None
    arguments: str


class CustomToolCallItem(ExtensibleModel):
    """A call of a client's custom tool in an earlier answer."""

    type: Literal["custom_tool_call"]
    call_id: str = Field(min_length=1)
    name: str
    namespace: str | None = None
    input: str


class ToolOutputItem(ExtensibleModel):
    """The output of a client's tool for a call. Without ``call_id`` the model gets it as text."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Annotated[str, Field(min_length=1)] | None = None
    output: str | list[Content]

    @property
    def text(self) -> str:
        """The text of the output."""
        return self.output if isinstance(self.output, str) else "".join(_text_of(part) for part in self.output)


class ReasoningItem(ExtensibleModel):
    """The reasoning of an earlier answer. Clients send it back; the model does not get it again."""

    type: Literal["reasoning"]


class AdditionalToolsItem(ExtensibleModel):
    """Tools that are added to those of the request."""

    type: Literal["additional_tools", "tool_search_output"]
    tools: list[ResponseTool]


class ApprovalResponseItem(ExtensibleModel):
    """The answer of a person to an approval request. ``reason`` says why, for the agent."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str | None = None
    approve: bool
    reason: Annotated[str, Field(max_length=MAX_REASON_CHARACTERS)] | None = None


class ConfigurationItem(ExtensibleModel):
    """Settings that replace those of the request: ``reasoning`` and ``text``, in the form of the request."""

    type: Literal["configuration_update"]
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None


def _item_of_this_server(value: str) -> str:
    if ITEM_ID.fullmatch(value) is None and APPROVAL_ID.fullmatch(value) is None:
        message = (
            f"{value[:80]!r} is not the id of an item of this server; send the item itself, with its type and content"
        )
        raise ValueError(message)
    return value


# Without a type, an item with a role or content is a message.
_REFERENCE_RULE: Final[dict[str, Any]] = {
    "if": {"not": {"required": ["type"], "properties": {"type": {"const": "item_reference"}}}},
    "then": {"not": {"anyOf": [{"required": ["role"]}, {"required": ["content"]}]}},
}


class ItemReference(ExtensibleModel):
    """A reference to an item of an earlier response, by its id. Clients may omit the type."""

    model_config = ConfigDict(json_schema_extra=_REFERENCE_RULE)

    type: Literal["item_reference"] | None = None
    id: Annotated[
        str,
        Field(json_schema_extra={"pattern": f"^(?:{ITEM_ID.pattern}|{APPROVAL_ID.pattern})$"}),
        AfterValidator(_item_of_this_server),
    ]


_OTHER: Final = "other"
_COMPACTION_TRIGGER: Final = "compaction_trigger"
# The types of items, and the tag of the model that validates each.
_TAGS: Final = {
    "message": "message",
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "function_call_output": "output",
    "custom_tool_call_output": "output",
    "reasoning": "reasoning",
    "additional_tools": "tools",
    "tool_search_output": "tools",
    "mcp_approval_response": "approval",
    "configuration_update": "configuration",
    "item_reference": "reference",
}
# Items that become no message. An input that has no others is refused.
SILENT_ITEMS: Final = ("reasoning", "additional_tools", "tool_search_output", "configuration_update")


def _no_compaction(value: str) -> str:
    if value == _COMPACTION_TRIGGER:
        message = "compaction is not supported; send a shorter conversation"
        raise ValueError(message)
    return value


class OtherItem(ExtensibleModel):
    """An item of any other type. The model gets it as text."""

    type: Annotated[
        str,
        Field(min_length=1, json_schema_extra={"not": {"enum": [*_TAGS, _COMPACTION_TRIGGER]}}),
        AfterValidator(_no_compaction),
    ]


def _tag_of(value: Any) -> str | None:  # noqa: ANN401 -- decoded JSON, or one of the models above
    if isinstance(value, ItemReference):
        return "reference"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None and isinstance(value, dict):
        return "reference" if "id" in value and "role" not in value and "content" not in value else "message"
    return _TAGS.get(kind, _OTHER) if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomToolCallItem, Tag("custom_tool_call")]
    | Annotated[ToolOutputItem, Tag("output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[AdditionalToolsItem, Tag("tools")]
    | Annotated[ApprovalResponseItem, Tag("approval")]
    | Annotated[ConfigurationItem, Tag("configuration")]
    | Annotated[ItemReference, Tag("reference")]
    | Annotated[OtherItem, Tag(_OTHER)],
    Discriminator(
        _tag_of,
        custom_error_type="item_type",
        custom_error_message="an item is an object whose type is a text, for example 'message'",
    ),
]
_ITEMS: Final = TypeAdapter(list[InputItem])


def chat_messages(items: Iterable[InputItem | dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items of a conversation as chat messages. Calls are added to the assistant message before them."""
    messages: list[dict[str, Any]] = []
    for item in _ITEMS.validate_python(list(items)):
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": _chat_content(item.content)})
        elif isinstance(item, ToolOutputItem) and item.call_id is not None:
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _chat_content(item.output)})
        elif isinstance(item, FunctionCallItem | CustomToolCallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(_chat_call(item))
        elif isinstance(item, OtherItem | ToolOutputItem | ApprovalResponseItem) and not _is_of_own_run(item):
            messages.append(_as_text(item))
    return messages


def _is_of_own_run(item: OtherItem | ToolOutputItem | ApprovalResponseItem) -> bool:
    """Return whether an item belongs to an approval that a run of this server has asked for."""
    if isinstance(item, ApprovalResponseItem):
        return APPROVAL_ID.fullmatch(item.approval_request_id or "") is not None
    own_id = getattr(item, "id", None)
    return item.type == APPROVAL_REQUEST and isinstance(own_id, str) and APPROVAL_ID.fullmatch(own_id) is not None


def _chat_call(item: FunctionCallItem | CustomToolCallItem) -> dict[str, Any]:
    arguments = item.arguments if isinstance(item, FunctionCallItem) else wrap_input(item.input)
    function = {"name": agent_name(item.name, item.namespace), "arguments": arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _as_text(item: OtherItem | ToolOutputItem | ApprovalResponseItem) -> dict[str, Any]:
    """Return an item as a message with its JSON: of the user if the client made the item, else of the assistant."""
    fields = item.model_dump(mode="json", exclude={"type", "id", "status"}, exclude_none=True)
    by_client = item.type.endswith(("_output", "_response"))
    text = orjson.dumps(_readable(fields)).decode()
    return {"role": "user" if by_client else "assistant", "content": f"[{item.type}] {text}"}


def _readable(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return a value without data that a model cannot read in a text: encrypted content and images."""
    if isinstance(value, dict):
        return {
            name: f"({len(inner)} characters that cannot be shown as text)"
            if isinstance(inner, str) and (name == "encrypted_content" or _is_data(inner))
            else _readable(inner)
            for name, inner in value.items()
        }
    return [_readable(inner) for inner in value] if isinstance(value, list) else value


def _is_data(text: str) -> bool:
    return text.partition(":")[0] == "data" or (len(text) > MAX_WORD_CHARACTERS and _DATA.fullmatch(text) is not None)


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
