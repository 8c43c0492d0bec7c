"""The job queue: a Redis Stream with a consumer group.

An entry stays until its run is over, so the stream's length is the outstanding work.

A worker holds an entry while it renews its lease; any worker takes over an entry whose lease ran out. XCLAIM and
XACK ignore who owns an entry, so renewing, handing back and finishing are scripts that ask first.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from redis.exceptions import RedisError, ResponseError

from agentstream.errors import BrokerUnavailable, BusError, LimitReached, QueueFull
from agentstream.protocol.events import RUN_STARTED, encode_batch, encode_event
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S, Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import Reply
from agentstream.store.runs import CONVERSATION, RESPONSE, TRACEPARENT
from agentstream.store.scripts import SCRIPTS

log = logging.getLogger(__name__)

CLAIM_BLOCK_S: Final = 1.0  # one blocking read; ends sooner when a job comes; bounds how long a stop takes
SHORT_CLAIM_BLOCK_S: Final = 0.02  # the same, while another queue's turn waits for it to end
# A server whose blocking read returns at once (fakeredis) must not make us spin.
MIN_EMPTY_CLAIM_S: Final = 0.01
# What a job handed back claims to have been idle: longer than any lease.
HANDED_BACK_IDLE_MS: Final = 24 * 3600 * 1000
# A worker that has not asked for work for so long is dead: a live one asks every CLAIM_BLOCK_S.
DEAD_CONSUMER_IDLE_MS: Final = 3600 * 1000
# A command that takes longer met a broker that was away: a healthy one answers within milliseconds.
STALL_S: Final = 1.0
_STALLED: Final = "the broker stalled; leases that ran out meanwhile say nothing"
HEARTBEAT_INTERVAL_S: Final = 3.0
HEARTBEAT_VALID_S: Final = 10  # three beats: a worker that is alive but busy is not called dead
FULL_QUEUE_RETRY_AFTER_S: Final = 5
MAX_RETRY_AFTER_S: Final = 60
MAX_CONVERSATION_BYTES: Final = 256 << 10  # a run's copy of it; about 64,000 tokens
REMOVAL_SAMPLE_VALID_S: Final = 60
# The second is fakeredis', whose "ERR " redis-py takes off and the link does not.
_NO_GROUP_ERRORS: Final = (
    "NOGROUP",
    "The XGROUP subcommand requires the key",
    "ERR The XGROUP subcommand requires the key",
)
_FIRST_ENTRY: Final = "0"  # a group that starts at $ would skip jobs enqueued before its first worker


@contextlib.contextmanager
def _map_redis_errors() -> Iterator[None]:
    """Raise redis-py's errors as ours; redis stays inside ``store``."""
    try:
        yield
    except RedisError as exc:
        message = f"Redis: {exc}"
        raise BrokerUnavailable(message) from exc


async def _reply_within(asked: Awaitable[Reply], timeout_s: float) -> Reply:
    """Return what was asked over a link, which would wait for a broker that is away; raises BrokerUnavailable."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asked
    except TimeoutError as exc:
        message = f"Redis did not answer within {timeout_s:g} s"
        raise BrokerUnavailable(message) from exc
    except BusError as exc:
        message = f"Redis: {exc}"
        raise BrokerUnavailable(message) from exc


@dataclass(frozen=True, slots=True)
class Backlog:
    """A queue's outstanding jobs, those no worker has taken, and the oldest one's age. -1: the server may not tell."""

    jobs: int
    waiting: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A job held by this worker: its queue entry, what to run, and since when its lease may run (monotonic, s)."""

    entry_id: str
    job: Job
    lease_since_s: float


@dataclass(frozen=True, slots=True)
class BegunAttempt:
    """A begun attempt: its number, whether a cancel was asked for, and its first batch as it is stored.

    ``waited_s`` is how long its job has been in the queue, by the server's clock.
    """

    attempt: int
    cancel_requested: bool
    hand_backs: int
    waited_s: float
    first_batch: bytes


def _kept_for_responses(job: Job) -> tuple[str | bytes, ...]:
    """Return the fields of the run's hash that the Responses API reads."""
    if job.response is None:
        return ()
    fields: tuple[str | bytes, ...] = (RESPONSE, orjson.dumps(job.response))
    if job.response.get("store", True):
        instructed = job.response.get("instructions") is not None  # they stand first, and are for this run alone
        conversation = orjson.dumps(job.request["messages"][1 if instructed else 0 :])
        if len(conversation) <= MAX_CONVERSATION_BYTES:
            fields += (CONVERSATION, conversation)
    return fields


class _RemovalRate:
    """How fast the queue empties, from what refusals tell of it."""

    def __init__(self) -> None:
        self._sample: tuple[int, int] | None = None  # jobs ever removed, server time in s

    def retry_after_s(self, outstanding: int, removed: int, now_s: int) -> int:
        """Return when about a tenth of the queue will have been worked off; a guess without an earlier sample."""
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

    def __init__(self, link: Link, keys: Keys, queue: str, *, max_queued: int) -> None:
        """Bind the link and the queue's name and bound."""
        self._link = link
        self._keys = keys
        self._queue = queue
        self._max_queued = max_queued
        self._removal_rate = _RemovalRate()

    def submit(self, job: Job, *, ttl_s: int) -> Awaitable[None]:
        """Enqueue; what is returned is done when it is, or raises QueueFull.

        It goes out with what else this turn of the loop sends. ``ttl_s`` bounds the run's hash, and covers its whole
        life. Sent again after a lost reply the job may stand in the queue twice; the worker that begins it second
        is told so (``begin.lua``).
        """
        run = self._keys.run(job.run_id)
        described = (
            *("status", "queued", "owner", job.owner, "model", job.request["model"], "created", job.created),
            *("include_usage", int(job.include_usage)),
            *((TRACEPARENT, job.traceparent) if job.traceparent else ()),
            *_kept_for_responses(job),
        )
        asked = asyncio.gather(  # in this order, and with the subscription before them
            self._link.start_script_call("create_run", [run], ttl_s, *described),
            self._link.start_script_call("admit", [self._keys.jobs(self._queue)], self._max_queued, job.encode()),
        )
        return self._admitted(job, asked)

    async def _admitted(self, job: Job, asked: Awaitable[tuple[Reply, Reply]]) -> None:
        """Raise QueueFull, and take back what was sent, unless the job is in the queue."""
        new, admitted = await asked
        if isinstance(admitted, list):
            run = self._keys.run(job.run_id)
            if new:  # else a run of this id may have been admitted: this is a request repeated under its key
                await self._link.call("DEL", run)
            if job.limited:
                await self._link.call("ZREM", self._keys.active_runs(job.owner), job.run_id)
            outstanding, removed, now_s = admitted
            message = f"the queue is full ({outstanding} outstanding jobs); try again later"
            raise QueueFull(message, retry_after_s=self._removal_rate.retry_after_s(outstanding, removed, now_s))

    async def check_limits(self, job: Job, *, max_runs: int, max_requests_per_minute: int, ttl_s: int) -> None:
        """Count a request against its owner's limits; raises LimitReached. 0 is no limit."""
        keys = [self._keys.active_runs(job.owner), self._keys.requests(job.owner)]
        reached = await self._link.call_script(
            "check_limits", keys, job.run_id, max_runs, max_requests_per_minute, ttl_s
        )
        if reached is not None:
            which, used, retry_after_s = reached[0].decode(), int(reached[1]), max(1, int(reached[2]))
            message = (
                f"this API key has {used} active runs, as many as it may"
                if which == "runs"
                else f"this API key has sent {used} requests this minute, as many as it may"
            )
            raise LimitReached(message, retry_after_s=retry_after_s)

    async def outstanding(self) -> int:
        """Return how many jobs are waiting or running."""
        return int(await self._link.call("XLEN", self._keys.jobs(self._queue)))

    async def backlog(self) -> Backlog:
        """Return what is outstanding, and what of it waits."""
        jobs, waiting, oldest_ms = await self._link.call_script("backlog", [self._keys.jobs(self._queue)], GROUP)
        return Backlog(jobs, waiting, oldest_ms if waiting < 0 else oldest_ms / 1000)

    async def workers_alive(self) -> int:
        """Return how many workers of this queue beat lately."""
        return int(await self._link.call_script("count_workers", [self._keys.workers(self._queue)], HEARTBEAT_VALID_S))


class JobQueue:
    """A worker's side of the queue.

    What a request waits for (claim, begin, finish) goes over links: the blocking read over one of its own, the rest
    over the bus's. The upkeep of leases goes over redis-py.

    Every method raises BrokerUnavailable if Redis cannot be reached or refuses.
    """

    def __init__(self, endpoint: Endpoint, link: Link, keys: Keys, queue: str, *, worker_id: str) -> None:
        """Bind the names; ``worker_id`` is unique for every process that ever claims."""
        self._link = link
        self._claims = Link(endpoint, name="agentstream-claims")
        self._keys = keys
        self.name = queue
        self._jobs = keys.jobs(queue)
        self._workers = keys.workers(queue)
        self.worker_id = worker_id
        self._redis = endpoint.redis()
        self._scripts = {name: self._redis.register_script(script.source) for name, script in SCRIPTS.items()}

    @property
    def reconnects(self) -> int:
        """How often the connection of its blocking read was made anew."""
        return self._claims.reconnects

    async def open(self) -> None:
        """Make sure the queue and its group exist, and say that this worker is alive."""
        self._claims.open()
        await self._create()

    async def _create(self) -> None:
        with _map_redis_errors():
            try:
                await self._redis.xgroup_create(self._jobs, GROUP, id=_FIRST_ENTRY, mkstream=True)
            except ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):
                    raise
        await self.heartbeat()

    async def close(self) -> None:
        """Leave: no longer alive, no consumer left behind unless it still holds jobs."""
        try:
            with _map_redis_errors():
                await self._redis.zrem(self._workers, self.worker_id)
                try:
                    held = await self._redis.xpending_range(self._jobs, GROUP, "-", "+", 1, consumername=self.worker_id)
                    if not held:
                        await self._redis.xgroup_delconsumer(self._jobs, GROUP, self.worker_id)
                except ResponseError as exc:
                    if not str(exc).startswith(_NO_GROUP_ERRORS):
                        raise
        finally:
            await self._claims.close()
            await self._redis.aclose()

    async def heartbeat(self) -> None:
        """Say that this worker is alive; worth HEARTBEAT_VALID_S."""
        await self._script("heartbeat", [self._workers], self.worker_id, HEARTBEAT_VALID_S)

    async def claim(self, *, short_block: bool = False) -> Claim | None:
        """Wait up to CLAIM_BLOCK_S, or less in a hurry, for a job and take it.

        One at a time, so idle workers share a burst. One queue at a time: XREADGROUP counts per stream, and several
        streams may lie in several slots of a cluster.
        """
        started = time.monotonic()
        block_s = SHORT_CLAIM_BLOCK_S if short_block else CLAIM_BLOCK_S
        block = ("COUNT", 1, "BLOCK", int(block_s * 1000))
        try:
            asked = self._claims.start_call(
                "XREADGROUP", "GROUP", GROUP, self.worker_id, *block, "STREAMS", self._jobs, ">"
            )
            reply = await _reply_within(asked, block_s + COMMAND_TIMEOUT_S)
        except BrokerUnavailable as exc:
            if not str(exc.__cause__).startswith(_NO_GROUP_ERRORS):
                raise
            log.warning("the queue is gone (a broker that came back empty?); creating it again")
            await self._create()
            return None
        if not reply:
            if time.monotonic() - started < MIN_EMPTY_CLAIM_S:
                await asyncio.sleep(MIN_EMPTY_CLAIM_S)
            return None
        [entries] = reply.values() if isinstance(reply, dict) else (reply[0][1],)  # RESP3, RESP2
        entry_id, flat = entries[0]
        return await self._decode_claim(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)), lease_since_s=started)

    async def reclaim(self, lease_s: float) -> Claim | None:
        """Take over one job whose worker has not renewed its lease for ``lease_s``; None if there is none.

        One at a time: taken ten at a time, an innocent job was once given up beside a poisonous one. Raises
        BrokerUnavailable also if the broker stalled meanwhile: then leases ran out that nobody could renew.
        """
        asked = time.monotonic()
        with _map_redis_errors():
            seconds, microseconds = await self._redis.time()
        if time.monotonic() - asked > STALL_S:
            raise BrokerUnavailable(_STALLED)
        now_ms = seconds * 1000 + microseconds // 1000
        try:
            reply = await self._script(
                "reclaim", [self._jobs], GROUP, self.worker_id, int(lease_s * 1000), now_ms, int(STALL_S * 1000)
            )
        except BrokerUnavailable as exc:
            if not str(exc.__cause__).startswith(_NO_GROUP_ERRORS):
                raise
            await self._create()
            return None
        if reply is None:
            return None
        if not isinstance(reply, list):
            raise BrokerUnavailable(_STALLED)
        entry_id, flat = reply
        return await self._decode_claim(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)), lease_since_s=asked)

    async def begin(self, claim: Claim, *, ttl_s: int) -> BegunAttempt | None:
        """Begin an attempt at a claimed job; None if the run has ended, or another entry carries it."""
        keys = [self._keys.run(claim.job.run_id), self._keys.events(claim.job.run_id)]
        token = secrets.token_hex(8)
        asked = self._link.start_script_call("begin", keys, claim.entry_id, self.worker_id, ttl_s, token)
        self._link.flush()  # nothing is to go before it: a client waits
        reply = await _reply_within(asked, COMMAND_TIMEOUT_S)
        if not isinstance(reply, list):
            log.info("the run needs no attempt: %s", reply)
            return None
        attempt, cancelled, handed_back, waited_ms = reply
        first = encode_batch(attempt, 1, [encode_event(RUN_STARTED, {"worker": self.worker_id})])
        return BegunAttempt(attempt, bool(cancelled), handed_back, waited_ms / 1000, first)

    async def renew(self, entry_ids: list[str]) -> list[str]:
        """Renew leases; returns the entries that another worker holds by now."""
        renewed = await self._script("renew", [self._jobs], GROUP, self.worker_id, *entry_ids)
        return [entry_id for entry_id, answer in zip(entry_ids, renewed, strict=True) if answer == 0]

    async def cancel_requested(self, run_ids: list[str]) -> list[str]:
        """Return those of the runs whose cancel was asked for: for cancels whose message was lost."""
        flags = await self._field(run_ids, "cancel")
        return [run_id for run_id, flag in zip(run_ids, flags, strict=True) if flag]

    async def superseded(self, run_ids: list[str]) -> list[str]:
        """Return those of the runs this worker began of which another began a newer attempt.

        It may have ended the run and removed the job by now, so that no lease tells.
        """
        workers = await self._field(run_ids, "worker")
        mine = self.worker_id.encode()
        return [run_id for run_id, worker in zip(run_ids, workers, strict=True) if worker not in (None, mine)]

    async def report_progress(self, runs: Sequence[tuple[str, str, int]]) -> None:
        """Note for runs this worker began their agent's name and how many tokens it has written, for who lists them."""
        script = SCRIPTS["progress"]
        with _map_redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.script_load(script.source)
                for run_id, agent, tokens in runs:
                    pipeline.evalsha(script.sha.decode(), 1, self._keys.run(run_id), self.worker_id, agent, tokens)
                await pipeline.execute()

    async def finish(self, claim: Claim) -> None:
        """Remove a job that needs no run any more: its terminal event is stored, or another entry carries it."""
        asked = self._link.start_script_call("finish", [self._jobs], GROUP, self.worker_id, claim.entry_id)
        if not await _reply_within(asked, COMMAND_TIMEOUT_S):
            log.warning("the job %s is no longer held by this worker", claim.entry_id)
        if claim.job.limited:
            with _map_redis_errors():
                await self._redis.zrem(self._keys.active_runs(claim.job.owner), claim.job.run_id)

    async def hand_back(self, claim: Claim) -> None:
        """Let another worker take the job at its next reclaim; the attempt does not count against the run."""
        with _map_redis_errors():
            run = self._keys.run(claim.job.run_id)
            if await self._redis.exists(run):  # else a broker that came back empty would keep it for ever
                await self._redis.hincrby(run, "handed_back", 1)
        await self._script("hand_back", [self._jobs], GROUP, self.worker_id, claim.entry_id, HANDED_BACK_IDLE_MS)

    async def prune(self) -> None:
        """Forget consumers of workers that are long dead and hold nothing."""
        await self._script("prune_consumers", [self._jobs], GROUP, DEAD_CONSUMER_IDLE_MS)

    async def _decode_claim(
        self, entry_id: bytes | str, fields: dict[bytes, bytes], *, lease_since_s: float
    ) -> Claim | None:
        """Return the claim of an entry; an entry that is no job is removed instead of coming back for ever."""
        name = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
        try:
            return Claim(name, Job.decode(fields[b"job"]), lease_since_s)
        except (ValueError, KeyError):
            log.exception("entry %s of %s is not a job; removed", name, self._jobs)
            await self._script("finish", [self._jobs], GROUP, self.worker_id, name)
            return None

    async def _field(self, run_ids: list[str], field: str) -> list[bytes | None]:
        """Return one field of each run's hash."""
        with _map_redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for run_id in run_ids:
                    pipeline.hget(self._keys.run(run_id), field)
                values: list[bytes | None] = await pipeline.execute()
        return values

    async def _script(self, name: str, keys: list[str], *args: str | int) -> Any:  # noqa: ANN401 -- a Redis reply
        with _map_redis_errors():
            return await self._scripts[name](keys=keys, args=list(args))
