"""The contract of the event bus, on fakeredis and real servers."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from agentstream.errors import AgentStreamError, BusError, Fenced, InvalidAgentOutput, LogTrimmed, RunCancelled
from agentstream.protocol.events import Batch, Event, encode_batch, encode_event
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.connection.cluster_link import ClusterLink
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.server_link import ServerLink
from tests.helpers import TIMEOUT_S

LIMITS = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=1 << 20)


class Reader:
    """Collects the events of a feed."""

    def __init__(self, bus: Bus, run_id: str) -> None:
        self.events: list[Event] = []
        self.failure: AgentStreamError | None = None
        self.feed = bus.feed(run_id)
        self.feed.deliver_to(self)
        self.when: Callable[[Sequence[Event]], None] = lambda _: None
        self._news = asyncio.Event()

    def on_batch(self, batch: Batch) -> None:
        events = batch.events()
        self.events.extend(events)
        self.when(events)
        self._news.set()

    def on_caught_up(self) -> None:
        """Do nothing: the delivered events say it."""

    def on_failure(self, error: AgentStreamError) -> None:
        self.failure = error
        self._news.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not done():
                self._news.clear()
                await self._news.wait()

    async def until_count(self, count: int) -> None:
        await self.until(lambda: len(self.events) >= count)

    @property
    def texts(self) -> list[str]:
        return [event.data for event in self.events if event.type == "text"]

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.events]


@pytest.fixture
def run_id() -> str:
    return new_run_id()


@pytest.fixture
def bus(link: Link, keys: Keys) -> Bus:
    return Bus(link, keys)


@pytest.fixture
def other_bus(other_link: Link, keys: Keys) -> Bus:
    return Bus(other_link, keys)


@pytest.fixture
async def reader(bus: Bus, run_id: str) -> AsyncIterator[Reader]:
    reader = Reader(bus, run_id)
    await reader.feed.open()
    yield reader
    reader.feed.close()


def publisher(bus: Bus, run_id: str, attempt: int = 1, limits: LogLimits = LIMITS) -> RunPublisher:
    return bus.publisher(run_id, attempt, limits, on_lost=lambda _: None)


def publish_on(link: Link) -> str:
    """Return the command that publishes to the channel of a run."""
    return "SPUBLISH" if isinstance(link, ClusterLink) else "PUBLISH"


@contextlib.asynccontextmanager
async def deaf(link: Link, channel: str) -> AsyncIterator[None]:
    """Lose the next message of the channel, as a lost connection or a full output buffer does."""
    name = channel.encode()
    links = link._links.values() if isinstance(link, ClusterLink) else [cast("ServerLink", link)]
    [handlers] = [one._channels.handlers for one in links if name in one._channels.handlers]
    handler = handlers[name]
    lost = asyncio.Event()
    handlers[name] = lambda _payload: lost.set()
    yield
    async with asyncio.timeout(TIMEOUT_S):
        await lost.wait()
    handlers[name] = handler


async def test_delivers_everything_once_and_in_order(other_bus: Bus, reader: Reader, run_id: str) -> None:
    """Another process receives every published event once and in order."""
    writer = publisher(other_bus, run_id)
    for number in range(500):
        writer.put("text", f"{number} ")
        if number % 7 == 0:
            await asyncio.sleep(0)
    writer.put("run_completed", {"usage": {}})
    await writer.flush()
    await reader.until_count(501)
    assert reader.texts == [f"{number} " for number in range(500)]
    assert reader.seqs == list(range(1, 502))


async def test_threads_may_publish(other_bus: Bus, reader: Reader, run_id: str) -> None:
    """Events put from a thread arrive in that thread's order."""
    writer = publisher(other_bus, run_id)

    def put_all() -> None:
        for number in range(300):
            writer.put("text", str(number))

    thread = threading.Thread(target=put_all)
    thread.start()
    await reader.until_count(300)
    thread.join()
    assert reader.texts == [str(number) for number in range(300)]


async def test_runs_do_not_mix(bus: Bus, other_bus: Bus, reader: Reader, run_id: str) -> None:
    """A reader of one run never sees another run's events."""
    other = Reader(bus, other_run := new_run_id())
    await other.feed.open()
    one, two = publisher(other_bus, run_id), publisher(other_bus, other_run)
    for number in range(50):
        one.put("text", f"one {number}")
        two.put("text", f"two {number}")
    await reader.until_count(50)
    await other.until_count(50)
    assert all(text.startswith("one") for text in reader.texts)
    assert all(text.startswith("two") for text in other.texts)
    other.feed.close()


async def test_late_reader_reads_the_log(bus: Bus, other_bus: Bus, run_id: str) -> None:
    """A late reader gets the whole run from the log, in several pages, and then live events."""
    writer = publisher(other_bus, run_id)
    for number in range(100):
        writer.put("text", str(number))
        await writer.flush()
    late = Reader(bus, run_id)
    await late.feed.open_from_log()
    await late.until_count(100)
    writer.put("text", "live")
    await late.until_count(101)
    assert late.texts == [*map(str, range(100)), "live"]
    late.feed.close()


async def test_lost_message_is_read_from_the_log(
    link: Link, bus: Bus, other_bus: Bus, reader: Reader, run_id: str, keys: Keys
) -> None:
    """After a lost message, the next message makes the reader read the missing events from the log."""
    writer = publisher(other_bus, run_id)
    writer.put("text", "a")
    await reader.until_count(1)
    async with deaf(link, keys.events(run_id)):
        writer.put("text", "b")
        await writer.flush()
    writer.put("text", "c")
    await reader.until_count(3)
    assert reader.texts == ["a", "b", "c"]
    assert (bus.feed_counts.catch_ups["gap"], bus.feed_counts.gaps) == (1, 1)


async def test_resync_finds_a_lost_last_message(
    link: Link, other_bus: Bus, reader: Reader, run_id: str, keys: Keys
) -> None:
    """If the last message is lost, ``resync`` reads its events from the log."""
    writer = publisher(other_bus, run_id)
    async with deaf(link, keys.events(run_id)):
        writer.put("run_completed", {})
        await writer.flush()
    assert reader.events == []
    reader.feed.resync()
    await reader.until_count(1)


async def test_duplicates_are_skipped(link: Link, reader: Reader, run_id: str, keys: Keys) -> None:
    """If a message arrives twice or overlaps with earlier messages, each event is delivered once."""
    channel = keys.events(run_id)
    ab = encode_batch(1, 1, [encode_event("text", "a"), encode_event("text", "b")])
    bc = encode_batch(1, 2, [encode_event("text", "b"), encode_event("text", "c")])
    for payload in (ab, ab, bc):
        await link.call(publish_on(link), channel, payload)
    await reader.until_count(3)
    assert reader.texts == ["a", "b", "c"]


async def test_paused_reader_gets_everything_later(other_bus: Bus, reader: Reader, run_id: str) -> None:
    """Events that arrive during a pause are delivered from the log after the pause."""
    writer = publisher(other_bus, run_id)
    writer.put("text", "a")
    await reader.until_count(1)
    reader.feed.pause()
    for number in range(80):
        writer.put("text", str(number))
        await writer.flush()
    assert reader.texts == ["a"]
    reader.feed.resume()
    await reader.until_count(81)
    writer.put("text", "z")
    await reader.until_count(82)
    assert reader.texts == ["a", *map(str, range(80)), "z"]


async def test_reader_may_pause_in_the_middle_of_the_log(bus: Bus, other_bus: Bus, run_id: str) -> None:
    """If the consumer pauses while the feed reads the log, the feed continues at the same event after the pause."""
    writer = publisher(other_bus, run_id)
    for number in range(50):
        writer.put("text", str(number))
        await writer.flush()
    late = Reader(bus, run_id)
    late.when = lambda _: late.feed.pause()
    await late.feed.open_from_log()
    for count in range(1, 51):
        await late.until_count(count)
        assert len(late.events) == count
        late.feed.resume()
    assert late.texts == [*map(str, range(50))]
    late.feed.close()


async def test_older_attempt_is_fenced(bus: Bus, other_bus: Bus, reader: Reader, run_id: str) -> None:
    """After the next attempt has begun, the older attempt raises Fenced, and readers do not get its later events."""
    old, new = publisher(bus, run_id, 1), publisher(other_bus, run_id, 2)
    old.put("text", "old")
    await old.flush()
    new.put("run_started", {})
    await new.flush()
    old.put("text", "zombie")
    with pytest.raises(Fenced):
        await old.flush()
    with pytest.raises(RunCancelled):
        old.put("text", "more")
    new.put("text", "new")
    await reader.until_count(3)
    assert reader.texts == ["old", "new"]
    assert [event.attempt for event in reader.events] == [1, 2, 2]


async def test_batch_sent_again_is_stored_once(link: Link, reader: Reader, run_id: str, keys: Keys) -> None:
    """A batch that is sent again after a lost reply is stored and published once."""
    payload = encode_batch(1, 1, [encode_event("text", "a")])
    channel = keys.events(run_id)
    names = [channel, keys.run(run_id)]
    arguments = ("1-1", payload, 1, "", "", 10)
    assert await link.call_script("publish", names, *arguments) == b"OK"
    assert await link.call_script("publish", names, *arguments) == b"DUPLICATE"
    assert await link.call("XLEN", channel) == 1
    await reader.until_count(1)
    assert reader.texts == ["a"]


async def test_a_lost_log_is_stored_again(
    link: Link, bus: Bus, other_bus: Bus, reader: Reader, run_id: str, keys: Keys
) -> None:
    """If the broker lost the log, the publisher stores it again, and old and new readers get every event once."""
    writer = publisher(other_bus, run_id)
    for text in "abc":
        writer.put("text", text)
        await writer.flush()
    await link.call("DEL", keys.events(run_id))
    writer.put("text", "d")
    await writer.flush()
    await reader.until_count(4)
    late = Reader(bus, run_id)
    await late.feed.open_from_log()
    await late.until_count(4)
    assert reader.texts == late.texts == ["a", "b", "c", "d"]
    late.feed.close()


async def test_log_is_trimmed_at_its_limit(
    bus: Bus, other_bus: Bus, reader: Reader, run_id: str, link: Link, keys: Keys
) -> None:
    """The log is trimmed at its size limit, live readers miss no event, and a late reader gets LogTrimmed."""
    limits = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=64 << 10)
    writer = publisher(other_bus, run_id, limits=limits)
    for _ in range(300):
        writer.put("text", "x" * 1000)
        await writer.flush()
    await reader.until_count(300)
    assert int(await link.call("XLEN", keys.events(run_id))) < 250  # trimming is approximate, in blocks of 100
    late = Reader(bus, run_id)
    with pytest.raises(LogTrimmed):
        await late.feed.open_from_log()
    assert isinstance(late.failure, LogTrimmed)


async def test_log_has_a_ttl(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """A log has the open TTL from its first entry on, and the closed TTL after the end of the run."""
    writer = publisher(bus, run_id)
    writer.put("run_started", {})
    await writer.flush()
    assert 90 < await link.call("TTL", keys.events(run_id)) <= 100
    writer.put("run_completed", {})
    await writer.flush()
    assert 0 < await link.call("TTL", keys.events(run_id)) <= 10


async def test_failing_consumer_gets_on_failure(other_bus: Bus, reader: Reader, run_id: str) -> None:
    """If the consumer raises an error, the feed calls its ``on_failure``."""

    def fail(_events: Sequence[Event]) -> None:
        message = "broken on purpose"
        raise ValueError(message)

    reader.when = fail
    publisher(other_bus, run_id).put("text", "a")
    await reader.until(lambda: reader.failure is not None)
    assert "could not be handled: ValueError" in str(reader.failure)


async def test_foreign_message_fails_the_feed(link: Link, reader: Reader, run_id: str, keys: Keys) -> None:
    """A message that is not a batch ends the feed with BusError."""
    await link.call(publish_on(link), keys.events(run_id), "nonsense")
    await reader.until(lambda: reader.failure is not None)
    assert isinstance(reader.failure, BusError)


async def test_unserialisable_event_is_refused(bus: Bus, run_id: str) -> None:
    """``put`` refuses an event that is not JSON or too large, and nothing of it is published."""
    writer = publisher(bus, run_id)
    for data in ({"x": object()}, {"x": "y" * (1 << 20)}, {"x": {object(): 2}}):
        with pytest.raises(InvalidAgentOutput):
            writer.put("note", data)
    await writer.flush()


async def test_two_readers_of_one_run_share_a_link(bus: Bus, other_bus: Bus, reader: Reader, run_id: str) -> None:
    """Two readers of one run on one link both get every event, and closing one does not affect the other."""
    second = Reader(bus, run_id)
    await second.feed.open()
    writer = publisher(other_bus, run_id)
    writer.put("text", "a")
    await reader.until_count(1)
    await second.until_count(1)
    second.feed.close()
    writer.put("text", "b")
    await reader.until_count(2)
    assert (reader.texts, second.texts) == (["a", "b"], ["a"])


@pytest.mark.one_server
async def test_survives_killed_connections(
    any_broker_url: str, link: Link, other_link: Link, other_bus: Bus, reader: Reader, run_id: str
) -> None:
    """If connections are killed repeatedly while a run is streamed, every event is delivered once."""
    if "protocol=2" in any_broker_url:
        pytest.skip("fakeredis cannot kill a client's connection")
    admin = Endpoint(any_broker_url).redis()
    writer = publisher(other_bus, run_id)
    for number in range(200):
        writer.put("text", str(number))
        if number % 40 == 20:
            victims = [
                c
                for c in await admin.client_list()
                if c["name"].startswith("agentstream") or c["name"].startswith("test")
            ]
            for victim in victims:
                await admin.client_kill_filter(_id=victim["id"])
        await asyncio.sleep(0.002)
    await writer.flush()
    await reader.until_count(200)
    assert reader.texts == [str(number) for number in range(200)]
    assert link.reconnects + other_link.reconnects >= 5
    await admin.aclose()
