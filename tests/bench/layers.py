"""Measures each layer alone, without I/O, so that a regression shows its layer: ``python -m tests.bench.layers``."""

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
from agentstream.store.connection.server_link import ServerLink
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
    """Return a batch of streamed text."""
    return encode_batch(1, seq, [encode_event("text", WORD)] * tokens)


def reads(payloads: Sequence[bytes]) -> list[bytes]:
    """Return the bytes of RESP3 push messages, MESSAGES_IN_A_READ per read."""
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
    """A transport that accepts and drops all data."""

    def write(self, data: bytes) -> None:
        """Drop the data."""

    def is_closing(self) -> bool:
        """Return False."""
        return False


class Client:
    """A connection that never blocks, and its request, with the attributes that the writer uses."""

    writing_paused = False
    version = (1, 1)

    def __init__(self) -> None:
        """Use this object as its own protocol."""
        self.protocol = self


class ManualOutbox(FlushScheduler):
    """A scheduler that the benchmark flushes after each read, as the event loop would after each turn."""

    def add(self, pump: StreamPump) -> None:
        """Add a pump to the next flush."""
        self._pumps.append(pump)

    def flush(self) -> None:
        """Flush all pumps."""
        self._flush()


def open_pump(flush_scheduler: FlushScheduler) -> StreamPump:
    """Return a started pump whose transport drops all data."""
    writer = RawWriter(Client(), None, write_timeout_s=30)  # type: ignore[arg-type]
    writer._transport = NullTransport()  # type: ignore[assignment]  # instead of prepare()
    pump = StreamPump(ChatStream(HEAD, StreamOptions()), writer, flush_scheduler, replay_word_delay_ms=0)
    pump._started = True
    return pump


def codec() -> Iterator[Layer]:
    """Yield the layers that encode and decode batches."""
    encoded = encode_event("text", WORD)
    yield "codec: encode an event and a batch of 1", lambda: [batch(seq) for seq in range(TOKENS)]
    yield "codec: join 8 events", lambda: [encode_batch(1, seq, [encoded] * 8) for seq in range(TOKENS // 8)]
    yield "codec: decode a batch of 1", lambda: [decode_batch(payload) for payload in ONE]
    yield "codec: decode a batch of 8", lambda: [decode_batch(payload) for payload in EIGHT]


def machine() -> Iterator[Layer]:
    """Yield the layers that create frames and write them."""

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
    yield "stream machine: frames of a batch of 1", lambda: frames(one)
    yield "stream machine: frames of a batch of 8", lambda: frames(eight)
    yield "front end: a batch of 1 to the transport", lambda: pump(one)


def bus() -> Iterator[Layer]:
    """Yield the layers from the bytes of the broker to the transport of the client."""

    def parse(data: Sequence[bytes]) -> None:
        reader = hiredis.Reader()
        for read in data:
            reader.feed(read)
            while reader.gets() is not False:
                pass

    def whole(data: Sequence[bytes]) -> None:
        link, flush_scheduler = ServerLink(Endpoint("redis://nowhere"), name="bench"), ManualOutbox()
        feed = RunFeed(link, CHANNEL)
        feed.deliver_to(open_pump(flush_scheduler))
        feed.open()
        connection = RespConnection(link._on_reply, link._on_push)
        for read in data:
            connection.data_received(read)
            flush_scheduler.flush()

    one, eight = reads(ONE), reads(EIGHT)
    yield "bus: only hiredis, a batch of 1", lambda: parse(one)
    yield "from bus to client: a batch of 1", lambda: whole(one)
    yield "from bus to client: a batch of 8", lambda: whole(eight)


def agent() -> Iterator[Layer]:
    """Yield the cost of a token for an agent."""
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]})

    def write() -> None:
        run = Run(HEAD.run_id, request, RecordingSink())
        for _ in range(TOKENS):
            run.write(WORD)

    yield "agent: run.write", write


async def measure() -> list[tuple[str, float]]:
    """Return (layer, us per token) for each layer, the minimum of several rounds."""
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
