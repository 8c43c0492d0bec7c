"""Hostile agents: the client always gets a correct end, and the worker and its other runs continue."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web

from agentstream.frontend.runs.collector import MAX_COMPLETION_CHARACTERS
from agentstream.protocol.keys import Keys
from agentstream.stream import sse
from tests.faults.clients import PATH, Client, http_client, resident_bytes, start_frontend
from tests.faults.hostile_agents import numbered_line
from tests.helpers import TIMEOUT_S, decode, texts
from tests.processes import Processes

AGENTS = "tests.faults.hostile_agents"
LINES = 24_000  # of 4096 characters: 98 MB of text
LOG_BYTES = 1 << 20
GROWTH_BYTES = 96 << 20  # the buffers of one run (4 MiB and 16 MiB at most), a page, and a margin for the allocator


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client with a time limit."""
    async with http_client() as opened:
        yield opened


def chat(text: object, **fields: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": str(text)}], **fields}


def content(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


class Stream:
    """A streamed answer that is read as fast as possible and not stored."""

    def __init__(self) -> None:
        self.characters = 0
        self.lines = 0
        self.last: dict[str, Any] = {}
        self.done = False
        self._head = ""

    async def read(self, client: Client, url: str, body: dict[str, Any]) -> None:
        """Read until the proper end, and assert that every line is the next one."""
        decoder = sse.Decoder()
        async with client.session.post(url + PATH, json={**body, "stream": True}) as response:
            assert response.status == 200
            async for piece in response.content.iter_any():
                for message in decoder.feed(piece):
                    self._take(message.data)

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.done = True
            return
        chunk = json.loads(data)
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        if (
            "agent_error" in chunk or delta.get("content") == "\n\n"
        ):  # this separator stands between the text and an error
            self.last = chunk
        elif text := delta.get("content"):
            assert text == numbered_line(self.lines), f"line {self.lines}: {text[:40]!r}"
            self.lines += 1
            self.characters += len(text)
        else:
            self.last = chunk


@pytest.mark.parametrize("agent", ["flood", "flood_on_loop"])
async def test_a_flood_of_text_is_streamed_in_bounded_memory(
    processes: Processes, client: Client, broker_url: str, agent: str
) -> None:
    """More text than the buffers hold reaches a reading client in order, and memory and replay log stay bounded."""
    url, frontend = await start_frontend(processes)
    worker = await processes.worker(f"{AGENTS}:{agent}", AGENTSTREAM_LOG_MAX_BYTES=str(LOG_BYTES))
    await client.post(url, chat(1))
    before = resident_bytes(frontend), resident_bytes(worker)
    stream = Stream()
    await stream.read(client, url, chat(LINES))
    assert stream.done
    grown = [now - then for then, now in zip(before, (resident_bytes(frontend), resident_bytes(worker)), strict=True)]
    assert max(grown) < GROWTH_BYTES
    async with redis.asyncio.Redis.from_url(broker_url) as broker:
        size = await broker.memory_usage(Keys().events(stream.last["id"]), samples=0)
    # Redis trims streams in whole nodes of up to 100 entries. An entry is a batch of at most about 64 KiB.
    assert size is not None
    assert size < LOG_BYTES + 101 * (70 << 10)
    if "agent_error" in stream.last:  # the reader fell behind by more than the size of the replay log
        assert stream.last["agent_error"]["code"] == "stream_lost"
    else:
        assert stream.lines == LINES
        assert stream.last["choices"][0]["finish_reason"] == "stop"
    status, _ = await client.post(url, chat(1))
    assert status == 200


async def test_a_flood_that_is_not_streamed_ends_with_a_clear_error(processes: Processes, client: Client) -> None:
    """A collected answer over its limit gets an error that says what to do, and its run is cancelled."""
    url, _ = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:flood", AGENTSTREAM_CONCURRENCY="1")
    status, answer = await client.post(url, chat(10**9))
    assert status == 500
    assert str(MAX_COMPLETION_CHARACTERS) in answer["error"]["message"]
    assert "stream" in answer["error"]["message"]
    status, answer = await client.post(url, chat(1))  # its only slot is free again
    assert (status, content(answer)) == (200, numbered_line(0))


async def test_an_agent_that_never_waits_fails_with_advice(processes: Processes, client: Client) -> None:
    """An agent that writes on the event loop without waiting fails at the hard limit, and the error names run.drain."""
    url, _ = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:flood_without_waiting", AGENTSTREAM_LOG_MAX_BYTES=str(64 << 20))
    stream = Stream()
    await stream.read(client, url, chat(10**9))
    assert stream.done
    assert "run.drain()" in stream.last["agent_error"]["message"]
    status, _ = await client.post(url, chat(1))
    assert status == 200


async def test_a_flood_of_tiny_events_arrives_completely(processes: Processes, client: Client) -> None:
    """200,000 events emitted at full speed arrive once each, in order, in bounded memory."""
    url, frontend = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:tiny_events", AGENTSTREAM_LOG_MAX_BYTES=str(32 << 20))
    before = resident_bytes(frontend)
    count, decoder, last = 0, sse.Decoder(), ""
    body = chat(200_000, stream=True)
    async with client.session.post(f"{url}{PATH}?agent_events=raw", json=body) as response:
        async for piece in response.content.iter_any():
            for message in decoder.feed(piece):
                if message.event == "inference_start":
                    assert message.data == json.dumps({"n": count}, separators=(",", ":"))
                    count += 1
                last = message.data
    assert (count, last) == (200_000, "[DONE]")
    assert resident_bytes(frontend) - before < GROWTH_BYTES


async def test_a_blocked_thread_costs_its_own_run_and_slot_only(processes: Processes, client: Client) -> None:
    """If a thread blocks for ever, its run ends as run_timeout, other runs are served, and SIGTERM ends the worker."""
    url, _ = await start_frontend(processes, AGENTSTREAM_RUN_TIMEOUT_S="2")
    worker = await processes.worker(
        f"{AGENTS}:hostile",
        AGENTSTREAM_RUN_TIMEOUT_S="2",
        AGENTSTREAM_CONCURRENCY="2",
        AGENTSTREAM_DRAIN_TIMEOUT_S="1",
    )
    async with asyncio.timeout(2 * TIMEOUT_S):
        blocked = asyncio.create_task(client.post(url, chat("block for ever")))
        assert content((await client.post(url, chat("x")))[1]) == "fine"
        status, answer = await blocked
        assert (status, answer["error"]["code"]) == (504, "run_timeout")
        assert content((await client.post(url, chat("x")))[1]) == "fine"
    worker.send_signal(signal.SIGTERM)
    # Its drain (1 s), the storing of the last events (8 s), and a margin.
    assert await worker.ended(9 + TIMEOUT_S) == 0, worker.output


async def test_an_agent_that_ignores_its_cancel_is_abandoned(processes: Processes, client: Client) -> None:
    """If an async agent ignores its cancel, its run ends in time, other runs are served, and the worker can stop."""
    url, _ = await start_frontend(processes, AGENTSTREAM_RUN_TIMEOUT_S="1")
    worker = await processes.worker(
        f"{AGENTS}:hostile_on_loop",
        AGENTSTREAM_RUN_TIMEOUT_S="1",
        AGENTSTREAM_CONCURRENCY="2",
        AGENTSTREAM_DRAIN_TIMEOUT_S="1",
    )
    async with asyncio.timeout(3 * TIMEOUT_S):
        status, answer = await client.post(url, chat("ignore cancels"))
        assert (status, answer["error"]["code"]) == (504, "run_timeout")
        assert content((await client.post(url, chat("x")))[1]) == "fine"
    worker.send_signal(signal.SIGTERM)
    assert await worker.ended(9 + TIMEOUT_S) >= 0, worker.output


@pytest.mark.parametrize(
    ("agent", "leave", "look"),
    [("hostile", "write after the end", "strays left"), ("hostile_on_loop", "leave a task", "tasks left")],
)
async def test_nothing_is_published_after_the_end(
    processes: Processes, client: Client, agent: str, leave: str, look: str
) -> None:
    """A leftover thread or task of an ended run publishes nothing more, and its writes raise RunCancelled."""
    url, _ = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:{agent}")
    for _ in range(3):
        messages = await stream(client, url, chat(leave))
        assert messages[-1] == (None, "[DONE]")
        assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"
        assert set(texts(messages)) == {"stray "}
    assert content((await client.post(url, chat(look)))[1]) == "0 of 3"


async def test_threads_of_one_run_write_at_once(processes: Processes, client: Client) -> None:
    """Eight threads that write concurrently lose no word, and the words of each thread keep their order."""
    url, _ = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:hostile")
    words = texts(await stream(client, url, chat("write from threads")))
    for name in range(8):
        assert [word for word in words if word.startswith(f"{name}:")] == [f"{name}:{index} " for index in range(500)]
    assert len(words) == 8 * 500


async def test_odd_values_are_sent_as_valid_json(processes: Processes, client: Client) -> None:
    """Lone surrogates, arguments that are not JSON and extreme numbers reach the client in well-formed frames."""
    url, _ = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:hostile")
    messages = await stream(client, url, chat("lone surrogates"))
    json.dumps([data for _, data in messages], ensure_ascii=False).encode()  # there are no lone surrogates left
    started = next(data for name, data in messages if name == "tool_call_start")
    assert started["arguments"].endswith("{not json")
    said = "".join(texts(messages))
    assert said.startswith("a")
    assert said.endswith("c")
    assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"
    messages = await stream(client, url, chat("absurd numbers"))
    assert next(data for name, data in messages if name == "tool_results")["results"][0]["latency_ms"] == 0.0


async def test_a_large_answer_is_replayed_completely(processes: Processes, client: Client) -> None:
    """A replayed answer of 900 KB is sent word by word, and equals the answer as one object."""
    url, _ = await start_frontend(processes)
    await processes.worker(f"{AGENTS}:hostile")
    expected = " ".join(f"{number:07}" for number in range(900 * 1024 // 8))
    words = texts(await stream(client, url, chat("replay much")))
    assert len(words) == 900 * 1024 // 8
    assert "".join(words) == expected
    assert content((await client.post(url, chat("replay much")))[1]) == expected


@pytest.fixture
async def tool_loving_model() -> AsyncIterator[tuple[str, list[bool]]]:
    """Run a model server that always calls a tool. Yield its URL, and whether each request allowed tools."""
    asked: list[bool] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((await request.json()).get("tool_choice") != "none")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        call = {
            "index": 0,
            "id": f"call-{len(asked)}",
            "type": "function",
            "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'},
        }
        for delta, reason in [({"role": "assistant", "tool_calls": [call]}, None), ({}, "tool_calls")]:
            chunk = {
                "id": "x",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }
            await response.write(sse.frame(json.dumps(chunk).encode()))
        await response.write(sse.frame(b"[DONE]"))
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", asked
    await runner.cleanup()


async def test_an_endless_tool_loop_ends_at_max_turns(
    processes: Processes, client: Client, tool_loving_model: tuple[str, list[bool]]
) -> None:
    """A model that always calls a tool gets max_turns turns, then one turn without tools, and then the run ends."""
    model_url, asked = tool_loving_model
    url, _ = await start_frontend(processes)
    await processes.worker(OPENAI_BASE_URL=model_url, AGENTSTREAM_MAX_TURNS="5")
    messages = await stream(client, url, chat("loop"))
    assert asked == [True] * 5 + [False]
    assert sum(name == "tool_call_end" for name, _ in messages) == 5
    assert messages[-2][1]["choices"][0]["finish_reason"] == "length"
    assert messages[-1] == (None, "[DONE]")


async def stream(client: Client, url: str, body: dict[str, Any]) -> list[tuple[str | None, Any]]:
    """Return the decoded messages of the stream of one request."""
    return decode(await client.whole(url, body))
