"""Parts around the pump and the collector that a test controls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from agentstream.frontend.runs.raw_writer import ClientDisconnected
from agentstream.protocol.events import Event
from agentstream.stream.chat import StreamHead
from tests.helpers import events

HEAD = StreamHead(run_id="chatcmpl-1", created=1, model="m")


Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def connected_to(answer: Answer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve ``answer`` on loopback, and yield the reader and the writer of a connection to it."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()


class FakeWriter:
    """A writer whose client reads everything, except between ``block`` and ``unblock``."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.blocked = False
        self.ended = False
        self.prepared = asyncio.Event()
        self.gone = False
        self.broken = False
        self._writable = asyncio.Event()
        self.waited_blocked = asyncio.Event()

    def block(self) -> None:
        self.blocked = True
        self._writable.clear()

    def unblock(self) -> None:
        self.blocked = False
        self._writable.set()

    async def prepare(self, first: bytes) -> None:
        self.prepared.set()
        self.write(first)

    def write(self, data: bytes) -> bool:
        assert not self.ended
        if self.broken:
            raise ValueError(data)
        if data:
            self.writes.append(data)
        return self.blocked

    async def wait_writable(self) -> None:
        if self.blocked:
            self.waited_blocked.set()
            await self._writable.wait()
        if self.gone:
            raise ClientDisconnected

    async def end(self, last: bytes) -> None:
        await self.wait_writable()
        self.write(last)
        self.ended = True

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)


class FakeFeed:
    """A feed that records the calls of ``pause`` and ``resume``."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")


class FakeDeadlines:
    """Deadlines whose ``check`` returns the value of ``expired``, and that record the times of their other calls."""

    def __init__(self) -> None:
        self.expired: tuple[str, str] | None = None
        self.started_s: list[float] = []
        self.received_s: list[float] = []

    def attempt_started(self, now_s: float) -> None:
        self.started_s.append(now_s)

    def events_received(self, now_s: float) -> None:
        self.received_s.append(now_s)

    def postpone(self, _now_s: float) -> None:
        self.expired = None

    def check(self, _now_s: float) -> tuple[str, str] | None:
        return self.expired


def said(*words: str, first_seq: int = 1) -> list[Event]:
    """Return events with one piece of text each."""
    return events(*(("text", word) for word in words), first_seq=first_seq)
