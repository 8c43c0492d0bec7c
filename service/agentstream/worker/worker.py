"""The claim loop. It claims a job only when a slot is free, and it keeps running while Redis is unavailable."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from agentstream.errors import AgentStreamError, BrokerUnavailable
from agentstream.store.queue import HANDED_BACK_IDLE_MS, HEARTBEAT_INTERVAL_S, Claim, JobQueue
from agentstream.telemetry.log_context import LogContext, log_context_of, log_extra
from agentstream.worker.leases import Leases, warn_if_unavailable
from agentstream.worker.parking import Parking
from agentstream.worker.runner import Runner
from agentstream.worker.slots import Slots

log = logging.getLogger(__name__)

BROKER_RETRY_S: Final = 0.5
# Only a job that was handed back looks idle for so long.
HANDED_BACK_LEASE_S: Final = HANDED_BACK_IDLE_MS / 2000
# Time for every worker to reconnect after Redis is back: three times the longest back-off of a link.
SETTLE_S: Final = 3.0
# After the drain timeout the remaining runs get this long to store their terminal event or be handed back.
SHUTDOWN_GRACE_S: Final = 8.0
CANCEL_AGAIN_S: Final = 0.5
MAX_MORE_CLAIMS: Final = 15  # together with the first one of a claim


class Worker:
    """Executes the jobs of one queue until it is stopped. It runs as many at once as it gets slots."""

    def __init__(  # noqa: PLR0913 -- the parts that it joins
        self,
        queue: JobQueue,
        runner: Runner,
        leases: Leases,
        parking: Parking,
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
        self._parking = parking
        leases.deliver = runner.deliver
        self._drain_timeout_s = drain_timeout_s
        self._slots = slots
        self._runs: set[asyncio.Task[None]] = set()
        self._entries: set[str] = set()  # the queue entries of its runs
        queue.holds = self._entries.__contains__
        self._reclaim_after_s = 0.0
        self._handed_back = asyncio.Event()
        self._handed_back.set()  # jobs may have been handed back before this worker started

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
                    tasks.create_task(self._expire_questions(), name="questions"),
                    tasks.create_task(self._runner.ended_runs.repair_forever(), name="ended runs"),
                ]
                reclaiming = tasks.create_task(self._reclaim(), name="reclaim")
                await self._claim_until(stop)
                reclaiming.cancel()
                await self._drain()
                await _cancel([*side_tasks, reclaiming])
        finally:
            await warn_if_unavailable(self._queue.close, "leave the queue")

    async def _claim_until(self, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stop.is_set():
                if not self._slots.take():
                    slot = asyncio.create_task(self._slots.acquire(), name="slot")
                    await asyncio.wait({slot, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if stop.is_set():
                        slot.cancel()
                        return
                slots = 1 + self._slots.take(self._may_claim_more())
                claims = await self._claim(slots)  # a stop does not cancel it: claimed jobs would be forgotten
                for _ in range(slots - len(claims)):
                    self._slots.release()
                for claim in claims:
                    self._start(claim)
                if claims:
                    await asyncio.sleep(0)  # begin these jobs before the next claim: clients wait for them
        finally:
            stopping.cancel()

    def _may_claim_more(self) -> int:
        """Return how many jobs this worker may claim together with the first one: half as many as it runs.

        So idle workers share a burst, and a busy worker claims several jobs with one command: with 32 short runs at a
        time, this halves the CPU time of a run. Half of the free slots stay free, because a claim may hold its slots
        for CLAIM_BLOCK_S.
        """
        return min(len(self._runs) // 2, self._slots.free // 2, MAX_MORE_CLAIMS)

    async def _claim(self, at_most: int) -> list[Claim]:
        try:
            return await self._queue.claim(at_most, short_block=self._slots.contended)
        except BrokerUnavailable as exc:
            log.warning("cannot claim jobs; retrying: %s", exc)
            await asyncio.sleep(BROKER_RETRY_S)
            return []

    def on_handed_back(self, _message: bytes) -> None:
        """Take over the jobs that another worker of the queue has handed back."""
        self._handed_back.set()

    def on_reconnect(self) -> None:
        """Renew the leases of this worker at once, and give other workers time to renew theirs."""
        self._leases.renew_now()
        self._runner.ended_runs.on_reconnect()
        self._handed_back.set()  # a message may be lost
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
        """Take over jobs that were handed back, at once, and jobs whose lease has expired, three times a lease."""
        loop = asyncio.get_running_loop()
        next_check_s = loop.time() + self._leases.interval_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_check_s):
                    await self._handed_back.wait()
            self._handed_back.clear()
            expired = loop.time() >= next_check_s
            if expired:
                next_check_s = loop.time() + self._leases.interval_s
            try:
                await self._reclaim_all(self._leases.lease_s if expired else HANDED_BACK_LEASE_S)
            except BrokerUnavailable as exc:
                log.warning("cannot take over jobs of other workers: %s", exc)
                self._pause_reclaim()

    async def _reclaim_all(self, lease_s: float) -> None:
        """Take over every job that was not renewed for ``lease_s``, but at most one that may have killed its workers.

        Together with other such jobs it could kill all workers again. The reclaim waits for a slot like a claim does:
        in a worker with one slot, the claim loop holds it nearly all the time.
        """
        while True:
            await self._slots.acquire()
            claim = None
            try:
                if self._may_reclaim() or (lease_s == HANDED_BACK_LEASE_S and self._is_connected()):
                    claim = await self._reclaim_one(lease_s)
            finally:
                if claim is None:
                    self._slots.release()
            if claim is None:
                return
            log.warning(
                "taking over the run of a worker that is lost or stops", extra=log_extra(log_context_of(claim.job))
            )
            suspicious: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._start(claim, suspicious)
            if await suspicious:
                return

    async def _reclaim_one(self, lease_s: float) -> Claim | None:
        """Take over one job. If this task is cancelled meanwhile, hand the job back: nobody would work on it."""
        reclaiming = asyncio.create_task(self._queue.reclaim(lease_s), name="reclaim a job")
        try:
            return await asyncio.shield(reclaiming)
        except asyncio.CancelledError:
            if (claim := await reclaiming) is not None:
                await self._queue.hand_back(claim)
            raise

    def _start(self, claim: Claim, suspicious: asyncio.Future[bool] | None = None) -> None:
        """Execute a job in a task that releases the slot. Do so only once, also if the queue delivers the job again."""
        if claim.entry_id in self._entries:
            self._slots.release()
            if suspicious is not None:
                suspicious.set_result(False)
            return
        self._entries.add(claim.entry_id)
        task = asyncio.create_task(self._runner.execute(claim, suspicious), name=f"run {claim.job.run_id}")
        self._runs.add(task)
        task.add_done_callback(partial(self._on_run_done, claim.entry_id, log_context_of(claim.job)))

    def _on_run_done(self, entry_id: str, log_context: LogContext, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._entries.discard(entry_id)
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
        self._runner.hand_over_all()
        if self._runs:
            log.info("draining: %d runs may take up to %g s to end", len(self._runs), self._drain_timeout_s)
            await asyncio.wait(self._runs, timeout=self._drain_timeout_s)
        self._runner.stop_all()
        if self._runs:
            _, left = await asyncio.wait(self._runs, timeout=SHUTDOWN_GRACE_S)
            for task in left:
                log.error("%s did not end in time; cancelling it", task.get_name())
                task.cancel()

    async def _expire_questions(self) -> None:
        while True:
            await warn_if_unavailable(self._parking.expire, "end questions that nobody answered in time")
            await asyncio.sleep(self._leases.interval_s)

    async def _send_heartbeats(self) -> None:
        while True:
            await warn_if_unavailable(self._queue.heartbeat, "send a heartbeat")
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended. A client of Redis may lose a cancel that comes together with a reply."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
