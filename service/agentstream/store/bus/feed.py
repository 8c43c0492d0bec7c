"""Reads one run: live messages, and the replay log whenever messages may be missing.

    LIVE         messages are delivered as they arrive, while their seq follows
    CATCHING_UP  the log is read after the position, page by page; messages only show that there is more to read
    PAUSED       the consumer cannot keep up: messages are dropped, and the log is not read
    CLOSED       the feed has stopped

The log is the truth, pub/sub the fast path. The feed reads the log after a gap in the seqs, a new attempt, a
reconnect, a pause or a long silence. Everything runs synchronously in the link's read loop, so there are no races.
"""

import asyncio
import enum
import logging
from typing import Final, Protocol

import hiredis

from agentstream.errors import AgentStreamError, BusError, LogTrimmed
from agentstream.protocol.events import Batch, decode_batch
from agentstream.store.bus.counts import FeedCounts
from agentstream.store.connection.command import Command
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import Reply
from agentstream.telemetry.log_context import current_log_context, log_extra

log = logging.getLogger(__name__)

# Log entries in one read. An entry is a batch, which is smaller than 64 KiB plus one event. So a page is usually below
# 2 MiB. It is larger if single events come near their limit of 1 MiB; then the size limit of the log bounds it.
PAGE_ENTRIES: Final = 32


class _State(enum.Enum):
    LIVE = enum.auto()
    CATCHING_UP = enum.auto()
    PAUSED = enum.auto()
    CLOSED = enum.auto()


# Compared for every message or run: a global name is 40 times as fast as the attribute of the enum (Python 3.11).
_LIVE: Final = _State.LIVE
_CLOSED: Final = _State.CLOSED
# After these causes, new events in the log mean that messages were lost. After the other causes (CATCH_UP_CAUSES in
# telemetry/names.py) the feed expected no messages.
_MISSED_CAUSES: Final = frozenset({"gap", "reconnect", "silence"})


class Consumer(Protocol):
    """Receives the events of a feed."""

    def on_batch(self, batch: Batch) -> None:
        """Handle the next events."""

    def on_failure(self, error: AgentStreamError) -> None:
        """Handle the end of the feed: no more events can be delivered."""

    def on_caught_up(self) -> None:
        """Handle that all events of the replay log were delivered; from now on events arrive as they happen."""


class RunFeed:
    """Delivers every event of a run to its consumer, once and in order. If it cannot, it calls ``on_failure`` once."""

    __slots__ = (
        "_attempt",
        "_channel",
        "_consumer",
        "_counts",
        "_furthest_dropped",
        "_link",
        "_log_context",
        "_missed",
        "_pending_read",
        "_seq",
        "_state",
        "_synced",
        "failure",
    )

    def __init__(
        self,
        link: Link,
        channel: str,
        counts: FeedCounts | None = None,
    ) -> None:
        """Prepare a feed that delivers nothing before ``open``. ``counts`` are the counters of all feeds."""
        self._link = link
        self._channel = channel.encode()
        self._log_context = current_log_context()
        self._counts = counts or FeedCounts()
        self._state = _CLOSED
        self._attempt = self._seq = 0  # of the last event delivered
        self._furthest_dropped = (0, 0)  # the highest position in a dropped message
        self._missed = False  # whether new events in the log mean that messages were lost
        self._pending_read: Command | None = None
        self._synced: asyncio.Future[None] | None = None  # awaited by open_from_log
        self.failure: AgentStreamError | None = None

    def deliver_to(self, consumer: Consumer) -> None:
        """Set the consumer. Call this in the same turn of the event loop as ``open``."""
        self._consumer = consumer

    @property
    def channel(self) -> bytes:
        """The run's channel, which is the name of its replay log, too."""
        return self._channel

    @property
    def live(self) -> bool:
        """Whether every event that is known to exist was delivered."""
        return self._state is _LIVE

    @property
    def position(self) -> tuple[int, int]:
        """Attempt and seq of the last delivered event."""
        return self._attempt, self._seq

    def open(self) -> asyncio.Future[None]:
        """Subscribe to a run that has no events yet. The future is done when the server has confirmed it."""
        self._state = _LIVE
        self._link.add_subscriber(self)
        return self._link.subscribe(self._channel, self._on_message)

    async def open_from_log(self) -> bool:
        """Subscribe, and deliver the events in the replay log; return False if the consumer paused the feed meanwhile.

        Raises LogTrimmed if the log is not complete, BusError if it cannot be read.
        """
        self._synced = asyncio.get_running_loop().create_future()
        await self.open()
        self.resync("joined")
        await self._synced
        if self.failure is not None:
            raise self.failure
        return self._state is _LIVE

    def close(self) -> None:
        """Stop the feed; do nothing if it has stopped."""
        if self._state is _CLOSED:
            return
        self._state = _CLOSED
        self._link.remove_subscriber(self)
        self._set_synced()
        self._link.unsubscribe(self._channel, self._on_message)
        self._cancel_read()

    def resync(self, cause: str = "reconnect") -> None:
        """Read the replay log: after a reconnect, or if no message has arrived for long.

        ``cause`` is one of CATCH_UP_CAUSES.
        """
        if self._state is _LIVE:
            self._catch_up(cause)

    def pause(self) -> None:
        """Deliver nothing until ``resume``, which reads the missed events from the replay log."""
        if self._state is not _CLOSED:
            self._state = _State.PAUSED
            self._cancel_read()
            self._set_synced()

    def resume(self) -> None:
        """Continue after a pause; do nothing if the feed is not paused."""
        if self._state is _State.PAUSED:
            self._catch_up("slow_client")

    def _on_message(self, payload: bytes) -> None:
        try:
            batch = decode_batch(payload)
        except BusError as exc:
            self._fail(exc)
            return
        attempt, seq, items = batch
        if self._state is _LIVE and seq == self._seq + 1 and attempt == self._attempt and items:
            self._seq += len(items)
            try:
                self._consumer.on_batch(batch)
            except Exception as exc:  # noqa: BLE001 -- the consumer must learn of every error
                self._on_consumer_failed(batch, exc)
        elif items:
            self._on_out_of_sequence(batch)

    def _on_out_of_sequence(self, batch: Batch) -> None:
        """Handle a message that arrives in another state than LIVE, or whose seq is not the next one."""
        attempt, seq = self.position
        if self._state is not _LIVE:
            self._furthest_dropped = max(self._furthest_dropped, (batch.attempt, batch.last_seq))
        elif (attempt, seq, batch.attempt, batch.seq) == (0, 0, 1, 1):
            self._deliver(batch)
        elif batch.attempt == attempt and batch.seq <= seq:
            if batch.last_seq > seq:
                self._deliver(batch.since(seq + 1))
            else:
                self._counts.duplicates += 1
        elif batch.attempt >= attempt:
            self._catch_up("gap" if batch.attempt == (attempt or 1) else "attempt")

    def _catch_up(self, cause: str) -> None:
        self._state = _State.CATCHING_UP
        self._counts.catch_ups[cause] += 1
        self._missed = cause in _MISSED_CAUSES
        self._read_page()

    def _read_page(self) -> None:
        after = f"({self._attempt}-{self._seq}" if self._attempt else "-"
        self._pending_read = self._link.send(
            "XRANGE", self._channel, after, "+", "COUNT", PAGE_ENTRIES, on_reply=self._on_page
        )

    def _on_page(self, page: Reply) -> None:
        self._pending_read = None
        if isinstance(page, hiredis.ReplyError):
            self._fail(BusError(f"the replay log cannot be read: {page}"))
            return
        try:
            for _entry_id, fields in page:
                self._on_log_entry(decode_batch(fields[1]))
                if self._state is not _State.CATCHING_UP:
                    return  # the consumer has paused or closed the feed
        except BusError as exc:
            self._fail(exc)
            return
        furthest_dropped, self._furthest_dropped = self._furthest_dropped, (0, 0)
        if len(page) == PAGE_ENTRIES or furthest_dropped > self.position:
            self._read_page()
        else:
            self._state = _LIVE
            self._set_synced()
            self._consumer.on_caught_up()

    def _on_log_entry(self, batch: Batch) -> None:
        expected = self._seq + 1 if batch.attempt == self._attempt else 1
        if batch.seq > expected:
            missing = f"events {batch.attempt}-{expected} to {batch.attempt}-{batch.seq - 1}"
            message = f"{missing} are no longer in the replay log"
            raise LogTrimmed(message)
        if batch.last_seq >= expected:
            if self._missed:
                self._missed = False
                self._counts.gaps += 1
            self._deliver(batch.since(expected))

    def _deliver(self, batch: Batch) -> None:
        self._attempt, seq, items = batch
        self._seq = seq + len(items) - 1
        try:
            self._consumer.on_batch(batch)
        except Exception as exc:  # noqa: BLE001 -- the consumer must learn of every error
            self._on_consumer_failed(batch, exc)

    def _on_consumer_failed(self, batch: Batch, exc: Exception) -> None:
        """End the feed after an error of the consumer, and call ``on_failure``, so that it does not wait for events."""
        log.error("the consumer of the run's events failed", exc_info=exc, extra=log_extra(self._log_context))
        self._fail(BusError(f"events from {batch.attempt}-{batch.seq} on could not be handled: {type(exc).__name__}"))

    def _set_synced(self) -> None:
        if self._synced is not None and not self._synced.done():
            self._synced.set_result(None)

    def _cancel_read(self) -> None:
        if self._pending_read is not None:
            self._pending_read.cancel()
            self._pending_read = None

    def _fail(self, error: AgentStreamError) -> None:
        log.warning("the events of the run cannot be read: %s", error, extra=log_extra(self._log_context))
        self.failure = error
        self.close()
        self._consumer.on_failure(error)
