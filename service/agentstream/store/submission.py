"""The front end's side of the job queue: it admits jobs within the limits, and counts the jobs that wait."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentstream.errors import LimitReached, QueueFull
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import Reply
from agentstream.store.queue import HEARTBEAT_VALID_S
from agentstream.store.replicas import Replicas
from agentstream.store.run_fields import fields_of
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)

FULL_QUEUE_RETRY_AFTER_S: Final = 5  # without a recent sample of the removal rate
MAX_RETRY_AFTER_S: Final = 60
REMOVAL_SAMPLE_VALID_S: Final = 60


@dataclass(frozen=True, slots=True)
class Backlog:
    """The outstanding jobs of a queue, the jobs that no worker has taken, and the age (s) of the oldest of these.

    ``waiting`` and ``oldest_s`` are -1 if the Redis user may not read them.
    """

    jobs: int
    waiting: int
    oldest_s: float


class Admission:
    """A job that a front end has sent to its queue, and may send again. ``entry_id`` is empty until it is enqueued."""

    __slots__ = ("__weakref__", "entry_id", "envelope", "submitter", "ttl_s")

    def __init__(self) -> None:
        """Start without a job; ``JobSubmitter.submit`` sets it."""
        self.submitter: JobSubmitter | None = None
        self.envelope = b""
        self.entry_id = ""
        self.ttl_s = 0

    async def enqueue_again_if_lost(self) -> None:
        """Enqueue the job again if the broker has lost it."""
        if self.submitter is not None and self.entry_id:
            await self.submitter.enqueue_again_if_lost(self)


async def _one_by_one(*calls: Callable[[], Awaitable[Reply]]) -> list[Reply]:
    return [await call() for call in calls]


class _RemovalRate:
    """Estimates how fast jobs leave the queue, from the counts that ``admit.lua`` returns with a refusal."""

    def __init__(self) -> None:
        self._sample: tuple[int, int] | None = None  # jobs ever removed, server time in s

    def retry_after_s(self, outstanding: int, removed: int, now_s: int) -> int:
        """Return the time (s) until about a tenth of the jobs is done; a fixed time if there is no recent sample."""
        earlier = self._sample
        if earlier is None or removed < earlier[0] or now_s - earlier[1] > REMOVAL_SAMPLE_VALID_S:
            self._sample = (removed, now_s)
            return FULL_QUEUE_RETRY_AFTER_S
        if now_s == earlier[1]:
            return FULL_QUEUE_RETRY_AFTER_S
        rate = (removed - earlier[0]) / (now_s - earlier[1])
        return min(MAX_RETRY_AFTER_S, math.ceil(outstanding / 10 / rate)) if rate else MAX_RETRY_AFTER_S


class JobSubmitter:
    """The front end's side of the queue."""

    def __init__(
        self, link: Link, keys: Keys, queue: str, *, max_queued: int, replicas: Replicas | None = None
    ) -> None:
        """Store the link, the queue's name and its bound. ``replicas`` must have a job before it counts as enqueued."""
        self._link = link
        self._replicas = replicas
        self._keys = keys
        self._queue = queue
        self._max_queued = max_queued
        self._removal_rate = _RemovalRate()

    def submit(self, job: Job, *, ttl_s: int, admission: Admission | None = None) -> Awaitable[None]:
        """Enqueue the job. The returned awaitable is done when the job is in the queue; it raises QueueFull.

        It raises BrokerUnavailable if the job is in the queue, but not on the required replicas. ``admission`` can
        enqueue the job again later.

        Its commands are sent together with the other commands of this turn of the event loop. ``ttl_s`` is the TTL of
        the run's hash and must cover the whole run. If they are sent again after a lost reply, the job may be in the
        queue twice. Then ``begin.lua`` begins an attempt for one of the two entries only.
        """
        run, jobs, envelope = self._keys.run(job.run_id), self._keys.jobs(self._queue), job.encode()
        link = self._link if self._replicas is None else self._replicas.link
        if admission is not None:
            admission.submitter, admission.envelope, admission.ttl_s = self, envelope, ttl_s
        reply: Awaitable[Reply]
        if link.group_of(run) == link.group_of(jobs):
            reply = link.start_script_call("admit", [jobs, run], self._max_queued, envelope, ttl_s, *fields_of(job))
        else:
            reply = self._start_in_steps(link, job, envelope, ttl_s)
        return self._admitted(job, reply, admission, link.reconnects)

    def _start_in_steps(self, link: Link, job: Job, envelope: bytes, ttl_s: int) -> Awaitable[Reply]:
        """Create the run and enqueue its job with two scripts, because their keys have different slots.

        Return the reply of admit.lua. The job must not be in the queue before the run exists. One server keeps the
        order of the two commands, and runs them after the subscription.
        """
        run, jobs = self._keys.run(job.run_id), self._keys.jobs(self._queue)
        create = partial(link.start_script_call, "create_run", [run], ttl_s, *fields_of(job))
        admit = partial(link.start_script_call, "admit", [jobs], self._max_queued, envelope)
        replies = asyncio.gather(create(), admit()) if link.keeps_order(run, jobs) else _one_by_one(create, admit)
        return self._remove_if_refused(run, replies)

    async def _remove_if_refused(self, run: str, replies: Awaitable[Sequence[Reply]]) -> Reply:
        """Return the reply of admit.lua. If the queue is full, remove the hash of the run."""
        new, admitted = await replies
        if isinstance(admitted, list) and new:  # else a client repeated the request under its idempotency key
            await self._link.call("DEL", run)
        return admitted

    def keeps_order(self, job: Job) -> bool:
        """Whether one server runs the subscription to the run and the enqueueing in the order of sending."""
        return self._replicas is None and self._link.keeps_order(
            self._keys.run(job.run_id), self._keys.jobs(self._queue)
        )

    async def _admitted(self, job: Job, reply: Awaitable[Reply], admission: Admission | None, reconnects: int) -> None:
        """Return if the job is in the queue; else raise QueueFull."""
        admitted = await reply
        if isinstance(admitted, list):
            if job.limited:
                await self._link.call("ZREM", self._keys.active_runs(job.owner), job.run_id)
            outstanding, removed, now_s = admitted
            message = f"the queue is full ({outstanding} outstanding jobs); try again later"
            raise QueueFull(message, retry_after_s=self._removal_rate.retry_after_s(outstanding, removed, now_s))
        if admission is not None:
            admission.entry_id = admitted.decode()
        if self._replicas is not None:
            names = (self._keys.run(job.run_id), self._keys.jobs(self._queue))
            await self._replicas.confirm(*names, reconnects=reconnects)

    async def enqueue_again_if_lost(self, admission: Admission) -> None:
        """Enqueue the job again if it has not begun, and its queue entry or the hash of its run is lost.

        A failover may lose one without the other: in a cluster they may be on two servers. The job is there twice if a
        worker begins it in between. Then ``begin.lua`` begins no attempt for the second entry.
        """
        job = Job.decode(admission.envelope)
        if time.time() > job.start_by:
            return
        status, owner = await self._link.call("HMGET", self._keys.run(job.run_id), "status", "owner")
        if owner is None:
            await self._link.call_script("create_run", [self._keys.run(job.run_id)], admission.ttl_s, *fields_of(job))
        if status not in (None, b"queued"):
            return
        jobs = self._keys.jobs(self._queue)
        entry_id = await self._link.call_script("readmit", [jobs], admission.entry_id, admission.envelope)
        if entry_id is not None:
            admission.entry_id = entry_id.decode()
            log.warning("the broker has lost the queued run; enqueued it again", extra=log_extra(log_context_of(job)))

    async def check_limits(self, job: Job, *, max_runs: int, max_requests_per_minute: int, ttl_s: int) -> None:
        """Count a request against the limits of its owner; raises LimitReached. A limit of 0 means no limit.

        A run that has ended or waits for people is not active. A client may learn of that before the worker has taken
        the run off the active ones, or the worker may be lost in between. So the runs themselves are asked before a
        request is refused.
        """
        reached = await self._count(job, max_runs, max_requests_per_minute, ttl_s)
        if reached is not None and reached[0] == b"runs" and await self._remove_inactive(job.owner, reached[3:]):
            reached = await self._count(job, max_runs, 0, ttl_s)  # the request is counted already
        if reached is not None:
            which, used, retry_after_s = reached[0].decode(), int(reached[1]), max(1, int(reached[2]))
            message = (
                f"this API key has {used} active runs, which is its limit; wait until a run ends"
                if which == "runs"
                else f"this API key has sent {used} requests this minute, which is its limit; try again later"
            )
            raise LimitReached(message, retry_after_s=retry_after_s)

    async def _count(self, job: Job, max_runs: int, max_requests_per_minute: int, ttl_s: int) -> Reply:
        keys = [self._keys.active_runs(job.owner), self._keys.requests(job.owner)]
        return await self._link.call_script("check_limits", keys, job.run_id, max_runs, max_requests_per_minute, ttl_s)

    async def _remove_inactive(self, owner: str, run_ids: Sequence[bytes]) -> bool:
        """Take the runs that are not active off the active runs of ``owner``; return whether there were any."""
        statuses = await asyncio.gather(
            *(self._link.start_call("HGET", self._keys.run(run_id.decode()), "status") for run_id in run_ids)
        )
        active = (None, b"queued", b"running")  # a run that is just created has no hash yet
        inactive = [run_id for run_id, status in zip(run_ids, statuses, strict=True) if status not in active]
        if inactive:
            await self._link.call("ZREM", self._keys.active_runs(owner), *inactive)
        return bool(inactive)

    async def outstanding(self) -> int:
        """Return the number of jobs that wait or run."""
        return int(await self._link.call("XLEN", self._keys.jobs(self._queue)))

    async def backlog(self) -> Backlog:
        """Return the outstanding jobs of the queue, and how many of them wait for a worker."""
        jobs, waiting, oldest_ms = await self._link.call_script("backlog", [self._keys.jobs(self._queue)], GROUP)
        return Backlog(jobs, waiting, oldest_ms if waiting < 0 else oldest_ms / 1000)

    async def parked(self) -> int:
        """Return the number of runs that wait for people. They are not among the jobs."""
        return int(await self._link.call("ZCARD", self._keys.parked(self._queue)))

    async def workers_alive(self) -> int:
        """Return the number of workers of this queue with a valid heartbeat."""
        return int(await self._link.call_script("count_workers", [self._keys.workers(self._queue)], HEARTBEAT_VALID_S))
