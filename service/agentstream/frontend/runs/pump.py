"""Sends the events of a run's feed to a client as SSE frames.

The feed's callback collects frames, and a callback at the end of the event loop's turn writes them. So no message has
to wake a task. The handler's task only does the work that may wait: it waits for a slow client, and it sends the frames
of the terminal event.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from agentstream.errors import STREAM_LOST, AgentStreamError
from agentstream.frontend.runs.latency_timer import LatencyTimer
from agentstream.frontend.runs.raw_writer import HIGH_WATER_BYTES, RawWriter
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import Batch
from agentstream.store.bus.feed import RunFeed
from agentstream.stream import sse
from agentstream.stream.chat import StreamMachine
from agentstream.telemetry.log_context import current_log_context, log_extra
from agentstream.telemetry.masking import mask_error

log = logging.getLogger(__name__)

# httpx with its default timeout gives up after 5 s without a byte.
KEEPALIVE_AFTER_S: Final = 4.0
# SSE comments do not reset LangChain's timeout for the next chunk (120 s). A chunk with an empty delta does.
EMPTY_CHUNK_AFTER_S: Final = 30.0
# The watcher ticks once a second. With this slack, keepalives and empty chunks are sent up to 1 s early, never late.
_SWEEP_SLACK_S: Final = 1.0
_TAIL_BLOCK_BYTES: Final = HIGH_WATER_BYTES // 4


class FlushScheduler:
    """Flushes the streams that have collected frames, at the end of the event loop's turn, with one write per stream.

    A front end has one scheduler. One turn of the loop may read many messages. If all messages are processed before
    the first write, the frames of a stream leave in one write, and our code stays in the processor's caches.
    """

    def __init__(self) -> None:
        """Start without streams."""
        self._pumps: list[StreamPump] = []
        self._call_soon: Callable[[Callable[[], None]], object] | None = None  # of the event loop

    def add(self, pump: "StreamPump") -> None:
        """Flush this stream at the end of the current turn of the event loop."""
        if not self._pumps:
            if self._call_soon is None:
                self._call_soon = asyncio.get_running_loop().call_soon
            self._call_soon(self._flush)
        self._pumps.append(pump)

    def _flush(self) -> None:
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            try:
                pump.flush()
            except Exception as exc:  # an error in one stream must not end the other streams
                log.exception("writing a stream failed", extra=log_extra(pump.log_context))
                pump.fail(STREAM_LOST, f"the stream could not be written: {exc!r}")


class StreamPump:
    """Consumes the feed of one run and writes its frames to one client.

    This class, and every other class with one instance per stream, has ``__slots__``: that saves memory for each open
    stream, and cache misses for each token.
    """

    __slots__ = (
        "_deadlines",
        "_feed",
        "_flush_scheduler",
        "_last_byte_s",
        "_last_chunk_s",
        "_last_tick_s",
        "_loop",
        "_machine",
        "_out",
        "_out_bytes",
        "_paced",
        "_paused",
        "_received",
        "_replay_delay_s",
        "_started",
        "_timer",
        "_wake",
        "_writer",
        "_wrote",
        "given_up_code",
        "log_context",
    )

    def __init__(
        self, machine: StreamMachine, writer: RawWriter, flush_scheduler: FlushScheduler, *, replay_word_delay_ms: int
    ) -> None:
        """Bind the stream machine and the client. Call ``attach`` before ``run``."""
        self._machine = machine
        self._writer = writer
        self._flush_scheduler = flush_scheduler
        self._replay_delay_s = replay_word_delay_ms / 1000
        self._loop = asyncio.get_running_loop()
        self.log_context = current_log_context()
        self._feed: RunFeed | None = None
        self._deadlines: Deadlines | None = None
        self._timer: LatencyTimer | None = None  # until the first text
        self._out: list[bytes] = [machine.open()]  # first: events from the replay log may arrive before the headers
        self._out_bytes = 0
        self._started = False
        self._paced = False
        self._paused = False
        self.given_up_code = ""  # the error code, if this front end gave up on the run
        self._wake: asyncio.Future[None] | None = None
        self._received = self._wrote = False  # since the last tick
        self._last_byte_s = self._last_chunk_s = self._last_tick_s = self._loop.time()

    def attach(self, feed: RunFeed, deadlines: Deadlines, timer: LatencyTimer | None = None) -> None:
        """Set the feed that delivers to this pump, the deadlines of the run and, for a new run, its latency timer."""
        self._feed = feed
        self._deadlines = deadlines
        self._timer = timer

    def detach(self) -> None:
        """Drop the references to the feed and the deadlines, because both refer to the pump.

        Otherwise only Python's garbage collector frees the three objects and the body of the request. Its searches took
        17 % of the front end's time.
        """
        self._feed = self._deadlines = None

    @property
    def ended(self) -> bool:
        """Whether the terminal event was received; some of its frames may be unsent. False for a run given up."""
        return self._machine.tail is not None and not self.given_up_code

    @property
    def text_count(self) -> int:
        """How many pieces of answer text the frames so far contain."""
        return self._machine.text_count

    @property
    def buffered_bytes(self) -> int:
        """How many bytes wait for the client to read them."""
        return self._out_bytes + self._writer.buffered_bytes

    async def run(self) -> None:
        """Stream until the terminal event's frames are written; raises ClientDisconnected if the client leaves."""
        await self._writer.prepare(self._take_out())  # a variable would keep these bytes as long as the stream
        self._started = True
        self.flush()
        while self._machine.tail is None:
            if self._paused:
                await self._writer.wait_writable()
                self._paused = False
                if self._deadlines is not None:
                    self._deadlines.postpone(self._loop.time())
                if self._feed is not None:
                    self._feed.resume()
            else:
                self._wake = self._loop.create_future()
                await self._wake
        last = await self._send_tail(self._machine.tail)
        await self._writer.end(last)

    # -- from the feed ------------------------------------------------------------------------------

    def on_batch(self, batch: Batch) -> None:
        """Process the next events of the run, in order; their frames are written in this turn of the event loop."""
        if self._machine.tail is not None:
            return
        machine = self._machine
        data = machine.receive(batch)
        self._received = True
        if batch.seq == 1:
            self._begin(batch)
        if self._timer is not None and machine.text_count:
            self._observe_first_text(self._timer)
        if data:  # some events have no frames, and only bytes keep the connection open
            self._wrote = True
            out = self._out
            if not out and self._started:
                self._flush_scheduler.add(self)
            out.append(data)
            self._out_bytes += len(data)
            if self._out_bytes > HIGH_WATER_BYTES:
                self._flush_early()
        elif machine.parked is not None:
            self.on_caught_up()
        if machine.tail is not None:
            self._paced = machine.completed and self._replay_delay_s > 0
            self._wake_up()

    def on_caught_up(self) -> None:
        """End the stream if the run waits for people, and no later event shows that it has been answered."""
        machine = self._machine
        if machine.parked is not None and machine.tail is None and self._feed is not None and self._feed.live:
            machine.park()
            self._wake_up()

    def _begin(self, batch: Batch) -> None:
        if self._deadlines is not None:
            self._deadlines.attempt_started(self._loop.time())
        if self._timer is not None:
            self._timer.attempt_started(batch)

    def _observe_first_text(self, timer: LatencyTimer) -> None:
        self._timer = None
        timer.first_text_received()

    def on_failure(self, error: AgentStreamError) -> None:
        """End the stream with an error frame, because the events of the run cannot be read."""
        self.fail(STREAM_LOST, str(error))

    def fail(self, code: str, message: str) -> None:
        """Give up on the run: end the stream with an error frame, unless it has ended."""
        if self._machine.tail is None:
            self.given_up_code = code
            self._machine.fail(code, mask_error(message))
            self._wake_up()

    # -- from the watcher ---------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Keep a silent connection open, and check the deadlines of the run.

        Frames since the last tick count as sent at the last tick. So a keepalive may be early but is never late.
        """
        last_tick_s, self._last_tick_s = self._last_tick_s, now_s
        if self._machine.tail is not None or not self._started or self._paused:
            return  # for a client that does not read, the writer has its own time limit
        if self._received:
            self._received = False
            if self._deadlines is not None:
                self._deadlines.events_received(now_s)
        if self._wrote:
            self._wrote = False
            self._last_byte_s = self._last_chunk_s = last_tick_s
        if now_s - self._last_chunk_s >= EMPTY_CHUNK_AFTER_S - _SWEEP_SLACK_S:
            self._writer.write(self._machine.empty_chunk())
            self._last_byte_s = self._last_chunk_s = now_s
        elif now_s - self._last_byte_s >= KEEPALIVE_AFTER_S - _SWEEP_SLACK_S:
            self._writer.write(sse.KEEPALIVE)
            self._last_byte_s = now_s
        if self._deadlines is not None and (expired := self._deadlines.check(now_s)) is not None:
            log.warning("giving up on the run: %s", expired[1], extra=log_extra(self.log_context))
            self.fail(*expired)

    # -- writing ------------------------------------------------------------------------------------

    def _flush_early(self) -> None:
        """Flush before the end of the turn: one turn of the event loop may read 8 MiB of messages."""
        if self._started:
            self.flush()
        else:
            self._pause()  # the replay log is read faster than the headers are sent

    def flush(self) -> None:
        """Write the collected frames; pause the feed if the client does not read them.

        At the end of the stream ``run`` writes them, together with the frames of the terminal event.
        """
        if self._machine.tail is not None:
            return
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_bytes = 0
        if self._writer.write(data):
            self._pause()

    def _take_out(self) -> bytes:
        """Return the collected frames, and collect anew."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return data

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            if self._feed is not None:
                self._feed.pause()
            self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _send_tail(self, frames: Iterable[bytes]) -> bytes:
        """Write the collected frames and the terminal event's in blocks, as fast as the client reads.

        Return the last block, which is not written yet. With a replay word delay, write the terminal event's frames one
        by one, and wait after each.
        """
        block = [self._take_out()]
        size = len(block[0])
        for frame in frames:
            block.append(frame)
            size += len(frame)
            if size >= _TAIL_BLOCK_BYTES or self._paced:
                await self._writer.wait_writable()
                self._writer.write(b"".join(block))
                self._observe_tail()
                block, size = [], 0
                if self._paced:
                    await asyncio.sleep(self._replay_delay_s)
        self._observe_tail()
        return b"".join(block)

    def _observe_tail(self) -> None:
        if self._timer is not None and self._machine.text_count:  # the agent did not stream its answer
            self._observe_first_text(self._timer)
