"""The requests of an OpenAI engine to the model server."""

from typing import Any

import pytest

from agentstream.engines.base import ToolSchema
from tests.model_server import DONE, FakeModelServer, chunk
from tests.unit.engines.openai_engine import CALCULATOR, HELLO, MakeEngine, pieces_of, request_of


async def test_the_request_is_passed_on(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The model server receives the client's parameters and unknown fields, but not this service's fields and nulls."""
    parameters: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "seed": 7,
        "max_tokens": 50,
        "max_completion_tokens": 60,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "response_format": {"type": "json_object"},
        "user": "u1",
        "metadata": {"k": "v"},
        "reasoning_effort": "low",
        "top_k": 40,
        "logit_bias": {"5": 1},
    }
    ours: dict[str, Any] = {"background": True, "tools": [], "tool_choice": "none", "functions": None, "n": 1}
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(), request_of(**parameters, **ours, stream=True, parallel_tool_calls=False))
    fixed = {"model": "requested-model", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    assert server.bodies == [{**fixed, **parameters}]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-key"


async def test_tools_are_offered_in_openai_form(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The agent's tools are sent in OpenAI's form, and only then parallel_tool_calls, which needs tools."""
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(), request_of(parallel_tool_calls=False), [CALCULATOR])
    function = {"name": "calculator", "description": "Works things out.", "parameters": CALCULATOR.parameters}
    assert server.bodies[0]["tools"] == [{"type": "function", "function": function}]
    assert server.bodies[0]["parallel_tool_calls"] is False


async def test_a_clients_tools_and_choice_are_passed_on(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The model server receives the client's tool definition, with all its fields, and its tool_choice unchanged."""
    definition = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
        "cache_control": {"type": "ephemeral"},
    }
    tool = ToolSchema("f", "", {}, definition)
    choices: list[Any] = ["auto", "required", {"type": "function", "function": {"name": "f"}}]
    for choice in choices:
        server.scripts.append([chunk({}, "stop"), DONE])
        assert [piece async for piece in engine_for().stream(request_of(), HELLO, [CALCULATOR, tool], choice)]
    assert [body["tools"][1] for body in server.bodies] == [definition] * 3
    assert [body["tool_choice"] for body in server.bodies] == choices


async def test_the_engines_model_overrides_the_requests(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """If the engine has a model name, it sends this one instead of the request's."""
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(model="engine-model"))
    assert server.bodies[0]["model"] == "engine-model"


async def test_earlier_turns_are_sent_as_given(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The model server receives the conversation unchanged, with tool calls, results and images."""
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "x", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "391"},
    ]
    server.scripts.append([chunk({}, "stop"), DONE])
    assert [piece async for piece in engine_for().stream(request_of(), conversation, ())]
    assert server.bodies[0]["messages"] == conversation


BEGUN: dict[str, Any] = {"role": "assistant", "content": "One, two,"}


@pytest.mark.parametrize(
    ("prefill", "in_message", "in_body"),
    [
        (None, {}, {}),
        ("plain", {}, {}),
        ("prefix", {"prefix": True}, {}),
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
async def test_a_server_is_asked_to_continue_in_its_own_way(
    server: FakeModelServer, engine_for: MakeEngine, prefill: str | None, in_message: Any, in_body: Any
) -> None:
    """A conversation that ends with the assistant's message asks the server to continue it, and no other does."""
    engine = engine_for(prefill=prefill)
    assert engine.supports_prefill is (prefill is not None)
    for messages in ([*HELLO, BEGUN], HELLO):
        server.scripts.append([chunk({}, "stop"), DONE])
        assert [piece async for piece in engine.stream(request_of(), messages, [])]
    continued, asked = server.bodies
    fields = {"model", "stream", "stream_options"}
    assert continued["messages"] == [*HELLO, {**BEGUN, **in_message}]
    assert {name: value for name, value in continued.items() if name not in fields} == {
        "messages": continued["messages"],
        **in_body,
    }
    assert asked.keys() == fields | {"messages"}
    assert BEGUN.keys() == {"role", "content"}
