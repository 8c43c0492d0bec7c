"""The drain of a process after SIGTERM: its open runs end, and it begins no new ones."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.helpers import TIMEOUT_S, texts
from tests.integration.conftest import Client, Stream
from tests.processes import ROOT, Process, Processes

# Sends the process id of its worker to the gate, and waits in the middle of its answer until the test opens the gate.
GATED_AGENT = """
import asyncio
import os

from agentstream.agents import AgentResult, Run


async def gated(run: Run) -> AgentResult:
    run.write("begun, ")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["GATE_PORT"]))
    writer.write(b"%d\\n" % os.getpid())
    await reader.read()
    writer.close()
    run.write("ended")
    return AgentResult("")
"""


class Gate:
    """A server that the runs of the gated agent connect to. Each run waits until the test closes its connection."""

    def __init__(self) -> None:
        self._arrivals = asyncio.Queue[tuple[int, asyncio.StreamWriter]]()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._on_run, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def arrival(self) -> tuple[int, Callable[[], None]]:
        """Wait for the next run; return the process id of its worker, and a function that lets the run continue."""
        async with asyncio.timeout(TIMEOUT_S):
            pid, writer = await self._arrivals.get()
        return pid, writer.close

    async def _on_run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, ValueError):  # the worker ended
            self._arrivals.put_nowait((int(await reader.readline()), writer))


REQUEST: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "go"}]}
BODY = json.dumps(REQUEST).encode()
COMPLETION = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Kept:
    """A connection that is kept open over several requests, as proxies keep theirs."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def ready(self) -> tuple[int, dict[str, str], bytes]:
        """Ask whether the front end is ready."""
        self.send(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return await self.answer()

    async def complete(self) -> tuple[int, dict[str, str], bytes]:
        """Request a completion that is not streamed."""
        self.send(COMPLETION)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of the next answer."""
        async with asyncio.timeout(TIMEOUT_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
            return int(head[0].split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))


async def ready_of(url: str) -> int:
    """Return the status of the readiness check over a new connection."""
    async with Kept(url) as connection:
        return (await connection.ready())[0]


async def refuses(url: str) -> bool:
    """Return whether a new connection is refused."""
    try:
        async with Kept(url):
            return False
    except ConnectionRefusedError:
        return True


class Gated:
    """Starts workers whose agent waits at the gate."""

    def __init__(self, processes: Processes, gate: Gate, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self.gate = gate
        (folder / "gated_agent.py").write_text(GATED_AGENT)

    async def worker(self, **settings: str) -> Process:
        return await self._processes.worker(
            "gated_agent:gated",
            PYTHONPATH=f"{ROOT}{os.pathsep}{self._folder}",
            GATE_PORT=str(self.gate.port),
            **settings,
        )


@pytest.fixture
async def gated(processes: Processes, tmp_path: Path) -> AsyncIterator[Gated]:
    """Workers whose runs continue when the test says so."""
    async with Gate() as gate:
        yield Gated(processes, gate, tmp_path)


def begin(client: Client, url: str) -> asyncio.Task[Stream]:
    """Send a request; the returned task reads its stream."""
    return asyncio.create_task(client.stream(url, "go"))


async def test_a_draining_worker_finishes_its_run_and_claims_no_other(
    processes: Processes, client: Client, gated: Gated
) -> None:
    """After SIGTERM a worker finishes its run, leaves new jobs to other workers, and exits with code 0."""
    url = await processes.frontend()
    first = await gated.worker()
    stream = begin(client, url)
    pid, go_on = await gated.gate.arrival()
    assert pid == first.pid
    first.send_signal(signal.SIGTERM)
    await first.until(r"draining: 1 runs")
    later_stream = begin(client, url)
    second = await gated.worker()
    later_pid, later_go_on = await gated.gate.arrival()
    assert later_pid == second.pid
    go_on()
    assert "".join(texts(await stream)) == "begun, ended"
    assert await first.ended() == 0
    later_go_on()
    assert "".join(texts(await later_stream)) == "begun, ended"


async def test_a_run_longer_than_the_drain_ends_with_an_error_frame(
    processes: Processes, client: Client, gated: Gated
) -> None:
    """If a run does not end within the drain timeout, the worker ends it, and the client gets the reason."""
    url = await processes.frontend()
    worker = await gated.worker(AGENTSTREAM_DRAIN_TIMEOUT_S="0.2")
    stream = begin(client, url)
    await gated.gate.arrival()
    worker.send_signal(signal.SIGTERM)
    *_, final, done = await stream
    assert final[1]["agent_error"]["code"] == "worker_shutdown"
    assert done == (None, "[DONE]")
    assert await worker.ended() == 0


async def test_a_draining_front_end_finishes_its_streams(processes: Processes, client: Client, gated: Gated) -> None:
    """After SIGTERM a front end finishes its open stream, refuses new connections, and exits with code 0."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    await gated.worker()
    stream = begin(client, url)
    _, go_on = await gated.gate.arrival()
    frontend.send_signal(signal.SIGTERM)
    await frontend.until(r"draining: 1 open runs")
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.stream(url, "too late")
    go_on()
    messages = await stream
    assert "".join(texts(messages)) == "begun, ended"
    assert messages[-1] == (None, "[DONE]")
    assert await frontend.ended() == 0


async def test_a_draining_front_end_serves_requests_on_open_connections(
    processes: Processes, client: Client, gated: Gated
) -> None:
    """A request on a connection that was open before the drain is answered, and the connection is closed after it."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    await gated.worker()
    stream = begin(client, url)
    _, go_on = await gated.gate.arrival()
    async with Kept(url) as first, Kept(url) as second:
        assert (await first.ready())[0] == 200
        assert (await second.ready())[0] == 200
        frontend.send_signal(signal.SIGTERM)
        await frontend.until(r"draining: 1 open runs")
        status, headers, body = await first.ready()
        assert (status, headers["connection"], json.loads(body)) == (503, "close", {"status": "draining"})
        later = asyncio.create_task(second.complete())
        _, let_later_go_on = await gated.gate.arrival()
        go_on()
        assert "".join(texts(await stream)) == "begun, ended"
        let_later_go_on()
        status, headers, body = await later
        assert (status, headers["connection"]) == (200, "close")
        assert json.loads(body)["choices"][0]["message"]["content"] == "begun, ended"
    assert await frontend.ended() == 0


async def test_a_request_that_is_still_sent_is_served(processes: Processes, gated: Gated) -> None:
    """The drain waits for a client that sends its request slowly, although no run is open yet."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    await gated.worker()
    async with Kept(url) as slow:
        slow.send(COMPLETION[:-10])
        assert (await asyncio.gather(ready_of(url), ready_of(url)))[0] == 200  # the front end has read what was sent
        frontend.send_signal(signal.SIGTERM)
        await frontend.until(r"draining: 0 open runs")
        async with asyncio.timeout(TIMEOUT_S):
            while not await refuses(url):  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.02)
        slow.send(COMPLETION[-10:])
        _, go_on = await gated.gate.arrival()
        go_on()
        assert (await slow.answer())[0] == 200
    assert await frontend.ended() == 0


async def test_a_request_that_never_ends_is_cut_after_the_drain(processes: Processes) -> None:
    """A client that never finishes its request delays the end by no more than the drain timeout."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0", AGENTSTREAM_DRAIN_TIMEOUT_S="0.2")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    async with Kept(url) as slow:
        slow.send(COMPLETION[:-10])
        assert (await asyncio.gather(ready_of(url), ready_of(url)))[0] == 200
        frontend.send_signal(signal.SIGTERM)
        assert await frontend.ended() == 0
    assert "disconnecting the clients of 0 runs" in frontend.output


async def test_a_front_end_that_leaves_serves_until_its_delay_is_over(
    processes: Processes, client: Client, gated: Gated
) -> None:
    """During the stop delay a front end is not ready, and serves new connections, each for one request."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0", AGENTSTREAM_STOP_DELAY_S="3600")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    await gated.worker()
    frontend.send_signal(signal.SIGTERM)
    await frontend.until(r"stopping: not ready, accepts connections for 3600 s more")
    async with Kept(url) as check, Kept(url) as new:
        status, headers, body = await check.ready()
        assert (status, headers["connection"], json.loads(body)) == (503, "close", {"status": "draining"})
        answer = asyncio.create_task(new.complete())
        _, go_on = await gated.gate.arrival()
        go_on()
        status, headers, _ = await answer
        assert (status, headers["connection"]) == (200, "close")
    async with client.session.post(f"{url}/v1/chat/completions", json=REQUEST | {"stream": True}) as response:
        _, go_on = await gated.gate.arrival()
        go_on()
        assert response.headers["Connection"] == "close"
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    frontend.kill()


async def test_a_stop_delay_ends(processes: Processes) -> None:
    """After the stop delay a front end refuses connections, and exits with code 0."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0", AGENTSTREAM_STOP_DELAY_S="0.2")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    frontend.send_signal(signal.SIGTERM)
    await frontend.until(r"draining: 0 open runs")
    assert await refuses(url)
    assert await frontend.ended() == 0


async def test_a_stream_longer_than_the_drain_is_cut(processes: Processes, client: Client, gated: Gated) -> None:
    """After the drain timeout the front end aborts an open stream, so the client sees that it is incomplete."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0", AGENTSTREAM_DRAIN_TIMEOUT_S="0.2")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    await gated.worker()
    stream = begin(client, url)
    _, go_on = await gated.gate.arrival()
    frontend.send_signal(signal.SIGTERM)
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        await stream
    assert await frontend.ended() == 0
    go_on()
