"""What each layer costs by itself, so that a regression names its layer. No I/O: every figure is our own code's.

python -m tests.bench.layers
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import hiredis

from service.agents import Run
from service.frontend.rawwriter import RawWriter
from service.frontend.streaming import Outbox, StreamPump
from service.protocol.events import decode_batch, encode_batch, encode_event
from service.protocol.openai import ChatCompletionRequest
from service.store.endpoint import Endpoint
from service.store.feed import RunFeed
from service.store.link import Link
from service.store.wire import Wire
from service.stream import ChunkStream, StreamHead, StreamOptions
from tests.bench.tokens import WORD
from tests.helpers import RecordingSink

CHANNEL: Final = f"agentstream:{{chatcmpl-{0:032x}}}:events"
HEAD: Final = StreamHead(run_id=f"chatcmpl-{0:032x}", created=1_790_000_000, model="agentstream")
ROUNDS: Final = 7
TOKENS: Final = 8000


def batch(seq: int, tokens: int = 1) -> bytes:
    """Return a message of streamed text."""
    return encode_batch(1, seq, [encode_event("text", WORD)] * tokens)


def push(payload: bytes) -> bytes:
    """Return a message as the broker pushes it over RESP3."""
    parts = (b"message", CHANNEL.encode(), payload)
    return b">3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class Nowhere:
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


class AtOnce(Outbox):
    """An outbox without a loop's turn to wait for."""

    def add(self, pump: StreamPump) -> None:
        """Note it as the real one does, for the flush that follows."""
        self._pumps.append(pump)


def open_pump() -> StreamPump:
    """Return a pump that has begun to write to nobody."""
    writer = RawWriter(Client(), None, write_timeout_s=30)  # type: ignore[arg-type]
    writer._transport = Nowhere()  # type: ignore[assignment]
    pump = StreamPump(ChunkStream(HEAD, StreamOptions()), writer, AtOnce(), replay_word_delay_ms=0)
    pump._started = True
    return pump


def layers() -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Yield (name, how many tokens it is for, what to do once)."""
    encoded = encode_event("text", WORD)
    one, eight = [batch(seq) for seq in range(1, TOKENS + 1)], [batch(1 + 8 * n, 8) for n in range(TOKENS // 8)]
    yield "codec: encode an event and a message of it", TOKENS, lambda: [batch(seq) for seq in range(TOKENS)]
    yield "codec: join 8 events", TOKENS, lambda: [encode_batch(1, seq, [encoded] * 8) for seq in range(TOKENS // 8)]
    yield "codec: decode a message of 1", TOKENS, lambda: [decode_batch(payload) for payload in one]
    yield "codec: decode a message of 8", TOKENS, lambda: [decode_batch(payload) for payload in eight]
    decoded_one, decoded_eight = list(map(decode_batch, one)), list(map(decode_batch, eight))

    def machine(batches: list[Any]) -> None:
        stream = ChunkStream(HEAD, StreamOptions())
        for one_batch in batches:
            stream.receive(one_batch)

    yield "machine: frames of a message of 1", TOKENS, lambda: machine(decoded_one)
    yield "machine: frames of a message of 8", TOKENS, lambda: machine(decoded_eight)

    def pump(batches: list[Any]) -> None:
        client = open_pump()
        for one_batch in batches:
            client.on_batch(one_batch)

    yield "front end: message of 1 to the transport", TOKENS, lambda: pump(decoded_one)

    def whole(wire_bytes: list[bytes]) -> None:
        link = Link(Endpoint("redis://nowhere"), name="bench")
        client = open_pump()
        feed = RunFeed(link, CHANNEL, client)
        feed.open()
        wire = Wire(link._on_reply, link._on_push)
        for data in wire_bytes:
            wire.data_received(data)

    def in_reads(pushes: list[bytes]) -> list[bytes]:
        """Return what arrives, 100 messages in a read."""
        return [b"".join(pushes[at : at + 100]) for at in range(0, len(pushes), 100)]

    reads_one, reads_eight = in_reads([push(payload) for payload in one]), in_reads([push(p) for p in eight])
    yield "bus to client: message of 1, socket to socket", TOKENS, lambda: whole(reads_one)
    yield "bus to client: message of 8, socket to socket", TOKENS, lambda: whole(reads_eight)

    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]})

    def agent() -> None:
        run = Run(HEAD.run_id, request, RecordingSink())
        for _ in range(TOKENS):
            run.write(WORD)

    yield "agent: run.write", TOKENS, agent

    def parse() -> None:
        reader = hiredis.Reader()
        for data in reads_one:
            reader.feed(data)
            while reader.gets() is not False:
                pass

    yield "hiredis alone: parse a message of 1", TOKENS, parse


async def measure() -> list[tuple[str, float]]:
    """Return (layer, us a token), the least of several rounds."""
    results = []
    for name, tokens, act in layers():
        took_s = []
        for _ in range(ROUNDS):
            began_s = time.process_time()
            act()
            took_s.append(time.process_time() - began_s)
        results.append((name, min(took_s) / tokens * 1e6))
    return results


if __name__ == "__main__":
    for layer, cost_us in asyncio.run(measure()):
        print(f"{cost_us:7.3f} us  {layer}")  # noqa: T201 -- the output
