"""The Responses API, with real processes and the real client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall

from tests.helpers import TIMEOUT_S
from tests.integration.conftest import Client
from tests.processes import Processes

RESPONSES = "/v1/responses"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
SENT: dict[str, Any] = {"model": "m1", "input": "a"}


@asynccontextmanager
async def sdk(url: str, **more: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the real client, without retries: a retry would hide a failure."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=more.pop("api_key", "none"), max_retries=0, **more)
    async with client, asyncio.timeout(3 * TIMEOUT_S):
        yield client


async def seen_by(client: Any, **fields: Any) -> dict[str, Any]:
    """Return the request that the agent got; the worker's agent must be ``echo_request``."""
    response = await client.responses.create(model="m1", **fields)
    seen: dict[str, Any] = json.loads(response.output_text)
    return seen


async def test_the_openai_client_creates_streams_and_retrieves(processes: Processes) -> None:
    """A response that is awaited, streamed, read by the stream helper or retrieved has the same text and usage."""
    url = await processes.frontend()
    await processes.worker("numbered")
    async with sdk(url) as client:
        whole = await client.responses.create(**SENT, metadata={"k": "v"})
        events = [event async for event in await client.responses.create(**SENT, stream=True)]
        async with client.responses.stream(**SENT) as stream:
            helper = await stream.get_final_response()
        kept = await client.responses.retrieve(whole.id)
    assert whole.status == "completed"
    assert whole.metadata == {"k": "v"}
    assert whole.output_text.startswith("a:0 a:1 ")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (7, 40, 47)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == helper.output_text == whole.output_text
    assert kept == whole


async def test_a_background_response_is_polled_and_resumed(processes: Processes) -> None:
    """A background response answers at once, can be polled to its end, and its stream resumes after a given event."""
    url = await processes.frontend()
    async with sdk(url) as client:
        begun = await client.responses.create(**SENT, background=True)
        assert (begun.status, begun.background, begun.output) == ("queued", True, [])
        await processes.worker("numbered")
        polled = begun
        while polled.status in {"queued", "in_progress"}:
            polled = await client.responses.retrieve(begun.id)
            await asyncio.sleep(0.01)
        assert polled.status == "completed"
        whole = [event async for event in await client.responses.retrieve(begun.id, stream=True)]
        rest = [event async for event in await client.responses.retrieve(begun.id, stream=True, starting_after=9)]
    assert rest == whole[10:]
    assert whole[-1].type == "response.completed"
    assert whole[-1].response.output_text == polled.output_text


async def test_a_background_stream_outlives_its_client(processes: Processes) -> None:
    """A client that leaves a background stream can resume after its last event and gets every event once."""
    url = await processes.frontend()
    await processes.worker("numbered")
    async with sdk(url) as client:
        stream = await client.responses.create(**SENT, background=True, stream=True)
        events = []
        async for event in stream:
            events.append(event)
            if event.sequence_number == 7:
                break
        await stream.close()
        [response_id] = [event.response.id for event in events if event.type == "response.created"]
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=7)
        events += [event async for event in rest]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


async def test_a_response_is_cancelled(processes: Processes) -> None:
    """A cancel answers with the cancelled response, and an open stream ends with an event that says so."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    async with sdk(url) as client:
        stream = await client.responses.create(model="m1", input="blocks", background=True, stream=True)
        first = await anext(aiter(stream))
        assert first.type == "response.created"
        cancelled = await client.responses.cancel(first.response.id)
        events = [event async for event in stream]
        kept = await client.responses.retrieve(first.response.id)
    assert cancelled.status == kept.status == "cancelled"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.status == "cancelled"


async def test_a_failed_run_is_an_error_or_a_failed_response(processes: Processes) -> None:
    """A failed run gives an HTTP error, or ends the stream with response.failed, and has status failed if retrieved."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    async with sdk(url) as client:
        with pytest.raises(openai.InternalServerError, match="broken on purpose"):
            await client.responses.create(model="m1", input="raises")
        events = [event async for event in await client.responses.create(model="m1", input="raises", stream=True)]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "broken on purpose" in last.response.error.message
        kept = await client.responses.retrieve(last.response.id)
    assert kept.status == "failed"
    assert kept.error == last.response.error


async def test_a_function_call_and_its_output(processes: Processes) -> None:
    """A client gets reasoning and a call as items, and the agent gets the call and its output in the next request."""
    url = await processes.frontend()
    worker = await processes.worker("asks_its_client")
    asked: Any = [{"role": "user", "content": "How is it?"}]
    async with sdk(url) as client:
        async with client.responses.stream(model="m1", input=asked, tools=[WEATHER]) as stream:
            first = await stream.get_final_response()
        reasoning, call = first.output
        assert reasoning.type == "reasoning"
        assert reasoning.summary[0].text == "I do not know."
        assert isinstance(call, ResponseFunctionToolCall)
        assert (call.name, call.arguments) == ("weather", '{"city": "Oslo"}')
        await worker.stop()
        await processes.worker("echo_request")
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        seen = await seen_by(client, input=[*asked, *first.output, output], tools=[WEATHER])
        referred: Any = [{"type": "item_reference", "id": id_} for id_ in (reasoning.id, call.id)]
        by_reference = await seen_by(client, input=[*asked, *referred, output], tools=[WEATHER])
        by_id = await seen_by(client, input=[output], previous_response_id=first.id, tools=[WEATHER])
    assistant = {"role": "assistant", "content": None}
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert seen["messages"] == [
        {"role": "user", "content": "How is it?"},
        {**assistant, "tool_calls": [{"id": call.call_id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
    ]
    assert by_reference["messages"] == by_id["messages"] == seen["messages"]
    assert seen["tools"] == [
        {"type": "function", "function": {key: WEATHER[key] for key in ("name", "parameters", "strict")}}
    ]


async def test_an_agent_gets_the_fields_of_a_chat_completion(processes: Processes) -> None:
    """The agent gets each field under the name of the same field in a chat completion request."""
    url = await processes.frontend()
    await processes.worker("echo_request")
    content: Any = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
    ]
    async with sdk(url) as client:
        seen = await seen_by(
            client,
            input=[{"role": "user", "content": content}],
            instructions="Be brief.",
            max_output_tokens=99,
            temperature=0.5,
            top_p=0.5,
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
            reasoning={"effort": "low"},
            text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
            metadata={"a": "b"},
            truncation="auto",
            store=False,
            user="u",
        )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    assert seen.pop("messages") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
    ]
    assert seen.pop("tools")[0]["function"]["name"] == "weather"
    assert seen == {
        "model": "m1",
        "max_completion_tokens": 99,
        "temperature": 0.5,
        "top_p": 0.5,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
        "metadata": {"a": "b"},
        "user": "u",
    }


async def test_a_conversation_continues_from_response_to_response(processes: Processes) -> None:
    """A response can continue an earlier one by its id, unless that one was created with store=false."""
    url = await processes.frontend()
    await processes.worker("gated", GATE="/")
    async with sdk(url) as client:
        first = await client.responses.create(model="m1", input="one", instructions="Be brief.")
        second = await client.responses.create(model="m1", input="two", previous_response_id=first.id)
        lost = await client.responses.create(model="m1", input="three", store=False)
        with pytest.raises(openai.BadRequestError, match="store=false") as refused:
            await client.responses.create(model="m1", input="four", previous_response_id=lost.id)
    assert (first.output_text, second.output_text) == ("one", "two")
    assert second.previous_response_id == first.id
    assert refused.value.param == "previous_response_id"


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"input": []}, "input", 400),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input", 400),
        ({"input": ""}, "input", 400),
        ({"input": None}, "input", 400),
        ({"input": ["text"]}, "input[0]", 400),
        ({"input": [{"type": 5}]}, "input[0]", 400),
        ({"input": [{"type": "compaction_trigger"}]}, "input[0].type", 400),
        ({"input": [{"id": "msg_of_another_server"}]}, "input[0].id", 400),
        ({"input": [{"id": f"msg_{'0' * 32}_0"}]}, "input", 404),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input", 400),
        ({"input": [{"type": "item_reference", "id": "msg_of_another_server"}]}, "input[0].id", 400),
        ({"input": [{"type": "item_reference", "id": f"msg_{'0' * 32}_0"}]}, "input", 404),
        ({"previous_response_id": f"resp_{'0' * 32}"}, "previous_response_id", 404),
        ({"previous_response_id": "resp_of_another_server"}, "previous_response_id", 404),
        ({"previous_response_id": f"msg_{'0' * 32}_0"}, "previous_response_id", 404),
        ({"previous_response_id": f"chatcmpl-{'0' * 32}"}, "previous_response_id", 404),
        ({"previous_response_id": ""}, "previous_response_id", 404),
        ({"tools": [{"type": "function"}]}, "tools[0].name", 400),
        ({"tools": [{"name": "f"}]}, "tools[0]", 400),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", 400),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice", 400),
        ({"tool_choice": "required"}, "tool_choice", 400),
        ({"include": ["message.output_text.logprobs"]}, "include", 400),
        ({"conversation": "conv_1"}, "conversation", 400),
        ({"max_tokens": 5}, "max_tokens", 400),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", 400),
    ],
)
async def test_an_unsupported_field_is_refused(
    processes: Processes, client: Client, fields: dict[str, Any], param: str, status: int
) -> None:
    """A field with a wrong or unsupported value is refused, and the error names the field."""
    url = await processes.frontend()
    async with client.session.post(url + RESPONSES, json=SENT | fields) as response:
        error = (await response.json())["error"]
        assert response.status == status, error
        assert error["param"].startswith(param), error
        assert error["code"] == {400: "invalid_request_error", 404: code_of(param)}[status]


def code_of(param: str) -> str:
    """Return the error code of a reference that is not found."""
    return "previous_response_not_found" if param == "previous_response_id" else "not_found"


async def test_responses_belong_to_the_key_that_created_them(processes: Processes) -> None:
    """Another key cannot retrieve, cancel, reference or continue a response."""
    url = await processes.frontend(AGENTSTREAM_API_KEYS="k1,k2")
    await processes.worker("numbered")
    async with sdk(url, api_key="k1") as owner, sdk(url, api_key="k2") as other:
        response = await owner.responses.create(**SENT)
        reference: Any = [{"type": "item_reference", "id": response.output[0].id}]
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.cancel(response.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.create(model="m1", input=reference)
        with pytest.raises(openai.NotFoundError):
            await other.responses.create(**SENT, previous_response_id=response.id)
        assert (await owner.responses.retrieve(response.id)).status == "completed"


async def test_a_malformed_sequence_number_is_refused(processes: Processes) -> None:
    """If starting_after is not a sequence number, the answer is a 400 that names the parameter."""
    url = await processes.frontend()
    await processes.worker("whoami")
    async with sdk(url) as client:
        response = await client.responses.create(**SENT)
        query = {"starting_after": "1-2"}
        with pytest.raises(openai.BadRequestError, match="1-2") as refused:
            await client.responses.retrieve(response.id, stream=True, extra_query=query)
    assert refused.value.param == "starting_after"


async def test_a_repeated_request_attaches_to_its_run(processes: Processes) -> None:
    """The same Idempotency-Key gives the same response, streamed or not; a different request with it is a conflict."""
    url = await processes.frontend()
    await processes.worker("whoami")
    header = {"Idempotency-Key": "k"}
    async with sdk(url) as client:
        first = await client.responses.create(**SENT, extra_headers=header)
        again = await client.responses.create(**SENT, extra_headers=header)
        stream = await client.responses.create(**SENT, stream=True, extra_headers=header)
        last = [event async for event in stream][-1]
        with pytest.raises(openai.ConflictError):
            await client.responses.create(model="m1", input="b", extra_headers=header)
    assert again == first
    assert last.type == "response.completed"
    assert last.response == first


async def test_a_run_is_cancelled_when_its_client_disconnects(processes: Processes) -> None:
    """If the client closes the stream of a run that is not in the background, the run is cancelled."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    async with sdk(url) as client:
        stream = await client.responses.create(model="m1", input="blocks", stream=True)
        first = await anext(aiter(stream))
        assert first.type == "response.created"
        await stream.close()
        while (kept := await client.responses.retrieve(first.response.id)).status != "cancelled":
            assert kept.status in {"queued", "in_progress"}
            await asyncio.sleep(0.01)


async def test_agent_events_are_sent_on_request(processes: Processes, client: Client) -> None:
    """A header or query parameter adds agent events to the stream, and the client's own parser accepts them."""
    url = await processes.frontend()
    await processes.worker("numbered")
    async with sdk(url) as openai_client:
        header = {"X-Agent-Events": "named"}
        stream = await openai_client.responses.create(**SENT, stream=True, extra_headers=header)
        types = [event.type for event in [event async for event in stream]]
    ours = [str(name).partition("agentstream.")[2] for name in types if "agentstream." in str(name)]
    assert ours == ["agent_turn_start", "tool_call_start", "tool_call_end", "tool_results"]
    async with client.session.post(f"{url}{RESPONSES}?agent_events=no", json=SENT) as response:
        assert response.status == 400


@pytest.mark.parametrize("path", ["resp_1", f"chatcmpl-{'0' * 32}", f"resp_{'0' * 32}", f"msg_{'0' * 32}_0"])
async def test_an_unknown_response_is_not_found(processes: Processes, client: Client, path: str) -> None:
    """An id that is not the id of a response gets 404 on every route."""
    url = await processes.frontend()
    for suffix in ("", "?stream=true"):
        async with client.session.get(f"{url}{RESPONSES}/{path}{suffix}") as response:
            assert response.status == 404
    async with client.session.post(f"{url}{RESPONSES}/{path}/cancel") as response:
        assert response.status == 404


async def test_the_fields_that_a_response_repeats_are_limited(processes: Processes) -> None:
    """Instructions longer than 256 KiB are refused, because they are stored with the run."""
    url = await processes.frontend()
    async with sdk(url) as client:
        with pytest.raises(openai.BadRequestError, match="must not exceed 262144 bytes"):
            await client.responses.create(**SENT, instructions="x" * (256 << 10))
