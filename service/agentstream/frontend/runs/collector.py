"""Folds the events of a run into one object, for answers that are not streamed."""

import asyncio
import logging
from typing import Final

from agentstream.errors import STREAM_LOST, AgentStreamError, RunFailed
from agentstream.frontend.runs.latency_timer import LatencyTimer
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import TEXT, WRITTEN_EVENTS, Batch, written_characters
from agentstream.store.bus.feed import RunFeed
from agentstream.stream.views import Fold
from agentstream.telemetry.log_context import current_log_context, log_extra
from agentstream.telemetry.masking import mask_error

log = logging.getLogger(__name__)

# The front end holds the whole text of a non-streamed answer in memory.
MAX_COMPLETION_CHARACTERS: Final = 16 << 20


class Collector:
    """Consumes the feed of one run and folds its events into one object.

    The collector gives up on a run if its events are lost, if it misses its deadlines, or if its answer is too long.
    The run may continue after that.
    """

    def __init__(self, fold: Fold, feed: RunFeed | None = None) -> None:
        """Collect events into ``fold``. Call ``attach`` to set deadlines.

        With a ``feed`` the collector is also done when the run waits for people. Without it, only at the run's end.
        """
        self._feed = feed
        self.fold = fold
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines | None = None
        self.log_context = current_log_context()
        self._timer: LatencyTimer | None = None
        self.given_up_code = ""  # the error code, if this front end gave up on the run
        self._characters = 0
        self._done: asyncio.Future[None] = self._loop.create_future()
        # asyncio logs an exception that nobody retrieves. The handler may end without awaiting this one.
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())

    def attach(self, deadlines: Deadlines, timer: LatencyTimer | None = None) -> None:
        """Set the deadlines of the run and, for a new run, its latency timer."""
        self._deadlines = deadlines
        self._timer = timer

    def detach(self) -> None:
        """Drop the references to the feed and the deadlines, as ``StreamPump.detach`` does."""
        self._feed = self._deadlines = None

    @property
    def ended(self) -> bool:
        """Whether the terminal event was received. False for a run that was given up."""
        return self.fold.finished or self.parked

    @property
    def parked(self) -> bool:
        """Whether the run waits for people."""
        return self.fold.parked is not None

    async def wait_ended(self) -> None:
        """Return when the run has ended; raises RunFailed if it was given up."""
        await asyncio.shield(self._done)  # the task is cancelled if the client disconnects; the future must not be

    def raise_if_given_up(self) -> None:
        """Raise RunFailed if the run was given up: the collected events are then incomplete."""
        if self._done.done() and (error := self._done.exception()) is not None:
            raise error

    def raise_if_failed(self) -> None:
        """Raise RunFailed if the run ended with ``run_failed``."""
        if (failure := self.fold.failure) is not None:
            raise RunFailed(failure.message, code=failure.code, status=failure.status)

    def on_batch(self, batch: Batch) -> None:
        """Fold the next events of the run, in order; ignore events after the end."""
        if self._done.done():
            return
        self._fold(batch)
        if batch.seq == 1:
            self._begin(batch)
        if self._deadlines is not None:
            self._deadlines.events_received(self._loop.time())
        if self.fold.finished:
            self._done.set_result(None)
        elif self.parked:
            self.on_caught_up()
        elif self._characters > MAX_COMPLETION_CHARACTERS:
            self.fail(STREAM_LOST, f"the answer exceeds {MAX_COMPLETION_CHARACTERS} characters; use stream: true")

    def _fold(self, batch: Batch) -> None:
        for event in batch.events():
            self.fold.receive(event)
            if event.type == TEXT:
                self._characters += len(event.data)
            elif event.type in WRITTEN_EVENTS:
                self._characters += written_characters(event.type, event.data)
            if self.fold.finished:
                break

    def on_caught_up(self) -> None:
        """Be done if the run waits for people, and no later event shows that it has been answered."""
        if self.parked and self._feed is not None and self._feed.live and not self._done.done():
            self._done.set_result(None)

    def _begin(self, batch: Batch) -> None:
        if self._deadlines is not None:
            self._deadlines.attempt_started(self._loop.time())
        if self._timer is not None:
            self._timer.attempt_started(batch)

    def on_failure(self, error: AgentStreamError) -> None:
        """Give up on the run, because its events cannot be read."""
        self.fail(STREAM_LOST, str(error))

    def fail(self, code: str, message: str) -> None:
        """Give up on the run with this error, unless the run has ended."""
        if not self._done.done():
            self.given_up_code = code
            self._done.set_exception(RunFailed(mask_error(message), code=code))

    def tick(self, now_s: float) -> None:
        """Check the deadlines: compare a silent run with its replay log, or give up on it."""
        if self._deadlines is not None and (expired := self._deadlines.check(now_s)) is not None:
            log.warning("giving up on the run: %s", expired[1], extra=log_extra(self.log_context))
            self.fail(*expired)
