"""Which requests nginx sends to another front end: those that nobody received, and no others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.deploy.proxies import NGINX, run_proxy
from tests.ports import free_port

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BODY = {"model": "m1"}


@dataclass
class FrontEnd:
    """A server that keeps the requests it received. ``answers`` is sent for each; without it the connection is cut."""

    answers: bytes
    received: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request, then answer or cut."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.received.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(self.answers)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(front_end: FrontEnd) -> AsyncIterator[str]:
    """Serve a front end on a free port, and yield its URL."""
    server = await asyncio.start_server(front_end.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def refusing(count: int) -> list[str]:
    """Return URLs on which nobody listens."""
    return [f"http://127.0.0.1:{free_port()}" for _ in range(count)]


async def post(url: str, check: Callable[[int, str], None], times: int = 1) -> None:
    """Send a request through the proxy, each over its own connection, and check the status and the body."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for _ in range(times):
            async with session.post(f"{url}/v1/chat/completions", json=BODY) as response:
                check(response.status, await response.text())


def is_served(status: int, body: str) -> None:
    assert (status, body) == (200, "{}")


def is_unavailable(status: int, body: str) -> None:
    assert status == 502
    assert "frontend_unavailable" in body


async def test_one_front_end_of_many_is_found(tmp_path: Path) -> None:
    """A request is served even if eight of nine front ends refuse connections, because they start or stop."""
    front_end = FrontEnd(ANSWER)
    async with listening(front_end) as url, run_proxy(NGINX, [*refusing(8), url], tmp_path) as proxy:
        await post(proxy, is_served, times=10)
    assert len(front_end.received) == 10


async def test_a_request_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    """If a front end cuts the connection after it received a request, no other front end gets that request."""
    first, second = FrontEnd(b""), FrontEnd(b"")
    async with (
        listening(first) as one,
        listening(second) as two,
        run_proxy(NGINX, [*refusing(2), one, two], tmp_path) as proxy,
    ):
        await post(proxy, is_unavailable, times=4)
    assert len(first.received) + len(second.received) == 4


async def test_a_request_has_its_own_connection(tmp_path: Path) -> None:
    """Each request to a front end asks it to close the connection, so none is sent to a front end that stops."""
    front_end = FrontEnd(ANSWER)
    async with listening(front_end) as url, run_proxy(NGINX, [url], tmp_path) as proxy:
        await post(proxy, is_served)
    assert "\r\nConnection: close\r\n" in front_end.received[0]
