"""The contract of the job queue, on fakeredis and real servers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from agentstream.errors import LimitReached, QueueFull
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import Holder, LogLimits
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.scripts import SCRIPTS
from agentstream.store.submission import Backlog, JobSubmitter, _RemovalRate
from tests.helpers import TIMEOUT_S


def job(run_id: str | None = None) -> Job:
    return Job(run_id=run_id or new_run_id(), request={"model": "m"}, created=1, start_by=time.time() + 60, owner="me")


@pytest.fixture
def submitter(link: Link, keys: Keys) -> JobSubmitter:
    return JobSubmitter(link, keys, "q", max_queued=3)


@pytest.fixture
async def other_queue(any_broker_url: str, link: Link, keys: Keys) -> AsyncIterator[JobQueue]:
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w2")
    await queue.open()
    yield queue
    await queue.close()


async def claimed(queue: JobQueue) -> Claim:
    async with asyncio.timeout(TIMEOUT_S):
        while not (claims := await queue.claim()):
            pass
    return claims[0]


async def attempt_at(queue: JobQueue, claim: Claim) -> int:
    begun = await queue.begin(claim, ttl_s=60)
    assert begun is not None
    return begun.attempt


async def test_job_reaches_one_worker(submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue) -> None:
    """Exactly one of two waiting workers claims a submitted job, unchanged."""
    sent = [job() for _ in range(3)]
    waiting = [asyncio.create_task(claimed(queue)), asyncio.create_task(claimed(other_queue))]
    for one in sent:
        await submitter.submit(one, ttl_s=60)
    first = await asyncio.gather(*waiting)
    third = await claimed(queue)
    assert {claim.job.run_id for claim in [*first, third]} == {one.run_id for one in sent}
    assert third.job in sent
    assert await submitter.outstanding() == 3


@pytest.mark.one_server
async def test_subscription_and_job_are_sent_in_one_write(
    submitter: JobSubmitter, link: Link, keys: Keys, written: list[bytes]
) -> None:
    """The commands of a new run are sent in one write, in the order SUBSCRIBE, admit."""
    sent = job()
    subscribed = link.subscribe(keys.events(sent.run_id).encode(), lambda _: None)
    await submitter.submit(sent, ttl_s=60)
    await subscribed
    ours = [data for data in written if sent.run_id.encode() in data]
    assert len(ours) == (1 if link.keeps_order() else 2)  # without inline pushes there are two connections
    sent_first = b"".join(ours)
    order = [sent_first.index(part) for part in (b"SUBSCRIBE", SCRIPTS["admit"].sha)]
    assert order == sorted(order)


async def test_job_submitted_before_any_worker_is_not_lost(
    submitter: JobSubmitter, any_broker_url: str, link: Link, keys: Keys
) -> None:
    """The first worker of a queue claims jobs that were enqueued before it started."""
    await submitter.submit(sent := job(), ttl_s=60)
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w")
    await queue.open()
    assert (await claimed(queue)).job == sent
    await queue.close()


async def test_full_queue_refuses_and_leaves_nothing(submitter: JobSubmitter, link: Link, keys: Keys) -> None:
    """A full queue refuses a job with a time to retry, and stores nothing of the refused run."""
    for _ in range(3):
        await submitter.submit(job(), ttl_s=60)
    with pytest.raises(QueueFull) as refused:
        await submitter.submit(extra := job(), ttl_s=60)
    assert refused.value.retry_after_s
    assert await submitter.outstanding() == 3
    assert await link.call("EXISTS", keys.run(extra.run_id)) == 0


async def test_finished_job_makes_room(submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys) -> None:
    """A job is outstanding until it is finished."""
    await submitter.submit(sent := job(), ttl_s=60)
    claim = await claimed(queue)
    assert await attempt_at(queue, claim) == 1
    assert await link.call("HGET", keys.run(sent.run_id), "status") == b"running"
    assert await submitter.outstanding() == 1
    await queue.finish(claim)
    assert await submitter.outstanding() == 0


async def test_attempts_are_counted(submitter: JobSubmitter, queue: JobQueue) -> None:
    """Each ``begin`` of the same queue entry starts the next attempt."""
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    assert [await attempt_at(queue, claim) for _ in range(3)] == [1, 2, 3]


async def test_a_first_connection_is_no_reconnect(submitter: JobSubmitter, queue: JobQueue) -> None:
    """Also in a cluster, where each primary is connected for itself, a new job is claimed once and begins at once."""
    for _ in range(2):  # the link may connect during the first one
        assert await queue.claim(short_block=True) == []
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    assert (claim.new, claim.not_before_s) == (True, 0.0)
    assert await queue.claim(short_block=True) == []


async def test_job_enqueued_twice_runs_once(
    submitter: JobSubmitter, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """If a job is in the queue twice (it was sent again after a lost reply), only one entry begins an attempt."""
    caplog.set_level("INFO")
    sent = job()
    await submitter.submit(sent, ttl_s=60)
    await submitter.submit(sent, ttl_s=60)
    first, second = await claimed(queue), await claimed(queue)
    assert await attempt_at(queue, first) == 1
    assert await queue.begin(second, ttl_s=60) is None
    assert "the run needs no attempt: another queue entry carries it" in caplog.messages
    await queue.finish(second)
    assert await submitter.outstanding() == 1


async def test_only_the_holder_finishes(submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue) -> None:
    """A worker that does not hold a job cannot remove it."""
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    await other_queue.finish(claim)
    assert await submitter.outstanding() == 1
    await queue.finish(claim)
    assert await submitter.outstanding() == 0


async def test_foreign_entry_is_removed(queue: JobQueue, submitter: JobSubmitter, link: Link, keys: Keys) -> None:
    """An entry that is not a job is removed, and the next job is claimed."""
    await link.call("XADD", keys.jobs("q"), "*", "job", "nonsense")
    await link.call("XADD", keys.jobs("q"), "*", "other", "x")
    await submitter.submit(sent := job(), ttl_s=60)
    assert (await claimed(queue)).job == sent
    assert await submitter.outstanding() == 1


@pytest.mark.usefixtures("queue")
async def test_workers_are_counted_while_they_live(
    submitter: JobSubmitter, any_broker_url: str, keys: Keys, link: Link
) -> None:
    """A worker counts as alive from ``open`` to ``close``, and ``close`` removes its consumer."""
    assert await submitter.workers_alive() == 1
    other = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w2")
    await other.open()
    assert await submitter.workers_alive() == 2
    await other.claim()
    await other.close()
    assert await submitter.workers_alive() == 1
    consumers = await link.call("XINFO", "CONSUMERS", keys.jobs("q"), GROUP)
    assert b"w2" not in str(consumers).encode()


async def test_attempts_are_counted_if_the_log_is_lost(
    queue: JobQueue, submitter: JobSubmitter, link: Link, keys: Keys
) -> None:
    """If the replay log is lost, the attempts continue from the count in the run's hash."""
    await submitter.submit(sent := job(), ttl_s=60)
    claim = await claimed(queue)
    assert await attempt_at(queue, claim) == 1
    await link.call("DEL", keys.events(sent.run_id))
    assert await attempt_at(queue, claim) == 2


async def test_a_begin_sent_again_after_a_lost_reply_counts_once(link: Link, keys: Keys) -> None:
    """A second ``begin`` with the same token returns the same attempt, and another token begins the next attempt."""
    run_id = job().run_id
    names = [keys.run(run_id), keys.events(run_id)]

    async def begin(token: str) -> int:
        attempt: int = (await link.call_script("begin", names, "1-1", "w", 60, token))[0]
        return attempt

    assert [await begin(token) for token in ("a", "a", "b", "b")] == [1, 1, 2, 2]
    assert await link.call("XLEN", names[1]) == 2


async def test_a_lost_queue_is_created_again(queue: JobQueue, submitter: JobSubmitter, link: Link, keys: Keys) -> None:
    """If the broker lost the queue and its group, the next claim creates them again."""
    await link.call("DEL", keys.jobs("q"))
    assert await queue.claim() == []
    await submitter.submit(sent := job(), ttl_s=60)
    assert (await claimed(queue)).job == sent


async def test_waiting_for_jobs_does_not_spin(queue: JobQueue) -> None:
    """A claim of an empty queue waits, even on a server whose blocking read returns at once."""
    claims = 0
    async with asyncio.timeout(TIMEOUT_S):
        started = time.monotonic()
        while time.monotonic() - started < 0.2:
            assert await queue.claim() == []
            claims += 1
    assert claims <= 21


async def test_expired_lease_is_taken_over_once(
    submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue
) -> None:
    """Exactly one other worker reclaims a job whose lease expired, and ``renew`` reports this to the first worker."""
    await submitter.submit(sent := job(), ttl_s=60)
    claim = await claimed(queue)
    assert await other_queue.reclaim(60) is None
    taken = await reclaimed(other_queue, 0.05)
    assert taken.job == sent
    assert await other_queue.reclaim(60) is None
    assert await queue.renew([claim.entry_id]) == [claim.entry_id]
    assert await other_queue.renew([taken.entry_id]) == []
    await queue.finish(claim)
    assert await submitter.outstanding() == 1


async def test_renewed_lease_is_kept(submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue) -> None:
    """A lease that is renewed in time is not reclaimed."""
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    for _ in range(5):
        await asyncio.sleep(0.1)
        assert await queue.renew([claim.entry_id]) == []
        assert await other_queue.reclaim(0.5) is None


async def test_expired_leases_behind_many_held_ones_are_found(
    link: Link, keys: Keys, other_queue: JobQueue, queue: JobQueue
) -> None:
    """A reclaim finds an expired lease after any number of valid leases."""
    submitter = JobSubmitter(link, keys, "q", max_queued=100)
    for _ in range(40):
        await submitter.submit(job(), ttl_s=60)
    held = [await claimed(queue) for _ in range(40)]
    await asyncio.sleep(0.3)
    await queue.renew([claim.entry_id for claim in held[:-1]])
    assert (await reclaimed(other_queue, 0.3)).job == held[-1].job


async def test_renewing_after_the_broker_lost_the_queue_keeps_the_lease(
    submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys
) -> None:
    """If the broker lost the queue, ``renew`` does not report the lease as lost: no other worker has the job."""
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    await link.call("DEL", keys.jobs("q"))
    assert await queue.renew([claim.entry_id]) == []


async def test_job_handed_back_is_taken_at_once(
    submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue
) -> None:
    """A handed-back job is reclaimed before its lease expires, and ``begin`` returns the number of hand-backs."""
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    assert await attempt_at(queue, claim) == 1
    await queue.hand_back(claim)
    taken = await other_queue.reclaim(3600)
    assert taken is not None
    begun = await other_queue.begin(taken, ttl_s=60)
    assert begun is not None
    assert (begun.attempt, begun.hand_backs) == (2, 1)


async def test_dead_consumers_are_removed_unless_they_hold_a_job(
    submitter: JobSubmitter,
    queue: JobQueue,
    any_broker_url: str,
    keys: Keys,
    link: Link,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``prune`` removes the consumers of dead workers, except a consumer that still holds a job."""
    monkeypatch.setattr("agentstream.store.queue.DEAD_CONSUMER_IDLE_MS", 50)
    await submitter.submit(job(), ttl_s=60)
    for name in ("holds", "gone"):
        dead = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id=name)
        await dead.open()
        assert (await dead.claim() == []) == (name == "gone")
        await dead._claims.close()
    await asyncio.sleep(0.2)
    await queue.prune()
    consumers = str(await link.call("XINFO", "CONSUMERS", keys.jobs("q"), GROUP))
    assert "holds" in consumers
    assert "gone" not in consumers
    assert await submitter.outstanding() == 1


async def reclaimed(queue: JobQueue, lease_s: float) -> Claim:
    async with asyncio.timeout(TIMEOUT_S):
        while (claim := await queue.reclaim(lease_s)) is None:  # noqa: ASYNC110 -- the broker's clock decides
            await asyncio.sleep(lease_s / 3)
    return claim


async def test_limits_of_a_key(submitter: JobSubmitter, queue: JobQueue) -> None:
    """An API key that reached a limit is refused with a time to retry, and other keys are not refused."""
    first = job().model_copy(update={"limited": True})
    await submitter.check_limits(first, max_runs=1, max_requests_per_minute=0, ttl_s=60)
    await submitter.submit(first, ttl_s=60)
    with pytest.raises(LimitReached, match="1 active run") as refused:
        await submitter.check_limits(job(), max_runs=1, max_requests_per_minute=0, ttl_s=60)
    assert refused.value.retry_after_s
    other = job().model_copy(update={"owner": "other"})
    await submitter.check_limits(other, max_runs=1, max_requests_per_minute=0, ttl_s=60)
    await queue.finish(await claimed(queue))
    await submitter.check_limits(job(), max_runs=1, max_requests_per_minute=0, ttl_s=60)
    for _ in range(2):
        await submitter.check_limits(job(), max_runs=0, max_requests_per_minute=2, ttl_s=60)
    with pytest.raises(LimitReached, match="2 requests this minute"):
        await submitter.check_limits(job(), max_runs=0, max_requests_per_minute=2, ttl_s=60)


def test_retry_after_follows_the_removal_rate() -> None:
    """Retry-After is the time in which a tenth of the jobs will be removed, within bounds."""
    rate = _RemovalRate()
    assert rate.retry_after_s(1000, 500, 100) == 5
    assert rate.retry_after_s(1000, 600, 110) == 10  # 10 jobs a second
    assert rate.retry_after_s(1000, 400, 111) == 5  # the count decreased, so it is another queue
    assert rate.retry_after_s(1000, 400, 121) == 60  # no job was removed


@pytest.mark.parametrize(("status", "active"), [("completed", False), ("requires_action", False), ("running", True)])
async def test_a_run_that_no_longer_works_is_not_active(
    submitter: JobSubmitter, link: Link, keys: Keys, status: str, active: bool
) -> None:
    """A run that has ended, or waits for people, does not count, even if no worker has taken it off the active runs."""
    first = job().model_copy(update={"limited": True})
    await submitter.check_limits(first, max_runs=1, max_requests_per_minute=1, ttl_s=60)
    await submitter.submit(first, ttl_s=60)
    await link.call("HSET", keys.run(first.run_id), "status", status)
    with pytest.raises(LimitReached) if active else contextlib.nullcontext():
        await submitter.check_limits(job(), max_runs=1, max_requests_per_minute=2, ttl_s=60)


async def test_the_backlog_has_waiting_jobs_and_their_age(submitter: JobSubmitter, queue: JobQueue) -> None:
    """The backlog counts a job as waiting until a worker claims it, and has the age of the oldest waiting job."""
    assert await submitter.backlog() == Backlog(0, 0, 0)
    await submitter.submit(job(), ttl_s=60)
    await asyncio.sleep(0.05)
    await submitter.submit(job(), ttl_s=60)
    backlog = await submitter.backlog()
    assert (backlog.jobs, backlog.waiting) == (2, 2)
    assert 0.05 <= backlog.oldest_s < TIMEOUT_S
    claim = await claimed(queue)
    begun = await queue.begin(claim, ttl_s=60)
    assert begun is not None
    assert 0.05 <= begun.waited_s < TIMEOUT_S
    after = await submitter.backlog()
    assert (after.jobs, after.waiting) == (2, 1)
    await queue.finish(claim)
    await queue.finish(await claimed(queue))
    assert await submitter.backlog() == Backlog(0, 0, 0)


async def test_all_jobs_wait_before_the_first_worker(submitter: JobSubmitter) -> None:
    """Before the first worker has created the group, all jobs of the queue count as waiting."""
    for _ in range(2):
        await submitter.submit(job(), ttl_s=60)
    backlog = await submitter.backlog()
    assert (backlog.jobs, backlog.waiting) == (2, 2)


async def test_only_the_worker_of_a_run_stores_its_progress(
    submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys
) -> None:
    """Only the worker that runs a run can store agent and tokens in its hash, and a lost hash is not created again."""
    await submitter.submit(sent := job(), ttl_s=60)
    claim = await claimed(queue)
    await attempt_at(queue, claim)
    await queue.report_progress([(sent.run_id, "herd", 7)])
    await other_queue.report_progress([(sent.run_id, "stranger", 9)])
    run = keys.run(sent.run_id)
    assert await link.call("HMGET", run, "agent", "tokens") == [b"herd", b"7"]
    await link.call("DEL", run)
    await queue.report_progress([(sent.run_id, "herd", 8)])
    assert await link.call("EXISTS", run) == 0


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.one_server
async def test_the_terminal_event_removes_the_job(
    submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys, held: bool
) -> None:
    """The job is removed in one step with the terminal event, but not if another worker holds it."""
    sent = job()
    await submitter.submit(sent, ttl_s=60)
    claim = await claimed(queue)
    begun = await queue.begin(claim, ttl_s=60)
    assert begun is not None
    limits = LogLimits(open_ttl_s=60, closed_ttl_s=60, max_bytes=1 << 20)
    holder = Holder("w1" if held else "w2", "q", claim.entry_id, lambda: ("status", "running"))
    publisher = Bus(link, keys).publisher(sent.run_id, 1, limits, lambda _: None, begun.first_batch, holder)
    publisher.put("run_completed", {"content": "x"})
    async with asyncio.timeout(TIMEOUT_S):
        await publisher.flush()
    assert publisher.job_removed is held
    assert await submitter.outstanding() == (0 if held else 1)
    assert await link.call("HGET", keys.run(sent.run_id), "status") == b"completed"
    assert await link.call("XLEN", keys.events(sent.run_id)) == 2
