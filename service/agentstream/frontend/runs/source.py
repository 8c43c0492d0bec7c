"""Where the run of a request comes from, and what all sources share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentstream.frontend.context import Context
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import Cursor
from agentstream.store.bus.feed import RunFeed
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import StreamHead


class RunSource(Protocol):
    """Where a session's run comes from."""

    @property
    def head(self) -> StreamHead:
        """What every chunk repeats."""
        ...

    @property
    def after(self) -> Cursor | None:
        """The position behind which to begin; None for the whole."""
        ...

    @property
    def may_exist(self) -> bool:
        """Whether the run may exist."""
        ...

    def open(self, feed: RunFeed) -> Awaitable[None]:
        """Begin to deliver, and return what is to be awaited; either raises what the client is told before all else.

        Nothing is delivered before that is awaited: until then the feed may do without its consumer.
        """
        ...

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return how long the run may take."""
        ...


def head_of(info: RunInfo) -> StreamHead:
    """Return what every chunk of a run that exists repeats."""
    return StreamHead(run_id=info.run_id, created=info.created, model=info.model)


def deadlines_of(context: Context, feed: RunFeed, on_silence_before_start: Callable[[], None] | None) -> Deadlines:
    """Return the deadlines of a run that is read from now on."""
    settings = context.settings
    return Deadlines(
        feed,
        asyncio.get_running_loop().time(),
        queue_timeout_s=settings.queue_timeout_s,
        run_timeout_s=settings.run_timeout_s,
        on_silence_before_start=on_silence_before_start,
    )


def leave(context: Context, run: StreamPump | Collector, feed: RunFeed) -> None:
    """Stop reading a run: nothing of it is delivered any more."""
    feed.close()
    context.watcher.remove(run)
    context.metrics.reader_closed(run)
