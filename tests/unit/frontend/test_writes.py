"""The writes to the client's socket: aiohttp's headers and framing, and the frames of the pump."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop
from aiohttp import web

from agentstream.frontend.runs.pump import FlushScheduler, StreamPump
from agentstream.frontend.runs.raw_writer import RawWriter, StreamedResponse
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import Event
from agentstream.stream.chat import ChatStream, StreamOptions
from tests.helpers import TIMEOUT_S, batch, completed, events
from tests.unit.frontend.fakes import HEAD, FakeDeadlines, connected_to

LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class RecordingTransport:
    """A transport that records each write and passes it on."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(bytes(data))
        self._transport.write(data)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Exchange:
    """The writes of one streamed answer, and the bytes that its client has received."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.received = b""

    async def stream(self, *turns: list[Event], before: tuple[Event, ...] = (), version: str = "1.1") -> None:
        """Stream events, each list in its own turn of the event loop, and ``before`` ahead of the headers."""

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            request.protocol.transport = cast("Any", RecordingTransport(request.transport, self.writes))
            response = StreamedResponse()
            writer = RawWriter(request, response, write_timeout_s=TIMEOUT_S)
            pump = StreamPump(ChatStream(HEAD, StreamOptions()), writer, FlushScheduler(), replay_word_delay_ms=0)
            pump.attach(cast("Any", None), cast("Deadlines", FakeDeadlines()))
            if before:
                pump.on_batch(batch(list(before)))
            running = asyncio.create_task(pump.run())
            for turn in turns:
                for _ in range(5):
                    await asyncio.sleep(0)
                pump.on_batch(batch(turn))
            await running
            return response

        async with connected_to(answer) as (reader, writer):
            writer.write(f"GET / HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            self.received = await reader.read()


def stream(loop_factory: LoopFactory, *turns: list[Event], **options: Any) -> Exchange:
    """Stream events on an event loop and return what was exchanged."""
    exchange = Exchange()

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await exchange.stream(*turns, **options)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())
    assert b"".join(exchange.writes) == exchange.received
    return exchange


TURN = ("agent_turn_start", {"agent": "a"})


@LOOPS
def test_a_short_run_takes_three_writes(loop_factory: LoopFactory) -> None:
    """The headers leave with the role chunk, and the last frames with the end of the body."""
    exchange = stream(loop_factory, events(TURN), events(completed("one two"), first_seq=2))
    opening, event, ending = exchange.writes
    assert opening.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"assistant"' in opening
    assert b"event: agent_turn_start" in event
    assert b'"one"' in ending
    assert ending.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@LOOPS
def test_a_run_that_ends_in_one_turn_takes_two_writes(loop_factory: LoopFactory) -> None:
    """Events that arrive in one turn of the event loop with the terminal event leave with its frames."""
    exchange = stream(loop_factory, events(TURN, completed("one")))
    assert len(exchange.writes) == 2
    assert exchange.writes[1].index(b"agent_turn_start") < exchange.writes[1].index(b'"one"')
    assert exchange.writes[1].endswith(b"\r\n0\r\n\r\n")


@LOOPS
def test_events_before_the_headers_leave_with_them(loop_factory: LoopFactory) -> None:
    """Events that arrive before the headers are sent leave in the write of the headers, after the role chunk."""
    before = (Event(1, 1, *TURN),)
    exchange = stream(loop_factory, events(completed("one"), first_seq=2), before=before)
    assert len(exchange.writes) == 2
    assert exchange.writes[0].index(b'"assistant"') < exchange.writes[0].index(b"agent_turn_start")


@LOOPS
def test_many_bytes_before_the_headers_follow_them(loop_factory: LoopFactory) -> None:
    """The headers do not wait for a client that has many bytes to read first, and no byte is lost."""
    big = "x" * 100_000
    before = (Event(1, 1, "text", big),)
    exchange = stream(loop_factory, events(completed(), first_seq=2), before=before)
    assert exchange.writes[0].endswith(b"\r\n\r\n")
    assert b'"assistant"' in exchange.writes[1]
    assert big.encode() in exchange.writes[1]


@LOOPS
def test_an_http_1_0_stream_has_no_chunks(loop_factory: LoopFactory) -> None:
    """In HTTP/1.0 the body is the frames alone, and the end of the connection ends it."""
    exchange = stream(loop_factory, events(completed("one")), version="1.0")
    head, _, body = exchange.received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"id: 0-0\n")
    assert body.endswith(b"data: [DONE]\n\n")
