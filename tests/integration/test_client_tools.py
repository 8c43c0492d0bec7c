"""Calls of the client's tools with the openai client, a front end, a worker, and a model server on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import openai
import pytest
from openai.types.chat import (
    ChatCompletionContentPartImageParam,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionToolParam,
)

from tests.helpers import TIMEOUT_S, decode
from tests.integration.conftest import Client
from tests.model_server import DONE, USAGE, WAIT, FakeModelServer, Script, call, chunk, model_server, text
from tests.processes import Processes

LEASE_S = "1"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
IMAGE: ChatCompletionContentPartImageParam = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
}
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": [{"type": "text", "text": "Is it raining here?"}, IMAGE]},
]
CALL = [
    call(index=0, id="call_a", type="function", function={"name": "get_weather", "arguments": ""}),
    call(index=0, function={"arguments": '{"city":'}),
    call(index=0, function={"arguments": '"Oslo"}'}),
]
TRAILER = {**chunk(), "choices": [], "usage": USAGE}
ASKS: Script = [
    chunk({"role": "assistant", "reasoning_content": "The picture "}),
    chunk({"reasoning_content": "shows Oslo."}),
    *CALL,
    chunk({}, "tool_calls"),
    TRAILER,
    DONE,
]
ANSWERS: Script = [text("It is "), text("raining."), chunk({}, "stop"), TRAILER, DONE]
OWN_FIRST: Script = [
    call(index=0, id="own", function={"name": "calculator", "arguments": '{"expression":"17*23"}'}),
    chunk({}, "tool_calls"),
    DONE,
]


def the_call(message: ChatCompletionMessage) -> ChatCompletionMessageFunctionToolCall:
    """Return the one call of a message."""
    assert message.tool_calls is not None
    (asked,) = message.tool_calls
    assert asked.type == "function"
    return asked


@pytest.fixture
async def model() -> AsyncIterator[FakeModelServer]:
    async with model_server() as fake:
        yield fake


@pytest.fixture
async def sdk(processes: Processes, model: FakeModelServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai client of a front end whose worker uses the model server."""
    url = await processes.frontend()
    await processes.worker(OPENAI_BASE_URL=model.url, AGENTSTREAM_LEASE_S=LEASE_S)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


async def test_a_round_trip(sdk: openai.AsyncOpenAI, model: FakeModelServer) -> None:
    """The client gets the model's call with its reasoning and null content, sends the result, and gets the answer."""
    model.scripts += [ASKS, ANSWERS]
    first = await sdk.chat.completions.create(model="m1", messages=QUESTION, tools=[WEATHER])
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.model_extra == {"reasoning_content": "The picture shows Oslo."}
    asked = the_call(choice.message)
    assert (asked.id, asked.function.name, asked.function.arguments) == ("call_a", "get_weather", '{"city":"Oslo"}')
    assert first.usage is not None
    assert first.usage.total_tokens == USAGE["total_tokens"]
    history: list[Any] = [
        *QUESTION,
        choice.message,
        {"role": "tool", "tool_call_id": asked.id, "content": "rain"},
    ]
    second = await sdk.chat.completions.create(model="m1", messages=history, tools=[WEATHER])
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == ("stop", "It is raining.")
    received = model.bodies[1]["messages"]
    assert received[1]["tool_calls"] == [asked.model_dump(exclude_none=True)]
    assert received[1]["reasoning_content"] == "The picture shows Oslo."  # without it, DeepSeek refuses the request
    assert received[2] == {"role": "tool", "tool_call_id": "call_a", "content": "rain"}


async def test_a_round_trip_streamed(sdk: openai.AsyncOpenAI, model: FakeModelServer) -> None:
    """The client gets the deltas that the model server sent: reasoning, one id and name, and arguments in pieces."""
    model.scripts += [ASKS, ANSWERS]
    stream = await sdk.chat.completions.create(model="m1", messages=QUESTION, tools=[WEATHER], stream=True)
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) async for chunk in stream]
    assert [delta for delta in deltas if delta] == [
        {"role": "assistant"},
        {"reasoning_content": "The picture "},
        {"reasoning_content": "shows Oslo."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    ]


async def test_the_stream_helper(sdk: openai.AsyncOpenAI, model: FakeModelServer) -> None:
    """The stream helper of the openai package parses the strict tool's arguments and continues with the result."""
    model.scripts += [ASKS, ANSWERS]
    history: list[Any] = list(QUESTION)
    async with sdk.chat.completions.stream(model="m1", messages=history, tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        message = (await stream.get_final_completion()).choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 1
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == {"city": "Oslo"}
    history += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}]
    async with sdk.chat.completions.stream(model="m1", messages=history, tools=[WEATHER]) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "It is raining."


async def test_calls_of_our_own_tools_are_no_deltas(
    processes: Processes, model: FakeModelServer, client: Client
) -> None:
    """A call of our own tool is sent as events, and only the call of the client's tool is sent as a delta."""
    url = await processes.frontend()
    await processes.worker(OPENAI_BASE_URL=model.url)
    model.scripts += [OWN_FIRST, ASKS]
    messages = await client.stream(url, "x", tools=[WEATHER])
    names = [name for name, _ in messages if name]
    assert names.count("tool_call_start") == names.count("tool_call_end") == names.count("tool_results") == 1
    called = [
        part["function"]["name"]
        for name, data in messages
        if name is None and data != DONE
        for part in data["choices"][0]["delta"].get("tool_calls", ())
        if "id" in part
    ]
    assert called == ["get_weather"]
    assert messages[-2][1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [tool["function"]["name"] for tool in model.bodies[0]["tools"]] == [
        "get_weather",
        "calculator",
        "current_time",
        "text_statistics",
    ]


async def test_every_parameter_reaches_the_model_server(sdk: openai.AsyncOpenAI, model: FakeModelServer) -> None:
    """The model server gets the client's parameters, images and strict tool unchanged."""
    model.scripts.append(ANSWERS)
    parameters: dict[str, Any] = {
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "strict": True, "schema": {"type": "object"}},
        },
        "seed": 7,
        "stop": ["END", "FIN"],
        "temperature": 0.25,
        "top_p": 0.5,
    }
    await sdk.chat.completions.create(model="m1", messages=QUESTION, tools=[WEATHER], **parameters)
    (body,) = model.bodies
    assert {name: body[name] for name in parameters} == parameters
    assert body["messages"] == QUESTION
    assert body["tools"][0] == WEATHER


async def test_a_call_is_completed_after_its_worker_is_killed(
    sdk: openai.AsyncOpenAI, model: FakeModelServer, processes: Processes
) -> None:
    """If the worker is killed within a call, the model is asked for the rest, and the client gets one whole call."""
    model.scripts += [[*CALL[:2], WAIT], [text('"Oslo"}'), chunk({}, "stop"), TRAILER, DONE]]
    stream = await sdk.chat.completions.create(model="m1", messages=QUESTION, tools=[WEATHER], stream=True)
    worker = processes.started[-1]
    arguments, killed, finish_reason = "", False, None
    async with aclosing(stream.__aiter__()) as chunks:  # type: ignore[type-var]  # an async generator
        async for part in chunks:
            for delta in part.choices[0].delta.tool_calls or () if part.choices else ():
                arguments += (delta.function and delta.function.arguments) or ""
            finish_reason = part.choices[0].finish_reason if part.choices else finish_reason
            if arguments and not killed:
                killed = True
                worker.kill()
                await processes.worker(OPENAI_BASE_URL=model.url, AGENTSTREAM_LEASE_S=LEASE_S)
    assert (arguments, finish_reason) == ('{"city":"Oslo"}', "tool_calls")
    assert len(model.bodies) == 2


async def test_a_resumed_stream_has_the_rest_of_the_call(
    processes: Processes, model: FakeModelServer, client: Client
) -> None:
    """A stream resumed within a call continues byte for byte, and the retrieved run contains the whole call."""
    url = await processes.frontend()
    await processes.worker(OPENAI_BASE_URL=model.url)
    model.scripts.append(ASKS)
    body = {"model": "m", "messages": QUESTION, "tools": [WEATHER], "stream": True}
    async with client.session.post(f"{url}/v1/chat/completions", json=body) as response:
        whole = await response.read()
    frames = [frame + b"\n\n" for frame in whole.split(b"\n\n") if frame]
    run_id = decode(frames[0])[0][1]["id"]
    for index, frame in enumerate(frames[:-1]):
        cursor = frame.split(b"\n")[0].removeprefix(b"id: ").decode()
        query = f"?stream=true&starting_after={cursor}"
        async with client.session.get(f"{url}/v1/chat/completions/{run_id}{query}") as response:
            assert await response.read() == b"".join(frames[index + 1 :])
    async with client.session.get(f"{url}/v1/chat/completions/{run_id}") as response:
        message = (await response.json())["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city":"Oslo"}'}


async def test_a_custom_agent_calls_the_clients_tools(processes: Processes) -> None:
    """A user's agent gets the request's tools and can write a call of one, on the event loop or in a thread."""
    url = await processes.frontend()
    for agent in ("asks_its_client", "asks_its_client_in_a_thread"):
        worker = await processes.worker(agent)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
            answer = await sdk.chat.completions.create(model="m1", messages=QUESTION, tools=[WEATHER])
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.model_extra == {"reasoning_content": "I do not know."}
        function = the_call(choice.message).function
        assert (function.name, json.loads(function.arguments)) == ("get_weather", {"city": "Oslo"})
        await worker.stop()


async def test_the_demo_engine_calls_the_clients_tools(processes: Processes) -> None:
    """Without a model server, the demo engine calls the client's tool that the question names and quotes its result."""
    url = await processes.frontend()
    await processes.worker()
    history: list[Any] = [{"role": "user", "content": "get_weather for Oslo"}]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        async with asyncio.timeout(TIMEOUT_S):
            message = (
                (await sdk.chat.completions.create(model="m1", messages=history, tools=[WEATHER])).choices[0].message
            )
            asked = the_call(message)
            history += [message, {"role": "tool", "tool_call_id": asked.id, "content": "rain"}]
            answer = await sdk.chat.completions.create(model="m1", messages=history, tools=[WEATHER])
    assert answer.choices[0].message.content == "The tool get_weather returned: rain"
