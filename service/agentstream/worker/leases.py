"""Leases: this worker renews those that it holds and notices those that it lost.

A lease lasts ``lease_s`` from its last renewal. A worker renews its leases three times in this time, and looks as often
for expired leases of other workers. So a run of a killed worker gets its terminal event, or begins again, within lease
+ lease/3 + 1 s.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from agentstream.errors import BrokerUnavailable
from agentstream.store.inputs import INPUT
from agentstream.store.interrupts import ANSWERED
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.recent import SETTLE_S
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3  # so that two renewals may fail
PRUNE_EVERY: Final = 100  # renewals


class LeasedRun(Protocol):
    """A run whose lease this worker holds."""

    claim: Claim

    @property
    def begun(self) -> bool:
        """Whether its attempt has begun."""
        ...

    @property
    def agent_name(self) -> str:
        """The name of its agent. Empty until the agent is called."""
        ...

    @property
    def text_events(self) -> int:
        """The number of pieces of text that its agent has written."""
        ...

    def abandon(self) -> None:
        """Stop the run and publish nothing more: another worker holds the job."""

    def cancel(self) -> None:
        """End the run as cancelled."""

    @property
    def waits(self) -> bool:
        """Whether its agent waits for people in this worker."""
        ...

    @property
    def takes_inputs(self) -> bool:
        """Whether its agent takes messages while it works."""
        ...


class Leases:
    """The leases that this worker holds."""

    def __init__(self, queue: JobQueue, lease_s: float) -> None:
        """Bind the queue. No lease is held yet. Set ``deliver``: it reads the answers and messages for a run."""
        self._queue = queue
        self.deliver: Callable[[str], Awaitable[None]] = _ignore
        self.lease_s = lease_s
        self.interval_s = lease_s / RENEWALS_PER_LEASE
        self._held: dict[str, LeasedRun] = {}
        self._doubtful: dict[str, float] = {}  # entries that another worker holds, and since when (monotonic)
        self._renew_now = asyncio.Event()
        self._news: set[str] = set()

    def hold(self, run: LeasedRun) -> None:
        """Renew the lease of this run from now on."""
        self._held[run.claim.entry_id] = run

    def release(self, run: LeasedRun) -> None:
        """Stop renewing the lease of this run."""
        self._held.pop(run.claim.entry_id, None)

    def on_control(self, message: bytes) -> None:
        """Cancel the run whose id came on this worker's control channel, or read what people sent to it.

        A run that has ended is ignored.
        """
        text = message.decode(errors="replace")
        run_id = text.removeprefix(ANSWERED).removeprefix(INPUT)
        for run in list(self._held.values()):
            if run.claim.job.run_id == run_id:
                if text == run_id:
                    run.cancel()
                else:
                    self._news.add(run_id)
                    self.renew_now()  # reads the news, too

    def renew_now(self) -> None:
        """Renew at once. After a reconnect, leases may have expired, and other workers may take the runs over."""
        self._renew_now.set()

    async def renew_forever(self) -> None:
        """Renew the leases until this task is cancelled, and report the progress of the runs.

        Abandons each run whose lease was lost. Cancels each run whose cancel was requested.
        """
        renewals = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.interval_s):
                    await self._renew_now.wait()
            self._renew_now.clear()
            renewals += 1
            await warn_if_unavailable(self._renew, "renew leases")
            if renewals % PRUNE_EVERY == 0:
                await warn_if_unavailable(self._queue.prune, "remove dead workers from the queue")

    async def _with_news(self, runs: Mapping[str, LeasedRun]) -> list[str]:
        """Return the runs that may have got an answer or a message; the message about it may be lost."""
        news, self._news = self._news, set()
        taking = [run_id for run_id, run in runs.items() if run.takes_inputs]
        counts = await self._queue.input_counts(taking) if taking else []
        waiting = [run_id for run_id, run in runs.items() if run.waits]
        return [
            *{*waiting, *(news & set(runs)), *(run_id for run_id, count in zip(taking, counts, strict=True) if count)}
        ]

    async def _renew(self) -> None:
        if not self._held:
            return
        begun = {run.claim.job.run_id: run for run in self._held.values() if run.begun}
        others = await self._queue.renew(list(self._held))
        lost = [begun[run_id] for run_id in await self._queue.superseded(list(begun))]
        # Another worker that holds an entry soon begins a newer attempt. But if the queue has lost the claim of this
        # worker in a failover, the other worker gives the entry back.
        now_s = time.monotonic()
        self._doubtful = {entry_id: self._doubtful.get(entry_id, now_s) for entry_id in others}
        patience_s = min(self.lease_s, 2 * SETTLE_S)
        for entry_id, since_s in self._doubtful.items():
            run = self._held.get(entry_id)
            if run is not None and (now_s - since_s >= patience_s or not run.begun):
                lost.append(run)
        for run in lost:
            if self._held.pop(run.claim.entry_id, None) is run:
                log.warning("the lease of the run was lost", extra=log_extra(log_context_of(run.claim.job)))
                run.abandon()
        by_run = {run.claim.job.run_id: run for run in self._held.values()}
        for run_id in await self._queue.cancel_requested(list(by_run)):
            by_run[run_id].cancel()
        for run_id in await self._with_news(by_run):
            await self.deliver(run_id)
        called = [(run_id, run.agent_name, run.text_events) for run_id, run in by_run.items() if run.agent_name]
        if called:
            await self._queue.report_progress(called)


async def _ignore(_run_id: str) -> None:
    """Do nothing."""


async def warn_if_unavailable(action: Callable[[], Awaitable[None]], what: str) -> None:
    """Call ``action``; log a warning if Redis is unavailable. The caller repeats the action later.

    ``what`` completes the sentence "cannot …".
    """
    try:
        await action()
    except BrokerUnavailable as exc:
        log.warning("cannot %s: %s", what, exc)
