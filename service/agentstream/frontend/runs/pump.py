"""From a run's feed to a client, as SSE frames.

Frames are gathered by the feed's callback and written at the end of the loop's turn, without waking a task per
message. The handler's task only does what must wait: a slow client, and the terminal event's frames.
"""

import asyncio
import logging
from collections.abc import Iterable
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

log = logging.getLogger(__name__)

# Bare httpx gives up after 5 s without a byte.
KEEPALIVE_AFTER_S: Final = 4.0
# LangChain's per-chunk timeout (120 s) ignores comments; an empty delta resets it.
EMPTY_CHUNK_AFTER_S: Final = 30.0
# The sweep comes once a second: be early rather than late.
_SWEEP_SLACK_S: Final = 1.0
_TAIL_BLOCK_BYTES: Final = HIGH_WATER_BYTES // 4


class FlushScheduler:
    """The streams that have something to send, written at the end of the loop's turn, one write for each.

    One for a front end. A turn reads many messages at once: taking them all first, then writing, sends a stream's
    frames in one piece, and keeps our own code in the processor's caches.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._pumps: list[StreamPump] = []

    def add(self, pump: "StreamPump") -> None:
        """Flush this stream at the end of the turn."""
        if not self._pumps:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pumps.append(pump)

    def _flush(self) -> None:
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            try:
                pump.flush()
            except Exception as exc:  # one stream's fault must not end all others
                log.exception("writing a stream failed", extra=log_extra(pump.log_context))
                pump.fail(STREAM_LOST, f"the stream could not be written: {exc!r}")


class StreamPump:
    """Writes one run to one client.

    ``__slots__`` here and in what else there is one of for every stream: an open stream costs less memory, and a
    token fewer cache misses.
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
        """Bind the machine and the client; ``attach`` must follow."""
        self._machine = machine
        self._writer = writer
        self._flush_scheduler = flush_scheduler
        self._replay_delay_s = replay_word_delay_ms / 1000
        self._loop = asyncio.get_running_loop()
        self.log_context = current_log_context()
        self._feed: RunFeed | None = None
        self._deadlines: Deadlines | None = None
        self._timer: LatencyTimer | None = None  # until the first text
        self._out: list[bytes] = [machine.open()]  # now, as a past may be received before the response begins
        self._out_bytes = 0
        self._started = False
        self._paced = False
        self._paused = False
        self.given_up_code = ""  # the code with which we did
        self._wake: asyncio.Future[None] | None = None
        self._received = self._wrote = False  # since the watcher last looked
        self._last_byte_s = self._last_chunk_s = self._last_tick_s = self._loop.time()

    def attach(self, feed: RunFeed, deadlines: Deadlines, timer: LatencyTimer | None = None) -> None:
        """Bind the feed whose callbacks are ``on_batch`` and ``on_failure``; a new run also has a latency timer."""
        self._feed = feed
        self._deadlines = deadlines
        self._timer = timer

    @property
    def ended(self) -> bool:
        """Whether the run ended; the client may not have all of it yet. One that was given up may still go on."""
        return self._machine.tail is not None and not self.given_up_code

    @property
    def text_count(self) -> int:
        """How many pieces of answer text were handed over."""
        return self._machine.text_count

    @property
    def buffered_bytes(self) -> int:
        """How much waits for the client to take it."""
        return self._out_bytes + self._writer.buffered_bytes

    async def run(self) -> None:
        """Stream until the terminal frame is written; raises ClientDisconnected."""
        await self._writer.prepare()
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
        self.flush()
        await self._send_tail(self._machine.tail)
        await self._writer.end()

    # -- from the feed ------------------------------------------------------------------------------

    def on_batch(self, batch: Batch) -> None:
        """Take events in order; write their frames this turn of the loop."""
        if self._machine.tail is not None:
            return
        machine = self._machine
        data = machine.receive(batch)
        self._received = True
        if batch.seq == 1:
            self._begin(batch)
        if self._timer is not None and machine.text_count:
            self._observe_first_text(self._timer)
        if data:  # an event may make no frames, and it is bytes that a client waits for
            self._wrote = True
            out = self._out
            if not out and self._started:
                self._flush_scheduler.add(self)
            out.append(data)
            self._out_bytes += len(data)
            if self._out_bytes > HIGH_WATER_BYTES:
                self._flush_early()
        if machine.tail is not None:
            self._paced = machine.completed and self._replay_delay_s > 0
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
        """End with an error frame: the run's events cannot be had any more."""
        self.fail(STREAM_LOST, str(error))

    def fail(self, code: str, message: str) -> None:
        """End the stream with an error frame of our own."""
        if self._machine.tail is None:
            self.given_up_code = code
            self._machine.fail(code, message)
            self._wake_up()

    # -- from the watcher ---------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Keep a silent connection alive; doubt or give up a silent run.

        What came since the last look counts as having come right after that: early rather than late.
        """
        last_tick_s, self._last_tick_s = self._last_tick_s, now_s
        if self._machine.tail is not None or not self._started or self._paused:
            return  # a stuck client has a time limit of its own
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
        if self._deadlines is not None and (verdict := self._deadlines.check(now_s)) is not None:
            log.warning("the run is given up: %s", verdict[1], extra=log_extra(self.log_context))
            self.fail(*verdict)

    # -- writing ------------------------------------------------------------------------------------

    def _flush_early(self) -> None:
        """Gather no more: one turn of the loop may read 8 MiB of messages."""
        if self._started:
            self.flush()
        else:
            self._pause()  # a long past, read faster than the response begins

    def flush(self) -> None:
        """Write what was gathered."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_bytes = 0
        if self._writer.write(data):
            self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            if self._feed is not None:
                self._feed.pause()
            self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _send_tail(self, frames: Iterable[bytes]) -> None:
        """Write the last event's frames in blocks, at the client's pace; one by one if they are paced."""
        block: list[bytes] = []
        size = 0
        for frame in frames:
            block.append(frame)
            size += len(frame)
            if size >= _TAIL_BLOCK_BYTES or self._paced:
                await self._writer.wait_writable()
                self._write_tail(block)
                block, size = [], 0
                if self._paced:
                    await asyncio.sleep(self._replay_delay_s)
        await self._writer.wait_writable()
        self._write_tail(block)

    def _write_tail(self, block: list[bytes]) -> None:
        self._writer.write(b"".join(block))
        if self._timer is not None and self._machine.text_count:  # an answer that the agent did not stream
            self._observe_first_text(self._timer)
