"""The events of one attempt that wait to be published. Agents put them in here from any thread.

The publisher takes them out on the event loop. A thread that puts events faster than they are stored waits.
"""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from agentstream.errors import AgentStreamError, BufferFull, RunCancelled
from agentstream.protocol.events import (
    RUN_CHECKPOINT,
    RUN_PARKED,
    STORED_FIRST,
    STREAMED_EVENTS,
    TERMINAL_EVENTS,
    TEXT,
    WITH_FIELDS,
    encode_event,
    encode_text,
)
from agentstream.store.bus.appender import Append, Appender

# Limits of one batch: large enough to amortise the broker's work, small enough that a page of a feed stays small.
MAX_BATCH_BYTES: Final = 64 << 10
MAX_BATCH_EVENTS: Final = 512
# Bounds of the unpublished events of one run. A thread waits at the first bound. Code on the event loop cannot wait in
# ``write``, so it may go on to the hard bound; then ``put`` raises BufferFull.
MAX_BUFFER_BYTES: Final = 4 << 20
HARD_BUFFER_BYTES: Final = 16 << 20
# A longer text is encoded when it is put, because it may be too large for an event. A character takes at most 6 bytes.
MAX_PLAIN_CHARACTERS: Final = 8 << 10
# How long a thread waits for room in the buffer. A stream survives without a broker for as long.
ROOM_TIMEOUT_S: Final = 60.0
# Names and values of fields of the run's hash, one after another.
Fields = tuple[str | bytes | int, ...]


class Taken(NamedTuple):
    """Encoded events for one batch, the type of its terminal event or an empty text, its last type, and its fields."""

    events: list[bytes]
    terminal: str
    last_type: str
    fields: Fields


class Outbox(ABC):
    """The waiting events. ``put`` may be called from any thread, the other methods on the loop."""

    def __init__(self, appender: Appender) -> None:
        """Start empty. ``appender`` sends the batches. Call this on the loop."""
        self._appender = appender
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()  # guards the state that ``put`` uses in other threads
        self._state_changed = threading.Condition(self._lock)  # threads wait for it
        self._threads_waiting = 0
        # A plain text is not encoded yet. Another text is bytes. Another event has its type.
        self._pending: deque[str | bytes | tuple[str, bytes]] = deque()
        self._pending_bytes = 0
        self._next_seq = 1  # of the first event that waits
        self._text_characters = 0
        self._wake_scheduled = False
        self._closed: AgentStreamError | None = None
        self._ended = False  # whether the terminal event was put, which is the last event
        self._awaited_seq = 0  # seq of the last event of STORED_FIRST that was put
        self._fields: deque[Fields] = deque()  # of the events that wait and end their batch
        self._stored_seq = 0
        self._parked_ttl_s = 0
        self._waiters: list[asyncio.Future[None]] = []

    group: Hashable  # of its log (``Link.group_of``)
    sent_at_s = 0.0  # when the last batch was sent, by the clock of the loop

    @abstractmethod
    def next_append(self, now_s: float, reconnects: int) -> Append | None:
        """Return the next batch for the appender; None if there is none, or if publish.lua must store it."""

    @abstractmethod
    def on_append_stored(self) -> None:
        """Continue, because the batch is stored and published."""

    @abstractmethod
    def on_append_refused(self) -> None:
        """Find out why the batch was not stored, and store it if it is still missing."""

    @property
    def events_put(self) -> int:
        """The number of events put so far, run_started included."""
        return self._put_seq

    @property
    def _put_seq(self) -> int:
        return self._next_seq - 1 + len(self._pending)

    @property
    def text_characters(self) -> int:
        """The number of characters of the answer's text put so far."""
        return self._text_characters

    @property
    def ended(self) -> bool:
        """Whether the terminal event was put."""
        return self._ended

    # -- from the agent, any thread -----------------------------------------------------------------

    def put_text(self, text: str) -> None:
        """Add a piece of the answer's text, like ``put``.

        This runs for each token, often with cold CPU caches. So a plain text is encoded later, with its batch.
        """
        characters = len(text)
        if characters <= MAX_PLAIN_CHARACTERS and text.isascii() and threading.get_ident() == self._loop_thread:
            with self._lock:
                if not self._ended and self._closed is None and self._pending_bytes <= HARD_BUFFER_BYTES:
                    self._pending.append(text)
                    self._pending_bytes += characters
                    self._text_characters += characters
                    if not self._wake_scheduled:
                        self._wake_scheduled = True
                        self._appender.schedule_text(self)
                    return
        self.put(TEXT, text)  # in a thread, which may have to wait; or it raises the error

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
            if event_type is TEXT:
                self._pending.append(encoded)
                self._text_characters += len(data)
            else:
                self._pending.append((event_type, encoded))
            self._pending_bytes += len(encoded)
            if awaited := event_type in STORED_FIRST:
                self._awaited_seq = self._put_seq
                if fields:  # under the same lock as its event: the states of two threads must not be swapped
                    self._fields.append(fields)
                    self._pending_bytes += _size_of(fields)
            wake, self._wake_scheduled = not self._wake_scheduled, True
        urgent = event_type not in STREAMED_EVENTS
        if wake or urgent:
            schedule = self._appender.schedule if urgent else self._appender.schedule_text
            act = partial(schedule, self) if wake else self._appender.hurry
            if on_loop:
                act()
            else:
                self._loop.call_soon_threadsafe(act)
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

    def close(self, reason: AgentStreamError) -> None:
        """Stop publishing and drop events that wait; later puts raise RunCancelled."""
        with self._lock:
            self._closed = self._closed or reason
            self._next_seq += len(self._pending)
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

    def _take_text(self) -> bytes | None:
        """Return the only waiting event if it is a text: the most common batch by far. The caller holds the lock."""
        pending = self._pending
        if len(pending) != 1 or isinstance(text := pending[0], tuple):
            return None
        pending.clear()
        self._pending_bytes = 0
        self._next_seq += 1
        if self._threads_waiting:
            self._state_changed.notify_all()
        return text if isinstance(text, bytes) else encode_text(text)

    def _take(self) -> Taken | None:
        """Return the events of the next batch, or None. The caller holds the lock."""
        pending = self._pending
        taken: list[bytes] = []
        size, waited, terminal, event_type = 0, 0, "", ""
        fields: Fields = ()
        while pending and size < MAX_BATCH_BYTES and len(taken) < MAX_BATCH_EVENTS:
            item = pending.popleft()
            if isinstance(item, str):
                event_type, encoded = TEXT, encode_text(item)
                waited += len(item)
            else:
                event_type, encoded = (TEXT, item) if isinstance(item, bytes) else item
                waited += len(encoded)
            if event_type in TERMINAL_EVENTS:
                terminal = event_type
            size += len(encoded)
            taken.append(encoded)
            if event_type in WITH_FIELDS:  # it is the last event of its batch
                fields = self._fields.popleft()
                break
        if not taken:
            return None
        self._next_seq += len(taken)
        self._pending_bytes -= waited + _size_of(fields)
        self._notify_threads()
        return Taken(taken, terminal, event_type, fields)


def _size_of(fields: Fields) -> int:
    return sum(len(value) for value in fields if isinstance(value, bytes))
