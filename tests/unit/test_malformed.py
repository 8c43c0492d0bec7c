"""An invalid item after valid ones: in the stream machine, and all the way from a message to a client."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson
import pytest

from agentstream.errors import STREAM_LOST, BusError, RunFailed
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.pump import FlushScheduler, StreamPump
from agentstream.frontend.runs.raw_writer import RawWriter
from agentstream.protocol.events import Batch
from agentstream.store.bus.feed import Consumer, RunFeed
from agentstream.store.connection.command import Command
from agentstream.store.connection.server_link import ServerLink
from agentstream.stream.chat import ChatStream, StreamHead, StreamOptions
from agentstream.stream.views import CHAT_VIEW
from tests.helpers import TIMEOUT_S, decode, texts

HEAD = StreamHead(run_id="chatcmpl-1", created=1, model="m")
NO_EVENTS: list[Any] = [7, None, {}, [], ["x"], [1, {}], [["x"], {}]]


def payload(seq: int, *items: Any) -> bytes:
    """Return a message as another process sends it."""
    return orjson.dumps({"v": 1, "a": 1, "s": seq, "e": items})


class OneRunLink:
    """A link with one channel and one replay log."""

    def __init__(self) -> None:
        subscribers: set[RunFeed] = set()
        self.add_subscriber, self.remove_subscriber = subscribers.add, subscribers.discard
        self.handler: Callable[[bytes], None] | None = None
        self.log: list[bytes] = []

    def subscribe(self, _channel: bytes, handler: Callable[[bytes], None]) -> asyncio.Future[None]:
        self.handler = handler
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def unsubscribe(self, _channel: bytes, _handler: Callable[[bytes], None]) -> None:
        self.handler = None

    def send(self, *_words: object, on_reply: Callable[[Any], None]) -> Command:
        entries = [[b"1-1", [b"b", entry]] for entry in self.log]
        asyncio.get_running_loop().call_soon(on_reply, entries)
        return Command(b"", on_reply)

    def push(self, message: bytes) -> None:
        assert self.handler is not None
        self.handler(message)

    def feed(self, consumer: Consumer) -> RunFeed:
        feed = RunFeed(cast("ServerLink", self), "channel")
        feed.deliver_to(consumer)
        return feed


class FastClient:
    """A client that accepts all bytes at once."""

    def __init__(self) -> None:
        self.sent = b""
        self.ended = False

    async def prepare(self, first: bytes) -> None:
        self.sent += first

    def write(self, data: bytes) -> bool:
        self.sent += data
        return False

    async def wait_writable(self) -> None:
        """Return at once."""

    async def end(self, last: bytes) -> None:
        self.sent += last
        self.ended = True


@pytest.mark.parametrize("item", NO_EVENTS, ids=repr)
def test_the_machine_refuses_an_invalid_item(item: Any) -> None:
    """``receive`` raises BusError with the item's position, and the machine can still send an error frame."""
    machine = ChatStream(HEAD, StreamOptions())
    with pytest.raises(BusError, match=r"1-3"):
        machine.receive(Batch(1, 1, ["a", "b", item, "c"]))
    machine.fail("x", "y")
    messages = decode(b"".join(machine.tail or ()))
    assert messages[-2][1]["agent_error"]["code"] == "x"
    assert messages[-1] == (None, "[DONE]")


@pytest.mark.parametrize("item", NO_EVENTS, ids=repr)
async def test_a_stream_ends_at_an_invalid_message(item: Any) -> None:
    """The stream sends the events before the invalid message, and then an error frame that names the position."""
    link, client = OneRunLink(), FastClient()
    pump = StreamPump(
        ChatStream(HEAD, StreamOptions()), cast("RawWriter", client), FlushScheduler(), replay_word_delay_ms=0
    )
    feed = link.feed(pump)
    await feed.open()
    running = asyncio.create_task(pump.run())
    link.push(payload(1, "a"))
    link.push(payload(2, "b", item, "c"))
    assert link.handler is None
    async with asyncio.timeout(TIMEOUT_S):
        await running
    messages = decode(client.sent)
    assert texts(messages) == ["a", "\n\n", messages[-2][1]["choices"][0]["delta"]["content"]]
    error = messages[-2][1]["agent_error"]
    assert error["code"] == STREAM_LOST
    assert "events from 1-2 on" in error["message"]
    assert messages[-1] == (None, "[DONE]")
    assert client.ended
    assert not pump.ended


async def test_an_invalid_log_ends_open_from_log_and_the_collector() -> None:
    """If the replay log has an invalid item, ``open_from_log`` and a collector's wait raise an error that names it."""
    link, collector = OneRunLink(), Collector(CHAT_VIEW.fold(HEAD))
    link.log = [payload(1, "a"), payload(2, "b", 7)]
    feed = link.feed(collector)
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(BusError, match="events from 1-2 on"):
            await feed.open_from_log()
        with pytest.raises(RunFailed, match="events from 1-2 on"):
            await collector.wait_ended()
    assert collector.fold.body()["choices"][0]["message"]["content"] == "a"
    assert not collector.ended
