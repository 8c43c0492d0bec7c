"""The memory of a run whose reader has left is free at once, without a search for cycles."""

import gc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentstream.frontend.context import Context
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.pump import FlushScheduler, StreamPump
from agentstream.frontend.runs.raw_writer import RawWriter
from agentstream.frontend.runs.source import leave
from agentstream.frontend.runs.watcher import Deadlines, Watcher
from agentstream.store.bus.feed import RunFeed
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.server_link import ServerLink
from agentstream.stream.chat import ChatStream, StreamOptions
from agentstream.stream.views import CHAT_VIEW
from tests.unit.frontend.fakes import HEAD, FakeWriter

METRICS = SimpleNamespace(reader_closed=lambda _reader: None)
Reader = StreamPump | Collector


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """Switch Python's garbage collector off."""
    gc.disable()
    yield
    gc.enable()


def deadlines(feed: RunFeed) -> Deadlines:
    return Deadlines(feed, 0.0, queue_timeout_s=1, run_timeout_s=1)


def streaming(feed: RunFeed) -> tuple[Reader, weakref.ref[Any]]:
    """Return a pump on this feed, and a reference to its writer, which only the pump holds."""
    writer = FakeWriter()
    machine = ChatStream(HEAD, StreamOptions())
    pump = StreamPump(machine, cast("RawWriter", writer), FlushScheduler(), replay_word_delay_ms=0)
    pump.attach(feed, deadlines(feed))
    return pump, weakref.ref(writer)


def collecting(feed: RunFeed) -> tuple[Reader, weakref.ref[Any]]:
    """Return a collector on this feed, and a reference to it."""
    collector = Collector(CHAT_VIEW.fold(HEAD), feed)
    collector.attach(deadlines(feed))
    return collector, weakref.ref(collector)


@pytest.mark.parametrize("read", [streaming, collecting])
async def test_a_reader_that_leaves_is_freed(read: Callable[[RunFeed], tuple[Reader, weakref.ref[Any]]]) -> None:
    """After ``leave`` nothing refers to the reader of a run, so that also the request's memory is free."""
    context = cast("Context", SimpleNamespace(watcher=Watcher(), metrics=METRICS))
    feed = RunFeed(ServerLink(Endpoint("redis://nowhere"), name="test"), "channel")
    reader, alive = read(feed)
    feed.deliver_to(reader)
    feed.open()
    context.watcher.add(reader)
    leave(context, reader, feed)
    del reader, feed
    assert alive() is None
