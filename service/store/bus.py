"""The bus: where runs' events are written and read. The front end and the worker meet here."""

from collections.abc import Callable, Sequence

from service.errors import AgentStreamError
from service.protocol.events import Event
from service.protocol.keys import Keys
from service.store.feed import RunFeed
from service.store.link import Link
from service.store.publisher import LogLimits, RunPublisher


class Bus:
    """Feeds and publishers of runs, all over one shared link."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Bind the link and the names."""
        self._link = link
        self._keys = keys

    def feed(
        self,
        run_id: str,
        on_events: Callable[[Sequence[Event]], None],
        on_failure: Callable[[AgentStreamError], None],
    ) -> RunFeed:
        """Return a reader of the run's events; not yet subscribed."""
        return RunFeed(self._link, self._keys.events(run_id), on_events, on_failure)

    def publisher(
        self, run_id: str, attempt: int, limits: LogLimits, on_lost: Callable[[AgentStreamError], None]
    ) -> RunPublisher:
        """Return the writer of one attempt at the run."""
        return RunPublisher(self._link, self._keys.events(run_id), attempt, limits, on_lost)
