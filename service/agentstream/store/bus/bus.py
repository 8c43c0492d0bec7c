"""The bus: where runs' events are written and read. The front end and the worker meet here."""

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
    """Feeds and publishers of runs, all over one shared link."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Bind the link and the names."""
        self._link = link
        self._keys = keys
        self._appender = Appender(link)
        self.feed_counts = FeedCounts()

    @property
    def publish_counts(self) -> PublishCounts:
        """What its publishers have counted."""
        return self._appender.counts

    def feed(self, run_id: str) -> RunFeed:
        """Return a reader of the run's events; not yet subscribed, and without a consumer."""
        return RunFeed(self._link, self._keys.events(run_id), self.feed_counts)

    def publisher(
        self,
        run_id: str,
        attempt: int,
        limits: LogLimits,
        on_lost: Callable[[AgentStreamError], None],
        first_batch: bytes | None = None,
    ) -> RunPublisher:
        """Return the writer of one attempt at the run; ``first_batch`` is given if it is stored already."""
        names = self._keys.events(run_id), self._keys.run(run_id)
        return RunPublisher(self._link, self._appender, names, attempt, limits, on_lost, first_batch)

    async def history(self, run_id: str) -> list[Event]:
        """Return the events that are in the run's log now; raises LogTrimmed if its beginning is not."""
        events: list[Event] = []
        after = "-"
        while page := await self._link.call("XRANGE", self._keys.events(run_id), after, "+", "COUNT", PAGE_ENTRIES):
            for _, fields in page:
                events += decode_batch(fields[1]).events()
            after = f"({page[-1][0].decode()}"
        if events and events[0].seq != 1:
            message = f"the log of {run_id} begins at {events[0].attempt}-{events[0].seq}"
            raise LogTrimmed(message)
        return events
