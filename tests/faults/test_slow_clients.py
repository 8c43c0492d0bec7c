"""Slow, silent and malformed clients: they cost little memory, delay no other client, and get no stream with a gap."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import (
    AGENT,
    PATH,
    Client,
    RawSocket,
    decode_chunked,
    frames,
    http_client,
    http_post,
    request,
    resident_bytes,
    run_id_of,
    start_frontend,
)
from tests.faults.resume_agents import cancelled_at
from tests.helpers import TIME_SCALE, TIMEOUT_S, decode, texts
from tests.processes import Processes

LARGE_LOG = {"AGENTSTREAM_LOG_MAX_BYTES": str(64 << 20)}
SMALL_LOG = {"AGENTSTREAM_LOG_MAX_BYTES": str(64 << 10)}
PATIENT = {"AGENTSTREAM_WRITE_TIMEOUT_S": str(3 * TIMEOUT_S)}
PIECES, PIECE_CHARACTERS = 5000, 8192  # 40 MB: much more than the kernel and the front end buffer for one client
# A page of the replay log (2 MiB), its frames, and a margin for the allocator: much less than the clients leave unread.
MEMORY_SLACK_BYTES = 14 << 20
TINY_BUFFER_BYTES = 4096
_PIECE = re.compile(rb'"content":"(\d{8})x*\\n"')


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client without an API key."""
    async with http_client() as opened:
        yield opened


@contextlib.asynccontextmanager
async def stall_client(
    url: str, body: dict[str, Any], *, version: str = "1.1"
) -> AsyncIterator[tuple[RawSocket, bytes]]:
    """Open a client with a tiny receive buffer that reads up to the first text of its stream and then reads nothing."""
    async with RawSocket.open(url, receive_buffer_bytes=TINY_BUFFER_BYTES) as stalled:
        await stalled.post(body | {"stream": True}, version=version)
        yield stalled, await stalled.until(b'"content":')


async def appeared(path: Path) -> None:
    """Return when an agent has created this file."""
    async with asyncio.timeout(3 * TIMEOUT_S):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 -- another process creates it
            await asyncio.sleep(0.02)


async def read_quick_streams(client: Client, url: str, number: int) -> float:
    """Read this many streams at once, and return the time of the slowest in seconds."""
    loop = asyncio.get_running_loop()

    async def read(tag: int) -> float:
        started = loop.time()
        messages = decode(await client.whole(url, request(["note", tag], ["say", 20])))
        assert texts(messages) == [f"{word} \u00fc\u2028\n" for word in range(20)]
        assert messages[1][1]["input"] == tag
        return loop.time() - started

    return max(await asyncio.gather(*(read(tag) for tag in range(number))))


def numbers(body: bytes) -> list[int]:
    """Return the numbers of the flood's pieces in a stream, in their order."""
    return [int(number) for number in _PIECE.findall(body)]


async def test_a_stalled_client_costs_little_and_gets_everything_later(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    """While 40 MB wait for a stalled client, 60 others are not delayed, memory stays low, and it gets all of it."""
    url, frontend = await start_frontend(processes, **PATIENT)
    await processes.worker(AGENT, **LARGE_LOG)
    flooded = tmp_path / "flooded"
    flood = ["flood", PIECES, PIECE_CHARACTERS]
    body = request(flood, ["count", str(flooded)], ["say", 1])
    for _ in range(2):  # until the allocator has its largest size
        await asyncio.gather(read_quick_streams(client, url, 60), client.whole(url, request(flood)))
    before = resident_bytes(frontend)
    async with stall_client(url, body) as (stalled, start):
        assert await read_quick_streams(client, url, 60) < TIMEOUT_S
        await appeared(flooded)
        assert await read_quick_streams(client, url, 60) < TIMEOUT_S
        assert resident_bytes(frontend) - before < MEMORY_SLACK_BYTES
        async with asyncio.timeout(3 * TIMEOUT_S):
            await stalled.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            rest, _ = await stalled.rest()
    streamed, whole = decode_chunked(start + rest)
    assert whole
    assert numbers(streamed) == list(range(PIECES))
    final, done = frames(streamed)[-2:]
    assert b'"finish_reason":"stop"' in final
    assert b"agent_error" not in final
    assert done == b"data: [DONE]\n\n"
    assert resident_bytes(frontend) - before < MEMORY_SLACK_BYTES


async def test_the_frames_of_a_replayed_answer_are_not_held(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    """The frames of a replayed answer are made at the pace of the client, so 30 MB of them are never in memory."""
    url, frontend = await start_frontend(processes, **PATIENT)
    await processes.worker(AGENT)
    await read_quick_streams(client, url, 10)
    answered, words = tmp_path / "answered", 150_000
    before = resident_bytes(frontend)
    async with stall_client(url, request(["count", str(answered)], ["answer", "w " * words])) as (stalled, start):
        await appeared(answered)
        assert await read_quick_streams(client, url, 20) < TIMEOUT_S
        assert resident_bytes(frontend) - before < MEMORY_SLACK_BYTES
        await stalled.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(3 * TIMEOUT_S):
            rest, _ = await stalled.rest()
    streamed, whole = decode_chunked(start + rest)
    assert whole
    assert streamed.count(b'"content":" w"') == words - 1
    assert streamed.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_client_that_stays_stalled_is_cut_and_its_run_cancelled(
    processes: Processes, client: Client, tmp_path: Path, version: str
) -> None:
    """After the write timeout a stalled client is cut without a proper end of the body, and its run is cancelled."""
    url, _ = await start_frontend(processes, AGENTSTREAM_WRITE_TIMEOUT_S="1")
    await processes.worker(AGENT, **LARGE_LOG)
    body = request(["flood", 1500, PIECE_CHARACTERS], ["gate", str(tmp_path / "never")])
    async with stall_client(url, body, version=version) as (stalled, start):
        async with asyncio.timeout(3 * TIMEOUT_S):
            followed = await client.whole(url, run_id=run_id_of(start))
        assert decode(frames(followed)[-2])[0][1]["agent_error"]["code"] == "cancelled"
        rest, was_reset = await stalled.rest()
        _, complete = decode_chunked(start + rest) if version == "1.1" else (b"", True)
        assert was_reset or not complete
        assert b"[DONE]" not in rest
        received = numbers(start + rest)  # chunk sizes stand between the frames, so only complete pieces match
        assert received == list(range(len(received)))
    assert await read_quick_streams(client, url, 5) < TIMEOUT_S


async def test_a_client_slower_than_its_log_gets_stream_lost(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    """If the replay log is trimmed before a stalled client reads it, its stream ends as stream_lost without a gap."""
    url, _ = await start_frontend(processes, **PATIENT)
    await processes.worker(AGENT, **SMALL_LOG)
    flooded, never = tmp_path / "flooded", tmp_path / "never"
    body = request(["flood", 1500, PIECE_CHARACTERS], ["count", str(flooded)], ["gate", str(never)])
    async with stall_client(url, body) as (stalled, start):
        await appeared(flooded)
        await stalled.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(3 * TIMEOUT_S):
            rest, _ = await stalled.rest()
    streamed, whole = decode_chunked(start + rest)
    assert whole
    received = numbers(streamed)
    assert received == list(range(len(received)))
    assert 0 < len(received) < 1500
    final, done = frames(streamed)[-2:]
    assert json.loads(final.removeprefix(b"data: "))["agent_error"]["code"] == "stream_lost"
    assert done == b"data: [DONE]\n\n"
    await appeared(cancelled_at(never))
    assert await read_quick_streams(client, url, 5) < TIMEOUT_S


async def test_malformed_clients_disturb_nobody_else(processes: Processes, client: Client, tmp_path: Path) -> None:
    """Pipelined requests are answered in order, and clients that send garbage or disconnect harm only themselves."""
    url, frontend = await start_frontend(processes)
    await processes.worker(AGENT)
    gate = tmp_path / "gate"
    patient = request(["say", 1], ["gate", str(gate)], ["say", 1])
    async with client.streaming(url, patient) as stream, asyncio.timeout(4 * TIMEOUT_S):
        start = await stream.until(b'"content":')
        await _pipeline(url)
        await _half_close(url)
        await _garble_after_request(url)
        await _garble_at_once(url)
        before = resident_bytes(frontend)
        await _flood_garbage(url, tmp_path / "never")
        await appeared(cancelled_at(tmp_path / "never"))
        assert resident_bytes(frontend) - before < MEMORY_SLACK_BYTES
        assert await read_quick_streams(client, url, 10) < TIMEOUT_S
        gate.touch()
        whole = frames(start + await stream.rest())
    assert texts(decode(b"".join(whole))) == ["0 \u00fc\u2028\n"] * 2
    assert whole[-1] == b"data: [DONE]\n\n"


async def _pipeline(url: str) -> None:
    body = request(["say", 2], stream=True)
    async with RawSocket.open(url) as rude:
        last = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await rude.send(http_post(body) + http_post(body) + last)
        answer, _ = await rude.rest()
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b"data: [DONE]") == 2
    first, second = answer.split(b"HTTP/1.1 200")[1:3]
    assert run_id_of(first) != run_id_of(second)
    for response in (first, second):
        streamed, whole = decode_chunked(response)
        assert whole
        assert len(texts(decode(streamed))) == 2
    assert answer.rindex(b"[DONE]") < answer.rindex(b'"status"')


async def _half_close(url: str) -> None:
    async with RawSocket.open(url) as rude:
        await rude.post(request(["say", 2], stream=True))
        rude.end_sending()
        answer, _ = await rude.rest()
    streamed, whole = decode_chunked(answer)
    assert whole == streamed.endswith(b"data: [DONE]\n\n")  # it is served or cut, but a cut stream has no proper end


async def _garble_after_request(url: str) -> None:
    async with RawSocket.open(url) as rude:
        await rude.send(http_post(request(["say", 2], stream=True)) + b"\x00\xff NOT HTTP \r\n\r\n" * 100)
        answer, _ = await rude.rest()
    streamed, whole = decode_chunked(answer)
    assert whole == streamed.endswith(b"data: [DONE]\n\n")


async def _garble_at_once(url: str) -> None:
    old = f"GET {PATH}\r\n\r\n".encode()  # HTTP/0.9
    for garbage in (b"\x00" * 4096, b"\x16\x03\x01" * 500, b"POST " + b"/" * 20_000, old):
        async with RawSocket.open(url) as rude:
            await rude.send(garbage + b"\r\n\r\n")
            answer, _ = await rude.rest()
            assert answer == b"" or b" 40" in answer.splitlines()[0]


async def _flood_garbage(url: str, never: Path) -> None:
    """Send 30 MB of requests after one that does not end, read no answer, and disconnect."""
    async with RawSocket.open(url) as rude:
        await rude.send(http_post(request(["say", 1], ["gate", str(never)], stream=True)))
        await rude.until(b'"content":')
        pipelined = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        with contextlib.suppress(TimeoutError):  # the front end must stop reading
            async with asyncio.timeout(2 * TIME_SCALE):
                for _ in range(30 * (1 << 20) // len(pipelined)):
                    await rude.send(pipelined)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_disconnect_is_no_error(processes: Processes, client: Client, tmp_path: Path, version: str) -> None:
    """A client that disconnects in the middle of a stream leaves no traceback in the log lines of the front end."""
    url, frontend = await start_frontend(processes)
    await processes.worker(AGENT)
    body = request(["say", 1], ["gate", str(tmp_path / "never")])
    for _ in range(5):
        async with stall_client(url, body, version=version):
            pass
    async with asyncio.timeout(TIMEOUT_S):
        while b"agentstream_open_runs 0.0" not in await metrics_of(client, url):  # noqa: ASYNC110 -- another process
            await asyncio.sleep(0.02)
    assert "Traceback" not in frontend.output


async def metrics_of(client: Client, url: str) -> bytes:
    """Return the metrics of the front end."""
    async with client.session.get(f"{url}/metrics") as response:
        return await response.read()
