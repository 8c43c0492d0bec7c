"""A pump that writes to a real socket whose client stops reading, on asyncio's event loop and on uvloop."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
import uvloop
from aiohttp import web

from agentstream.frontend.runs.pump import FlushScheduler, StreamPump
from agentstream.frontend.runs.raw_writer import RawWriter
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import TEXT, Event
from agentstream.store.bus.feed import RunFeed
from agentstream.stream.chat import ChatStream, StreamOptions
from tests.helpers import TIMEOUT_S, batch, completed
from tests.unit.frontend.fakes import HEAD, connected_to

PIECE = "x" * 60_000
MAX_PIECES = 2000  # 120 MB: more than the buffers of any socket hold


class Feed:
    """A feed that records the calls of ``pause`` and ``resume``."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.resumed = asyncio.Event()

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")
        self.resumed.set()


class NoDeadlines:
    """Deadlines that do nothing."""

    def attempt_started(self, now_s: float) -> None:
        """Do nothing."""

    def postpone(self, now_s: float) -> None:
        """Do nothing."""


async def stall_and_read() -> None:
    """Write in one turn of the event loop until the feed is paused; then read the stream to its end."""
    feed, pumps = Feed(), asyncio.Queue[StreamPump]()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        writer = RawWriter(request, response, write_timeout_s=TIMEOUT_S)
        pump = StreamPump(ChatStream(HEAD, StreamOptions()), writer, FlushScheduler(), replay_word_delay_ms=0)
        pump.attach(cast("RunFeed", feed), cast("Deadlines", NoDeadlines()))
        pumps.put_nowait(pump)
        await pump.run()
        return response

    async with connected_to(answer) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"assistant")
        pump, sent = await pumps.get(), 0
        while not feed.calls and sent < MAX_PIECES:
            sent += 1
            pump.on_batch(batch([Event(1, sent, TEXT, PIECE)]))
        assert feed.calls == ["pause"]
        reading = asyncio.create_task(reader.read())  # reads to the end: no further read can block
        await feed.resumed.wait()
        pump.on_batch(batch([Event(1, sent + 1, *completed())]))
        body = await reading
        assert feed.calls == ["pause", "resume"]
        assert body.count(b'"content":"' + PIECE.encode() + b'"') == sent
        assert body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_client_that_stops_reading_pauses_the_feed_until_it_reads(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The feed is paused in the turn of the event loop that fills the socket; a client that reads again gets all."""

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await stall_and_read()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())
