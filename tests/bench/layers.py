"""What each layer costs by itself, so that a regression names its layer. No I/O: every figure is our own code's.

python -m tests.bench.layers
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import hiredis

from agentstream.agents import Run
from agentstream.frontend.runs.pump import FlushScheduler, StreamPump
from agentstream.frontend.runs.raw_writer import RawWriter
from agentstream.protocol.events import Batch, decode_batch, encode_batch, encode_event
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.bus.feed import RunFeed
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import RespConnection
from agentstream.stream.chat import ChatStream, StreamHead, StreamOptions
from tests.bench.tokens import WORD
from tests.helpers import RecordingSink

CHANNEL: Final = f"agentstream:{{chatcmpl-{0:032x}}}:events"
HEAD: Final = StreamHead(run_id=f"chatcmpl-{0:032x}", created=1_790_000_000, model="agentstream")
ROUNDS: Final = 7
TOKENS: Final = 8000
MESSAGES_IN_A_READ: Final = 100

Layer = tuple[str, Callable[[], Any]]


def batch(seq: int, tokens: int = 1) -> bytes:
    """Return a message of streamed text."""
    return encode_batch(1, seq, [encode_event("text", WORD)] * tokens)


def reads(payloads: Sequence[bytes]) -> list[bytes]:
    """Return messages as the broker pushes them over RESP3, many in a read."""
    channel = CHANNEL.encode()
    pushes = [
        b">3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(payload), payload)
        for payload in payloads
    ]
    step = MESSAGES_IN_A_READ
    return [b"".join(pushes[at : at + step]) for at in range(0, len(pushes), step)]


ONE: Final = [batch(seq) for seq in range(1, TOKENS + 1)]
EIGHT: Final = [batch(1 + 8 * number, 8) for number in range(TOKENS // 8)]


class NullTransport:
    """A transport that takes everything."""

    def write(self, data: bytes) -> None:
        """Take it."""

    def is_closing(self) -> bool:
        """Say no."""
        return False


class Client:
    """A connection that is never blocked, and the request on it, as far as the writer asks."""

    writing_paused = False
    version = (1, 1)

    def __init__(self) -> None:
        """Be one's own protocol."""
        self.protocol = self


class ManualOutbox(FlushScheduler):
    """A scheduler that is flushed by hand: here a read is a turn of the loop."""

    def add(self, pump: StreamPump) -> None:
        """Note it."""
        self._pumps.append(pump)

    def flush(self) -> None:
        """Flush all."""
        self._flush()


def open_pump(flush_scheduler: FlushScheduler) -> StreamPump:
    """Return a pump that has begun to write to nobody."""
    writer = RawWriter(Client(), None, write_timeout_s=30)  # type: ignore[arg-type]
    writer._transport = NullTransport()  # type: ignore[assignment]  # as if prepared
    pump = StreamPump(ChatStream(HEAD, StreamOptions()), writer, flush_scheduler, replay_word_delay_ms=0)
    pump._started = True
    return pump


def codec() -> Iterator[Layer]:
    """Yield what the connection costs."""
    encoded = encode_event("text", WORD)
    yield "codec: encode an event and a message of it", lambda: [batch(seq) for seq in range(TOKENS)]
    yield "codec: join 8 events", lambda: [encode_batch(1, seq, [encoded] * 8) for seq in range(TOKENS // 8)]
    yield "codec: decode a message of 1", lambda: [decode_batch(payload) for payload in ONE]
    yield "codec: decode a message of 8", lambda: [decode_batch(payload) for payload in EIGHT]


def machine() -> Iterator[Layer]:
    """Yield what making frames costs, and writing them."""

    def frames(batches: Sequence[Batch]) -> None:
        stream = ChatStream(HEAD, StreamOptions())
        for one in batches:
            stream.receive(one)

    def pump(batches: Sequence[Batch]) -> None:
        flush_scheduler = ManualOutbox()
        client = open_pump(flush_scheduler)
        for one in batches:
            client.on_batch(one)
            flush_scheduler.flush()

    one, eight = list(map(decode_batch, ONE)), list(map(decode_batch, EIGHT))
    yield "machine: frames of a message of 1", lambda: frames(one)
    yield "machine: frames of a message of 8", lambda: frames(eight)
    yield "front end: a message of 1 to the transport", lambda: pump(one)


def bus() -> Iterator[Layer]:
    """Yield what a message costs from the broker's bytes to the client's transport."""

    def parse(data: Sequence[bytes]) -> None:
        reader = hiredis.Reader()
        for read in data:
            reader.feed(read)
            while reader.gets() is not False:
                pass

    def whole(data: Sequence[bytes]) -> None:
        link, flush_scheduler = Link(Endpoint("redis://nowhere"), name="bench"), ManualOutbox()
        feed = RunFeed(link, CHANNEL)
        feed.deliver_to(open_pump(flush_scheduler))
        feed.open()
        connection = RespConnection(link._on_reply, link._on_push)
        for read in data:
            connection.data_received(read)
            flush_scheduler.flush()

    one, eight = reads(ONE), reads(EIGHT)
    yield "bus: hiredis alone, a message of 1", lambda: parse(one)
    yield "bus to client, all of it: a message of 1", lambda: whole(one)
    yield "bus to client, all of it: a message of 8", lambda: whole(eight)


def agent() -> Iterator[Layer]:
    """Yield what an agent pays for a token."""
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]})

    def write() -> None:
        run = Run(HEAD.run_id, request, RecordingSink())
        for _ in range(TOKENS):
            run.write(WORD)

    yield "agent: run.write", write


async def measure() -> list[tuple[str, float]]:
    """Return (layer, us a token), the least of several rounds."""
    results = []
    for name, act in chain(codec(), machine(), bus(), agent()):
        took_s = []
        for _ in range(ROUNDS):
            began_s = time.process_time()
            act()
            took_s.append(time.process_time() - began_s)
        results.append((name, min(took_s) / TOKENS * 1e6))
    return results


if __name__ == "__main__":
    for layer, cost_us in asyncio.run(measure()):
        print(f"{cost_us:7.3f} us  {layer}")
