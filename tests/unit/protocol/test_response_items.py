"""The tools and items of the Responses API that are no functions and no messages, as coding clients send them."""

import json
from typing import Any

import pytest

from agentstream.protocol.responses import ResponseRequest

GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": GRAMMAR}
HOSTED: list[dict[str, Any]] = [
    {"type": "web_search", "external_web_access": True},
    {"type": "local_shell"},
    {"type": "image_generation", "output_format": "png"},
    {"type": "mcp", "server_label": "docs", "authorization": "sk-hunter2", "headers": {"X-Key": "sk-hunter2"}},
    {"type": "a_tool_to_come"},
]
USER = {"role": "user", "content": "x"}
UNSHOWN = "characters that cannot be shown as text)"


def translated(**fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the agent gets, and what the response repeats."""
    request = ResponseRequest.model_validate({"model": "m1", "input": [USER], **fields}, strict=True)
    chat = request.as_chat({}, []).model_dump(mode="json", exclude_unset=True)
    assert chat.pop("model") == "m1"
    return chat, request.echo()


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = translated(input=list(items))[0]["messages"]
    return found


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    """An agent gets a custom tool as a function with the parameter input, and its grammar in the description."""
    chat, echo = translated(tools=[PATCH])
    [tool] = chat["tools"]
    assert tool["type"] == "function"
    assert tool["function"]["name"] == "apply_patch"
    assert tool["function"]["description"] == ("Edits files.\n\nThe input must follow this grammar (lark):\nstart: x")
    assert tool["function"]["parameters"]["required"] == ["input"]
    assert echo == {"tools": [PATCH]}


def test_tools_of_a_namespace_are_joined_with_its_name() -> None:
    """The tools of a namespace have its name in front, and fields that only this API has are not passed on."""
    inner = [
        {"type": "function", "name": "get", "parameters": {"type": "object"}, "strict": True, "defer_loading": True},
        {"type": "custom", "name": "note"},
        {"type": "web_search"},
    ]
    chat, echo = translated(tools=[{"type": "namespace", "name": "crm", "description": "The CRM.", "tools": inner}])
    get, note = (tool["function"] for tool in chat["tools"])
    assert get == {"name": "crm__get", "description": "The CRM.", "parameters": {"type": "object"}, "strict": True}
    assert note["name"] == "crm__note"
    assert echo["tools"][0]["tools"] == inner[:2]
    assert echo["ignored_tools"] == [{"type": "web_search", "namespace": "crm"}]
    [function] = translated(tools=[{"type": "namespace", "name": "mcp__docs__", "tools": inner[:1]}])[0]["tools"]
    assert function["function"]["name"] == "mcp__docs__get"


def test_hosted_tools_are_left_out_and_named() -> None:
    """A tool that is not served is left out of what agents get, and the response names it without its secrets."""
    chat, echo = translated(tools=[*HOSTED, PATCH])
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["apply_patch"]
    assert echo["tools"] == [PATCH]
    assert [tool["type"] for tool in echo["ignored_tools"]] == [tool["type"] for tool in HOSTED]
    assert echo["ignored_tools"][3] == {"type": "mcp", "name": "docs"}
    assert "hunter2" not in json.dumps([chat, echo])
    chat, echo = translated(tools=HOSTED, tool_choice="auto")
    assert (chat["tools"], chat["tool_choice"], echo["tools"]) == ([], "auto", [])


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ("required", HOSTED),
        ("required", []),
        ({"type": "function", "name": "f"}, HOSTED),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}, [PATCH, *HOSTED]),
        ({"type": "web_search"}, [PATCH, *HOSTED]),
        ({"type": "mcp", "server_label": "docs"}, [PATCH, *HOSTED]),
        ({"type": "local_shell"}, [PATCH, *HOSTED]),
    ],
)
def test_a_forced_tool_that_is_not_served_is_refused(choice: Any, tools: list[Any]) -> None:
    """A request fails only if it forces a tool that cannot be served."""
    with pytest.raises(ValueError, match="tool_choice"):
        translated(tools=tools, tool_choice=choice)


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        ("required", ["apply_patch", "f"], "required"),
        ({"type": "custom", "name": "apply_patch"}, ["apply_patch", "f"], {"name": "apply_patch"}),
        ({"type": "function", "name": "get", "namespace": "crm"}, ["apply_patch", "f"], {"name": "crm__get"}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "apply_patch"}]},
            ["apply_patch"],
            "required",
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}, HOSTED[0]]},
            ["f"],
            "auto",
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [HOSTED[0]]}, [], None),
    ],
)
def test_a_choice_of_tools_is_passed_on(choice: Any, names: list[str], expected: Any) -> None:
    """A choice names tools as agents know them, and allowed tools limit the tools that agents get."""
    chat, echo = translated(tools=[PATCH, {"type": "function", "name": "f"}, *HOSTED], tool_choice=choice)
    assert [tool["function"]["name"] for tool in chat["tools"]] == names
    given = chat["tool_choice"]
    assert (given["function"] if isinstance(given, dict) else given) == expected
    assert echo["tool_choice"] == choice


def test_calls_of_custom_tools_are_tool_calls() -> None:
    """A call of a custom tool and its output become a tool call and a tool message, also in a namespace."""
    assert messages(
        USER,
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": '*** "x"'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]},
        {"type": "function_call", "call_id": "c2", "name": "get", "namespace": "crm", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": "done"},
    )[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "apply_patch", "arguments": '{"input":"*** \\"x\\""}'},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "crm__get", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "done"},
    ]


@pytest.mark.parametrize(
    ("item", "role", "content"),
    [
        (
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}},
            "assistant",
            '[web_search_call] {"action":{"query":"q"}}',
        ),
        (
            {"type": "local_shell_call", "call_id": "c", "status": "completed", "action": {"command": ["ls"]}},
            "assistant",
            '[local_shell_call] {"call_id":"c","action":{"command":["ls"]}}',
        ),
        (
            {"type": "local_shell_call_output", "id": "c", "output": "a b"},
            "user",
            '[local_shell_call_output] {"output":"a b"}',
        ),
        (
            {"type": "compaction", "id": "cmp_1", "encrypted_content": "xyz"},
            "assistant",
            f'[compaction] {{"encrypted_content":"(3 {UNSHOWN}"}}',
        ),
        (
            {"type": "image_generation_call", "result": "A" * 5000, "revised_prompt": "a cat"},
            "assistant",
            f'[image_generation_call] {{"result":"(5000 {UNSHOWN}","revised_prompt":"a cat"}}',
        ),
        (
            {"type": "computer_call_output", "call_id": "c", "output": {"image_url": "data:image/png;base64,AA=="}},
            "user",
            f'[computer_call_output] {{"call_id":"c","output":{{"image_url":"(26 {UNSHOWN}"}}}}',
        ),
        ({"type": "mcp_approval_response", "approve": True}, "user", '[mcp_approval_response] {"approve":true}'),
        ({"type": "function_call_output", "name": "f", "output": "o"}, "user", None),
        ({"type": "an_item_to_come", "note": "n"}, "assistant", '[an_item_to_come] {"note":"n"}'),
    ],
)
def test_other_items_become_text(item: dict[str, Any], role: str, content: str | None) -> None:
    """Any other item reaches the model as text, without data that a model cannot read."""
    _, message = messages(USER, item)
    assert message["role"] == role
    assert message["content"].startswith(content or "[function_call_output] ")


def test_items_can_add_tools_and_change_the_request() -> None:
    """Items with tools add them to the request, and a configuration item replaces the effort and the format."""
    chat, echo = translated(
        input=[
            {"type": "additional_tools", "role": "developer", "tools": [PATCH, HOSTED[0]]},
            {"type": "tool_search_output", "tools": [{"type": "function", "name": "found"}]},
            {"type": "configuration_update", "reasoning": {"effort": "high"}},
            {"type": "configuration_update", "text": {"format": {"type": "json_object"}}},
            USER,
        ],
        reasoning={"effort": "low"},
        tools=[{"type": "function", "name": "f"}],
        tool_choice="required",
    )
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["f", "apply_patch", "found"]
    assert (chat["reasoning_effort"], chat["response_format"]) == ("high", {"type": "json_object"})
    assert [tool["name"] for tool in echo["tools"]] == ["f", "apply_patch", "found"]
    assert echo["ignored_tools"] == [{"type": "web_search"}]
    assert chat["messages"] == [USER]


@pytest.mark.parametrize("given", [{"input": ""}, {"input": []}, {"input": None}, {"input": [{"type": "reasoning"}]}])
def test_an_empty_input_continues_an_earlier_response_only(given: dict[str, Any]) -> None:
    """An empty input is refused, and the error says what to send, unless the request continues an earlier response."""
    request = ResponseRequest.model_validate({"model": "m1", **given}, strict=True)
    with pytest.raises(ValueError, match="input: send a text, or a list with at least one message"):
        request.as_chat({}, [])
    assert request.as_chat({}, [USER]).messages[0].text == "x"
