"""The runs that ended here a short time ago. A failover of Redis may lose their end; this worker stores it again."""

import asyncio
import logging
from typing import Final, NamedTuple

from agentstream.errors import BrokerUnavailable
from agentstream.store.bus.publisher import RunPublisher
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.recent import Recent
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)

MAX_RUNS: Final = 1000
RESTORE_TIMEOUT_S: Final = 30.0


class _EndedRun(NamedTuple):
    claim: Claim
    publisher: RunPublisher


class EndedRuns:
    """Keeps the publishers of the runs that ended last, within the bounds of ``Recent``, and repairs these runs."""

    def __init__(self, queue: JobQueue) -> None:
        """Bind the queue of the runs."""
        self._queue = queue
        self._runs: Recent[_EndedRun] = Recent(MAX_RUNS)
        self._reconnected = asyncio.Event()

    def add(self, claim: Claim, publisher: RunPublisher) -> None:
        """Keep a run whose last event is stored. Its job may still be in the queue."""
        publisher.retain()
        self._runs.add(_EndedRun(claim, publisher), publisher.kept_bytes)

    def on_reconnect(self) -> None:
        """Repair the kept runs, because the broker may have lost their end."""
        self._reconnected.set()

    async def repair_forever(self) -> None:
        """Repair the kept runs after each reconnect, until this task is cancelled."""
        while True:
            await self._reconnected.wait()
            self._reconnected.clear()
            async with asyncio.TaskGroup() as tasks:
                for run in self._runs:
                    tasks.create_task(self._repair(run), name=f"repair {run.claim.job.run_id}")

    async def _repair(self, run: _EndedRun) -> None:
        try:
            async with asyncio.timeout(RESTORE_TIMEOUT_S):
                if await run.publisher.restore():  # else another attempt ends the run, or Redis refuses: it is logged
                    await self._queue.finish(run.claim, again=True)
        except (BrokerUnavailable, TimeoutError) as exc:
            reason = str(exc) or f"Redis did not answer within {RESTORE_TIMEOUT_S:g} s"
            log.warning(
                "cannot find out whether the end of the run is stored: %s",
                reason,
                extra=log_extra(log_context_of(run.claim.job)),
            )
