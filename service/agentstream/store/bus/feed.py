"""One reader of one run: live messages, and the log whenever there is doubt.

    LIVE         messages are taken as they come, while their seq follows
    CATCHING_UP  the log is read after the position, page by page; messages only say that there is more
    PAUSED       the consumer cannot keep up: messages are dropped, nothing is read
    CLOSED       over

The log is the truth, pub/sub the fast path: a seq that does not follow, a new attempt, a reconnect, a pause
or a long silence is answered by reading the log, never by guessing. Everything happens synchronously in
the link's read loop, so there is nothing to race.
"""

import asyncio
import enum
import logging
from typing import Final, Protocol

import hiredis

from agentstream.errors import AgentStreamError, BusError, LogTrimmed
from agentstream.protocol.events import Batch, decode_batch
from agentstream.store.bus.counts import FeedCounts
from agentstream.store.connection.link import Command, Link
from agentstream.store.connection.wire import Reply
from agentstream.telemetry.log_context import current_log_context, log_extra

log = logging.getLogger(__name__)

# Log entries read at once. An entry is a batch of usually below 64 KiB (one event more at most): a page stays
# below 2 MiB, unless events come near their own limit of 1 MiB; then the log's cap bounds it.
PAGE_ENTRIES: Final = 32


class _State(enum.Enum):
    LIVE = enum.auto()
    CATCHING_UP = enum.auto()
    PAUSED = enum.auto()
    CLOSED = enum.auto()


_LIVE: Final = _State.LIVE  # looked up for every message
# After these a log that has more than was delivered tells of messages that did not come; after the others (telemetry's
# CATCH_UP_CAUSES) it was known that they would not.
_MISSED_CAUSES: Final = frozenset({"gap", "reconnect", "silence"})


class Consumer(Protocol):
    """Who a feed is for."""

    def on_batch(self, batch: Batch) -> None:
        """Take the next events."""

    def on_failure(self, error: AgentStreamError) -> None:
        """Learn that the events cannot be had any more."""


class RunFeed:
    """Delivers every event of a run once and in order to its consumer, or tells it once why it cannot."""

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
        """Prepare; nothing arrives before ``open``. ``counts`` are those of all feeds of the process."""
        self._link = link
        self._channel = channel.encode()
        self._log_context = current_log_context()
        self._counts = counts or FeedCounts()
        self._state = _State.CLOSED
        self._attempt = self._seq = 0  # of the last event delivered
        self._furthest_dropped = (0, 0)  # the furthest position a dropped message told of
        self._missed = False  # whether what the log has more is what messages should have brought
        self._pending_read: Command | None = None
        self._synced: asyncio.Future[None] | None = None  # awaited by open_from_log
        self.failure: AgentStreamError | None = None

    def deliver_to(self, consumer: Consumer) -> None:
        """Take who it is for: before the turn of the loop ends in which it was opened."""
        self._consumer = consumer

    @property
    def position(self) -> tuple[int, int]:
        """Attempt and seq of the last event delivered."""
        return self._attempt, self._seq

    def open(self) -> asyncio.Future[None]:
        """Subscribe to a run that has no past yet; what is returned is done when the server has confirmed it."""
        self._state = _LIVE
        self._link.subscribers.add(self)
        return self._link.subscribe(self._channel, self._on_message)

    async def open_from_log(self) -> bool:
        """Subscribe, deliver the past, and return whether all of it could be: False if the consumer paused.

        Raises LogTrimmed if the past is not whole any more, BusError if it cannot be read.
        """
        self._synced = asyncio.get_running_loop().create_future()
        await self.open()
        self.resync("joined")
        await self._synced
        if self.failure is not None:
            raise self.failure
        return self._state is _State.LIVE

    def close(self) -> None:
        """Stop; harmless twice."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        self._link.subscribers.discard(self)
        self._set_synced()
        self._link.unsubscribe(self._channel, self._on_message)
        self._cancel_read()

    def resync(self, cause: str = "reconnect") -> None:
        """Compare with the log: after a reconnect, or when the run has been silent for long.

        ``cause`` is one of telemetry.CATCH_UP_CAUSES.
        """
        if self._state is _State.LIVE:
            self._catch_up(cause)

    def pause(self) -> None:
        """Deliver nothing more until ``resume``; what comes meanwhile is read from the log then."""
        if self._state is not _State.CLOSED:
            self._state = _State.PAUSED
            self._cancel_read()
            self._set_synced()

    def resume(self) -> None:
        """Go on after a pause."""
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
            except Exception as exc:  # noqa: BLE001 -- whatever it is, the consumer must be told
                self._on_consumer_failed(batch, exc)
        elif items:
            self._on_out_of_sequence(batch)

    def _on_out_of_sequence(self, batch: Batch) -> None:
        """Take a message that does not simply follow."""
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
                    return  # paused or closed by its consumer
        except BusError as exc:
            self._fail(exc)
            return
        furthest_dropped, self._furthest_dropped = self._furthest_dropped, (0, 0)
        if len(page) == PAGE_ENTRIES or furthest_dropped > self.position:
            self._read_page()
        else:
            self._state = _State.LIVE
            self._set_synced()

    def _on_log_entry(self, batch: Batch) -> None:
        expected = self._seq + 1 if batch.attempt == self._attempt else 1
        if batch.seq > expected:
            message = f"events {batch.attempt}-{expected} to {batch.attempt}-{batch.seq - 1} are no longer in the log"
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
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the consumer must be told
            self._on_consumer_failed(batch, exc)

    def _on_consumer_failed(self, batch: Batch, exc: Exception) -> None:
        """Tell a consumer that cannot go on, instead of leaving it to wait."""
        log.error("what reads the run failed", exc_info=exc, extra=log_extra(self._log_context))
        self._fail(BusError(f"events {batch.attempt}-{batch.seq} and after could not be handled: {type(exc).__name__}"))

    def _set_synced(self) -> None:
        if self._synced is not None and not self._synced.done():
            self._synced.set_result(None)

    def _cancel_read(self) -> None:
        if self._pending_read is not None:
            self._pending_read.cancel()
            self._pending_read = None

    def _fail(self, error: AgentStreamError) -> None:
        log.warning("the run cannot be read: %s", error, extra=log_extra(self._log_context))
        self.failure = error
        self.close()
        self._consumer.on_failure(error)
