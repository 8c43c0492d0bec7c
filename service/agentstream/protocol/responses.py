"""The requests of OpenAI's Responses API, and their translation into chat completion requests for agents.

Each field is used, passed on, or refused with a 400 that names it, as in ``agentstream.protocol.openai``. For the tools
and the items of the input see ``response_tools`` and ``response_items``.
Source: the OpenAI API reference, the types of openai-python 3.57, and the requests of @ai-sdk/openai 3.0 and Codex.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final, Literal

import orjson
from pydantic import BeforeValidator, ConfigDict, Field

from agentstream.protocol.openai import ChatCompletionRequest, Name, Refusals, SharedFields, TokenLimit
from agentstream.protocol.response_config import ReasoningConfig, TextConfig, text_fields
from agentstream.protocol.response_items import (
    APPROVAL_ID,
    APPROVAL_REQUEST,
    SILENT_ITEMS,
    AdditionalToolsItem,
    ApprovalResponseItem,
    ConfigurationItem,
    InputItem,
    ItemReference,
    ToolOutputItem,
    chat_messages,
)
from agentstream.protocol.response_tools import (
    CUSTOM,
    FUNCTION,
    NAMESPACE,
    ExtensibleModel,
    ResponseTool,
    agent_name,
    chat_tools,
    split_tools,
)

SEQUENCE_NUMBER: Final = re.compile(r"[0-9]{1,15}")
LOGPROBS: Final = "message.output_text.logprobs"
_NO_LOGPROBS: Final = "log probabilities are not supported"
_ALLOWED_TOOLS: Final = "allowed_tools"


class ResponseToolChoice(ExtensibleModel):
    """A tool choice that names the only tool that the model may call."""

    type: Literal["function", "custom"]
    name: Name
    namespace: str | None = None


_SERVED: Final[dict[str, Any]] = {
    "required": ["type"],
    "properties": {"type": {"enum": [FUNCTION, CUSTOM]}},
}
_FORCES_A_TOOL: Final[dict[str, Any]] = {
    "if": {"properties": {"mode": {"const": "required"}}},
    "then": {"properties": {"tools": {"contains": _SERVED}}},
}


class ResponseAllowedTools(ExtensibleModel):
    """A tool choice that names several tools, by the type and the name of each."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_FORCES_A_TOOL)

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]

    @property
    def names(self) -> set[str]:
        """The names of the allowed functions and custom tools, as agents know them."""
        served = [tool for tool in self.tools if tool.get("type") in {FUNCTION, CUSTOM}]
        return {agent_name(str(tool.get("name")), tool.get("namespace")) for tool in served}


def _cannot_be_served(tools: Sequence[Mapping[str, Any]]) -> str:
    types = ", ".join(sorted({str(tool.get("type"))[:40] for tool in tools})) or "none"
    return f"no tool is a function or a custom tool (the types are: {types}); add one, or use auto"


def _servable(choice: object) -> object:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(kind, str) and kind not in {FUNCTION, CUSTOM, _ALLOWED_TOOLS}:
        message = (
            f"a tool of type {kind[:40]!r} cannot be served, so it cannot be forced; use auto, or name another tool"
        )
        raise ValueError(message)
    return choice


# For the published JSON schema: the rules of the validators below.
_NOT_ONLY_SILENT: Final[dict[str, Any]] = {
    "minItems": 1,
    "contains": {"not": {"required": ["type"], "properties": {"type": {"enum": list(SILENT_ITEMS)}}}},
}
_FORCING: Final[dict[str, Any]] = {
    "type": "object",
    "not": {
        "required": ["type", "mode"],
        "properties": {"type": {"const": _ALLOWED_TOOLS}, "mode": {"const": "auto"}},
    },
}
_RULES: Final[tuple[dict[str, Any], ...]] = (
    {
        "if": {
            "not": {"required": ["previous_response_id"], "properties": {"previous_response_id": {"type": "string"}}}
        },
        "then": {
            "required": ["input"],
            "properties": {
                "input": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", **_NOT_ONLY_SILENT}]}
            },
        },
    },
    {
        "if": {
            "required": ["tool_choice"],
            "properties": {"tool_choice": {"anyOf": [{"const": "required"}, _FORCING]}},
        },
        "then": {
            "required": ["tools"],
            "properties": {
                "tools": {
                    "type": "array",
                    "contains": {
                        "anyOf": [
                            _SERVED,
                            {
                                "required": ["type", "tools"],
                                "properties": {
                                    "type": {"const": NAMESPACE},
                                    "tools": {"type": "array", "contains": _SERVED},
                                },
                            },
                        ]
                    },
                }
            },
        },
    },
)


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

    rules: ClassVar[tuple[dict[str, Any], ...]] = _RULES

    input: str | list[InputItem] | None = None
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: (
        Annotated[
            Literal["auto", "none", "required"]
            | Annotated[ResponseToolChoice | ResponseAllowedTools, Field(discriminator="type")],
            BeforeValidator(_servable),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, Any] | None = None
    include: list[Annotated[str, Field(json_schema_extra={"not": {"const": LOGPROBS}})]] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None

    @property
    def references(self) -> list[str]:
        """The ids of the earlier items that the input refers to."""
        return [item.id for item in self._items if isinstance(item, ItemReference)]

    def answers(self) -> dict[str, Any]:
        """Return the answers of people at the end of the input, by the ids of the approval requests; often none.

        Copies of the requests may stand between them. An earlier conversation may stand before them, unless the request
        names an earlier response. The output of a call answers an interrupt of another kind: it is JSON, or else text.
        Raises ValueError if the answers cannot be told apart, or if there are other items.
        """
        found: dict[str, Any] = {}
        for place, item in reversed([*enumerate(self._items)]):
            if isinstance(item, ApprovalResponseItem):
                name, answer = (
                    item.approval_request_id,
                    item.model_dump(include={"approve", "reason"}, exclude_none=True),
                )
            elif isinstance(item, ToolOutputItem) and APPROVAL_ID.fullmatch(item.call_id or ""):
                name, answer = item.call_id, _json_or_text(item.text)
            elif _may_stand_between(item):
                continue
            elif found and self.previous_response_id is not None:
                message = f"input[{place}]: an answer to an approval request stands alone; send messages after the run"
                raise ValueError(message)
            else:
                break
            if found.setdefault(name or "", answer) != answer:
                message = f"input[{place}].approval_request_id: the id has two answers; send each id once"
                raise ValueError(message)
        return found

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
            message = "input: send a text, or a list with at least one message"
            if self._items:
                message += f"; items of type {', '.join(SILENT_ITEMS)} are not enough"
            raise ValueError(message)
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        fields["messages"] = messages
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens
        text, reasoning = self.text, self.reasoning
        for update in self._items:
            if isinstance(update, ConfigurationItem):
                text, reasoning = update.text or text, update.reasoning or reasoning
        if reasoning is not None and reasoning.effort is not None:
            fields["reasoning_effort"] = reasoning.effort
        fields |= text_fields(text) | self._tool_fields()
        return ChatCompletionRequest.model_validate(fields, strict=True)

    def echo(self) -> dict[str, Any]:
        """Return the fields that the response object repeats, if the client sent them.

        Of the tools it repeats those that agents get. The tools that are left out are in ``ignored_tools``.
        """
        sent = self.model_dump(mode="json", by_alias=True, exclude_none=True, include=_ECHOED)
        echo = {name: value for name, value in sent.items() if name in self.model_fields_set}
        served, ignored = self._tools
        if self.tools is not None or served:
            echo["tools"] = served
        if ignored:
            echo["ignored_tools"] = ignored
        return echo

    @property
    def _items(self) -> Sequence[InputItem]:
        return self.input if isinstance(self.input, list) else ()

    @cached_property
    def _tools(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The tools that agents get, and those that are left out, also of the items that add tools."""
        added = (tool for item in self._items if isinstance(item, AdditionalToolsItem) for tool in item.tools)
        tools = [*(self.tools or ()), *added]
        return split_tools(tool.model_dump(mode="json", exclude_unset=True) for tool in tools)

    def _messages(self, items: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}] if self.input else []
        return chat_messages(items[item.id] if isinstance(item, ItemReference) else item for item in self._items)

    def _tool_fields(self) -> dict[str, Any]:
        """Return ``tools`` and ``tool_choice`` of the chat request; raises ValueError if a forced tool is left out."""
        served, ignored = self._tools
        choice = self.tool_choice
        fields: dict[str, Any] = {}
        if self.tools is not None or served:
            fields["tools"] = chat_tools(served)
        allowed = choice if isinstance(choice, ResponseAllowedTools) else None
        forced = (
            choice == "required" or isinstance(choice, ResponseToolChoice) or (allowed and allowed.mode == "required")
        )
        if forced and (not fields.get("tools") or (allowed and not allowed.names)):
            message = f"tool_choice: forces a call, but {_cannot_be_served(allowed.tools if allowed else ignored)}"
            raise ValueError(message)
        if isinstance(choice, ResponseToolChoice):
            name = agent_name(choice.name, choice.namespace)
            fields["tool_choice"] = {"type": "function", "function": {"name": name}}
        elif isinstance(choice, ResponseAllowedTools):
            fields["tools"] = [tool for tool in fields.get("tools", ()) if tool["function"]["name"] in choice.names]
            fields["tool_choice"] = choice.mode if fields["tools"] else None
        elif choice is not None:
            fields["tool_choice"] = choice
        return fields


def _may_stand_between(item: InputItem) -> bool:
    """Return whether an item may stand between answers: a request that is answered, or an item without a message."""
    if isinstance(item, ItemReference):
        return APPROVAL_ID.fullmatch(item.id) is not None
    return item.type == APPROVAL_REQUEST or item.type in SILENT_ITEMS


def _json_or_text(output: str) -> Any:  # noqa: ANN401 -- JSON
    try:
        return orjson.loads(output)
    except orjson.JSONDecodeError:
        return output


# Fields that a chat completion request does not have, or has in another form.
_NOT_PASSED_ON: Final = {
    *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "max_tool_calls", "text", "reasoning"),
    *("include", "truncation", "previous_response_id", "store", "stream_options"),
}
_ECHOED: Final = {
    *("instructions", "max_output_tokens", "tool_choice", "parallel_tool_calls", "max_tool_calls", "text"),
    *("reasoning", "metadata", "truncation", "previous_response_id", "store", "background"),
    *("temperature", "top_p", "user"),
}
