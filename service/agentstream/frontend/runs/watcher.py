"""Ticks every open run once a second, for its keepalives and deadlines. One task does this for all runs."""

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
PARTS: Final = 10  # of a sweep: comparing 10,000 runs with their replay logs at the same time took 5 MB of memory
# A message of a silent run may be lost. So a silent run is compared with its replay log after the minimum interval, and
# again after intervals that double up to the maximum.
MIN_LOG_CHECK_INTERVAL_S: Final = 5.0
MAX_LOG_CHECK_INTERVAL_S: Final = 60.0
# Added to the worker's own time limits: for the difference of the clocks, the worker's last flush, and one reconnect to
# the broker.
GRACE_S: Final = 10.0


class WatchedRun(Protocol):
    """A run that a client waits for. ``log_context`` has the fields of log lines about it."""

    log_context: LogContext

    def tick(self, now_s: float) -> None:
        """Send a keepalive or check deadlines, if it is time. ``now_s`` is a time of the event loop's clock."""


class Deadlines:
    """Decides when to compare a run with its replay log, and when to give up on it.

    All times are seconds of the event loop's clock.
    """

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
        """Start the time that the job may wait in the queue.

        ``on_silence_before_start`` is called at each comparison with the replay log until the first event of the run
        arrives. None means that the run exists and its age is unknown: it may wait in the queue and then run, each for
        the full time.
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
        """Note the first event of an attempt, which restarts the run timeout."""
        self._started = True
        self._on_silence_before_start = None
        self._give_up_at_s = now_s + self._run_timeout_s + GRACE_S

    def events_received(self, now_s: float) -> None:
        """Note that events arrived, at ``now_s`` or up to a second earlier: the run is alive."""
        self._log_check_interval_s = MIN_LOG_CHECK_INTERVAL_S
        self._next_log_check_s = now_s + MIN_LOG_CHECK_INTERVAL_S
        if not self._started:
            self.attempt_started(now_s)
        self.postpone(now_s)

    def postpone(self, now_s: float) -> None:
        """Do not give up on the run in the next GRACE_S seconds.

        A slow client may need more time to read the replay log than the run itself took.
        """
        self._give_up_at_s = max(self._give_up_at_s, now_s + GRACE_S)

    def check(self, now_s: float) -> tuple[str, str] | None:
        """Compare the feed with the replay log if it is time; return (code, message) if the run must be given up."""
        if now_s >= self._give_up_at_s:
            if self._started:
                return STREAM_LOST, "the run did not end within its time limit"
            return QUEUE_TIMEOUT, "no worker began the run within the queue timeout; try again later"
        if now_s >= self._next_log_check_s:
            self._feed.resync("silence")
            if self._on_silence_before_start is not None:
                self._on_silence_before_start()
            self._log_check_interval_s = min(self._log_check_interval_s * 2, MAX_LOG_CHECK_INTERVAL_S)
            self._next_log_check_s = now_s + self._log_check_interval_s
        return None


class Watcher:
    """The open runs of this front end.

    Each run gets a tick once a second. The runs are divided into PARTS parts, which get their ticks one after another.
    This spreads the work over the second.
    """

    def __init__(self) -> None:
        """Start without runs."""
        self._parts: list[set[WatchedRun]] = [set() for _ in range(PARTS)]
        self._none_left = asyncio.Event()
        self._none_left.set()

    def __len__(self) -> int:
        """Return how many runs are open."""
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[WatchedRun]:
        """Yield each open run."""
        return itertools.chain.from_iterable(self._parts)

    def add(self, run: WatchedRun) -> None:
        """Tick this run from now on."""
        self._parts[hash(run) % PARTS].add(run)
        self._none_left.clear()

    def remove(self, run: WatchedRun) -> None:
        """Stop ticking this run. A run that was not added is ignored."""
        self._parts[hash(run) % PARTS].discard(run)
        if not len(self):
            self._none_left.set()

    async def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no run is open; return False if that takes longer than ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_left.wait()
        except TimeoutError:
            return False
        return True

    async def sweep(self) -> None:
        """Tick every run once a second, until cancelled."""
        loop = asyncio.get_running_loop()
        for part in itertools.cycle(self._parts):
            await asyncio.sleep(SWEEP_S / PARTS)
            now_s = loop.time()
            for run in tuple(part):
                try:
                    run.tick(now_s)
                except Exception:  # an error in one run must not stop the keepalives of the others
                    log.exception("the tick of a run failed", extra=log_extra(run.log_context))
