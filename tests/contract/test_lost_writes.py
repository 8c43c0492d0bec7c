"""The scripts that mend what a failover of Redis has lost, on fakeredis and real servers."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest

from agentstream.errors import Fenced
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store import queue as queue_module
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import Holder, LogLimits, RunPublisher
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.run_fields import fields_of
from agentstream.store.runs import RunStore
from agentstream.store.submission import Admission, JobSubmitter
from tests.contract.test_queue import claimed, job
from tests.helpers import TIMEOUT_S

LIMITS = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=1 << 20)


@pytest.fixture
def submitter(link: Link, keys: Keys) -> JobSubmitter:
    return JobSubmitter(link, keys, "q", max_queued=3)


@pytest.fixture
async def queues(any_broker_url: str, link: Link, keys: Keys) -> AsyncIterator[list[JobQueue]]:
    queues = [JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id=name) for name in ("w1", "w2")]
    for queue in queues:
        await queue.open()
    yield queues
    for queue in queues:
        await queue.close()


async def begun(bus: Bus, queue: JobQueue, claim: Claim) -> RunPublisher:
    """Return the publisher of an attempt that has begun."""
    attempt = await queue.begin(claim, ttl_s=60)
    assert attempt is not None
    holder = Holder(queue.worker_id, queue.name, claim.entry_id, partial(fields_of, claim.job))
    return bus.publisher(claim.job.run_id, attempt.attempt, LIMITS, lambda _: None, attempt.first_batch, holder)


async def lost_claim(link: Link, keys: Keys, entry_id: str) -> None:
    """Make the group forget that it delivered an entry, as a failover does."""
    await link.call("XACK", keys.jobs("q"), GROUP, entry_id)
    await link.call("XGROUP", "SETID", keys.jobs("q"), GROUP, "0")


async def sent(submitter: JobSubmitter, queue: JobQueue, one: Job) -> Claim:
    await submitter.submit(one, ttl_s=60)
    return await claimed(queue)


async def test_a_silent_run_is_stored_again(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys
) -> None:
    """A publisher that verifies stores its log and the hash of its run again, although the agent says nothing more."""
    one, bus = job(), Bus(link, keys)
    claim = await sent(submitter, queues[0], one)
    publisher = await begun(bus, queues[0], claim)
    publisher.put("text", "a")
    await publisher.flush()
    await link.call("DEL", keys.run(one.run_id), keys.events(one.run_id))
    publisher.verify()
    async with asyncio.timeout(TIMEOUT_S):
        while len(await bus.history(one.run_id)) < 2:  # noqa: ASYNC110 -- the state of the broker can only be polled
            await asyncio.sleep(0.005)
    info = await RunStore(link, keys).get_info(one.run_id)
    assert info is not None
    assert (info.status, info.owner, info.model) == ("running", "me", "m")
    assert 0 < await link.call("TTL", keys.run(one.run_id)) <= 100
    assert await link.call("HMGET", keys.run(one.run_id), "worker", "entry", "attempt") == [
        b"w1",
        claim.entry_id.encode(),
        b"1",
    ]


@pytest.mark.parametrize("lost", ["everything", "the end"])
async def test_an_ended_run_is_restored(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys, lost: str
) -> None:
    """A retained publisher stores the end of its run again, with its status and TTL."""
    one, bus = job(), Bus(link, keys)
    publisher = await begun(bus, queues[0], await sent(submitter, queues[0], one))
    publisher.put("text", "a")
    await publisher.flush()
    publisher.put("run_completed", {})
    await publisher.flush()
    publisher.close(Fenced("over"))
    publisher.retain()
    if lost == "everything":
        await link.call("DEL", keys.run(one.run_id), keys.events(one.run_id))
    else:
        await link.call("XTRIM", keys.events(one.run_id), "MAXLEN", 0)
        await link.call("HSET", keys.run(one.run_id), "status", "running")
        await link.call("DEL", keys.events(one.run_id))
    async with asyncio.timeout(TIMEOUT_S):
        assert await publisher.restore()
    assert [event.type for event in await bus.history(one.run_id)] == ["run_started", "text", "run_completed"]
    info = await RunStore(link, keys).get_info(one.run_id)
    assert info is not None
    assert info.status == "completed"
    assert 0 < await link.call("TTL", keys.run(one.run_id)) <= 10


async def test_a_begun_run_is_not_taken_from_another_worker(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys
) -> None:
    """A publisher whose run was begun or ended by others after the loss publishes nothing more."""
    for end in ("begun", "cancelled"):
        one, bus = job(), Bus(link, keys)
        claim = await sent(submitter, queues[0], one)
        publisher = await begun(bus, queues[0], claim)
        await link.call("DEL", keys.run(one.run_id), keys.events(one.run_id))
        if end == "begun":
            other = await queues[1].begin(claim, ttl_s=60)
            assert other is not None
            assert other.attempt == 1
        else:
            await link.call_script("create_run", [keys.run(one.run_id)], 60, *fields_of(one))
            await RunStore(link, keys).cancel(one.run_id, ttl_s=60)
        publisher.verify()
        publisher.put("text", "late")
        with pytest.raises(Fenced):
            await publisher.flush()
        assert [event.type for event in await bus.history(one.run_id)] == [
            "run_started" if end == "begun" else "run_cancelled"
        ]
        await queues[0].finish(claim)


async def test_a_lost_claim_is_given_back(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys
) -> None:
    """A job that the queue delivers again goes back to its worker, which keeps its lease, and no attempt begins."""
    claim = await sent(submitter, queues[0], job())
    assert await queues[0].begin(claim, ttl_s=60) is not None
    await lost_claim(link, keys, claim.entry_id)
    again = await claimed(queues[1])
    assert (again.entry_id, again.new) == (claim.entry_id, True)
    assert await queues[1].begin(again, ttl_s=60) is None
    assert await queues[0].renew([claim.entry_id]) == []
    assert await queues[1].begin(replace(again, new=False), ttl_s=60) is not None  # a reclaim begins an attempt


async def test_a_finished_job_that_came_back_is_removed(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys
) -> None:
    """Finishing again removes an entry that nobody holds, and leaves an entry that another worker holds."""
    claim = await sent(submitter, queues[0], job())
    await lost_claim(link, keys, claim.entry_id)
    await queues[0].finish(claim)
    assert await submitter.outstanding() == 1
    other = await claimed(queues[1])
    await queues[0].finish(claim, again=True)
    assert await submitter.outstanding() == 1
    await lost_claim(link, keys, other.entry_id)
    await queues[0].finish(claim, again=True)
    assert await submitter.outstanding() == 0


@pytest.mark.parametrize("lost", ["nothing", "entry", "hash", "both"])
async def test_a_lost_job_is_enqueued_again_once(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys, lost: str
) -> None:
    """A job is enqueued again if its entry is lost, its hash is stored again, and further checks change nothing."""
    one, admission = job(), Admission()
    await submitter.submit(one, ttl_s=60, admission=admission)
    if lost in {"entry", "both"}:
        await link.call("XDEL", keys.jobs("q"), admission.entry_id)
    if lost in {"hash", "both"}:
        await link.call("DEL", keys.run(one.run_id))
    for _ in range(3):
        await admission.enqueue_again_if_lost()
        assert await submitter.outstanding() == 1
    info = await RunStore(link, keys).get_info(one.run_id)
    assert info is not None
    assert info.status == "queued"
    claim = await claimed(queues[0])
    assert claim.job == one
    assert await queues[0].begin(claim, ttl_s=60) is not None
    await link.call("XDEL", keys.jobs("q"), claim.entry_id)
    await admission.enqueue_again_if_lost()
    assert await submitter.outstanding() == 0, "a run that has begun is not enqueued again"


async def test_a_claim_whose_reply_was_lost_is_found(
    submitter: JobSubmitter, queues: list[JobQueue], link: Link, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect a worker gets the jobs that it has claimed and does not work on, and no others."""
    known = await sent(submitter, queues[0], job())
    one = job()
    await submitter.submit(one, ttl_s=60)
    await link.call("XREADGROUP", "GROUP", GROUP, "w1", "COUNT", 1, "STREAMS", keys.jobs("q"), ">")
    queues[0].holds = {known.entry_id}.__contains__
    monkeypatch.setattr(type(queues[0]._claims), "reconnects", 1)
    for callback in queues[0]._claims.on_reconnect:
        callback()
    found = await claimed(queues[0])
    assert found.job == one
    queues[0].holds = {known.entry_id, found.entry_id}.__contains__
    assert await queues[0].claim(short_block=True) == []


async def test_a_worker_that_starts_after_a_failover_waits(
    any_broker_url: str, submitter: JobSubmitter, link: Link, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where servers fail over, a new worker does not begin old jobs at once: another worker may execute them."""
    monkeypatch.setattr(queue_module, "SETTLE_S", 60)
    monkeypatch.setattr(queue_module, "_MIN_FAILOVER_MS", -60_000)  # every job is old
    await submitter.submit(job(), ttl_s=60)
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w3")
    await queue.open()
    try:
        claim = await claimed(queue)
    finally:
        await queue.close()
    assert (claim.not_before_s > time.monotonic()) == link.fails_over


async def test_a_claim_that_a_failover_brought_back_goes_to_the_worker_of_the_run(
    submitter: JobSubmitter, queues: list[JobQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the queue has lost that another worker took a run over, its first worker waits, and gives the job back."""
    claim = await sent(submitter, queues[0], job())
    assert await queues[1].begin(replace(claim, new=False), ttl_s=60) is not None
    monkeypatch.setattr(type(queues[0]._claims), "reconnects", 1)
    began_s = time.monotonic()
    for callback in queues[0]._claims.on_reconnect:
        callback()
    found = await claimed(queues[0])
    assert found.entry_id == claim.entry_id
    assert found.not_before_s > began_s
    assert await queues[0].begin(found, ttl_s=60) is None
    assert await queues[1].renew([claim.entry_id]) == []
