"""The contract of a worker that serves several queues, on fakeredis and real servers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.interrupts import InterruptStore
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.submission import JobSubmitter
from agentstream.worker.ended_runs import EndedRuns
from agentstream.worker.leases import Leases
from agentstream.worker.parking import Parking
from agentstream.worker.runner import Runner
from agentstream.worker.slots import Slots
from agentstream.worker.worker import Worker
from tests.helpers import TIMEOUT_S

LEASE_S = 0.5


class RecordingRunner:
    """Records the queue of each job that it runs, and how many jobs run at once."""

    def __init__(self, queue: JobQueue, name: str, history: "History") -> None:
        self._queue = queue
        self._name = name
        self._history = history
        self.ended_runs = EndedRuns(queue)

    async def execute(self, claim: Claim, suspicious: asyncio.Future[bool] | None = None) -> None:
        history = self._history
        if suspicious is not None:
            suspicious.set_result(True)
        history.now += 1
        history.most = max(history.most, history.now)
        history.queues.append(self._name)
        history.news.set()
        await asyncio.wait_for(history.gate.wait(), TIMEOUT_S)
        await asyncio.sleep(0.005)
        await self._queue.finish(claim)
        history.now -= 1

    async def deliver(self, run_id: str) -> None:
        """Do nothing: nobody sends anything."""

    def hand_over_all(self) -> None:
        """Do nothing: no run can be continued."""

    def stop_all(self) -> None:
        """Do nothing, because the gate is open and all runs end."""


class History:
    """The jobs that the runners of one worker process have run. Runs finish while the gate is open."""

    def __init__(self) -> None:
        self.queues: list[str] = []
        self.now = 0
        self.most = 0
        self.news = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def until(self, count: int) -> None:
        """Return when ``count`` jobs have begun."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.queues) < count:
                self.news.clear()
                await self.news.wait()


class Site:
    """Queues a and b, and workers that serve both."""

    def __init__(self, url: str, link: Link, keys: Keys) -> None:
        self._url = url
        self._link = link
        self._keys = keys
        self.submitters = {name: JobSubmitter(link, keys, name, max_queued=100) for name in "ab"}

    async def submit(self, queue: str, count: int = 1) -> None:
        for _ in range(count):
            job = Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=time.time() + 60)
            await self.submitters[queue].submit(job, ttl_s=60)

    @contextlib.asynccontextmanager
    async def worker(self, slots: int, *, held: bool = False) -> AsyncIterator[History]:
        """Serve both queues with shared ``slots``. If ``held``, runs wait until the gate is opened."""
        history, stop, shared = History(), asyncio.Event(), Slots(slots)
        if held:
            history.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            for name in self.submitters:
                queue = self.queue(name, f"w-{new_run_id()}")
                await queue.open()
                worker = Worker(
                    queue,
                    cast("Runner", RecordingRunner(queue, name, history)),
                    Leases(queue, LEASE_S),
                    Parking(InterruptStore(self._link, self._keys), name, open_ttl_s=60, closed_ttl_s=60),
                    slots=shared,
                    drain_timeout_s=TIMEOUT_S,
                    is_connected=lambda: True,
                )
                tasks.create_task(worker.run(stop))
            try:
                yield history
            finally:
                history.gate.set()
                stop.set()

    def queue(self, name: str, worker_id: str) -> JobQueue:
        return JobQueue(Endpoint(self._url), self._link, self._keys, name, worker_id=worker_id)


@pytest.fixture
def site(any_broker_url: str, link: Link, keys: Keys) -> Site:
    return Site(any_broker_url, link, keys)


@pytest.mark.parametrize("slots", [1, 3])
async def test_a_worker_takes_no_more_than_it_has_slots(site: Site, slots: int) -> None:
    """A worker holds at most as many jobs as it has slots, and leaves the other jobs in their queues."""
    for queue in "ab":
        await site.submit(queue, 10)
    async with site.worker(slots, held=True) as history:
        await history.until(slots)
        await asyncio.sleep(0.3)
        assert len(history.queues) == slots
        history.gate.set()
        await history.until(20)
        assert history.most <= slots
    assert [await submitter.outstanding() for submitter in site.submitters.values()] == [0, 0]


async def test_a_busy_queue_does_not_starve_another(site: Site) -> None:
    """With one slot for two queues, a job of one queue begins while many jobs of the other queue still wait."""
    await site.submit("a", 40)
    async with site.worker(1) as history:
        await history.until(3)
        await site.submit("b", 2)
        await history.until(42)
        begun = [place for place, queue in enumerate(history.queues) if queue == "b"]
    assert len(begun) == 2
    assert begun[-1] < 30


async def test_expired_leases_of_every_queue_are_taken_over(site: Site) -> None:
    """A worker with one slot for two queues reclaims the jobs of a dead worker from both queues."""
    dead = [site.queue(name, "dead") for name in "ab"]
    for name, queue in zip("ab", dead, strict=True):
        await queue.open()
        await site.submit(name)
        async with asyncio.timeout(TIMEOUT_S):
            while not await queue.claim():
                pass
    async with site.worker(1) as history:
        await history.until(2)
        assert sorted(history.queues) == ["a", "b"]
    for queue in dead:
        await queue.close()
