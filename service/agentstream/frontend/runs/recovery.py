"""Repeats, after a reconnect, what this front end wrote to Redis a short time ago: a failover may have lost it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from weakref import WeakSet

from agentstream.errors import AgentStreamError
from agentstream.frontend.background import BackgroundTasks
from agentstream.store.recent import SETTLE_S, Recent

log = logging.getLogger(__name__)

MAX_WRITES: Final = 10_000
AT_ONCE: Final = 64
REPEAT_TIMEOUT_S: Final = 10.0  # for one write; after the next reconnect it is repeated again

Repeat = Callable[[], Awaitable[Any]]


class WaitingJob(Protocol):
    """A job of this front end that may wait in its queue."""

    async def enqueue_again_if_lost(self) -> None:
        """Enqueue the job again if the broker has lost it."""


class Recovery:
    """The writes that this front end repeats after a reconnect. Each of them changes nothing if it is not lost."""

    def __init__(self, background_tasks: BackgroundTasks) -> None:
        """Start without writes."""
        self._background_tasks = background_tasks
        self._writes: Recent[Repeat] = Recent(MAX_WRITES)
        self._waiting: WeakSet[WaitingJob] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None

    def remember(self, repeat: Repeat, size_bytes: int = 0) -> None:
        """Call ``repeat`` after the reconnects of the next minute. It holds about ``size_bytes`` of memory."""
        self._writes.add(repeat, size_bytes)

    def watch(self, job: WaitingJob) -> None:
        """Check a job after each reconnect, for as long as somebody else keeps the object."""
        self._waiting.add(job)

    def on_reconnect(self) -> None:
        """Repeat the writes in SETTLE_S: by then workers have stored again which runs they execute."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._start)

    def _start(self) -> None:
        self._background_tasks.start(self._repeat_all(), "repeat the last writes")

    async def _repeat_all(self) -> None:
        repeats = [*self._writes, *(job.enqueue_again_if_lost for job in self._waiting)]
        for start in range(0, len(repeats), AT_ONCE):
            await asyncio.gather(*map(_repeat, repeats[start : start + AT_ONCE]))


async def _repeat(repeat: Repeat) -> None:
    try:
        async with asyncio.timeout(REPEAT_TIMEOUT_S):
            await repeat()
    except TimeoutError:
        log.warning("a write before the reconnect was not repeated within %g s", REPEAT_TIMEOUT_S)
    except AgentStreamError as exc:  # for example: the interrupt has another answer now
        log.info("a write before the reconnect is not repeated: %s", exc)
