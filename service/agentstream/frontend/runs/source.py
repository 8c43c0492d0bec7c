"""The interface of a run source, and the helpers that all sources use.

A source delivers the run of a request: a new run or an existing one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentstream.frontend.context import Context
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import Cursor
from agentstream.protocol.jobs import open_ttl_s
from agentstream.store.bus.feed import RunFeed
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import StreamHead


class RunSource(Protocol):
    """Delivers the run that a request is answered with."""

    @property
    def head(self) -> StreamHead:
        """The fields that every chunk of the run repeats."""
        ...

    @property
    def after(self) -> Cursor | None:
        """The cursor after which the stream begins; None for the whole stream."""
        ...

    @property
    def may_exist(self) -> bool:
        """Whether the run may exist: a new run exists once its job may have been enqueued."""
        ...

    def open(self, feed: RunFeed) -> Awaitable[None]:
        """Start the delivery to ``feed``; await the result to know that it succeeded.

        Both the call and the await may raise an error, which the client gets instead of an answer. No event is
        delivered before the caller awaits, so the caller may set the feed's consumer after this call.
        """
        ...

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return the deadlines of the run, which start now."""
        ...


def head_of(info: RunInfo) -> StreamHead:
    """Return the fields that every chunk of an existing run repeats."""
    return StreamHead(run_id=info.run_id, created=info.created, model=info.model)


def deadlines_of(context: Context, feed: RunFeed, on_silence_before_start: Callable[[], None] | None) -> Deadlines:
    """Return the deadlines of a run, which start now. ``Deadlines`` explains ``on_silence_before_start``."""
    settings = context.settings
    return Deadlines(
        feed,
        asyncio.get_running_loop().time(),
        queue_timeout_s=settings.queue_timeout_s,
        run_timeout_s=settings.run_timeout_s,
        on_silence_before_start=on_silence_before_start,
    )


def run_open_ttl_s(context: Context) -> int:
    """Return the TTL of an open run's keys in Redis, in seconds."""
    return open_ttl_s(context.settings.queue_timeout_s, context.settings.run_timeout_s)


def leave(context: Context, run: StreamPump | Collector, feed: RunFeed) -> None:
    """Stop reading a run: unsubscribe, detach its reader, stop watching the reader, and keep its counts."""
    feed.close()
    run.detach()
    context.watcher.remove(run)
    context.metrics.reader_closed(run)
