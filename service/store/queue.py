"""The job queue: a Redis Stream with a consumer group.

An entry stays until its run is over, so the stream's length is the outstanding work.

Lease, heartbeat and reclaim will live beside ``claim`` and ``finish``: an entry's owner is already asked
for when it is removed, and its attempt is counted when it is begun.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from service.errors import BrokerUnavailable, QueueFull
from service.protocol.jobs import Job
from service.protocol.keys import GROUP, Keys
from service.store.endpoint import COMMAND_TIMEOUT_S, Endpoint
from service.store.link import Link
from service.store.scripts import SCRIPTS

log = logging.getLogger(__name__)

CLAIM_BLOCK_S: Final = 1.0  # one blocking read; ends sooner when a job comes; bounds how long a stop takes
# A server whose blocking read returns at once (fakeredis) must not make us spin.
MIN_EMPTY_CLAIM_S: Final = 0.01
BEAT_INTERVAL_S: Final = 3.0
BEAT_VALID_S: Final = 10  # three beats: a worker that is alive but busy is not called dead
FULL_QUEUE_RETRY_AFTER_S: Final = 5
_NO_QUEUE: Final = ("NOGROUP", "The XGROUP subcommand requires the key")  # the second is fakeredis'
_FIRST_ENTRY: Final = "0"  # a group that starts at $ would skip jobs enqueued before its first worker


@contextlib.contextmanager
def _broker_errors() -> Iterator[None]:
    """Raise redis-py's errors as ours; redis stays inside ``store``."""
    try:
        yield
    except RedisError as exc:
        message = f"Redis: {exc}"
        raise BrokerUnavailable(message) from exc


@dataclass(frozen=True, slots=True)
class Claim:
    """A job held by this worker: its queue entry and what to run."""

    entry_id: str
    job: Job


class JobSubmitter:
    """The front end's side of the queue."""

    def __init__(self, link: Link, keys: Keys, queue: str, *, max_queued: int) -> None:
        """Bind the link and the queue's name and bound."""
        self._link = link
        self._keys = keys
        self._queue = queue
        self._max_queued = max_queued

    async def submit(self, job: Job, *, ttl_s: int) -> None:
        """Enqueue; raises QueueFull. ``ttl_s`` bounds the run's hash, and covers its whole life.

        Sent again after a lost reply the job may stand in the queue twice; the worker that begins it second
        is told so (``begin.lua``).
        """
        run = self._keys.run(job.run_id)
        described = ("status", "queued", "owner", job.owner, "model", job.request["model"], "created", job.created)
        _, _, admitted = await asyncio.gather(  # one write, in this order
            self._link.call("HSET", run, *described),
            self._link.call("EXPIRE", run, ttl_s),
            self._link.call_script("admit", [self._keys.jobs(self._queue)], self._max_queued, job.encode()),
        )
        if isinstance(admitted, int):
            await self._link.call("DEL", run)
            message = f"the queue is full ({admitted} outstanding jobs); try again later"
            raise QueueFull(message, retry_after_s=FULL_QUEUE_RETRY_AFTER_S)

    async def outstanding(self) -> int:
        """Return how many jobs are waiting or running."""
        return int(await self._link.call("XLEN", self._keys.jobs(self._queue)))

    async def workers_alive(self) -> int:
        """Return how many workers of this queue beat lately."""
        return int(await self._link.call_script("alive", [self._keys.workers(self._queue)], BEAT_VALID_S))


class JobQueue:
    """A worker's side of the queue, over redis-py. The blocking read has a connection of its own.

    Every method raises BrokerUnavailable if Redis cannot be reached or refuses.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys, queue: str, *, worker_id: str) -> None:
        """Bind the names; ``worker_id`` is unique for every process that ever claims."""
        self._keys = keys
        self._jobs = keys.jobs(queue)
        self._workers = keys.workers(queue)
        self.worker_id = worker_id
        self._redis = endpoint.redis()
        self._blocking = endpoint.redis(read_timeout_s=CLAIM_BLOCK_S + COMMAND_TIMEOUT_S)
        self._scripts = {name: self._redis.register_script(script.source) for name, script in SCRIPTS.items()}

    async def open(self) -> None:
        """Make sure the queue and its group exist, and say that this worker is alive."""
        with _broker_errors():
            try:
                await self._redis.xgroup_create(self._jobs, GROUP, id=_FIRST_ENTRY, mkstream=True)
            except ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):
                    raise
        await self.beat()

    async def close(self) -> None:
        """Leave: no longer alive, no consumer left behind unless it still holds jobs."""
        try:
            with _broker_errors():
                await self._redis.zrem(self._workers, self.worker_id)
                try:
                    held = await self._redis.xpending_range(self._jobs, GROUP, "-", "+", 1, consumername=self.worker_id)
                    if not held:
                        await self._redis.xgroup_delconsumer(self._jobs, GROUP, self.worker_id)
                except ResponseError as exc:
                    if not str(exc).startswith(_NO_QUEUE):
                        raise
        finally:
            await self._blocking.aclose()
            await self._redis.aclose()

    async def beat(self) -> None:
        """Say that this worker is alive; worth BEAT_VALID_S."""
        await self._script("beat", self._workers, self.worker_id, BEAT_VALID_S)

    async def claim(self) -> Claim | None:
        """Wait up to CLAIM_BLOCK_S for a job and take it; one at a time, so idle workers share a burst."""
        started = time.monotonic()
        with _broker_errors():
            try:
                reply = await self._blocking.xreadgroup(
                    GROUP, self.worker_id, {self._jobs: ">"}, count=1, block=int(CLAIM_BLOCK_S * 1000)
                )
            except ResponseError as exc:
                if not str(exc).startswith(_NO_QUEUE):
                    raise
                log.warning("the queue is gone (a broker that came back empty?); creating it again")
                await self.open()
                return None
        entries = _entries(reply)
        if not entries:
            if time.monotonic() - started < MIN_EMPTY_CLAIM_S:
                await asyncio.sleep(MIN_EMPTY_CLAIM_S)
            return None
        entry_id, fields = entries[0]
        try:
            return Claim(entry_id, Job.decode(fields[b"job"]))
        except (ValueError, KeyError):
            log.exception("entry %s of %s is not a job; removed", entry_id, self._jobs)
            await self._remove(entry_id)
            return None

    async def begin(self, claim: Claim, *, ttl_s: int) -> int:
        """Begin an attempt at a claimed job and return its number; 0 if another entry carries the same run."""
        return int(await self._script("begin", self._keys.run(claim.job.run_id), claim.entry_id, self.worker_id, ttl_s))

    async def finish(self, claim: Claim, status: str, *, ttl_s: int) -> None:
        """Remove a job whose terminal event is stored, and keep its status for ``ttl_s``."""
        run = self._keys.run(claim.job.run_id)
        with _broker_errors():
            await self._redis.hset(run, "status", status)
            await self._redis.expire(run, ttl_s)
        await self._remove(claim.entry_id)

    async def drop(self, claim: Claim) -> None:
        """Remove a job that needs no run."""
        await self._remove(claim.entry_id)

    async def _remove(self, entry_id: str) -> None:
        if not await self._script("finish", self._jobs, GROUP, self.worker_id, entry_id):
            log.warning("job %s is no longer held by this worker", entry_id)

    async def _script(self, name: str, key: str, *args: str | int) -> Any:  # noqa: ANN401 -- a Redis reply
        with _broker_errors():
            return await self._scripts[name](keys=[key], args=list(args))


def _entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:  # noqa: ANN401 -- RESP2 and RESP3 differ
    """Return (id, fields) of an XREADGROUP reply of one stream: a list under RESP2, a dict under RESP3."""
    if not reply:
        return []
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], list | tuple):
        entries = entries[0]
    return [(entry_id.decode(), fields) for entry_id, fields in entries]
