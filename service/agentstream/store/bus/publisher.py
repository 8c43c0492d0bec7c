"""Publishes one attempt at a run: it collects the events that the agent emits, and appends them to the log in batches.

One batch of a run is in flight at a time. Events that arrive meanwhile are sent together in the next batch. So events
stay in order even after resends. A busy broker receives fewer and larger messages.

The publisher keeps the published batches until the run is over, as many bytes as the log may hold. After each reconnect
it compares the log and the hash of the run with them (verify.lua), because the broker may have lost its last writes: a
failover loses those that were not replicated yet. The publisher stores them again. ``retain`` lets it do so after the
end of the run, too.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import hiredis

from agentstream.errors import AgentStreamError, BusError, Fenced
from agentstream.protocol.events import (
    RUN_CHECKPOINT,
    START,
    Cursor,
    encode_batch,
)
from agentstream.protocol.keys import GROUP
from agentstream.store.bus.appender import Append, Appender
from agentstream.store.bus.outbox import Fields, Outbox
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import Reply
from agentstream.telemetry.log_context import current_log_context, log_extra

log = logging.getLogger(__name__)


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
_STORED: Final = (b"OK", b"REMOVED", b"DUPLICATE")  # replies of publish.lua
_new: Final = tuple.__new__
# The first fields of batches whose fields replace those of earlier batches.
_REPLACED: Final = frozenset({("checkpoint",), ("interrupts",)})


@dataclass(frozen=True, slots=True)
class Holder:
    """The worker, the queue and the queue entry of an attempt, and the fields of the run's hash at its creation."""

    worker_id: str
    queue: str
    entry_id: str
    hash_fields: Callable[[], Fields]


@dataclass(slots=True)
class _Batch:
    last_seq: int
    payload: bytes
    terminal: str = ""  # the type of its terminal event, or empty
    fields: Fields = ()  # of the run's hash, with values; stored in one step with the batch


class RunPublisher(Outbox):
    """Publishes the events of one attempt. The methods of this class are called on the loop."""

    def __init__(  # noqa: PLR0913, PLR0917 -- only ``Bus.publisher`` calls it
        self,
        link: Link,
        appender: Appender,
        names: tuple[str, str, str],
        attempt: int,
        limits: LogLimits,
        on_lost: Callable[[AgentStreamError], None],
        first_batch: bytes | None = None,
        holder: Holder | None = None,
    ) -> None:
        """Write to ``names``: the run's replay log, which has the name of its channel, the run's hash, and the jobs.

        ``first_batch`` is the attempt's first batch, if it is stored already. ``on_lost`` is called once if nothing
        more can be published, because the attempt is fenced or the broker refused a batch. Without a ``holder`` a lost
        hash is not stored again.
        """
        super().__init__(appender)
        self._link = link
        self._names = list(names[:2])
        self._jobs = names[2]
        self.job_removed = False  # whether the job was removed with the terminal event
        self._channel = names[0]
        self.group = link.group_of(names[0])
        self._log_context = current_log_context()
        self._attempt = attempt
        self._limits = limits
        self._max_bytes = limits.max_bytes
        self._on_lost = on_lost
        self._holder = holder
        self._has_checkpoint = attempt > 1  # an earlier attempt may have stored one
        self._latest: dict[Fields, _Batch] = {}  # the latest stored batch with the fields of _REPLACED
        self.takes_inputs = False  # whether the terminal event says which messages the agent has not taken
        self._log_exists = False
        self._epoch = link.reconnects  # when the log was last known to be complete
        self._doubtful = False  # whether the broker may have lost batches
        self._verifying = False  # whether verify.lua is in flight
        self._retained = False  # whether the run has ended here and its batches are still stored again
        self._in_flight: _Batch | None = None
        self._to_restore: deque[_Batch] = deque()  # kept batches that the log lost, to be stored again
        self._kept: deque[_Batch] = deque()
        self._kept_bytes = 0
        self._trimmed = False
        if first_batch is not None:
            self._keep(_Batch(1, first_batch))
            self._next_seq, self._stored_seq, self._log_exists = 2, 1, True

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes that wait to be stored."""
        in_flight = self._in_flight
        return self._pending_bytes + (0 if in_flight is None else len(in_flight.payload))

    async def flush(self) -> None:
        """Return when all events put so far are stored; raises the error that ended the publishing, if any."""
        while self._closed is None and (self._pending or self._in_flight or self._to_restore):
            await self._wait_for_progress()
        if self._closed is not None:
            raise self._closed

    def verify(self) -> None:
        """Find out which batches the broker has lost, and store them again: after a reconnect."""
        if not self._active or not self._stored_seq:
            return
        self._doubtful = True
        with self._lock:
            wake, self._wake_scheduled = not self._wake_scheduled, True
        if wake:
            self._appender.schedule(self)

    def retain(self) -> None:
        """Go on storing lost batches again after ``close``: all events of this attempt are stored and it has ended."""
        self._retained, self._on_lost = True, _ignore

    @property
    def kept_bytes(self) -> int:
        """The size of the batches that it can store again."""
        return self._kept_bytes

    async def restore(self) -> bool:
        """Verify, and return when all lost batches are stored again; False if another attempt has begun."""
        self.verify()
        while self._retained and (self._doubtful or self._verifying or self._in_flight or self._to_restore):
            await self._wait_for_progress()
        return self._retained

    @property
    def _active(self) -> bool:
        return self._closed is None or self._retained

    def next_append(self, now_s: float, reconnects: int) -> Append | None:
        """Return the next batch for the appender; None if there is none, or if publish.lua must store it."""
        self.sent_at_s = now_s
        with self._lock:
            self._wake_scheduled = False
            if self._in_flight is not None or self._verifying or (self._closed is not None and not self._retained):
                return None
            doubtful = self._stored_seq > 0 and (self._doubtful or self._epoch != reconnects)
            batch = None
            if not doubtful:
                batch = self._to_restore.popleft() if self._to_restore else self._next_batch()
        if doubtful:
            self._send_verify()
            return None
        if batch is None:
            return None
        self._in_flight = batch
        if not self._log_exists or self._trimmed or batch.terminal or batch.fields:
            self._publish(batch, verify=False)
            return None
        # This runs for each batch; Append(...) takes twice as long.
        return _new(Append, (self, self._channel, f"{self._attempt}-{batch.last_seq}", batch.payload))

    def _next_batch(self) -> _Batch | None:
        """Return a batch of the events that wait, or None. The caller holds the lock."""
        if (text := self._take_text()) is not None:
            seq = self._next_seq - 1
            batch = _Batch(seq, encode_batch(self._attempt, seq, [text]))
            self._keep(batch)
            return batch
        taken = self._take()
        if taken is None:
            return None
        events, terminal, event_type, fields = taken
        payload = encode_batch(self._attempt, self._next_seq - len(events), events)
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
        while self._kept_bytes > self._max_bytes and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft().payload)
            self._appender.counts.trimmed += not self._trimmed
            self._trimmed = True

    def _publish(self, batch: _Batch, *, verify: bool) -> None:
        names, arguments, link, holder = self._names, self._arguments(batch, verify=verify), self._link, self._holder
        if batch.terminal and holder is not None and link.group_of(self._jobs) == link.group_of(self._channel):
            names = [*names, self._jobs]
            arguments += (GROUP, holder.worker_id, holder.entry_id)
        command = link.send_script("publish", names, *arguments, on_reply=self._on_published)
        command.repack = lambda: self._link.pack_script("verify", self._names, *self._verify_arguments())

    def on_append_stored(self) -> None:
        """Continue, because the batch is stored and published."""
        batch = self._in_flight
        if batch is not None:
            self._on_stored(batch)

    def on_append_refused(self) -> None:
        """Find out why the batch was not stored, and store it if it is still missing."""
        batch = self._in_flight
        if batch is None:
            return
        if not self._active:
            self._in_flight = None
            self._wake_waiters()
        elif self._doubtful or self._epoch != self._link.reconnects:
            self._send_verify()
        else:
            self._appender.counts.retries += 1
            self._publish(batch, verify=True)

    def _send_verify(self, fields: Fields = ()) -> None:
        self._verifying, self._doubtful, self._epoch = True, False, self._link.reconnects
        self._link.send_script("verify", self._names, *self._verify_arguments(), *fields, on_reply=self._on_verified)

    def _verify_arguments(self) -> tuple[str | int, ...]:
        holder, ttl_s = self._holder, self._limits.open_ttl_s
        ids = ("", "") if holder is None else (holder.worker_id, holder.entry_id)
        return (self._attempt, *ids, ttl_s)

    def _on_verified(self, reply: Reply) -> None:
        self._verifying = False
        if not self._active:
            self._in_flight = None
        elif isinstance(reply, list):
            self._continue_after(Cursor.parse(reply[1].decode()))
        elif reply == b"HASH" and self._holder is not None:
            self._send_verify(self._holder.hash_fields())
        else:
            self._in_flight = None
            self._on_refused(reply)
        self._wake_waiters()

    def _continue_after(self, last: Cursor) -> None:
        """Continue with the batches that follow ``last``, the last entry of the log."""
        batch, self._in_flight = self._in_flight, None
        seq = last.seq if last.attempt == self._attempt else 0
        if batch is not None and seq >= batch.last_seq:
            self._on_stored(batch)
        elif seq < self._stored_seq:
            self._restore_log(last)
        else:
            if batch is not None:
                self._to_restore.appendleft(batch)
            self._wake_scheduled = True
            self._appender.schedule(self)

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
        if reply == b"HASH" or (isinstance(reply, list) and reply[0] == b"LAST"):
            self._on_verified(reply)  # sent after a reconnect instead of publish.lua
            return
        batch, self._in_flight = self._in_flight, None
        if reply in _STORED and batch is not None:
            self.job_removed = reply == b"REMOVED"
            self._on_stored(batch)
        elif isinstance(reply, list) and reply[0] == b"LOST":
            self._restore_log(Cursor.parse(reply[1].decode()))
        else:
            self._on_refused(reply)
        self._wake_waiters()

    def _on_refused(self, reply: Reply) -> None:
        if reply == b"FENCED":
            self._appender.counts.fenced += 1
            self._end(Fenced(f"attempt {self._attempt} of {self._channel} was superseded"))
        else:
            self._appender.counts.refused += 1
            cause = str(reply) if isinstance(reply, hiredis.ReplyError) else repr(reply)
            self._end(BusError(f"the broker refused events of {self._channel}: {cause}"))

    def _on_stored(self, batch: _Batch) -> None:
        self._in_flight = None
        if (
            batch.fields
            and (name := batch.fields[:1]) in _REPLACED
            and batch is not (earlier := self._latest.get(name))
        ):
            if earlier is not None:
                earlier.fields = ()  # replaced, so nobody needs them again
            self._latest[name] = batch
        # Nobody waits: no lock. A thread that puts an event at this moment schedules it itself, or sees the new seq.
        self._stored_seq, self._log_exists = batch.last_seq, True
        if self._pending or self._to_restore or self._doubtful or self._threads_waiting:
            with self._lock:
                if (self._pending or self._to_restore or self._doubtful) and not self._wake_scheduled:
                    self._wake_scheduled = True
                    self._appender.schedule(self)
                self._notify_threads()
        if self._waiters:
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
        self._retained = False
        log.warning("the attempt can publish no more events: %s", reason, extra=log_extra(self._log_context))
        self.close(reason)
        self._on_lost(reason)


def _ignore(_reason: AgentStreamError) -> None:
    """Do nothing."""
