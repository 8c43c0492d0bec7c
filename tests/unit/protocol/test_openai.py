"""The chat completion models: accepted requests, refused requests, and the bodies of answers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from agentstream.protocol.openai import ChatCompletionRequest, ChatMessage, Usage, completion_body, estimate_usage

USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "m1", "messages": [USER], **fields})


def problem(**fields: Any) -> str:
    """Return the first reason why a request is refused."""
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    error = caught.value.errors(include_url=False)[0]
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "seed": -4, "user": "me"},
        {"max_tokens": 1, "max_completion_tokens": 1},
        {"presence_penalty": -2, "frequency_penalty": 2.0},
        {"stop": "a"},
        {"stop": list("abcd")},
        {"stop": None, "temperature": None, "metadata": None, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}},
        {"metadata": {"k": "v"}, "reasoning_effort": "low", "parallel_tool_calls": True},
        {
            "tools": [
                TOOL,
                {**TOOL, "function": {"name": "g", "parameters": {"type": "object"}, "strict": True, "x": 1}},
            ]
        },
        {"tools": [], "tool_choice": "none"},
        {"tools": None, "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": NAMED},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "the agent's own"}}},
        {"vendor_field": {"deep": [1, None, {"x": 2.5}]}, "service_tier": "auto"},
        {"messages": [{"role": role, "content": "x"} for role in ("system", "developer", "user", "assistant")]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [{"role": "assistant", "tool_calls": [CALL], "refusal": None}]},
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ],
    ids=str,
)
def test_fields_of_clients_are_kept(fields: dict[str, Any]) -> None:
    """The dump of a request contains all fields that real clients send, and unknown fields, unchanged."""
    dumped = request(**fields).model_dump(mode="json", exclude_unset=True)
    assert dumped == {"model": "m1", "messages": [USER], **fields}
    assert ChatCompletionRequest.model_validate(dumped) == request(**fields)


@pytest.mark.parametrize(
    ("field", "off", "on"),
    [
        ("audio", [None], [{"voice": "x"}]),
        ("logprobs", [None, False], [True]),
        ("top_logprobs", [None, 0], [1]),
        ("modalities", [None, ["text"]], [["audio"], ["text", "audio"]]),
        ("store", [None, False], [True]),
        ("n", [None, 1], [0, 2]),
    ],
)
def test_unsupported_parameters_are_refused_unless_they_are_off(field: str, off: list[Any], on: list[Any]) -> None:
    """An unsupported parameter is refused by name, unless its value means off."""
    for value in off:
        assert request(**{field: value}).model == "m1"
    for value in on:
        assert problem(**{field: value}).removeprefix(": Value error, ").startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: Input should be 'system', 'developer'"),
        ({"messages": [{"role": "user"}]}, "messages.0: Value error, a user message needs content"),
        ({"messages": [{"role": "system", "content": None}]}, "messages.0: Value error, a system message needs"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0: Value error, a tool message needs tool_call_id",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "", "content": "x"}]}, "messages.0: Value error, a tool"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages.0.tool_calls.0.function: Field"),
        ({"model": ""}, "model: String should have at least 1 character"),
        ({"model": "m" * 257}, "model: String should have at most 256 characters"),
        ({"stream_options": {}}, ": Value error, stream_options: only allowed when stream is true"),
        ({"stream": False, "stream_options": {}}, ": Value error, stream_options: only allowed when stream is true"),
        ({"stop": list("abcde")}, "stop: Value error, at most 4 stop sequences"),
        ({"temperature": 2.1}, "temperature: Input should be less than or equal to 2"),
        ({"top_p": -0.1}, "top_p: Input should be greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"seed": 1.5}, "seed: Input should be a valid integer"),
        ({"tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type: Input should be 'function'"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name: String should have"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools.0.type: Field required"),
        ({"tool_choice": "required"}, ": Value error, tool_choice: only allowed with tools"),
        ({"tools": [], "tool_choice": NAMED}, ": Value error, tool_choice: only allowed with tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice.literal"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.literal"),
        ({"tools": [TOOL], "functions": [{"name": "f"}]}, ": Value error, functions: the older form of tools; send"),
        ({"function_call": {"name": "f"}}, ": Value error, function_call: only allowed with functions"),
        ({"functions": [{"name": ""}]}, "functions.0.name: String should have at least 1"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0: Value error, a function message needs"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_invalid_values_are_refused(fields: dict[str, Any], reason: str) -> None:
    """An invalid value is refused with its location and the reason."""
    assert problem(**fields).startswith(reason)


@given(st.characters(max_codepoint=0x1F) | st.just("\x7f"), st.sampled_from(["{}", "m{}", "{}m", "m{}m"]))
def test_a_model_name_holds_no_control_character(character: str, place: str) -> None:
    """A control character anywhere in a model name is refused, because names go into headers, logs and SSE lines."""
    assert problem(model=place.format(character)).startswith("model: ")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=256))
def test_any_other_model_name_is_accepted(name: str) -> None:
    """A model name may contain all other characters, including slashes, spaces and other scripts."""
    assert request(model=name).model == name


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(None, False), ({}, False), ({"include_usage": None}, False), ({"include_usage": True}, True)],
)
def test_include_usage(options: dict[str, Any] | None, wanted: bool) -> None:
    """The stream sends usage in a separate chunk only if ``include_usage`` is true."""
    assert request(stream=True, stream_options=options).include_usage is wanted


def test_both_names_of_the_output_limit() -> None:
    """The output limit is max_completion_tokens, else max_tokens, else None."""
    assert request(max_tokens=5, max_completion_tokens=6).output_token_limit == 6
    assert request(max_tokens=5).output_token_limit == 5
    assert request().output_token_limit is None


def test_the_text_of_a_message() -> None:
    """The text of a message is its content or its joined text parts, and is empty without either."""
    image = {"type": "image_url", "image_url": {"url": "https://x.test/y.png"}}
    parts = [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}]
    contents: list[Any] = ["plain", parts, [], [image], ""]
    assert [ChatMessage(role="user", content=content).text for content in contents] == ["plain", "ab", "", "", ""]
    assert ChatMessage(role="assistant").text == ""


def test_a_request_cannot_be_changed() -> None:
    """The fields of a request cannot be set, so an agent sees the request as the client sent it."""
    with pytest.raises(ValidationError, match="frozen"):
        request().model = "other"  # type: ignore[misc]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.integers(0, 10_000))
def test_usage_is_estimated_as_in_the_original_bridge(contents: list[str], characters: int) -> None:
    """Four characters count as one token, and each message and the answer count as at least one."""
    messages = [ChatMessage(role="user", content=content) for content in contents]
    usage = estimate_usage(messages, characters)
    assert usage.prompt_tokens == sum(max(1, len(content) // 4) for content in contents)
    assert usage.completion_tokens == max(1, characters // 4)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_usage_counts_parts_and_calls() -> None:
    """The estimate counts the joined text parts and the arguments of each tool call, but not the size of images."""
    messages = request(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "text", "text": "efgh"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:," + "x" * 400}}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        ]
    ).messages
    assert estimate_usage(messages, 0) == Usage(prompt_tokens=2 + 1 + (1 + 2 + 2), completion_tokens=1, total_tokens=9)


def test_a_completion_body_is_valid_for_the_openai_package() -> None:
    """A completion body validates as a ChatCompletion of the openai package, with all three usage keys."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    body = completion_body(
        run_id="chatcmpl-1",
        created=7,
        model="m1",
        status="completed",
        content="hi",
        finish_reason="length",
        usage=usage,
    )
    completion = ChatCompletion.model_validate(body, strict=True)
    assert (completion.id, completion.created, completion.model) == ("chatcmpl-1", 7, "m1")
    assert completion.choices[0].message.content == "hi"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.model_dump(exclude_none=True) == usage
