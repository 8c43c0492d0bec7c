"""A model of the feed: lost, duplicated and reordered messages, reconnects, pauses and trims in any order."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final, cast
from unittest import mock

from hypothesis import given, note, settings
from hypothesis import strategies as st

from agentstream.errors import AgentStreamError, LogTrimmed
from agentstream.protocol.events import TEXT, Batch, Cursor, Event, decode_batch, encode_batch, encode_event
from agentstream.store.bus import feed as feed_module
from agentstream.store.bus.feed import RunFeed
from agentstream.store.connection.command import Command
from agentstream.store.connection.server_link import ServerLink

PAGE_ENTRIES: Final = 3  # small, so that a catch-up reads several pages


class ScriptedLink:
    """A link on which commands, replies and messages advance only when the test calls a method."""

    def __init__(self) -> None:
        self.log: list[bytes] = []  # payloads of the entries; the id of an entry is the position of its last event
        self.subscribers: set[RunFeed] = set()
        self.add_subscriber, self.remove_subscriber = self.subscribers.add, self.subscribers.discard
        self.handlers: list[Callable[[bytes], None]] = []
        self.commands: list[tuple[Command, str]] = []  # sent, not executed yet
        self.replies: list[tuple[Command, str, list[Any]]] = []  # executed, reply not received yet

    async def subscribe(self, _channel: bytes, handler: Callable[[bytes], None]) -> None:
        self.handlers.append(handler)

    def unsubscribe(self, _channel: bytes, handler: Callable[[bytes], None]) -> None:
        self.handlers.remove(handler)

    def send(self, *args: Any, on_reply: Callable[[Any], None]) -> Command:
        name, _channel, after, end, _, count = args
        assert (name, end, count) == ("XRANGE", "+", PAGE_ENTRIES)
        command = Command(b"", on_reply)
        self.commands.append((command, after))
        return command

    def push(self, payload: bytes) -> None:
        """Deliver a message."""
        for handler in list(self.handlers):
            handler(payload)

    def execute(self) -> None:
        """Execute the oldest command on the current log."""
        command, after = self.commands.pop(0)
        entries = [
            [b"%d-%d" % last, [b"b", payload]]
            for payload in self.log
            for last in [decode_batch(payload).events()[-1][:2]]
            if after == "-" or last > Cursor.parse(after.removeprefix("("))[:2]
        ]
        self.replies.append((command, after, entries[:PAGE_ENTRIES]))

    def answer(self) -> None:
        """Deliver the oldest reply, unless its command was cancelled."""
        command, _, page = self.replies.pop(0)
        if not command.cancelled:
            command.on_reply(page)

    def reconnect(self) -> None:
        """Lose all replies in flight, and send their commands again."""
        unanswered = [(command, after) for command, after, _ in self.replies] + self.commands
        self.commands = [(command, after) for command, after in unanswered if not command.cancelled]
        self.replies.clear()
        for subscriber in list(self.subscribers):
            subscriber.resync()


class World:
    """A run that publishes, a network that loses, duplicates and reorders messages, and a reader that pauses.

    The model is the list of all published events. The delivered events must always be the beginning of this list, and
    in the end the whole list, unless the feed failed because the log was trimmed before the feed read it.
    """

    def __init__(self, choices: Random) -> None:
        self.choices = choices
        self.link = ScriptedLink()
        self.published: list[Event] = []
        self.messages: list[bytes] = []  # in flight
        self.delivered: list[Event] = []
        self.failures: list[AgentStreamError] = []
        self.attempt, self.seq = 1, 0
        self.pause_at: int | None = None  # the consumer pauses in the callback that reaches this number of events
        self.paused = False
        self.trimmed = False
        self.promised = 0  # number of events that a resumed feed must deliver without another resync
        self.feed = RunFeed(cast("ServerLink", self.link), "log")
        self.feed.deliver_to(self)

    def on_caught_up(self) -> None:
        """Do nothing: the delivered events say it."""

    def on_failure(self, error: AgentStreamError) -> None:
        """Store the failure."""
        self.failures.append(error)

    def on_batch(self, delivered: Batch) -> None:
        """Compare the delivered events with the model."""
        assert delivered.items, "the batch is empty"
        assert not self.failures, "events were delivered after the failure"
        assert not self.paused, "events were delivered during a pause"
        self.delivered += delivered.events()
        assert self.delivered == self.published[: len(self.delivered)], "the delivered events are not the next ones"
        if self.pause_at is not None and len(self.delivered) >= self.pause_at:
            self.pause_at, self.paused, self.promised = None, True, 0
            self.feed.pause()

    async def open(self, past: int) -> None:
        """Open the feed of a new run, or read a run with ``past`` batches from its log."""
        if not past:
            await self.feed.open()
            return
        for _ in range(past):
            self.publish()
        self.messages.clear()
        opening = asyncio.create_task(self.feed.open_from_log())
        await asyncio.sleep(0)
        while self.link.commands:
            self.link.execute()
            self.link.answer()
        assert await opening
        assert self.delivered == self.published

    def check(self) -> None:
        """Assert that the feed failed at most once, and only because the log was trimmed."""
        assert len(self.failures) <= 1
        for failure in self.failures:
            assert isinstance(failure, LogTrimmed), failure
            assert self.trimmed, failure

    # -- the run ------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Append a batch and send it as a message."""
        size = self.choices.randint(1, 4)
        texts_of_batch = [encode_event(TEXT, f"{self.attempt}-{self.seq + number}") for number in range(1, size + 1)]
        payload = encode_batch(self.attempt, self.seq + 1, texts_of_batch)
        self.seq += size
        self.link.log.append(payload)
        self.published += decode_batch(payload).events()
        self.messages.append(payload)

    def next_attempt(self) -> None:
        """Begin a new attempt."""
        self.attempt, self.seq = self.attempt + 1, 0
        self.publish()

    # -- the network --------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Deliver the next message."""
        if self.messages:
            self.link.push(self.messages.pop(0))

    def deliver_out_of_order(self) -> None:
        """Deliver any message."""
        if self.messages:
            self.link.push(self.messages.pop(self.choices.randrange(len(self.messages))))

    def deliver_twice(self) -> None:
        """Deliver the next message, and keep it in flight."""
        if self.messages:
            self.link.push(self.messages[0])

    def lose(self) -> None:
        """Lose a message."""
        if self.messages:
            self.messages.pop(self.choices.randrange(len(self.messages)))

    def execute(self) -> None:
        """Execute a read of the log."""
        if self.link.commands:
            self.link.execute()

    def answer(self) -> None:
        """Deliver the reply of a read."""
        if self.link.replies:
            self.link.answer()

    def reconnect(self) -> None:
        """Reconnect: messages and replies in flight are lost."""
        self.messages.clear()
        self.link.reconnect()

    # -- the reader ---------------------------------------------------------------------------------

    def resync(self) -> None:
        """Compare the feed with the log."""
        self.feed.resync()

    def pause_soon(self) -> None:
        """Pause inside a later ``on_batch``."""
        self.pause_at = len(self.delivered) + self.choices.randint(1, 8)

    def pause(self) -> None:
        """Pause between two batches."""
        self.paused, self.promised = True, 0
        self.feed.pause()

    def resume(self) -> None:
        """Resume after a pause."""
        if self.paused:
            self.paused, self.promised = False, len(self.published)
        self.feed.resume()

    # -- the size limit of the log ------------------------------------------------------------------

    def trim(self) -> None:
        """Trim the beginning of the log, as its size limit does: within an attempt, and never its last entry."""
        kept = self.link.log[self.choices.randint(0, max(0, len(self.link.log) - 1)) :]
        if kept and decode_batch(kept[0]).seq > 1:
            self.link.log, self.trimmed = kept, True

    # -- the end ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Resume and resync until nothing is in flight; assert that the feed has delivered all events or has failed.

        It repeats this because the feed ignores a resync while it reads the log.
        """
        self.pause_at = None
        self.messages.clear()
        self.resume()
        for _ in range(3):
            while self.link.commands or self.link.replies:
                self.execute()
                self.answer()
            assert self.failures or len(self.delivered) >= self.promised, "a resumed feed did not catch up"
            self.feed.resync()
        self.check()
        assert self.failures or self.delivered == self.published


USUAL: Final[dict[Callable[[World], None], int]] = {
    World.publish: 4,
    World.deliver: 5,
    World.execute: 4,
    World.answer: 4,
    World.resume: 1,
}
TROUBLES: Final = (
    *(World.next_attempt, World.deliver_out_of_order, World.deliver_twice, World.lose, World.reconnect),
    *(World.resync, World.pause_soon, World.pause, World.trim, World.settle),
)


@given(
    st.sets(st.sampled_from(TROUBLES), max_size=4),
    st.integers(0, 6),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_a_feed_delivers_every_event_once_and_in_order_or_fails(
    troubles: set[Callable[[World], None]], past: int, seed: int
) -> None:
    """With lost, duplicated and reordered messages and with pauses, a feed delivers all events in order or fails."""
    steps = list(USUAL | dict.fromkeys(sorted(troubles, key=TROUBLES.index), 1))
    weights = [USUAL.get(step, 1) for step in steps]

    async def live() -> None:
        world = World(Random(seed))  # noqa: S311 -- repeatable, not secret
        await world.open(past)
        taken = world.choices.choices(steps, weights, k=120)
        for number, step in enumerate(taken, 1):
            step(world)
            try:
                world.check()
            except AssertionError:
                note(" ".join(taken_step.__name__ for taken_step in taken[:number]))
                raise
        world.settle()
        world.feed.close()

    with mock.patch.object(feed_module, "PAGE_ENTRIES", PAGE_ENTRIES):
        asyncio.run(live())
