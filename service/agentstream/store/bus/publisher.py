"""Publishes one attempt at a run: it collects the events that the agent emits, and appends them to the log in batches.

One batch of a run is in flight at a time. Events that arrive meanwhile are sent together in the next batch. So events
stay in order even after resends. A busy broker receives fewer and larger messages.

The publisher keeps the published batches until the run is over, as many bytes as the log may hold. If the broker loses
its data, the publisher stores them again.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import orjson

from agentstream.errors import AgentStreamError, BufferFull, BusError, Fenced, RunCancelled
from agentstream.protocol.events import (
    RUN_CHECKPOINT,
    RUN_PARKED,
    START,
    STORED_FIRST,
    TERMINAL_EVENTS,
    WITH_FIELDS,
    Cursor,
    encode_batch,
    encode_event,
)
from agentstream.store.bus.appender import Append, Appender
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import Reply
from agentstream.telemetry.log_context import current_log_context, log_extra

log = logging.getLogger(__name__)

# Limits of one batch: large enough to amortise the broker's work, small enough that a page of a feed stays small.
MAX_BATCH_BYTES: Final = 64 << 10
MAX_BATCH_EVENTS: Final = 512
# Bounds of the unpublished events of one run. A thread waits at the first bound. Code on the event loop cannot wait in
# ``write``, so it may go on to the hard bound; then ``put`` raises BufferFull.
MAX_BUFFER_BYTES: Final = 4 << 20
HARD_BUFFER_BYTES: Final = 16 << 20
# How long a thread waits for room in the buffer. A stream survives without a broker for as long.
ROOM_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """TTLs and size limit of a run's replay log. ``open_ttl_s`` applies until the run ends, then ``closed_ttl_s``."""

    open_ttl_s: int
    closed_ttl_s: int
    max_bytes: int


# The part of a terminal event that publish.lua replaces by the ids of messages that the agent has not taken.
UNAPPLIED: Final = '"unapplied_inputs":null'
# Fields of the run's hash from which another attempt continues.
_CONTINUATION: Final = ("state", "job", "interrupts", "inputs")
# The first fields of batches whose fields replace those of earlier batches.
_REPLACED: Final = frozenset({("checkpoint",), ("interrupts",)})
# Names and values of fields of the run's hash, one after another.
Fields = tuple[str | bytes | int, ...]


@dataclass(slots=True)
class _Batch:
    last_seq: int
    payload: bytes
    terminal: str = ""  # the type of its terminal event, or empty
    fields: Fields = ()  # of the run's hash, with values; stored in one step with the batch


class RunPublisher:
    """Publishes the events of one attempt. ``put`` may be called from any thread, the other methods on the loop."""

    def __init__(  # noqa: PLR0913, PLR0917 -- only ``Bus.publisher`` calls it
        self,
        link: Link,
        appender: Appender,
        names: tuple[str, str],
        attempt: int,
        limits: LogLimits,
        on_lost: Callable[[AgentStreamError], None],
        first_batch: bytes | None = None,
    ) -> None:
        """Write to ``names``: the run's replay log, which has the name of its channel, and the run's hash.

        ``first_batch`` is the attempt's first batch, if it is stored already. ``on_lost`` is called once if nothing
        more can be published, because the attempt is fenced or the broker refused a batch.
        """
        self._link = link
        self._appender = appender
        self._names = list(names)
        self._channel = names[0]
        self._log_context = current_log_context()
        self._attempt = attempt
        self._limits = limits
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()  # guards the state that ``put`` uses in other threads
        self._state_changed = threading.Condition(self._lock)  # threads wait for it
        self._threads_waiting = 0
        self._pending: deque[tuple[str, bytes]] = deque()
        self._pending_bytes = 0
        self._wake_scheduled = False
        self._closed: AgentStreamError | None = None
        self._ended = False  # whether the terminal event was put, which is the last event
        self._put_seq = self._awaited_seq = 0  # seq of the last event put, and of the last one of STORED_FIRST
        self._fields: deque[Fields] = deque()  # of the events that wait and end their batch
        self._has_checkpoint = attempt > 1  # an earlier attempt may have stored one
        self._latest: dict[Fields, _Batch] = {}  # the latest stored batch with the fields of _REPLACED
        self._parked_ttl_s = 0
        self.takes_inputs = False  # whether the terminal event says which messages the agent has not taken
        self._next_seq = 1
        self._stored_seq = 0
        self._log_exists = False
        self._epoch = link.reconnects
        self._in_flight: _Batch | None = None
        self._to_restore: deque[_Batch] = deque()  # kept batches that the log lost, to be stored again
        self._kept: deque[_Batch] = deque()
        self._kept_bytes = 0
        self._trimmed = False
        self._waiters: list[asyncio.Future[None]] = []
        if first_batch is not None:
            self._keep(_Batch(1, first_batch))
            self._next_seq, self._stored_seq, self._put_seq, self._log_exists = 2, 1, 1, True

    @property
    def events_put(self) -> int:
        """The number of events put so far, run_started included."""
        return self._put_seq

    @property
    def ended(self) -> bool:
        """Whether the terminal event was put."""
        return self._ended

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes that wait to be stored."""
        in_flight = self._in_flight
        return self._pending_bytes + (0 if in_flight is None else len(in_flight.payload))

    # -- from the agent, any thread -----------------------------------------------------------------

    def put(self, event_type: str, data: Any, fields: Fields = ()) -> None:  # noqa: ANN401 -- JSON
        """Add an event to the next batch. If the event is one of STORED_FIRST, a thread waits until it is stored.

        ``fields`` are fields and values of the run's hash. An event of WITH_FIELDS has some.

        Raises InvalidAgentOutput if the data cannot be written as JSON, BufferFull if too many bytes wait to be
        published, and RunCancelled if the run is over for this attempt.
        """
        encoded = encode_event(event_type, data)
        on_loop = threading.get_ident() == self._loop_thread
        with self._lock:
            if not on_loop and not self._ended and self._pending_bytes > MAX_BUFFER_BYTES:
                self._wait(self._has_room, ROOM_TIMEOUT_S)
            if self._ended or self._closed is not None:
                message = f"nothing more can be published: {self._closed or 'the run is over'}"
                raise RunCancelled(message)
            self._ended = event_type in TERMINAL_EVENTS
            if not self._ended and self._pending_bytes > (HARD_BUFFER_BYTES if on_loop else MAX_BUFFER_BYTES):
                message = f"{self._pending_bytes} bytes of events wait to be published; agents should await run.drain()"
                raise BufferFull(message)
            self._pending.append((event_type, encoded))
            self._pending_bytes += len(encoded)
            self._put_seq += 1
            if awaited := event_type in STORED_FIRST:
                self._awaited_seq = self._put_seq
                if fields:  # under the same lock as its event: the states of two threads must not be swapped
                    self._fields.append(fields)
                    self._pending_bytes += _size_of(fields)
            wake, self._wake_scheduled = not self._wake_scheduled, True
        if wake and on_loop:
            self._appender.schedule(self)
        elif wake:
            self._loop.call_soon_threadsafe(self._appender.schedule, self)
        if awaited and not on_loop:
            with self._lock:
                self._wait(self._awaited_stored)
            self._check_awaited_stored()

    def put_checkpoint(self, checkpoint: bytes) -> bool:
        """Add a checkpoint, which is stored in one step with all events before it. A thread waits until it is stored.

        Returns whether it is stored. If it is not, await ``wait_for_room``. Raises the same errors as ``put``.
        """
        self.put(RUN_CHECKPOINT, {}, ("state", checkpoint, "checkpoint_at", int(time.time())))
        return threading.get_ident() != self._loop_thread

    def put_parked(self, usage: dict[str, int], job: bytes, attempt: int, ttl_s: int) -> None:
        """Add the event that parks the run: its usage so far, and its job, with which it is enqueued again later.

        Its attempts so far no longer count. ``ttl_s`` is the TTL of the keys of the parked run.
        """
        self._parked_ttl_s = ttl_s
        status: Fields = ("status", "requires_action", "handed_back", attempt, "entry", "", "worker", "")
        status += ("parked_at", f"{time.time():.3f}")
        self.put(RUN_PARKED, {"usage": usage}, (*status, "usage", orjson.dumps(usage), "job", job))

    def _wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Let this thread, which holds the lock, wait for ``condition``. ``close`` makes every condition true."""
        self._threads_waiting += 1
        try:
            self._state_changed.wait_for(condition, timeout_s)
        finally:
            self._threads_waiting -= 1

    def _notify_threads(self) -> None:
        if self._threads_waiting:  # this is rare; without the check each token would cost a microsecond more
            self._state_changed.notify_all()

    def _awaited_stored(self) -> bool:
        return self._stored_seq >= self._awaited_seq or self._closed is not None

    def _check_awaited_stored(self) -> None:
        """Raise RunCancelled if an event of STORED_FIRST is not stored: the agent must not go on."""
        if self._stored_seq < self._awaited_seq:
            message = f"the start of a tool, a checkpoint or a question could not be stored: {self._closed}"
            raise RunCancelled(message)

    def _has_room(self) -> bool:
        return self._pending_bytes <= MAX_BUFFER_BYTES or self._closed is not None

    # -- on the loop --------------------------------------------------------------------------------

    async def wait_for_room(self) -> None:
        """Return when the unpublished events are within MAX_BUFFER_BYTES and those of STORED_FIRST are stored.

        Returns also if nothing more can be published; raises RunCancelled if one of STORED_FIRST is not stored then.
        """
        while not (self._has_room() and self._awaited_stored()):
            await self._wait_for_progress()
        self._check_awaited_stored()

    async def flush(self) -> None:
        """Return when all events put so far are stored; raises the error that ended the publishing, if any."""
        while self._closed is None and (self._pending or self._in_flight or self._to_restore):
            await self._wait_for_progress()
        if self._closed is not None:
            raise self._closed

    def close(self, reason: AgentStreamError) -> None:
        """Stop publishing and drop events that wait; later puts raise RunCancelled."""
        with self._lock:
            self._closed = self._closed or reason
            self._pending.clear()
            self._fields.clear()
            self._pending_bytes = 0
            self._notify_threads()
        self._wake_waiters()

    async def _wait_for_progress(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def next_append(self) -> Append | None:
        """Return the next batch for the appender; None if there is none, or if publish.lua must store it."""
        with self._lock:
            self._wake_scheduled = False
            if self._in_flight is not None or self._closed is not None:
                return None
            batch = self._to_restore.popleft() if self._to_restore else self._next_batch()
        if batch is None:
            return None
        self._in_flight = batch
        if not self._log_exists or self._trimmed or batch.terminal or batch.fields:
            self._publish(batch, verify=False)
            return None
        verify, self._epoch = self._epoch != self._link.reconnects, self._link.reconnects
        entry_id, previous_id = f"{self._attempt}-{batch.last_seq}", f"{self._attempt}-{self._stored_seq}"
        return Append(self, self._channel, entry_id, batch.payload, previous_id, verify)

    def _next_batch(self) -> _Batch | None:
        """Return a batch of the events that wait, or None. The caller holds the lock."""
        pending = self._pending
        taken: list[bytes] = []
        size, terminal, event_type = 0, "", ""
        fields: Fields = ()
        while pending and size < MAX_BATCH_BYTES and len(taken) < MAX_BATCH_EVENTS:
            event_type, encoded = pending.popleft()
            if event_type in TERMINAL_EVENTS:
                terminal = event_type
            size += len(encoded)
            taken.append(encoded)
            if event_type in WITH_FIELDS:  # it is the last event of its batch
                fields = self._fields.popleft()
                break
        if not taken:
            return None
        self._pending_bytes -= size + _size_of(fields)
        self._notify_threads()
        payload = encode_batch(self._attempt, self._next_seq, taken)
        self._next_seq += len(taken)
        batch = _Batch(self._next_seq - 1, payload, terminal, fields)
        if fields and event_type == RUN_CHECKPOINT:
            self._has_checkpoint = True
            batch.fields = ("checkpoint", f"{self._attempt}-{batch.last_seq}", *fields)
        elif terminal:
            # Nobody continues the run.
            emptied = (name for field in _CONTINUATION for name in (field, "")) if self._has_checkpoint else ()
            unapplied = ("unapplied", UNAPPLIED) if self.takes_inputs else ()
            batch.fields = (*unapplied, "status", terminal.removeprefix("run_"), *emptied)
        self._keep(batch)
        return batch

    def _keep(self, batch: _Batch) -> None:
        self._kept.append(batch)
        self._kept_bytes += len(batch.payload)
        while self._kept_bytes > self._limits.max_bytes and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft().payload)
            self._appender.counts.trimmed += not self._trimmed
            self._trimmed = True

    def _publish(self, batch: _Batch, *, verify: bool) -> None:
        verify = verify or self._epoch != self._link.reconnects
        self._epoch = self._link.reconnects
        command = self._link.send_script(
            "publish", self._names, *self._arguments(batch, verify=verify), on_reply=self._on_published
        )
        command.repack = lambda: self._link.pack_script("publish", self._names, *self._arguments(batch, verify=True))

    def on_append_result(self, *, stored: bool) -> None:
        """Handle the result of an append. If it failed, call publish.lua, which stores the batch or says why not."""
        batch = self._in_flight
        if batch is None:
            return
        if stored:
            self._epoch = self._link.reconnects
            self._on_stored(batch)
        elif self._closed is None:
            self._appender.counts.retries += 1
            self._publish(batch, verify=True)
        else:
            self._in_flight = None
            self._wake_waiters()

    def _arguments(self, batch: _Batch, *, verify: bool) -> tuple[bytes | str | int, ...]:
        """Return the arguments of publish.lua. With ``verify`` it checks that the log ends at the last stored entry."""
        return (
            f"{self._attempt}-{batch.last_seq}",
            batch.payload,
            0 if self._log_exists else 1,
            f"{self._attempt}-{self._kept[0].last_seq}" if self._trimmed else "",
            f"{self._attempt}-{self._stored_seq}" if verify and self._stored_seq else "",
            self._ttl_s(batch),
            *batch.fields,
        )

    def _ttl_s(self, batch: _Batch) -> int:
        """Return the TTL that the run's keys get with this batch; 0 if it does not change."""
        if batch.terminal:
            return self._limits.closed_ttl_s
        if self._parked_ttl_s and batch.last_seq == self._put_seq:
            return self._parked_ttl_s
        return 0 if self._log_exists else self._limits.open_ttl_s

    def _on_published(self, reply: Reply) -> None:
        batch, self._in_flight = self._in_flight, None
        self._epoch = self._link.reconnects
        if reply in (b"OK", b"DUPLICATE") and batch is not None:
            self._on_stored(batch)
        elif isinstance(reply, list) and reply[0] == b"LOST":
            self._restore_log(Cursor.parse(reply[1].decode()))
        elif reply == b"FENCED":
            self._appender.counts.fenced += 1
            self._end(Fenced(f"attempt {self._attempt} of {self._channel} was superseded"))
        else:
            self._appender.counts.refused += 1
            cause = str(reply) if isinstance(reply, hiredis.ReplyError) else repr(reply)
            self._end(BusError(f"the broker refused events of {self._channel}: {cause}"))
        self._wake_waiters()

    def _on_stored(self, batch: _Batch) -> None:
        self._in_flight = None
        if (name := batch.fields[:1]) in _REPLACED and batch is not (earlier := self._latest.get(name)):
            if earlier is not None:
                earlier.fields = ()  # replaced, so nobody needs them again
            self._latest[name] = batch
        with self._lock:
            self._stored_seq, self._log_exists = batch.last_seq, True
            more = bool(self._pending or self._to_restore) and not self._wake_scheduled
            self._wake_scheduled = self._wake_scheduled or more
            self._notify_threads()
        if more:
            self._appender.schedule(self)
        self._wake_waiters()

    def _restore_log(self, last: Cursor) -> None:
        """Store again the batches that the log lost: all kept batches after its last entry ``last``."""
        self._log_exists = last != START
        self._stored_seq = last.seq if last.attempt == self._attempt else 0
        self._to_restore = deque(batch for batch in self._kept if batch.last_seq > self._stored_seq)
        self._appender.counts.retries += len(self._to_restore)
        log.warning(
            "the broker lost events: the replay log ends at %s; storing %d batches again",
            last,
            len(self._to_restore),
            extra=log_extra(self._log_context),
        )
        self._appender.schedule(self)

    def _end(self, reason: AgentStreamError) -> None:
        log.warning("the attempt can publish no more events: %s", reason, extra=log_extra(self._log_context))
        self.close(reason)
        self._on_lost(reason)


def _size_of(fields: Fields) -> int:
    return sum(len(value) for value in fields if isinstance(value, bytes))
