"""Turns forms of a chat completion request that few agents know into the usual ones, so that all agents serve them.

sent                                         agents get
===========================================  ==========================================================
functions, function_call                     tools, tool_choice
a message's function_call                    tool_calls, with an id
a message of role function                   a message of role tool, with the id of the latest such call
a part of type refusal                       a part of type text
a tool_choice of type allowed_tools          these tools only, and the mode as tool_choice
"""

from typing import Any, Final

from agentstream.protocol.openai import AllowedToolsChoice, ChatCompletionRequest, ChatMessage, RefusalPart

_OLDER_FIELDS: Final = {"functions", "function_call"}


def in_current_form(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """Return the request as agents get it; ``request`` itself if it has none of these forms."""
    older_messages = any(map(_is_older, request.messages))
    allowed = request.tool_choice if isinstance(request.tool_choice, AllowedToolsChoice) else None
    older_fields = not _OLDER_FIELDS.isdisjoint(request.model_fields_set)
    if not (older_messages or allowed or older_fields):
        return request
    fields = request.model_dump(exclude_unset=True, exclude=_OLDER_FIELDS)
    if older_messages:
        fields["messages"] = _in_current_form(fields["messages"])
    if request.functions:
        definitions = [function.model_dump(exclude_unset=True) for function in request.functions]
        fields["tools"] = [{"type": "function", "function": definition} for definition in definitions]
        fields["parallel_tool_calls"] = False  # the older form has one call in an answer
    if request.functions and request.function_call is not None:
        named = request.function_call
        fields["tool_choice"] = (
            named if isinstance(named, str) else {"type": "function", "function": named.model_dump()}
        )
    if allowed is not None:
        names = {choice.function.name for choice in allowed.allowed_tools.tools}
        fields["tools"] = [tool for tool in fields["tools"] if tool["function"]["name"] in names]
        fields["tool_choice"] = allowed.allowed_tools.mode if fields["tools"] else None
    return ChatCompletionRequest.model_validate(fields, strict=True)


def _is_older(message: ChatMessage) -> bool:
    return (
        message.role == "function"
        or "function_call" in message.model_fields_set
        or (isinstance(message.content, list) and any(isinstance(part, RefusalPart) for part in message.content))
    )


def _in_current_form(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages without calls and results of the older form. Their ids count the calls of the conversation."""
    number = 0
    current: list[dict[str, Any]] = []
    for sent in messages:
        message = dict(sent)
        call = message.pop("function_call", None)
        if call is not None:
            number += 1
            called = {"id": f"call_function_{number}", "type": "function", "function": call}
            message["tool_calls"] = [*(message.get("tool_calls") or ()), called]
        if message["role"] == "function":
            message |= {"role": "tool", "tool_call_id": f"call_function_{max(number, 1)}"}
            message["content"] = message.get("content") or ""
        if isinstance(message.get("content"), list):
            message["content"] = [_as_text(part) for part in message["content"]]
        current.append(message)
    return current


def _as_text(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part
