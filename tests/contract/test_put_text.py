"""The pieces of an answer's text on their way to the broker, on fakeredis and real servers."""

import asyncio

import pytest

from agentstream.errors import BufferFull, InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import MAX_EVENT_BYTES
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.outbox import HARD_BUFFER_BYTES, MAX_PLAIN_CHARACTERS
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.connection.link import Link
from tests.helpers import TIMEOUT_S

LIMITS = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=4 << 20)
TEXTS = [
    " plain",
    ' "quoted" \\ \x00\x1f\n\t</script>',
    " Grüße, 日本語 🎈",
    "x" * MAX_PLAIN_CHARACTERS,
    "\x00" * MAX_PLAIN_CHARACTERS,
    "y" * (MAX_PLAIN_CHARACTERS + 1),
]


@pytest.fixture
def bus(link: Link, keys: Keys) -> Bus:
    return Bus(link, keys)


@pytest.fixture
def run_id() -> str:
    return new_run_id()


@pytest.fixture
async def publisher(bus: Bus, run_id: str) -> RunPublisher:
    publisher = bus.publisher(run_id, 1, LIMITS, on_lost=lambda _: None)
    publisher.put("run_started", {})
    async with asyncio.timeout(TIMEOUT_S):
        await publisher.flush()
    return publisher


async def texts_of(bus: Bus, publisher: RunPublisher, run_id: str) -> list[str]:
    async with asyncio.timeout(TIMEOUT_S):
        await publisher.flush()
        return [event.data for event in await bus.history(run_id) if event.type == "text"]


@pytest.mark.parametrize("together", [True, False])
async def test_every_text_arrives_as_it_was_put(
    bus: Bus, publisher: RunPublisher, run_id: str, *, together: bool
) -> None:
    """Plain, escaped, long and non-ASCII texts arrive unchanged and in order, alone in a batch or with others."""
    for text in TEXTS:
        publisher.put_text(text)
        if not together:
            async with asyncio.timeout(TIMEOUT_S):
                await publisher.flush()
    assert publisher.events_put == 1 + len(TEXTS)
    assert await texts_of(bus, publisher, run_id) == TEXTS
    assert publisher.text_characters == sum(map(len, TEXTS))
    assert (publisher.events_put, publisher.unflushed_bytes) == (1 + len(TEXTS), 0)


async def test_texts_of_the_loop_and_of_threads_keep_their_order(
    bus: Bus, publisher: RunPublisher, run_id: str
) -> None:
    """Texts that the event loop and a thread put by turns arrive in this order."""
    for number in range(0, 20, 2):
        publisher.put_text(str(number))
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.to_thread(publisher.put_text, str(number + 1))
    assert await texts_of(bus, publisher, run_id) == list(map(str, range(20)))
    assert publisher.text_characters == 30


async def test_no_text_of_concurrent_threads_is_lost(bus: Bus, publisher: RunPublisher, run_id: str) -> None:
    """While threads and the loop put texts at the same time, each text arrives once, and the counts are exact."""

    def put(name: str) -> None:
        for number in range(200):
            publisher.put_text(f"{name}{number:03}")

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(asyncio.to_thread(put, name))
        for number in range(200):
            publisher.put_text(f"c{number:03}")
            await asyncio.sleep(0)
    texts = await texts_of(bus, publisher, run_id)
    for name in "abc":
        assert [text for text in texts if text[0] == name] == [f"{name}{number:03}" for number in range(200)]
    assert (publisher.events_put, publisher.text_characters, publisher.unflushed_bytes) == (601, 2400, 0)


async def test_a_text_that_is_too_large_is_refused_when_it_is_put(
    bus: Bus, publisher: RunPublisher, run_id: str
) -> None:
    """A text of more than 1 MiB as JSON raises, even if it has fewer characters, and the run goes on."""
    for text in ("x" * MAX_EVENT_BYTES, "\x00" * (MAX_EVENT_BYTES // 6 + 1)):
        with pytest.raises(InvalidAgentOutput, match="the limit is 1048576"):
            publisher.put_text(text)
    publisher.put_text("after")
    assert await texts_of(bus, publisher, run_id) == ["after"]


async def test_texts_are_refused_while_too_many_wait(publisher: RunPublisher) -> None:
    """On the event loop a text is refused while more than 16 MiB wait, and accepted when they are stored."""
    pieces = HARD_BUFFER_BYTES // MAX_PLAIN_CHARACTERS + 1
    for _ in range(pieces):
        publisher.put_text("x" * MAX_PLAIN_CHARACTERS)
    with pytest.raises(BufferFull):
        publisher.put_text("y")
    assert publisher.text_characters == publisher.unflushed_bytes == HARD_BUFFER_BYTES + MAX_PLAIN_CHARACTERS
    async with asyncio.timeout(TIMEOUT_S):
        await publisher.flush()
    publisher.put_text("after")
    assert (publisher.events_put, publisher.unflushed_bytes) == (1 + pieces + 1, len("after"))


async def test_a_closed_run_takes_no_text(publisher: RunPublisher) -> None:
    """After the end of an attempt a text raises RunCancelled, and the number of events stays."""
    publisher.put_text("a")
    publisher.close(RunCancelled("it is over"))
    with pytest.raises(RunCancelled):
        publisher.put_text("b")
    assert (publisher.events_put, publisher.text_characters, publisher.unflushed_bytes) == (2, 1, 0)
