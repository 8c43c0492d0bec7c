"""Looks at every open run once a second: keepalives, doubts, deadlines. One task for all of them."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from agentstream.errors import QUEUE_TIMEOUT, STREAM_LOST
from agentstream.store.bus.feed import RunFeed
from agentstream.telemetry.log_context import LogContext, log_extra

log = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
PARTS: Final = 10  # of a sweep: 10,000 runs doubted at once took 5 MB
# A run silent for so long may have lost a message: compare with the log, then less and less often.
MIN_LOG_CHECK_INTERVAL_S: Final = 5.0
MAX_LOG_CHECK_INTERVAL_S: Final = 60.0
# Beyond the worker's own deadlines: its clock, its last flush and one broker reconnect.
GRACE_S: Final = 10.0


class OpenRun(Protocol):
    """What the watcher can do with a run somebody waits for. ``log_context`` is what log lines say of it."""

    log_context: LogContext

    def tick(self, now_s: float) -> None:
        """Be looked at. ``now_s`` is the loop's clock."""


class Deadlines:
    """When a run should be doubted, and when it must be given up. Times are the loop's clock, in seconds."""

    __slots__ = (
        "_feed",
        "_give_up_at_s",
        "_log_check_interval_s",
        "_next_log_check_s",
        "_on_silence_before_start",
        "_run_timeout_s",
        "_started",
    )

    def __init__(
        self,
        feed: RunFeed,
        now_s: float,
        *,
        queue_timeout_s: float,
        run_timeout_s: float,
        on_silence_before_start: Callable[[], None] | None = None,
    ) -> None:
        """Begin with the time the job may wait in the queue.

        ``on_silence_before_start`` is called when a run of which nothing was heard yet is doubted. Without it the run
        is one that exists, of unknown age.
        """
        self._feed = feed
        self._on_silence_before_start = on_silence_before_start
        self._run_timeout_s = run_timeout_s
        self._started = False
        patience_s = queue_timeout_s if on_silence_before_start else queue_timeout_s + run_timeout_s
        self._give_up_at_s = now_s + patience_s + GRACE_S
        self._log_check_interval_s = MIN_LOG_CHECK_INTERVAL_S
        self._next_log_check_s = now_s + MIN_LOG_CHECK_INTERVAL_S

    def attempt_started(self, now_s: float) -> None:
        """Take note of an attempt's first event: it starts the run's time."""
        self._started = True
        self._on_silence_before_start = None
        self._give_up_at_s = now_s + self._run_timeout_s + GRACE_S

    def events_received(self, now_s: float) -> None:
        """Take note that events came, some moments ago: the run is alive."""
        self._log_check_interval_s = MIN_LOG_CHECK_INTERVAL_S
        self._next_log_check_s = now_s + MIN_LOG_CHECK_INTERVAL_S
        if not self._started:
            self.attempt_started(now_s)
        self.postpone(now_s)

    def postpone(self, now_s: float) -> None:
        """Give up no sooner than in GRACE_S: somebody reads a log, which may take longer than the run itself."""
        self._give_up_at_s = max(self._give_up_at_s, now_s + GRACE_S)

    def check(self, now_s: float) -> tuple[str, str] | None:
        """Doubt the feed if it is time; return (code, message) if the run must be given up."""
        if now_s >= self._give_up_at_s:
            if self._started:
                return STREAM_LOST, "the run did not end within its time limit"
            return QUEUE_TIMEOUT, "no worker took the job up in time"
        if now_s >= self._next_log_check_s:
            self._feed.resync("silence")
            if self._on_silence_before_start is not None:
                self._on_silence_before_start()
            self._log_check_interval_s = min(self._log_check_interval_s * 2, MAX_LOG_CHECK_INTERVAL_S)
            self._next_log_check_s = now_s + self._log_check_interval_s
        return None


class Watcher:
    """The open runs of this front end.

    Each is looked at once a second, a tenth of them at a time: many runs are no burst of work, and the second between
    two looks at a run is never longer.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._parts: list[set[OpenRun]] = [set() for _ in range(PARTS)]
        self._none_left = asyncio.Event()
        self._none_left.set()

    def __len__(self) -> int:
        """Return how many runs are open."""
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[OpenRun]:
        """Yield each open run."""
        return itertools.chain.from_iterable(self._parts)

    def add(self, run: OpenRun) -> None:
        """Look after a run from now on."""
        self._parts[hash(run) % PARTS].add(run)
        self._none_left.clear()

    def remove(self, run: OpenRun) -> None:
        """Leave it alone."""
        self._parts[hash(run) % PARTS].discard(run)
        if not len(self):
            self._none_left.set()

    async def wait_empty(self, timeout_s: float) -> bool:
        """Return whether all runs ended within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_left.wait()
        except TimeoutError:
            return False
        return True

    async def sweep(self) -> None:
        """Tick every run once a second, for ever."""
        loop = asyncio.get_running_loop()
        for part in itertools.cycle(self._parts):
            await asyncio.sleep(SWEEP_S / PARTS)
            now_s = loop.time()
            for run in tuple(part):
                try:
                    run.tick(now_s)
                except Exception:  # one stream's fault must not end the others' keepalives
                    log.exception("looking after a run failed", extra=log_extra(run.log_context))
