"""The whole pipeline: HTTP requests, a front end, Redis and worker processes."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.helpers import assert_conforms, conformance_cases, texts
from tests.integration.conftest import Client
from tests.processes import Processes


@pytest.mark.parametrize("event_format", ["raw", "named"])
async def test_recorded_cases_through_the_real_pipeline(
    processes: Processes, client: Client, event_format: str
) -> None:
    """For every recorded case, the stream from real processes equals the stream of the original bridge."""
    url = await processes.frontend()
    await processes.worker("recorded_case")
    for case in conformance_cases():
        query = f"?agent_events={event_format}"
        request = {**case["request"], "user": case["name"]}
        messages = await client.stream(url, "", query=query, **request)
        assert_conforms(case, messages, event_format=event_format)


async def test_two_hundred_runs_over_two_frontends_and_three_workers(processes: Processes, client: Client) -> None:
    """Each of 200 concurrent streams is complete and in order, and contains only the events of its own run."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await asyncio.gather(
        processes.worker("numbered"), processes.worker("numbered"), processes.worker("numbered_in_a_thread")
    )

    async def check(number: int) -> str:
        tag = f"run-{number:03}"
        messages = await client.stream(urls[number % 2], tag)
        words = [text for text in texts(messages) if text != "\n\n"]
        assert words == [f"{tag}:{index} " for index in range(40)]
        for name, data in messages:
            assert name is None or tag in str(data)
        ids = {data["id"] for _, data in messages if data != "[DONE]"}
        assert len(ids) == 1
        assert messages[-1] == (None, "[DONE]")
        assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"
        return str(ids.pop())

    ids = await asyncio.gather(*(check(number) for number in range(200)))
    assert len(set(ids)) == 200


async def test_two_concurrent_requests_never_see_each_others_events(processes: Processes, client: Client) -> None:
    """Two runs that one worker runs at the same time do not mix their events, tool results or words."""
    url = await processes.frontend()
    await processes.worker("numbered")
    streams = await asyncio.gather(client.stream(url, "apples"), client.stream(url, "pears"))
    assert "pears" not in str(streams[0])
    assert "apples" not in str(streams[1])


async def test_streamed_and_whole_answers_are_the_same(processes: Processes, client: Client) -> None:
    """The joined deltas equal the non-streamed content, and both forms have the agent's usage."""
    url = await processes.frontend()
    await processes.worker("numbered")
    messages = await client.stream(url, "x")
    response = await client.post(url, {"model": "m1", "messages": [{"role": "user", "content": "x"}]})
    body = await response.json()
    assert body["choices"][0]["message"]["content"] == "".join(texts(messages))
    assert (
        body["usage"] == messages[-2][1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}
    )
    assert body["object"] == "chat.completion"


async def test_openai_sdk_streaming_and_not(processes: Processes) -> None:
    """The official Python SDK reads streams, usage and whole answers with its default options."""
    url = await processes.frontend(AGENTSTREAM_API_KEYS="sk-one,sk-two")
    await processes.worker("numbered")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-two") as sdk:
        messages: Any = [{"role": "user", "content": "sdk"}]
        whole = await sdk.chat.completions.create(model="m1", messages=messages)
        parts: list[str] = []
        usage = None
        stream = await sdk.chat.completions.create(
            model="m1", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
            usage = chunk.usage or usage
        assert "".join(parts) == whole.choices[0].message.content
        assert usage == whole.usage
        async with sdk.chat.completions.stream(model="m1", messages=messages) as helper:
            async for _ in helper:
                pass
            final = await helper.get_final_completion()
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert [model.id async for model in sdk.models.list()] == ["agentstream"]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="not valid"):
            await stranger.models.list()


async def test_old_sdks_get_no_event_lines(processes: Processes, client: Client) -> None:
    """An SDK version that cannot read event lines gets none, unless it asks for a format."""
    url = await processes.frontend()
    await processes.worker("numbered")
    old = {"X-Stainless-Lang": "python", "X-Stainless-Package-Version": "1.97.0"}
    new = {"X-Stainless-Lang": "python", "X-Stainless-Package-Version": "1.98.0"}
    assert {name for name, _ in await client.stream(url, "x", headers=old)} == {None}
    assert len({name for name, _ in await client.stream(url, "x", headers=new)}) > 1
    assert len({name for name, _ in await client.stream(url, "x", headers={**old, "X-Agent-Events": "named"})}) > 1


async def test_the_role_chunk_does_not_wait_for_a_worker(processes: Processes, client: Client) -> None:
    """The role chunk is sent at once, and the run starts when a worker starts."""
    url = await processes.frontend()
    request = {"model": "m1", "messages": [{"role": "user", "content": "late"}], "stream": True}
    async with client.session.post(f"{url}/v1/chat/completions", json=request) as response:
        first = await response.content.readuntil(b"\n\n")
        assert b'"role":"assistant"' in first
        await processes.worker("numbered")
        rest = await response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b"late:39 " in rest


@pytest.mark.parametrize("agent", ["misbehaving", "misbehaving_async"])
async def test_misbehaving_agents_end_their_run_only(processes: Processes, client: Client, agent: str) -> None:
    """If an agent misbehaves, its run ends with an error frame that gives the reason, and the worker continues."""
    url = await processes.frontend(AGENTSTREAM_RUN_TIMEOUT_S="1")
    worker = await processes.worker(agent, AGENTSTREAM_RUN_TIMEOUT_S="1")
    expected = {
        "wrong type": ("invalid_agent_output", "returned dict"),
        "wrong content": ("invalid_agent_output", "content must be a str, not 17"),
        "unserialisable": ("invalid_agent_output", "cannot be written as JSON"),
        "forbidden event": ("invalid_agent_output", "belongs to agentstream"),
        "line end in event": ("invalid_agent_output", "is not valid"),
        "huge answer": ("invalid_agent_output", "run.write"),
        "exits": ("agent_error", "SystemExit"),
        "raises": ("agent_error", "broken on purpose"),
        "blocks": ("run_timeout", "longer than 1 s"),
    }
    for behaviour, (code, words) in expected.items():
        *_, final, done = await client.stream(url, behaviour)
        assert done == (None, "[DONE]")
        assert final[1]["agent_error"]["code"] == code, behaviour
        assert words in final[1]["agent_error"]["message"]
        assert final[1]["choices"][0]["finish_reason"] == "stop"
    assert texts(await client.stream(url, "fine")) == ["fine"]
    assert "never retrieved" not in worker.output  # the warning of asyncio for a forgotten error


async def test_failed_run_is_an_http_error_when_not_streamed(processes: Processes, client: Client) -> None:
    """A failed run that is not streamed gives an OpenAI error with a header that stops the retries of SDKs."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    response = await client.post(url, {"model": "m", "messages": [{"role": "user", "content": "raises"}]})
    assert response.status == 500
    assert response.headers["X-Should-Retry"] == "false"
    assert (await response.json())["error"]["message"] == "Sorry, an error occurred: broken on purpose"


async def test_the_agent_gets_all_fields_of_a_request(processes: Processes, client: Client) -> None:
    """The agent gets every field that the client sends, known or unknown, unchanged."""
    url = await processes.frontend()
    await processes.worker("echo_request")
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [
                {"type": "text", "text": "t"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
            {"role": "user", "content": "u", "name": "n"},
        ],
        "max_tokens": 5, "max_completion_tokens": 6, "temperature": 0.5, "top_p": 0.9, "n": 1, "seed": 4,
        "stop": ["a", "b"], "user": "me", "parallel_tool_calls": False, "response_format": {"type": "json_object"},
        "metadata": {"k": "v"}, "reasoning_effort": "low", "vendor_field": {"deep": [1, 2]}, "service_tier": "auto",
        "tools": [], "tool_choice": "none", "logprobs": False, "store": False,
    }  # fmt: skip
    response = await client.post(url, body)
    answer = await response.json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == body
