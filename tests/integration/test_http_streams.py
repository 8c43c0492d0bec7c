"""Edge cases of streams, with real processes: headers, HTTP/1.0, silence, a full queue, no worker and no broker."""

import asyncio
import contextlib
import itertools
import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from redis import Redis

from agentstream.frontend.runs.watcher import GRACE_S, SWEEP_S
from agentstream.processes.runtime import EXIT_UNREACHABLE
from agentstream.protocol.keys import Keys
from tests.faults.clients import RawSocket
from tests.helpers import TIME_SCALE, TIMEOUT_S, decode, texts
from tests.integration.conftest import Client
from tests.ports import free_port
from tests.processes import Processes

CHAT = "/v1/chat/completions"
REQUEST = {"model": "m1", "messages": [{"role": "user", "content": "fine"}], "stream": True}
QUEUE_TIMEOUT_S = 1
BROKER_WAIT_S = 3
# httpx with its default timeout gives up after 5 s without a byte.
LONGEST_SILENCE_S = 5 * TIME_SCALE


async def test_stream_headers(processes: Processes, client: Client) -> None:
    """The headers of a stream tell proxies not to buffer or change it, and it is never compressed."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    headers = {"Accept-Encoding": "gzip, br", "Accept": "application/json"}
    async with client.session.post(url + CHAT, json=REQUEST, headers=headers) as response:
        assert texts(decode(await response.read())) == ["fine"]
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Request-Id"].startswith("req_")
    assert "Content-Encoding" not in response.headers
    assert "Content-Length" not in response.headers


async def test_head_of_a_stream_has_no_body(processes: Processes, client: Client) -> None:
    """HEAD for the stream of a run gets the headers of the stream, and the next answer of the connection follows."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    async with client.session.post(url + CHAT, json=REQUEST) as response:
        run_id = decode(await response.read())[0][1]["id"]
    asked = f"HEAD {CHAT}/{run_id}?stream=true HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with asyncio.timeout(TIMEOUT_S), RawSocket.open(url) as connection:
        await connection.send(
            f"{asked}GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answers, _ = await connection.rest()
    headers, _, rest = answers.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200")
    assert b"text/event-stream" in headers
    assert rest.startswith(b"HTTP/1.1 200"), rest


async def http_1_0(url: str, more_headers: str) -> tuple[str, bytes]:
    """Return the headers and the body of a stream as an HTTP/1.0 client reads them: until the connection closes."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps(REQUEST)
    head = f"POST {CHAT} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more_headers}"
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{head}\r\n{body}".encode())
        async with asyncio.timeout(TIMEOUT_S):
            headers, _, stream = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    return headers.decode().lower(), stream


@pytest.mark.parametrize("more_headers", ["", "Connection: keep-alive\r\n"])
async def test_an_http_1_0_client_reads_until_the_connection_closes(processes: Processes, more_headers: str) -> None:
    """An HTTP/1.0 client gets the stream without chunked encoding, and its end is the end of the connection."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    headers, stream = await http_1_0(url, more_headers)
    assert "transfer-encoding" not in headers
    assert "keep-alive" not in headers
    assert stream.startswith(b"id: 0-0\ndata: {")
    assert stream.endswith(b"}\n\ndata: [DONE]\n\n")
    assert texts(decode(stream)) == ["fine"]


@dataclass(frozen=True)
class Unserved:
    """The answers of a front end whose queue has no worker and accepts only one job."""

    ready: tuple[int, Any]
    refused: aiohttp.ClientResponse
    refused_body: Any
    runs_left_by_refusal: int
    lines: list[tuple[float, bytes]]  # of the accepted stream: seconds since its request, and bytes


@pytest.fixture(scope="module")
def unserved(broker_url: str, broker_runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Unserved:
    """Read one stream to its end without a live worker, and send a second request while the stream waits."""
    folder = tmp_path_factory.mktemp("unserved")
    return broker_runner.run(_record(broker_url, Processes(broker_url, folder)))


async def _record(broker_url: str, processes: Processes) -> Unserved:
    loop = asyncio.get_running_loop()
    settings = {"AGENTSTREAM_MAX_QUEUED": "1", "AGENTSTREAM_QUEUE_TIMEOUT_S": str(QUEUE_TIMEOUT_S)}
    async with processes, aiohttp.ClientSession() as session:
        url = await processes.frontend(AGENTSTREAM_QUEUE=f"test-{secrets.token_hex(6)}", **settings)
        async with session.get(f"{url}/health/ready") as response:
            ready = response.status, await response.json()
        asked_s = loop.time()
        async with session.post(url + CHAT, json=REQUEST) as stream:
            lines = [(loop.time() - asked_s, await stream.content.readline())]
            with Redis.from_url(broker_url) as broker:
                before = _runs(broker)
                async with session.post(url + CHAT, json=REQUEST) as refused:
                    refused_body = await refused.json()
                runs_left = _runs(broker) - before
            async with asyncio.timeout(3 * TIMEOUT_S):
                while line := await stream.content.readline():
                    lines.append((loop.time() - asked_s, line))
    return Unserved(ready, refused, refused_body, runs_left, lines)


def _runs(broker: Redis) -> int:
    return sum(1 for _ in broker.scan_iter(Keys().run("chatcmpl-*"), count=1000))


def test_readiness_says_that_no_worker_is_alive(unserved: Unserved) -> None:
    """Without a worker, the front end accepts requests, and its readiness says that they wait."""
    status, body = unserved.ready
    assert status == 200
    assert body["status"] == "degraded"
    assert body["workers"] == 0
    assert "no worker is alive" in body["detail"]


def test_a_full_queue_refuses(unserved: Unserved) -> None:
    """If the queue has as many outstanding jobs as allowed, a request gets 429 with Retry-After and is not stored."""
    assert unserved.refused.status == 429
    assert int(unserved.refused.headers["Retry-After"]) >= 1
    error = unserved.refused_body["error"]
    assert (error["type"], error["param"], error["code"]) == ("rate_limit_error", None, "queue_full")
    assert "1 outstanding" in error["message"]
    assert unserved.runs_left_by_refusal == 0


def test_a_silent_stream_is_kept_alive(unserved: Unserved) -> None:
    """While a run is silent, the client gets keepalive comments, before the shortest timeout of any client."""
    keepalives = [at_s for at_s, line in unserved.lines if line == b": keepalive\n"]
    assert len(keepalives) >= 2
    assert b": keepalive\n: keepalive\n" in b"".join(line for _, line in unserved.lines)
    times_s = [at_s for at_s, _ in unserved.lines]
    assert max(later - earlier for earlier, later in itertools.pairwise(times_s)) < LONGEST_SILENCE_S


def test_a_run_that_no_worker_begins_ends(unserved: Unserved) -> None:
    """If no worker begins a run, its stream ends after the queue timeout with an error frame and [DONE]."""
    messages = decode(b"".join(line for _, line in unserved.lines))
    assert len(messages) == 3
    final = messages[1][1]
    assert final["agent_error"]["code"] == "queue_timeout"
    assert "no worker" in final["agent_error"]["message"]
    assert final["choices"][0]["finish_reason"] == "stop"
    assert messages[2] == (None, "[DONE]")
    ended_s = unserved.lines[-1][0]
    assert QUEUE_TIMEOUT_S < ended_s < QUEUE_TIMEOUT_S + GRACE_S + 3 * SWEEP_S * TIME_SCALE


@contextlib.contextmanager
def dead_address() -> Iterator[str]:
    """Yield an address that refuses every connection and that no other process can get."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


async def test_without_a_broker_a_front_end_listens_never_and_then_exits(processes: Processes) -> None:
    """If Redis is unreachable, no proxy can send a request here until the process exits with an error message."""
    port = free_port()
    with dead_address() as address:
        process = await processes.start(
            "frontend",
            AGENTSTREAM_PORT=str(port),
            REDIS_URL=f"redis://:hunter2@{address}/0",
            AGENTSTREAM_BROKER_WAIT_S=str(BROKER_WAIT_S),
        )
        end = asyncio.create_task(process.ended(BROKER_WAIT_S + TIMEOUT_S))
        while not end.done():
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.02)
        assert await end == EXIT_UNREACHABLE
    assert f"Redis at {address} cannot be reached within {BROKER_WAIT_S} s" in process.output
    assert "serving on" not in process.output
    assert "hunter2" not in process.output
    assert "Traceback" not in process.output
