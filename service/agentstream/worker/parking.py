"""Runs that wait for an answer: a worker parks them, and enqueues them again when their questions expire."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from agentstream.errors import AgentStreamError, BrokerUnavailable, BusError, Fenced
from agentstream.protocol.openai import Usage
from agentstream.store.bus.publisher import RunPublisher
from agentstream.store.interrupts import TIMED_OUT, InterruptStore, Waiting
from agentstream.store.queue import BegunAttempt, Claim
from agentstream.worker.questions import Questions

log = logging.getLogger(__name__)

PARKED: Final = "parked"
# Time for the events of a run to be stored before it is parked. If it is not enough, another worker parks the run.
PARK_TIMEOUT_S: Final = 30.0
# A front end that has stored an answer enqueues the run. If it has not done so after this time, a worker does it.
RETRY_S: Final = 10
FAILED_RETRY_S: Final = 600  # after an error that concerns one run


class Parking:
    """Parks the runs of one queue while they wait for people, and ends questions that nobody answers."""

    def __init__(self, interrupts: InterruptStore, queue: str, *, open_ttl_s: int, closed_ttl_s: int) -> None:
        """Store the TTLs of the keys of a run. A parked run is kept ``closed_ttl_s`` longer than its last question."""
        self._interrupts = interrupts
        self._queue = queue
        self._open_ttl_s = open_ttl_s
        self._closed_ttl_s = closed_ttl_s
        self.on_timeouts: Callable[[int], None] = _count_nothing  # called with the number of interrupts that expired

    async def read(self, run_id: str) -> Waiting | None:
        """Return the questions and answers of a run; None if it never asked."""
        return await self._interrupts.read(run_id)

    async def park(
        self, publisher: RunPublisher, claim: Claim, begun: BegunAttempt, usage: Usage, questions: Questions
    ) -> bool:
        """Store that the run waits. Return whether that is stored; otherwise another attempt asks again."""
        now_s = int(time.time())
        ttl_s = max(1, questions.last_expiry - now_s) + self._closed_ttl_s
        try:
            async with asyncio.timeout(PARK_TIMEOUT_S):
                await publisher.flush()  # the event that parks the run is alone in its batch
                # First, so that the questions of a run expire also if this worker is killed right after it is parked.
                await self._interrupts.remember(self._queue, claim.job.run_id, questions.first_expiry)
                publisher.put_parked(usage.model_dump(), claim.job.encode(), begun.attempt, ttl_s)
                await publisher.flush()
        except (AgentStreamError, TimeoutError) as exc:
            if not isinstance(exc, Fenced):
                log.error("the run could not be parked: %s", str(exc) or "Redis does not answer")  # noqa: TRY400
            return False
        return True

    async def expire(self) -> None:
        """Answer the questions whose time is over, so that their agents learn of it. Raises BrokerUnavailable."""
        now_s = int(time.time())
        try:
            while due := await self._interrupts.expired(self._queue, now_s):
                for run_id in due:  # after this each of them is looked at later, or never again
                    try:
                        await self._expire(run_id, now_s)
                    except BusError as exc:  # for example: the run has lost its replay log
                        log.warning("the questions of the run %s cannot expire: %s", run_id, exc)
                        await self._interrupts.remember(self._queue, run_id, now_s + FAILED_RETRY_S)
        except BusError as exc:
            raise BrokerUnavailable(str(exc)) from exc

    async def _expire(self, run_id: str, now_s: int) -> None:
        waiting = await self._interrupts.read(run_id)
        if waiting is not None and waiting.status == "running" and waiting.open:  # about to be parked
            await self._interrupts.remember(self._queue, run_id, now_s + RETRY_S)
        elif waiting is None or waiting.job is None or waiting.status not in {"requires_action", "queued"}:
            await self._interrupts.forget(self._queue, run_id, until=now_s)
        elif waiting.status == "queued":  # answered, but the process that stored the answer did not enqueue the run
            await self._interrupts.enqueue(self._queue, waiting.job, ttl_s=self._open_ttl_s)
            await self._interrupts.forget(self._queue, run_id, until=now_s)
        elif (late := _late(waiting, now_s)) or not waiting.open:
            log.info("nobody has answered %d questions of the run %s in time", len(late), run_id)
            again_at = now_s + RETRY_S
            await self._interrupts.remember(self._queue, run_id, again_at)
            outcome = await self._interrupts.answer(waiting, late, ttl_s=self._open_ttl_s)
            if outcome == "requires_action":
                self.on_timeouts(len(late))
            if outcome == "requires_action" and len(late) == len(waiting.open):
                await self._interrupts.enqueue(self._queue, waiting.job, ttl_s=self._open_ttl_s)
                await self._interrupts.forget(self._queue, run_id, since=again_at, until=again_at)
        else:
            await self._interrupts.remember(self._queue, run_id, min(asked.expires_at for asked in waiting.open))


def _late(waiting: Waiting, now_s: int) -> dict[str, dict[str, bool]]:
    """Return the answers to the open interrupts whose time is over."""
    return {asked.id: TIMED_OUT for asked in waiting.open if asked.expires_at <= now_s}


def _count_nothing(_number: int) -> None:
    """Do nothing."""
