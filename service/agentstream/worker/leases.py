"""Leases: this worker keeps what it runs, learns what it lost, and takes over what others left.

A lease lasts ``lease_s`` since its last renewal and is renewed three times as often. Expired ones are looked for
as often, so a killed worker's run has its terminal event within lease + lease/3 + 1 s.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from agentstream.errors import BrokerUnavailable
from agentstream.store.queue import Claim, JobQueue
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3  # two may fail before the third decides
PRUNE_EVERY: Final = 100  # renewals


class LeasedRun(Protocol):
    """A run under lease."""

    claim: Claim

    @property
    def begun(self) -> bool:
        """Whether its attempt was begun."""
        ...

    @property
    def agent_name(self) -> str:
        """What its agent is called; empty until it is called."""
        ...

    @property
    def text_events(self) -> int:
        """How many tokens it has written."""
        ...

    def abandon(self) -> None:
        """Publish nothing more: another worker holds the job by now."""

    def cancel(self) -> None:
        """End it: a cancel was asked for."""


class Leases:
    """What this worker holds."""

    def __init__(self, queue: JobQueue, lease_s: float) -> None:
        """Bind the queue; nothing is held yet."""
        self._queue = queue
        self.lease_s = lease_s
        self.interval_s = lease_s / RENEWALS_PER_LEASE
        self._held: dict[str, LeasedRun] = {}
        self._renew_now = asyncio.Event()

    def hold(self, run: LeasedRun) -> None:
        """Renew this run's lease from now on."""
        self._held[run.claim.entry_id] = run

    def release(self, run: LeasedRun) -> None:
        """Renew it no more."""
        self._held.pop(run.claim.entry_id, None)

    def on_control(self, message: bytes) -> None:
        """Cancel the run whose id was sent to this worker's control channel; it may have ended."""
        run_id = message.decode(errors="replace")
        for run in list(self._held.values()):
            if run.claim.job.run_id == run_id:
                run.cancel()

    def renew_now(self) -> None:
        """Renew at once: after a reconnect others may be about to take over what could not be renewed."""
        self._renew_now.set()

    async def renew_forever(self) -> None:
        """Renew for ever, noting how far runs are; those whose lease is lost or whose cancel was asked for are told."""
        renewals = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.interval_s):
                    await self._renew_now.wait()
            self._renew_now.clear()
            renewals += 1
            await warn_if_unavailable(self._renew, "renew leases")
            if renewals % PRUNE_EVERY == 0:
                await warn_if_unavailable(self._queue.prune, "forget dead workers")

    async def _renew(self) -> None:
        if not self._held:
            return
        begun = {run.claim.job.run_id: run for run in self._held.values() if run.begun}
        lost = [self._held.get(entry_id) for entry_id in await self._queue.renew(list(self._held))]
        lost += [begun[run_id] for run_id in await self._queue.superseded(list(begun))]
        for run in lost:
            if run is not None and self._held.pop(run.claim.entry_id, None) is run:
                log.warning("the lease of the run was lost", extra=log_extra(log_context_of(run.claim.job)))
                run.abandon()
        by_run = {run.claim.job.run_id: run for run in self._held.values()}
        for run_id in await self._queue.cancel_requested(list(by_run)):
            by_run[run_id].cancel()
        called = [(run_id, run.agent_name, run.text_events) for run_id, run in by_run.items() if run.agent_name]
        if called:
            await self._queue.report_progress(called)


async def warn_if_unavailable(action: Callable[[], Awaitable[None]], what: str) -> None:
    """Do something that the next turn makes up for if the broker is away now."""
    try:
        await action()
    except BrokerUnavailable as exc:
        log.warning("cannot %s: %s", what, exc)
