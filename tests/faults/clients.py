"""Clients that disconnect, resume, stall or send malformed requests."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from tests.helpers import TIMEOUT_S
from tests.processes import Process, Processes

AGENT = "tests.faults.resume_agents:scripted"
FORMATS = ("named", "raw", "chunk", "off")
PATH = "/v1/chat/completions"
Step = Sequence[Any]
_KEEPALIVES = re.compile(rb"(?m)^: keepalive\n")
_IDS = re.compile(rb"(?m)^id: (.+)$")
_RUN_ID = re.compile(rb'"id":"(chatcmpl-[0-9a-f]{32})"')


def request(*steps: Step, **fields: Any) -> dict[str, Any]:
    """Return a request body that makes the scripted agent take these steps."""
    return {"model": "m1", "messages": [{"role": "user", "content": json.dumps(steps)}], **fields}


def frames(raw: bytes) -> list[bytes]:
    """Return the complete frames of a stream that may be cut anywhere, without keepalives."""
    return [frame + b"\n\n" for frame in _KEEPALIVES.sub(b"", raw).split(b"\n\n")[:-1]]


def last_id(whole_frames: list[bytes]) -> str | None:
    """Return the last id, after which a browser would resume."""
    ids = _IDS.findall(b"".join(whole_frames))
    return ids[-1].decode() if ids else None


def run_id_of(raw: bytes) -> str:
    """Return the id of the run in a stream."""
    match = _RUN_ID.search(raw)
    assert match, raw[:300]
    return match[1].decode()


@dataclass
class Client:
    """Sends requests to front ends, with one API key or none."""

    session: aiohttp.ClientSession
    key: str | None = None

    def using(self, key: str | None) -> "Client":
        """Return a client with another API key."""
        return Client(self.session, key)

    async def call(self, method: str, url: str | URL, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request, and return the status and the parsed body of its answer."""
        async with self.session.request(method, url, json=body, headers=self._headers(headers)) as response:
            return response.status, await response.json()

    async def post(self, url: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Send a chat completion request that is not streamed, and return its status and parsed body."""
        return await self.call("POST", url + PATH, body, **headers)

    async def get(self, url: str, run_id: str, query: str = "", **headers: str) -> tuple[int, Any]:
        """Retrieve a run, and return the status and the parsed body."""
        return await self.call("GET", f"{url}{PATH}/{run_id}{query}", **headers)

    @contextlib.asynccontextmanager
    async def streaming(
        self, url: str, body: Any = None, *, run_id: str = "", query: str = "", **headers: str
    ) -> AsyncIterator["RawStream"]:
        """Open the stream of a new run, or of ``run_id``. The connection is cut at the end of the context."""
        if run_id:
            opening = self.session.get(f"{url}{PATH}/{run_id}{query or '?stream=true'}", headers=self._headers(headers))
        else:
            opening = self.session.post(
                f"{url}{PATH}{query}", json={**body, "stream": True}, headers=self._headers(headers)
            )
        async with opening as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            yield RawStream(response)
            response.close()

    async def whole(self, url: str, body: Any = None, *, run_id: str = "", query: str = "", **headers: str) -> bytes:
        """Return the raw bytes of a stream until its proper end."""
        async with self.streaming(url, body, run_id=run_id, query=query, **headers) as stream:
            return await stream.rest()

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return named | ({"Authorization": f"Bearer {self.key}"} if self.key else {})


class RawStream:
    """The raw bytes of one stream, which can be cut anywhere."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self._last = b""  # the last bytes, for the error message if the stream ends too early

    async def read(self, size: int) -> bytes:
        """Return this many bytes, or fewer if the stream ends properly before."""
        try:
            return await self._content.readexactly(size)
        except asyncio.IncompleteReadError as exc:
            return exc.partial

    async def until(self, wanted: bytes) -> bytes:
        """Return the bytes received until ``wanted`` arrived, including the rest of that read."""
        got = bytearray()
        while wanted not in got:
            piece = await self._content.readany()
            assert piece, f"the stream ended before {wanted!r}: {self._last!r}"
            self._last = (self._last + piece)[-1000:]
            got += piece
        return bytes(got)

    async def rest(self) -> bytes:
        """Return all further bytes until the proper end."""
        return await self._content.read()


@contextlib.asynccontextmanager
async def http_client() -> AsyncIterator[Client]:
    """Yield a client with a time limit."""
    timeout = aiohttp.ClientTimeout(total=4 * TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(session)


class RawSocket:
    """One TCP connection that reads only when the test asks it to."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[Self]:
        """Connect. A small receive buffer fills at once if the test reads nothing."""
        where = urlsplit(url)
        with socket.socket() as connection:
            connection.settimeout(0)
            if receive_buffer_bytes is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            raw = cls(connection)
            await raw._loop.sock_connect(connection, (where.hostname, where.port))
            yield raw

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def post(self, body: Any, *, version: str = "1.1", headers: str = "") -> None:
        await self.send(http_post(body, version=version, headers=headers))

    def end_sending(self) -> None:
        """Close the sending half of the connection."""
        self._socket.shutdown(socket.SHUT_WR)

    async def until(self, wanted: bytes) -> bytes:
        """Return the bytes received until ``wanted`` arrived, including the rest of that read."""
        got = bytearray()
        while wanted not in got:
            data = await self._loop.sock_recv(self._socket, 4096)
            assert data, f"the connection ended before {wanted!r}: {bytes(got[-300:])!r}"
            got += data
        return bytes(got)

    async def rest(self) -> tuple[bytes, bool]:
        """Return the bytes received until the connection ends, and whether it ended with a reset."""
        got = bytearray()
        while True:
            try:
                data = await self._loop.sock_recv(self._socket, 1 << 20)
            except ConnectionResetError:
                return bytes(got), True
            if not data:
                return bytes(got), False
            got += data


def http_post(body: Any, *, version: str = "1.1", headers: str = "") -> bytes:
    """Return the bytes of a chat completion request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n{headers}\r\n"
    )
    return head.encode() + content


def decode_chunked(response: bytes) -> tuple[bytes, bool]:
    """Return the body of a chunked response, and whether the last chunk arrived."""
    _, _, rest = response.partition(b"\r\n\r\n")
    body = bytearray()
    for size, start in _chunks(rest):
        if size == 0:
            return bytes(body), True
        body += rest[start : start + size]
    return bytes(body), False


def _chunks(body: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while (line_end := body.find(b"\r\n", at)) != -1:
        size = int(body[at:line_end], 16)
        yield size, line_end + 2
        at = line_end + 2 + size + 2


async def start_frontend(processes: Processes, **settings: str) -> tuple[str, Process]:
    """Start a front end, and return its URL and its process."""
    process = await processes.start("frontend", AGENTSTREAM_PORT="0", **settings)
    return (await process.until(r"serving on (http://\S+)"))[1], process


def resident_bytes(process: Process) -> int:
    """Return the memory that a process uses now (RSS)."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024
