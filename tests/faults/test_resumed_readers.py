"""A run that another worker continues is one stream: every reader gets the same bytes, in every format and API."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import FORMATS, Client, frames, http_client, run_id_of
from tests.faults.deployment import Deployment, kill_worker
from tests.faults.resumed import AGENTS, GATE, LAST, attempts_of, worker_of
from tests.processes import Processes

SCRIPT = f"story to {LAST}"
AT_GATE = f'"{GATE} "'.encode()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client without an API key."""
    async with http_client() as opened:
        yield opened


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


def chat(**fields: Any) -> dict[str, Any]:
    """Return the request of a run that tells the story."""
    return {"model": "m1", "messages": [{"role": "user", "content": SCRIPT}], **fields}


def frames_of(raw: bytes) -> list[bytes]:
    """Return the frames that belong to the run: without the empty chunks of a long silence, which have no id."""
    first, *others = frames(raw)
    return [
        first,
        *(frame for frame in others if not (b'"delta":{},"finish_reason":null' in frame and b"id: " not in frame)),
    ]


async def taken_over(deployment: Deployment, agent: str, at_gate: Callable[[], Awaitable[object]]) -> None:
    """Let a worker tell the story until the gate, kill it there, and let another worker tell the rest."""
    first = await worker_of(deployment, "a", agent)
    await at_gate()
    second = await worker_of(deployment, "b", agent)
    await kill_worker(first)
    deployment.open_gate(GATE)
    await second.until(rf"counts from {GATE + 1}\b")


class LiveReader:
    """Reads a stream while the run goes on."""

    def __init__(self, client: Client, url: str, body: Any = None, **options: Any) -> None:
        self.at_gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.raw = b""
        self._task = asyncio.create_task(self._read(client, url, body, options), name="live reader")

    async def whole(self) -> list[bytes]:
        """Return all frames when the stream has ended."""
        await self._task
        return frames_of(self.raw)

    async def _read(self, client: Client, url: str, body: Any, options: dict[str, Any]) -> None:
        async with client.streaming(url, body, **options) as stream:
            self.raw = await stream.until(b"\n\n")
            self.begun.set()
            if AT_GATE not in self.raw:
                self.raw += await stream.until(AT_GATE)
            self.at_gate.set()
            self.raw += await stream.rest()


def cut_in(whole: list[bytes], attempt: int) -> tuple[str, list[bytes]]:
    """Return a cursor in the middle of an attempt, and the frames after it."""
    ids = [match[1].decode() if (match := re.search(rb"(?m)^id: (.+)$", frame)) else "" for frame in whole]
    places = [place for place, cursor in enumerate(ids) if cursor.startswith(f"{attempt}-")]
    place = places[len(places) // 2]
    return ids[place], whole[place + 1 :]


@pytest.mark.parametrize("agent", AGENTS)
async def test_every_reader_of_a_continued_run_gets_the_same_bytes(
    deployment: Deployment, processes: Processes, client: Client, agent: str
) -> None:
    """Live readers, later readers and readers that resume in either attempt get the same bytes, in every format."""
    urls = [deployment.url, await processes.frontend()]
    creator = LiveReader(client, urls[0], chat(background=True), query="?agent_events=named")
    await creator.begun.wait()
    run_id = run_id_of(creator.raw)
    live = {
        name: LiveReader(client, urls[number % 2], run_id=run_id, query=f"?stream=true&agent_events={name}")
        for number, name in enumerate(FORMATS)
    }
    await taken_over(
        deployment, agent, lambda: asyncio.gather(*(reader.at_gate.wait() for reader in (creator, *live.values())))
    )
    assert await creator.whole() == await live["named"].whole()
    for name, reader in live.items():
        whole = await reader.whole()
        numbers = re.findall(rb'"content":"(\d+) "', b"".join(whole))
        assert [int(number) for number in numbers] == list(range(1, LAST + 1)), name
        assert whole[-1] == b"data: [DONE]\n\n"
        query = f"?stream=true&agent_events={name}"
        for url in urls:
            assert frames_of(await client.whole(url, run_id=run_id, query=query)) == whole, name
            for attempt in (1, 2):
                cursor, rest = cut_in(whole, attempt)
                resumed = await client.whole(url, run_id=run_id, query=query, Last_Event_ID=cursor)
                assert frames(resumed) == rest, (name, cursor)
                resumed = await client.whole(url, run_id=run_id, query=f"{query}&starting_after={cursor}")
                assert frames(resumed) == rest, (name, cursor)


async def test_a_response_is_whole_across_a_takeover(
    deployment: Deployment, processes: Processes, client: Client
) -> None:
    """A streamed response has sequence numbers without gaps across a takeover, and all readers get the same bytes."""
    url = f"{deployment.url}/v1/responses"
    body = {"model": "m1", "input": SCRIPT, "stream": True, "background": True}
    live = b""
    async with client.session.post(url, json=body) as response:

        async def at_gate() -> None:
            nonlocal live
            while AT_GATE not in live:
                live += await response.content.readany()

        await taken_over(deployment, "counting", at_gate)
        live += await response.content.read()
    events = [json.loads(data) for data in re.findall(rb"(?m)^data: (.*)$", live)]
    numbered = [event for event in events if event["type"] != "response.in_progress" or event["sequence_number"] < 2]
    assert [event["sequence_number"] for event in numbered] == list(range(len(numbered)))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text.split() == [str(number) for number in range(1, LAST + 1)]
    last = events[-1]["response"]
    assert (events[-1]["type"], last["status"]) == ("response.completed", "completed")
    said = [part["text"] for item in last["output"] if item["type"] == "message" for part in item["content"]]
    assert "".join(said).split() == text.split()
    whole = [frame for frame in frames(live) if b"id: " in frame]
    for front_end in (deployment.url, await processes.frontend()):
        path = f"{front_end}/v1/responses/{last['id']}"
        for after in (None, 0, len(whole) // 4, len(whole) - 10):
            query = "?stream=true" + (f"&starting_after={after}" if after is not None else "")
            async with client.session.get(path + query) as response:
                assert frames(await response.read()) == whole[0 if after is None else after + 1 :]
        async with client.session.get(path) as response:
            assert await response.json() == last


async def test_repeats_of_a_request_join_a_continued_run(
    deployment: Deployment, processes: Processes, client: Client
) -> None:
    """Repeats under an idempotency key, before, during and after a takeover, get the answer of the one run."""
    urls = [deployment.url, await processes.frontend()]
    first = LiveReader(client, urls[0], chat(), Idempotency_Key="streamed")
    await first.begun.wait()
    second = LiveReader(client, urls[1], chat(), Idempotency_Key="streamed")
    asked = [asyncio.create_task(client.post(urls[0], chat(), Idempotency_Key="one object"))]

    async def at_gate() -> None:
        await asyncio.gather(first.at_gate.wait(), second.at_gate.wait())
        asked.append(asyncio.create_task(client.post(urls[1], chat(), Idempotency_Key="one object")))

    await taken_over(deployment, "counting", at_gate)
    asked.append(asyncio.create_task(client.post(urls[1], chat(), Idempotency_Key="one object")))
    whole = await first.whole()
    assert await second.whole() == whole
    assert frames_of(await client.whole(urls[1], chat(), Idempotency_Key="streamed")) == whole
    answers = [*await asyncio.gather(*asked), await client.post(urls[0], chat(), Idempotency_Key="one object")]
    assert [status for status, _ in answers] == [200] * 4
    assert len({json.dumps(answer) for _, answer in answers}) == 1
    message = answers[0][1]["choices"][0]["message"]
    assert message["content"].split() == [str(number) for number in range(1, LAST + 1)]
    assert answers[0][1]["usage"]["total_tokens"] == 8


async def test_answers_that_are_not_streamed_survive_a_takeover(
    deployment: Deployment, processes: Processes, client: Client
) -> None:
    """A request that waits, a background run that is polled, and a completion get the whole answer of two workers."""
    other = await processes.frontend()
    _, created = await client.post(deployment.url, chat(background=True))
    watcher = LiveReader(client, other, run_id=created["id"])
    waiting = asyncio.create_task(client.post(deployment.url, chat()))
    completion = {"model": "m1", "prompt": SCRIPT}
    completing = asyncio.create_task(client.call("POST", f"{deployment.url}/v1/completions", completion))
    first = await worker_of(deployment, "a")
    await watcher.at_gate.wait()
    await first.until(r"(?s)(counts from 1 .*){3}")
    second = await worker_of(deployment, "b")
    await kill_worker(first)
    deployment.open_gate(GATE)
    await watcher.whole()
    numbers = [str(number) for number in range(1, LAST + 1)]
    polled = await client.get(other, created["id"])
    for status, body in (await waiting, polled):
        assert status == 200
        assert body["choices"][0]["message"]["content"].split() == numbers
        assert body["choices"][0]["message"]["reasoning_content"].count("comes") == LAST // 10
    status, body = await completing
    assert (status, body["choices"][0]["text"].split()) == (200, numbers)
    assert len(attempts_of(second)) == 3
