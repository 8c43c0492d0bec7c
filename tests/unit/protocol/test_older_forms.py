"""Older and rarer forms of a chat completion request, and what agents get for them."""

from typing import Any

import pytest

from agentstream.protocol.older_forms import in_current_form
from agentstream.protocol.openai import ChatCompletionRequest

USER = {"role": "user", "content": "x"}
CALL = {"name": "f", "arguments": '{"a": 1}'}
F, G = ({"type": "function", "function": {"name": name, "description": "d"}} for name in "fg")


def called(number: int) -> dict[str, Any]:
    return {"id": f"call_function_{number}", "type": "function", "function": CALL}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def seen(**fields: Any) -> dict[str, Any]:
    """Return the request that agents get, without the model and the only message."""
    sent = {"model": "m1", "messages": [USER], **fields}
    request = in_current_form(ChatCompletionRequest.model_validate(sent, strict=True))
    dumped = request.model_dump(exclude_unset=True)
    assert ChatCompletionRequest.model_validate(dumped) == request
    return {name: value for name, value in dumped.items() if (name, value) not in {"model": "m1"}.items()}


def test_functions_become_tools() -> None:
    """The fields functions and function_call become tools and tool_choice, for one call in an answer."""
    functions = [F["function"], {"name": "g", "parameters": {"type": "object"}, "x": 1}]
    tools = [{"type": "function", "function": function} for function in functions]
    expected = {"messages": [USER], "tools": tools, "parallel_tool_calls": False}
    assert seen(functions=functions) == expected
    assert seen(functions=functions, function_call=None) == expected
    assert seen(functions=functions, function_call="none") == {**expected, "tool_choice": "none"}
    named = {"type": "function", "function": {"name": "g"}}
    assert seen(functions=functions, function_call={"name": "g"}) == {**expected, "tool_choice": named}


@pytest.mark.parametrize("fields", [{"functions": []}, {"functions": None}, {"function_call": "auto"}])
def test_empty_older_fields_leave_no_trace(fields: dict[str, Any]) -> None:
    """Older fields that ask for nothing do not reach the agent."""
    assert seen(**fields) == {"messages": [USER]}
    assert seen(tools=[F], **fields) == {"messages": [USER], "tools": [F]}


def test_older_calls_and_results_become_tool_messages() -> None:
    """Calls of the older form get ids, and a function message refers to the latest call before it."""
    conversation = [
        USER,
        {"role": "assistant", "content": None, "function_call": CALL},
        {"role": "function", "name": "f", "content": "one"},
        {"role": "assistant", "content": "so", "function_call": CALL},
        {"role": "function", "name": "f", "content": None},
        {"role": "assistant", "content": "done", "function_call": None},
    ]
    assert seen(messages=conversation)["messages"] == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [called(1)]},
        {"role": "tool", "name": "f", "content": "one", "tool_call_id": "call_function_1"},
        {"role": "assistant", "content": "so", "tool_calls": [called(2)]},
        {"role": "tool", "name": "f", "content": "", "tool_call_id": "call_function_2"},
        {"role": "assistant", "content": "done"},
    ]
    assert seen(messages=[{"role": "function", "name": "f", "content": "r"}])["messages"][0]["role"] == "tool"


def test_a_refusal_part_becomes_text() -> None:
    """The refusal of an earlier answer reaches the agent as a text part, and as text of the message."""
    content = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    message = {"role": "assistant", "content": content}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert seen(messages=[USER, message])["messages"][1] == {"role": "assistant", "content": parts}
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [message]})
    assert request.messages[0].text == "ab"


@pytest.mark.parametrize(
    ("choice", "tools", "tool_choice"),
    [
        (allowed("auto", "f"), [F], "auto"),
        (allowed("required", "g", "f"), [F, G], "required"),
        (allowed("required", "own"), [], None),
        (allowed("auto"), [], None),
    ],
)
def test_allowed_tools_limit_the_tools(choice: dict[str, Any], tools: list[Any], tool_choice: str | None) -> None:
    """A choice of allowed tools leaves these of the client's tools, and its mode is the choice among them."""
    expected = {"messages": [USER], "tools": tools, "tool_choice": tool_choice}
    assert seen(tools=[F, G], tool_choice=choice) == expected


def test_a_request_in_the_usual_form_is_not_copied() -> None:
    """A request without these forms is returned itself."""
    detail = {"type": "image_url", "image_url": {"url": "data:,", "detail": "original"}}
    fields = {"messages": [{"role": "user", "content": [detail]}], "tools": [F], "tool_choice": "required"}
    request = ChatCompletionRequest.model_validate({"model": "m1", **fields}, strict=True)
    assert in_current_form(request) is request
