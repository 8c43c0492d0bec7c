"""The event bus: workers write the events of runs to it, and front ends read them from it."""

from collections.abc import Callable

from agentstream.errors import AgentStreamError, LogTrimmed
from agentstream.protocol.events import Event, decode_batch
from agentstream.protocol.keys import Keys
from agentstream.store.bus.appender import Appender
from agentstream.store.bus.counts import FeedCounts, PublishCounts
from agentstream.store.bus.feed import PAGE_ENTRIES, RunFeed
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.connection.link import Link


class Bus:
    """Creates feeds and publishers of runs. They all share one link."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Store the link and the keys."""
        self._link = link
        self._keys = keys
        self._appender = Appender(link)
        self.feed_counts = FeedCounts()

    @property
    def publish_counts(self) -> PublishCounts:
        """The counters of all publishers."""
        return self._appender.counts

    def feed(self, run_id: str) -> RunFeed:
        """Return a feed of the run's events. It has not subscribed yet, and has no consumer."""
        return RunFeed(self._link, self._keys.events(run_id), self.feed_counts)

    def publisher(
        self,
        run_id: str,
        attempt: int,
        limits: LogLimits,
        on_lost: Callable[[AgentStreamError], None],
        first_batch: bytes | None = None,
    ) -> RunPublisher:
        """Return the publisher of one attempt at the run. Pass ``first_batch`` if it is stored already."""
        names = self._keys.events(run_id), self._keys.run(run_id)
        return RunPublisher(self._link, self._appender, names, attempt, limits, on_lost, first_batch)

    async def history(self, run_id: str) -> list[Event]:
        """Return the events in the run's replay log; raises LogTrimmed if its beginning was trimmed."""
        events: list[Event] = []
        after = "-"
        while page := await self._link.call("XRANGE", self._keys.events(run_id), after, "+", "COUNT", PAGE_ENTRIES):
            for _, fields in page:
                events += decode_batch(fields[1]).events()
            after = f"({page[-1][0].decode()}"
        if events and events[0].seq != 1:
            first = f"{events[0].attempt}-{events[0].seq}"
            message = f"the beginning of the replay log of {run_id} was trimmed; the log starts at {first}"
            raise LogTrimmed(message)
        return events
