"""The claim loop. It claims a job only when a slot is free, and it keeps running while Redis is unavailable."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from agentstream.errors import AgentStreamError, BrokerUnavailable
from agentstream.store.queue import HEARTBEAT_INTERVAL_S, Claim, JobQueue
from agentstream.telemetry.log_context import LogContext, log_context_of, log_extra
from agentstream.worker.leases import Leases, warn_if_unavailable
from agentstream.worker.runner import Runner
from agentstream.worker.slots import Slots

log = logging.getLogger(__name__)

BROKER_RETRY_S: Final = 0.5
# Time for every worker to reconnect after Redis is back: three times the longest back-off of a link.
SETTLE_S: Final = 3.0
# After the drain timeout the remaining runs get this long to store their terminal event or be handed back.
SHUTDOWN_GRACE_S: Final = 8.0


class Worker:
    """Executes the jobs of one queue until it is stopped. It runs as many at once as it gets slots."""

    def __init__(  # noqa: PLR0913 -- the parts that it joins
        self,
        queue: JobQueue,
        runner: Runner,
        leases: Leases,
        *,
        slots: Slots,
        drain_timeout_s: float,
        is_connected: Callable[[], bool],
    ) -> None:
        """Bind the parts. ``is_connected`` returns whether the link is connected.

        Call ``on_reconnect`` when the link reconnects.
        """
        self._is_connected = is_connected
        self._queue = queue
        self._runner = runner
        self._leases = leases
        self._drain_timeout_s = drain_timeout_s
        self._slots = slots
        self._runs: set[asyncio.Task[None]] = set()
        self._reclaim_after_s = 0.0

    @property
    def active(self) -> int:
        """The number of its runs that hold a slot."""
        return len(self._runs)

    @property
    def tokens(self) -> int:
        """The number of pieces of text that its agents have written so far."""
        return self._runner.text_events

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes of events that are not yet stored."""
        return self._runner.unflushed_bytes

    async def run(self, stop: asyncio.Event) -> None:
        """Work on the open queue until ``stop`` is set, then drain.

        An error in a side task (heartbeat, renewal, reclaim) ends the worker with that error.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                side_tasks = [
                    tasks.create_task(self._send_heartbeats(), name="beat"),
                    tasks.create_task(self._leases.renew_forever(), name="leases"),
                ]
                reclaiming = tasks.create_task(self._reclaim(), name="reclaim")
                await self._claim_until(stop)
                reclaiming.cancel()
                await self._drain()
                for task in side_tasks:
                    task.cancel()
        finally:
            await warn_if_unavailable(self._queue.close, "leave the queue")

    async def _claim_until(self, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stop.is_set():
                if self._slots.locked():
                    slot = asyncio.create_task(self._slots.acquire(), name="slot")
                    await asyncio.wait({slot, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if stop.is_set():
                        slot.cancel()
                        return
                else:
                    await self._slots.acquire()  # does not wait
                claim = await self._claim()  # a stop does not cancel it: a claimed job would be forgotten
                if claim is None:
                    self._slots.release()
                else:
                    self._start(claim)
                    await asyncio.sleep(0)  # begin this job before the next claim: a client waits for it
        finally:
            stopping.cancel()

    async def _claim(self) -> Claim | None:
        try:
            return await self._queue.claim(short_block=self._slots.contended)
        except BrokerUnavailable as exc:
            log.warning("cannot claim jobs; retrying: %s", exc)
            await asyncio.sleep(BROKER_RETRY_S)
            return None

    def on_reconnect(self) -> None:
        """Renew the leases of this worker at once, and give other workers time to renew theirs."""
        self._leases.renew_now()
        self._pause_reclaim()

    def _pause_reclaim(self) -> None:
        """Take over no job for a while. Leases expired because Redis was unavailable, not because workers died."""
        self._reclaim_after_s = asyncio.get_running_loop().time() + self._leases.interval_s + SETTLE_S

    def _may_reclaim(self) -> bool:
        """Whether an expired lease means a dead worker.

        It does not while the link is disconnected, and not during the pause after a reconnect.
        """
        return self._is_connected() and asyncio.get_running_loop().time() >= self._reclaim_after_s

    async def _reclaim(self) -> None:
        """Take over jobs whose lease has expired, in turn with claiming new jobs."""
        while True:
            await asyncio.sleep(self._leases.interval_s)
            try:
                await self._reclaim_all()
            except BrokerUnavailable as exc:
                log.warning("cannot take over expired leases: %s", exc)
                self._pause_reclaim()

    async def _reclaim_all(self) -> None:
        """Take over every job that only needs a terminal event, and at most one job whose agent is called again.

        That job may have killed its worker. Together with other such jobs it could kill all of them again. The reclaim
        waits for a slot like a claim does: in a worker with one slot, the claim loop holds it nearly all the time.
        """
        while True:
            await self._slots.acquire()
            claim = None
            try:
                if self._may_reclaim():
                    claim = await asyncio.shield(self._queue.reclaim(self._leases.lease_s))
            finally:
                if claim is None:
                    self._slots.release()
            if claim is None:
                return
            log.warning(
                "taking over the run: the lease of its worker has expired", extra=log_extra(log_context_of(claim.job))
            )
            called_again: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._start(claim, called_again)
            if await called_again:
                return

    def _start(self, claim: Claim, called_again: asyncio.Future[bool] | None = None) -> None:
        task = asyncio.create_task(self._runner.execute(claim, called_again), name=f"run {claim.job.run_id}")
        self._runs.add(task)
        task.add_done_callback(partial(self._on_run_done, log_context_of(claim.job)))

    def _on_run_done(self, log_context: LogContext, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            known = isinstance(error, AgentStreamError)
            log.error(
                "the run ended with an error: %s",
                error,
                exc_info=None if known else error,
                extra=log_extra(log_context),
            )

    async def _drain(self) -> None:
        if self._runs:
            log.info("draining: %d runs may take up to %g s to end", len(self._runs), self._drain_timeout_s)
            await asyncio.wait(self._runs, timeout=self._drain_timeout_s)
        self._runner.stop_all()
        if self._runs:
            _, left = await asyncio.wait(self._runs, timeout=SHUTDOWN_GRACE_S)
            for task in left:
                log.error("%s did not end in time; cancelling it", task.get_name())
                task.cancel()

    async def _send_heartbeats(self) -> None:
        while True:
            await warn_if_unavailable(self._queue.heartbeat, "send a heartbeat")
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
