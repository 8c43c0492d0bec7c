"""The event bus: workers write the events of runs to it, and front ends read them from it."""

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakSet

from agentstream.errors import AgentStreamError, LogTrimmed
from agentstream.protocol.events import START, Cursor, Event, decode_batch
from agentstream.protocol.keys import Keys
from agentstream.store.bus.appender import Appender
from agentstream.store.bus.counts import FeedCounts, PublishCounts
from agentstream.store.bus.feed import PAGE_ENTRIES, RunFeed
from agentstream.store.bus.publisher import Holder, LogLimits, RunPublisher
from agentstream.store.connection.link import Link


class StoredCheckpoint(NamedTuple):
    """A checkpoint of a run, as its worker packed it, and the position of its event in the replay log."""

    position: Cursor
    content: bytes


class Bus:
    """Creates feeds and publishers of runs. They all share one link."""

    def __init__(self, link: Link, keys: Keys, gather_s: float = 0) -> None:
        """Store the link and the keys. A batch of streamed text waits for others for at most ``gather_s``."""
        self._link = link
        self._keys = keys
        self._appender = Appender(link, gather_s)
        self._publishers: WeakSet[RunPublisher] = WeakSet()
        link.on_reconnect[self._verify_all] = None
        self.feed_counts = FeedCounts()

    @property
    def publish_counts(self) -> PublishCounts:
        """The counters of all publishers."""
        return self._appender.counts

    def feed(self, run_id: str) -> RunFeed:
        """Return a feed of the run's events. It has not subscribed yet, and has no consumer."""
        return RunFeed(self._link, self._keys.events(run_id), self.feed_counts)

    def publisher(  # noqa: PLR0913, PLR0917 -- the parts of an attempt
        self,
        run_id: str,
        attempt: int,
        limits: LogLimits,
        on_lost: Callable[[AgentStreamError], None],
        first_batch: bytes | None = None,
        holder: Holder | None = None,
    ) -> RunPublisher:
        """Return the publisher of one attempt at the run. Pass ``first_batch`` if it is stored already."""
        jobs = "" if holder is None else self._keys.jobs(holder.queue)
        names = self._keys.events(run_id), self._keys.run(run_id), jobs
        publisher = RunPublisher(self._link, self._appender, names, attempt, limits, on_lost, first_batch, holder)
        self._publishers.add(publisher)
        return publisher

    def _verify_all(self) -> None:
        """Let every publisher find out what the broker has lost. A run may be silent for a long time."""
        for publisher in tuple(self._publishers):
            publisher.verify()

    async def last_checkpoint(self, run_id: str) -> StoredCheckpoint | None:
        """Return the last checkpoint of a run; None if it has none."""
        position, content = await self._link.call("HMGET", self._keys.run(run_id), "checkpoint", "state")
        return StoredCheckpoint(Cursor.parse(position.decode()), content) if position and content else None

    async def last_event(self, run_id: str) -> Cursor | None:
        """Return the position of the last event in the run's replay log; None if there is no log."""
        last = await self._link.call_script("last_entry", [self._keys.events(run_id)])
        return Cursor.parse(last.decode()) if last else None

    async def history(self, run_id: str, after: Cursor = START) -> list[Event]:
        """Return the events in the run's replay log after a position.

        Raises LogTrimmed if the log does not reach back to the position, or if events between are missing.
        An agent that continued without them would send them again.
        """
        events: list[Event] = []
        last = after
        start = "-" if after == START else f"({after}"
        while page := await self._link.call("XRANGE", self._keys.events(run_id), start, "+", "COUNT", PAGE_ENTRIES):
            for _, fields in page:
                more = decode_batch(fields[1]).events()
                if (first := Cursor(more[0].attempt, more[0].seq)) not in {
                    Cursor(last.attempt, last.seq + 1),
                    Cursor(last.attempt + 1, 1),
                }:
                    message = f"the replay log of {run_id} was trimmed: after {last} it continues at {first}"
                    raise LogTrimmed(message)
                last = Cursor(more[-1].attempt, more[-1].seq)
                events += more
            start = f"({page[-1][0].decode()}"
        return events
