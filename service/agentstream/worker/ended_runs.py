"""The runs that ended here a short time ago. A failover of Redis may lose their end; this worker stores it again."""

import asyncio
import logging
import time
from collections import deque
from typing import Final, NamedTuple

from agentstream.errors import BrokerUnavailable
from agentstream.store.bus.publisher import RunPublisher
from agentstream.store.queue import Claim, JobQueue
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)

# Replication lags by less than a second. Sentinels by default replace a primary 30 s after it is lost, a cluster 15 s.
KEPT_S: Final = 60.0
MAX_KEPT_RUNS: Final = 1000
MAX_KEPT_BYTES: Final = 16 << 20
RESTORE_TIMEOUT_S: Final = 30.0


class _EndedRun(NamedTuple):
    claim: Claim
    publisher: RunPublisher
    ended_at_s: float  # monotonic


class EndedRuns:
    """Keeps the publishers of runs that ended in the last KEPT_S, within bounds, and repairs these runs."""

    def __init__(self, queue: JobQueue) -> None:
        """Bind the queue of the runs."""
        self._queue = queue
        self._runs: deque[_EndedRun] = deque()
        self._bytes = 0
        self._reconnected = asyncio.Event()

    def __len__(self) -> int:
        """Return how many runs are kept."""
        return len(self._runs)

    def add(self, claim: Claim, publisher: RunPublisher) -> None:
        """Keep a run whose last event is stored, and whose job is finished."""
        publisher.retain()
        self._runs.append(_EndedRun(claim, publisher, time.monotonic()))
        self._bytes += publisher.kept_bytes
        self._drop_old()

    def on_reconnect(self) -> None:
        """Repair the kept runs, because the broker may have lost their end."""
        self._reconnected.set()

    async def repair_forever(self) -> None:
        """Repair the kept runs after each reconnect, until this task is cancelled."""
        while True:
            await self._reconnected.wait()
            self._reconnected.clear()
            self._drop_old()
            async with asyncio.TaskGroup() as tasks:
                for run in tuple(self._runs):
                    tasks.create_task(self._repair(run), name=f"repair {run.claim.job.run_id}")

    async def _repair(self, run: _EndedRun) -> None:
        try:
            async with asyncio.timeout(RESTORE_TIMEOUT_S):
                if await run.publisher.restore():  # else another attempt has begun, and ends the run
                    await self._queue.finish(run.claim, again=True)
        except (BrokerUnavailable, TimeoutError) as exc:
            reason = str(exc) or f"Redis did not answer within {RESTORE_TIMEOUT_S:g} s"
            log.warning(
                "cannot find out whether the end of the run is stored: %s",
                reason,
                extra=log_extra(log_context_of(run.claim.job)),
            )

    def _drop_old(self) -> None:
        runs, now_s = self._runs, time.monotonic()
        while runs and (
            len(runs) > MAX_KEPT_RUNS or self._bytes > MAX_KEPT_BYTES or now_s - runs[0].ended_at_s > KEPT_S
        ):
            self._bytes -= runs.popleft().publisher.kept_bytes
