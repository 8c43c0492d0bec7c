"""The claims of a worker when the broker goes away, loses the queue, or a reply is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.submission import JobSubmitter
from tests.conftest import open_server_link
from tests.faults.faults import Broker, outage
from tests.helpers import TIMEOUT_S

LEASE_S = 0.2
RETRY_S = 0.05


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a broker that keeps its data over a restart."""
    async with Broker(tmp_path, append_only=True) as broker:
        yield broker


@pytest.fixture
async def link(broker: Broker) -> AsyncIterator[ServerLink]:
    """Yield a link like that of a worker's bus."""
    link = await open_server_link(broker.url, "test")
    yield link
    await link.close()


@pytest.fixture
async def queue(broker: Broker, link: ServerLink, keys: Keys) -> AsyncIterator[JobQueue]:
    """Yield the worker's side of a queue."""
    queue = JobQueue(Endpoint(broker.url), link, keys, "q", worker_id="w1")
    await queue.open()
    yield queue
    await queue.close()


async def submitted(link: ServerLink, keys: Keys) -> Job:
    """Enqueue a job, and return it."""
    job = Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=time.time() + 60, owner="me")
    async with asyncio.timeout(TIMEOUT_S):
        await JobSubmitter(link, keys, "q", max_queued=3).submit(job, ttl_s=60)
    return job


async def claimed(queue: JobQueue) -> Claim:
    """Claim the next job. While the broker is away, try again, as a worker does."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                if claims := await queue.claim():
                    return claims[0]
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)


async def test_a_claim_survives_the_loss_of_its_queue(queue: JobQueue, link: ServerLink, keys: Keys) -> None:
    """If the queue is deleted during a claim, that claim ends without a job, and later claims find new jobs."""
    claiming = asyncio.create_task(queue.claim())
    async with asyncio.timeout(TIMEOUT_S):
        while b"cmd=xreadgroup" not in await link.call("CLIENT", "LIST"):  # noqa: ASYNC110 -- this state can only be polled
            await asyncio.sleep(RETRY_S)
        await link.call("DEL", keys.jobs("q"))
        assert await claiming == []
    job = await submitted(link, keys)
    assert (await claimed(queue)).job == job


async def test_a_claim_without_a_broker_times_out(
    broker: Broker, queue: JobQueue, link: ServerLink, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the broker is away every claim raises BrokerUnavailable, and after that claims take jobs again."""
    monkeypatch.setattr("agentstream.store.queue.COMMAND_TIMEOUT_S", 0.2)
    async with outage(broker), asyncio.timeout(TIMEOUT_S):
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="did not answer within"):
                await queue.claim()
    job = await submitted(link, keys)
    claim = await claimed(queue)
    assert claim.job == job
    begun = await queue.begin(claim, ttl_s=60)
    assert begun is not None
    assert begun.attempt == 1


async def test_a_job_whose_claim_reply_is_lost_runs_after_its_lease(
    broker: Broker, queue: JobQueue, link: ServerLink, keys: Keys
) -> None:
    """If the reply of a claim is lost with its connection, the job runs once, after its lease and not before."""
    assert isinstance(queue._claims, ServerLink)
    await queue._claims.wait_ready(TIMEOUT_S)
    connection = queue._claims._command_connection
    assert connection is not None
    deliver, lost = connection.on_reply, asyncio.Event()

    def cut(reply: object) -> None:
        if isinstance(reply, dict) and reply:
            lost.set()
            connection.abort()
        else:
            deliver(reply)

    connection.on_reply = cut
    job = await submitted(link, keys)
    async with asyncio.timeout(TIMEOUT_S):
        assert await queue.claim() == []
        assert lost.is_set()
        assert queue._claims.reconnects == 1
        other = JobQueue(Endpoint(broker.url), link, keys, "q", worker_id="w2")
        await other.open()
        assert await other.claim() == []
        assert await other.reclaim(3600) is None
        while (taken := await other.reclaim(LEASE_S)) is None:  # noqa: ASYNC110 -- it depends on the broker's clock
            await asyncio.sleep(RETRY_S)
    assert taken.job == job
    begun = await other.begin(taken, ttl_s=60)
    assert begun is not None
    assert begun.attempt == 1
    await other.finish(taken)
    await other.close()
    assert await link.call("XLEN", keys.jobs("q")) == 0
