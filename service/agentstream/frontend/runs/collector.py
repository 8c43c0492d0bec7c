"""From a run's feed to one object: the answer of a request that is not streamed."""

import asyncio
import logging
from typing import Final

from agentstream.errors import STREAM_LOST, AgentStreamError, RunFailed
from agentstream.frontend.runs.latency_timer import LatencyTimer
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import TEXT, WRITTEN_EVENTS, Batch, written_characters
from agentstream.stream.views import Fold
from agentstream.telemetry.log_context import current_log_context, log_extra

log = logging.getLogger(__name__)

# A non-streamed answer is held in memory whole.
MAX_COMPLETION_CHARACTERS: Final = 16 << 20


class Collector:
    """Folds one run into one object."""

    def __init__(self, fold: Fold) -> None:
        """Take what the events go into; ``attach`` adds deadlines."""
        self.fold = fold
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines | None = None
        self.log_context = current_log_context()
        self._timer: LatencyTimer | None = None
        self.given_up_code = ""  # the code with which we did
        self._characters = 0
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if not awaited

    def attach(self, deadlines: Deadlines, timer: LatencyTimer | None = None) -> None:
        """Bind the run's deadlines; a new run also has a latency timer."""
        self._deadlines = deadlines
        self._timer = timer

    @property
    def ended(self) -> bool:
        """Whether the run ended; one that was given up may still go on."""
        return self.fold.finished

    async def wait_ended(self) -> None:
        """Return when the run has ended; raises RunFailed if it was given up."""
        await asyncio.shield(self._done)  # a client that goes must not pass for the run's end

    def raise_if_given_up(self) -> None:
        """Raise RunFailed if the run was given up; what was collected is then not the whole."""
        if self._done.done() and (error := self._done.exception()) is not None:
            raise error

    def raise_if_failed(self) -> None:
        """Raise RunFailed unless the run completed or was cancelled."""
        if (failure := self.fold.failure) is not None:
            raise RunFailed(failure.message, code=failure.code)

    def on_batch(self, batch: Batch) -> None:
        """Take events in order."""
        if self._done.done():
            return
        for event in batch.events():
            self.fold.receive(event)
            if event.type == TEXT:
                self._characters += len(event.data)
            elif event.type in WRITTEN_EVENTS:
                self._characters += written_characters(event.type, event.data)
            if self.fold.finished:
                break
        if batch.seq == 1:
            self._begin(batch)
        if self._deadlines is not None:
            self._deadlines.events_received(self._loop.time())
        if self.fold.finished:
            self._done.set_result(None)
        elif self._characters > MAX_COMPLETION_CHARACTERS:
            self.fail(STREAM_LOST, f"the answer exceeds {MAX_COMPLETION_CHARACTERS} characters; request it streamed")

    def _begin(self, batch: Batch) -> None:
        if self._deadlines is not None:
            self._deadlines.attempt_started(self._loop.time())
        if self._timer is not None:
            self._timer.attempt_started(batch)

    def on_failure(self, error: AgentStreamError) -> None:
        """End: the run's events cannot be had any more."""
        self.fail(STREAM_LOST, str(error))

    def fail(self, code: str, message: str) -> None:
        """End with an error of our own."""
        if not self._done.done():
            self.given_up_code = code
            self._done.set_exception(RunFailed(message, code=code))

    def tick(self, now_s: float) -> None:
        """Doubt or give up a silent run."""
        if self._deadlines is not None and (verdict := self._deadlines.check(now_s)) is not None:
            log.warning("the run is given up: %s", verdict[1], extra=log_extra(self.log_context))
            self.fail(*verdict)
