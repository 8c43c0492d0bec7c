"""The job queue: a Redis Stream with a consumer group.

An entry stays until its run is over, so the length of the stream is the number of outstanding jobs.

A worker holds an entry as long as it renews its lease. Any worker may take over an entry whose lease expired. XCLAIM
and XACK do not check which worker holds an entry. So renewing, handing back and finishing are scripts that check it.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.events import RUN_STARTED, encode_batch, encode_event
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S, Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.new_link import new_link
from agentstream.store.connection.refusals import words_of
from agentstream.store.connection.wire import Reply
from agentstream.store.deadline import within
from agentstream.store.recent import SETTLE_S

log = logging.getLogger(__name__)

# Duration of one blocking read. It ends early when a job arrives. A worker that stops waits for it.
CLAIM_BLOCK_S: Final = 1.0
SHORT_CLAIM_BLOCK_S: Final = 0.02  # the same, if another queue or a reclaim waits for the slot
# If a blocking read returns earlier than this without a job (fakeredis), the worker pauses so that it does not spin.
MIN_EMPTY_CLAIM_S: Final = 0.01
# The idle time that a handed-back job gets: longer than any lease, so that the next reclaim takes the job.
HANDED_BACK_IDLE_MS: Final = 24 * 3600 * 1000
# A consumer that is idle for longer belongs to a dead worker: a live worker reads every CLAIM_BLOCK_S.
DEAD_CONSUMER_IDLE_MS: Final = 3600 * 1000
# If a command takes longer, the broker stalled: a healthy broker answers within milliseconds.
STALL_S: Final = 1.0
_STALLED: Final = "the broker stalled, so workers could not renew their leases; nothing is reclaimed now"
HEARTBEAT_INTERVAL_S: Final = 3.0
HEARTBEAT_VALID_S: Final = 10  # three heartbeats, so that a busy worker does not count as dead
# The last two are fakeredis' texts.
_NO_GROUP_ERRORS: Final = (
    "NOGROUP",
    "ERR NOGROUP",
    "ERR The XGROUP subcommand requires the key",
)
# No failover is quicker than this, so younger entries are those of the new primary.
_MIN_FAILOVER_MS: Final = 1000
_PENDING_PAGE: Final = 10
# The replies of begin.lua that begin no attempt.
_NO_ATTEMPT: Final = {b"ENDED": "it has ended", b"DUPLICATE": "another queue entry carries it"}
_FIRST_ENTRY: Final = "0"  # a group that starts at $ skips jobs that were enqueued before the first worker


async def _reply_within(link: Link, pending: asyncio.Future[Reply], timeout_s: float) -> Reply:
    """Return the reply of ``link``; raises BrokerUnavailable after ``timeout_s`` or for an error reply.

    Without the timeout the link would wait until the broker is reachable again.
    """
    since_s = time.monotonic()
    try:
        return await within(pending, timeout_s)
    except TimeoutError as exc:
        raise BrokerUnavailable(link.unanswered(timeout_s, since_s)) from exc
    except BusError as exc:
        message = f"Redis: {exc}"
        raise BrokerUnavailable(message) from exc


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker holds, and its queue entry. Its lease began at ``lease_since_s`` (monotonic) or later.

    ``new`` says that the queue delivered it as a new job, so no worker held it before, unless the queue has lost that
    worker's claim. The job must not begin before ``not_before_s`` (monotonic). ``more`` says that another
    entry follows in the same reply.
    """

    entry_id: str
    job: Job
    lease_since_s: float
    new: bool = False
    not_before_s: float = 0.0
    more: bool = False


@dataclass(frozen=True, slots=True)
class BegunAttempt:
    """An attempt that has begun, and its first batch as it is stored.

    ``hand_backs`` is how many attempts of the run were handed back. ``waited_s`` is the time that the job was in the
    queue, and ``silent_s`` the time since the last sign of life of the earlier attempt's worker (0 in the first
    attempt), both by the server's clock.
    """

    attempt: int
    cancel_requested: bool
    hand_backs: int
    waited_s: float
    first_batch: bytes
    silent_s: float = 0.0


class JobQueue:
    """A worker's side of the queue.

    ``claim`` has its own link, for its blocking read. All other commands use the link of the bus.

    Every method raises BrokerUnavailable if Redis is unreachable or refuses.
    """

    def __init__(self, endpoint: Endpoint, link: Link, keys: Keys, queue: str, *, worker_id: str) -> None:
        """Prepare the queue. ``worker_id`` must be unique among all processes that ever claim jobs."""
        self._link = link
        self._claims = new_link(endpoint, keys, name="agentstream-claims")
        self._keys = keys
        self.name = queue
        self._jobs = keys.jobs(queue)
        self._workers = keys.workers(queue)
        self.worker_id = worker_id
        self._token = secrets.token_hex(8)
        self._begins = itertools.count()
        self.holds: Callable[[str], bool] = _holds_nothing  # whether this worker works on a queue entry
        self._claims.on_reconnect[self._on_connect] = None
        # Where servers fail over, the first connection counts as a reconnect: it may come just after a failover.
        self._seen_reconnects = -1 if self._claims.fails_over else 0
        self._reconnected = False
        self._pending_after = ""  # look for jobs that this worker has claimed, but not got, after this entry
        self._settled_at_s = 0.0  # monotonic
        self._settling_before_ms = 0  # entries that are older may have a worker already

    @property
    def reconnects(self) -> int:
        """How often the link for the blocking read has reconnected."""
        return self._claims.reconnects

    async def open(self, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Create the queue and its group if they do not exist, and store the first heartbeat.

        If Redis refuses one of these commands for now, it is sent again until ``timeout_s`` is over. For example, a
        cluster refuses commands while its servers still join it.
        """
        self._claims.open()
        try:
            await self._create(timeout_s, once=False)
        except BaseException:
            await self._claims.close()
            raise

    async def _create(self, timeout_s: float = COMMAND_TIMEOUT_S, *, once: bool = True) -> None:
        ends_s = time.monotonic() + timeout_s
        command = ("XGROUP", "CREATE", self._jobs, GROUP, _FIRST_ENTRY, "MKSTREAM")
        try:
            await self._call(*command, key=self._jobs, timeout_s=timeout_s, once=once)
        except BrokerUnavailable as exc:
            if "BUSYGROUP" not in str(exc):
                raise
        await self.heartbeat(max(ends_s - time.monotonic(), COMMAND_TIMEOUT_S), once=once)

    async def close(self) -> None:
        """Remove the heartbeat, and the consumer unless it still holds jobs; close the connections."""
        try:
            await self._call("ZREM", self._workers, self.worker_id)
            try:
                held = await self._call("XPENDING", self._jobs, GROUP, "-", "+", 1, self.worker_id)
                if not held:
                    await self._call("XGROUP", "DELCONSUMER", self._jobs, GROUP, self.worker_id, key=self._jobs)
            except BrokerUnavailable as exc:
                if not words_of(exc.__cause__).startswith(_NO_GROUP_ERRORS):
                    raise
        finally:
            await self._claims.close()

    async def heartbeat(self, timeout_s: float = COMMAND_TIMEOUT_S, *, once: bool = True) -> None:
        """Store a heartbeat, valid for HEARTBEAT_VALID_S. Unless ``once``, repeat it if Redis refuses it for now."""
        arguments = (self.worker_id, HEARTBEAT_VALID_S)
        await self._script("heartbeat", [self._workers], *arguments, timeout_s=timeout_s, once=once)

    async def claim(self, at_most: int = 1, *, short_block: bool = False) -> list[Claim]:
        """Wait up to CLAIM_BLOCK_S for a job. Claim up to ``at_most`` jobs that wait; return [] if none arrives.

        A worker that claims many jobs leaves few to idle workers. The claim reads one queue, because COUNT applies to
        each stream of an XREADGROUP, and because a cluster may hold the streams in different slots. ``short_block``
        shortens the wait. Raises BrokerUnavailable.
        """
        if self._reconnected:
            await self._after_reconnect()
        if self._pending_after and (claim := await self._claim_pending()) is not None:
            return [claim]
        started = time.monotonic()
        block_s = SHORT_CLAIM_BLOCK_S if short_block else CLAIM_BLOCK_S
        block = ("COUNT", at_most, "BLOCK", int(block_s * 1000))
        try:
            pending = self._claims.start_call(
                "XREADGROUP", "GROUP", GROUP, self.worker_id, *block, "STREAMS", self._jobs, ">"
            )
            reply = await _reply_within(self._claims, pending, block_s + COMMAND_TIMEOUT_S)
        except BrokerUnavailable as exc:
            if not words_of(exc.__cause__).startswith(_NO_GROUP_ERRORS):
                raise
            log.warning("the queue does not exist; the broker may have lost its data; creating the queue again")
            await self._create()
            return []
        if not reply:
            if time.monotonic() - started < MIN_EMPTY_CLAIM_S:
                await asyncio.sleep(MIN_EMPTY_CLAIM_S)
            return []
        if self._reconnected:  # during the blocking read
            await self._after_reconnect()
        suspects_before_ms = self._settling_before_ms if started < self._settled_at_s else 0
        entries = _entries_of(reply)
        claims = []
        for number, (name, flat) in enumerate(entries, 1):
            suspect = int(name.partition(b"-")[0]) < suspects_before_ms
            claim = await self._decode_claim(
                name,
                flat,
                lease_since_s=started,
                new=True,
                not_before_s=self._settled_at_s if suspect else 0.0,
                more=number < len(entries),
            )
            if claim is not None:
                claims.append(claim)
        return claims

    def _on_connect(self) -> None:
        # A link to a cluster calls this for the first connection to each server, too.
        if self._claims.reconnects > self._seen_reconnects:
            self._seen_reconnects = self._claims.reconnects
            self._reconnected, self._settled_at_s = True, time.monotonic() + SETTLE_S

    async def _after_reconnect(self) -> None:
        """Note which entries may have a worker. Unless the worker is new, replies with claimed jobs may be lost, too.

        The queue may have lost claims, and deliver these jobs to other workers. So jobs that were enqueued before the
        reconnect are not begun for SETTLE_S. Meanwhile their workers store again that they execute them.
        """
        call = self._claims.start_call("TIME", key=self._jobs)
        seconds, microseconds = map(int, await _reply_within(self._claims, call, COMMAND_TIMEOUT_S))
        self._settling_before_ms = seconds * 1000 + microseconds // 1000 - _MIN_FAILOVER_MS
        self._reconnected, self._pending_after = False, _FIRST_ENTRY if self._seen_reconnects else ""

    async def _claim_pending(self) -> Claim | None:
        """Return a job that the queue has given to this worker, but whose reply was lost; None if there is no other.

        The broker may also have lost that this worker has ended the run, or that another one has taken it over. So the
        job is not begun before they have stored it again.
        """
        started = time.monotonic()
        while self._pending_after:
            command = ("XREADGROUP", "GROUP", GROUP, self.worker_id, "COUNT", _PENDING_PAGE, "STREAMS", self._jobs)
            pending = self._claims.start_call(*command, self._pending_after)
            try:
                reply = await _reply_within(self._claims, pending, COMMAND_TIMEOUT_S)
            except BrokerUnavailable as exc:
                if not words_of(exc.__cause__).startswith(_NO_GROUP_ERRORS):
                    raise
                reply = None  # the next claim creates the queue again
            entries = _entries_of(reply) if reply else []
            for name, flat in entries:
                self._pending_after = name.decode()
                if flat and not self.holds(self._pending_after):
                    log.warning("claimed a job whose claim was lost: %s", self._pending_after)
                    return await self._decode_claim(
                        name, flat, lease_since_s=started, new=True, not_before_s=self._settled_at_s
                    )
            if not entries:
                self._pending_after = ""
        return None

    async def reclaim(self, lease_s: float) -> Claim | None:
        """Take over one job whose worker has not renewed its lease for ``lease_s``; None if there is no such job.

        It takes one job at a time. When it took ten, a harmless job was given up together with a job that killed its
        workers. Raises BrokerUnavailable also if the broker stalled: then leases expired that no worker could renew.
        """
        started = time.monotonic()
        seconds, microseconds = map(int, await self._call("TIME", key=self._jobs))
        if time.monotonic() - started > STALL_S:
            raise BrokerUnavailable(_STALLED)
        now_ms = seconds * 1000 + microseconds // 1000
        try:
            limits = (int(lease_s * 1000), now_ms, int(STALL_S * 1000))
            reply = await self._script("reclaim", [self._jobs], GROUP, self.worker_id, *limits)
        except BrokerUnavailable as exc:
            if not words_of(exc.__cause__).startswith(_NO_GROUP_ERRORS):
                raise
            await self._create()
            return None
        if reply is None:
            return None
        if not isinstance(reply, list):
            raise BrokerUnavailable(_STALLED)
        entry_id, flat = reply
        return await self._decode_claim(entry_id, flat, lease_since_s=started)

    async def begin(
        self, claim: Claim, *, ttl_s: int, resumable: bool = False, takes_inputs: bool = False
    ) -> BegunAttempt | None:
        """Begin an attempt at a claimed job; None if the run needs none here, and its claim was given up.

        The run has ended, or another queue entry carries it, or another worker executes it, whose claim was lost.
        ``ttl_s`` is the TTL of the run's keys while the run is open. ``resumable`` says that the agent can continue
        what an earlier attempt began, and ``takes_inputs`` that it takes messages while it works.
        """
        keys = [self._keys.run(claim.job.run_id), self._keys.events(claim.job.run_id)]
        token = f"{self._token}-{next(self._begins)}"
        pending = self._link.start_script_call(
            "begin",
            keys,
            *(claim.entry_id, self.worker_id, ttl_s, token, int(resumable), int(takes_inputs), int(claim.new)),
        )
        if not claim.more:  # the job after this one begins in the same turn
            self._link.flush()  # sent now, not at the end of the turn, because a client waits
        reply = await _reply_within(self._link, pending, COMMAND_TIMEOUT_S)
        if not isinstance(reply, list):
            log.info("the run needs no attempt: %s", _NO_ATTEMPT.get(reply, reply))
            await self.finish(claim)
            return None
        if reply[0] == b"HELD":
            holder = reply[1].decode()
            log.warning("the queue has lost the claim of %s to the run; giving the job back to it", holder)
            await self._script("give", [self._jobs], GROUP, self.worker_id, claim.entry_id, holder)
            return None
        attempt, cancelled, handed_back, waited_ms, silent_ms = reply
        resumes = {"resumes": True} if resumable and attempt > 1 else {}
        first = encode_batch(attempt, 1, [encode_event(RUN_STARTED, {"worker": self.worker_id, **resumes})])
        return BegunAttempt(attempt, bool(cancelled), handed_back, waited_ms / 1000, first, silent_ms / 1000)

    async def renew(self, entry_ids: list[str]) -> list[str]:
        """Renew the leases of entries; return the entries that another worker holds now."""
        renewed = await self._script("renew", [self._jobs], GROUP, self.worker_id, *entry_ids)
        return [entry_id for entry_id, answer in zip(entry_ids, renewed, strict=True) if answer == 0]

    async def cancel_requested(self, run_ids: list[str]) -> list[str]:
        """Return the runs with a stored cancel. It finds a cancel even if the message to this worker was lost."""
        flags = await self._field(run_ids, "cancel")
        return [run_id for run_id, flag in zip(run_ids, flags, strict=True) if flag]

    async def input_counts(self, run_ids: list[str]) -> list[int]:
        """Return how many messages were sent to each run."""
        return [int(count or 0) for count in await self._field(run_ids, "inputs_count")]

    async def superseded(self, run_ids: list[str]) -> list[str]:
        """Return the runs in which another worker has begun a newer attempt. This worker must have begun all of them.

        Renewing a lease does not show this if the other worker has ended the run and removed its job already.
        """
        workers = await self._field(run_ids, "worker")
        mine = self.worker_id.encode()
        return [run_id for run_id, worker in zip(run_ids, workers, strict=True) if worker not in (None, mine)]

    async def report_progress(self, runs: Sequence[tuple[str, str, int]]) -> None:
        """Store the progress of runs that this worker began, for commands that list open runs.

        An item of ``runs`` is (run id, name of the agent, tokens written so far).
        """
        await asyncio.gather(
            *(
                self._script("progress", [self._keys.run(run_id)], self.worker_id, agent, tokens)
                for run_id, agent, tokens in runs
            )
        )

    async def finish(self, claim: Claim, *, again: bool = False) -> None:
        """Remove a job that needs no more attempts: its terminal event is stored, or another entry carries its run.

        ``again`` says that it was removed before, but the broker may have lost that.
        """
        args = (GROUP, self.worker_id, claim.entry_id, int(again))
        pending = self._link.start_script_call("finish", [self._jobs], *args)
        if not await _reply_within(self._link, pending, COMMAND_TIMEOUT_S) and not again:
            log.warning("the job %s is no longer held by this worker", claim.entry_id)
        if claim.job.limited:
            await self._call("ZREM", self._keys.active_runs(claim.job.owner), claim.job.run_id)

    async def hand_back(self, claim: Claim) -> bool:
        """Release the job and tell the other workers, which take it at once; do nothing if another worker holds it.

        The attempt does not count against MAX_ATTEMPTS. Returns False if the broker has lost the job, so that no worker
        will take it.
        """
        [held] = await self._script("renew", [self._jobs], GROUP, self.worker_id, claim.entry_id)
        if held != 1:
            return bool(held == 0)
        run = self._keys.run(claim.job.run_id)
        if await self._call("EXISTS", run):  # if the broker lost the hash, HINCRBY would create one without a TTL
            await self._call("HINCRBY", run, "handed_back", 1)
        channel = self._keys.handed_back(self.name)
        args = (GROUP, self.worker_id, claim.entry_id, HANDED_BACK_IDLE_MS, channel)
        await self._script("hand_back", [self._jobs], *args)
        return True

    async def prune(self) -> None:
        """Remove consumers that hold no jobs and have been idle for DEAD_CONSUMER_IDLE_MS."""
        await self._script("prune_consumers", [self._jobs], GROUP, DEAD_CONSUMER_IDLE_MS)

    async def _decode_claim(  # noqa: PLR0913 -- the fields of a claim
        self,
        entry_id: bytes | str,
        flat: Sequence[bytes],
        *,
        lease_since_s: float,
        new: bool = False,
        not_before_s: float = 0.0,
        more: bool = False,
    ) -> Claim | None:
        """Return the claim of an entry. Remove an entry that is not a job: it would be reclaimed again and again."""
        name = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
        try:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            return Claim(name, Job.decode(fields[b"job"]), lease_since_s, new, not_before_s, more)
        except (ValueError, KeyError):
            log.exception("entry %s of %s is not a job; removing it", name, self._jobs)
            with contextlib.suppress(BrokerUnavailable):  # it is removed later; other jobs of the reply must begin
                await self._script("finish", [self._jobs], GROUP, self.worker_id, name)
            return None

    async def _field(self, run_ids: list[str], field: str) -> list[bytes | None]:
        """Return one field of each run's hash."""
        return await asyncio.gather(*(self._call("HGET", self._keys.run(run_id), field) for run_id in run_ids))

    async def _call(
        self, *args: str | int, key: str = "", timeout_s: float = COMMAND_TIMEOUT_S, once: bool = True
    ) -> Reply:
        return await _reply_within(self._link, self._link.start_call(*args, key=key, once=once), timeout_s)

    async def _script(
        self, name: str, keys: list[str], *args: str | int, timeout_s: float = COMMAND_TIMEOUT_S, once: bool = True
    ) -> Reply:
        """Call a script. Upkeep does so ``once``, because it is repeated: a command that waits would delay renewals."""
        pending = self._link.start_script_call(name, keys, *args, once=once)
        return await _reply_within(self._link, pending, timeout_s)


def _entries_of(reply: Reply) -> list[tuple[bytes, Sequence[bytes]]]:
    """Return the entries in the reply of an XREADGROUP of one stream: their ids, and fields and values."""
    [entries] = reply.values() if isinstance(reply, dict) else (reply[0][1],)  # RESP3, RESP2
    return list(entries)


def _holds_nothing(_entry_id: str) -> bool:
    return False
