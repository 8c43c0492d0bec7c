"""Claims: when a worker asks for jobs, and for how many."""

import asyncio
from typing import cast

import pytest

from agentstream.store.queue import Claim, JobQueue
from agentstream.worker.leases import Leases
from agentstream.worker.slots import Slots
from tests.helpers import TIMEOUT_S
from tests.unit.worker.test_leases import LEASE_S, HeldRun, NoRuns, StubQueue, worker_of


async def test_a_job_is_begun_before_the_next_claim() -> None:
    """A claimed job is begun before the next claim is sent, because a client waits for it."""
    queue = StubQueue()
    leases = Leases(cast("JobQueue", queue), LEASE_S)
    order: list[str] = []
    jobs = [HeldRun().claim]
    asked_again = asyncio.Event()

    async def claim(at_most: int, *, short_block: bool = False) -> list[Claim]:  # noqa: ARG001 -- as the queue's
        order.append(f"claim {short_block}")
        if jobs:
            return [jobs.pop()]
        asked_again.set()
        await asyncio.sleep(LEASE_S)
        return []

    async def execute(_claim: Claim, _called_again: object = None) -> None:
        order.append("begin")

    queue.claim = claim  # type: ignore[method-assign]
    runner = type("OneRun", (NoRuns,), {"execute": staticmethod(execute)})()
    worker = worker_of(queue, leases, runner, slots=Slots(2))
    stop = asyncio.Event()
    working = asyncio.create_task(worker.run(stop))
    async with asyncio.timeout(TIMEOUT_S):
        await asked_again.wait()
    stop.set()
    await working
    assert order[:3] == ["claim False", "begin", "claim False"]


@pytest.mark.parametrize(
    ("slots", "asked"),
    [
        (1000, [1, 1, 2, 3, 4, 6, 9, 14, 16, 16]),
        (20, [1, 1, 2, 3, 4, 5, 2, 1]),
        (3, [1, 1, 1]),
    ],
)
async def test_a_worker_claims_at_most_half_as_many_more_jobs_as_it_runs(slots: int, asked: list[int]) -> None:
    """Idle workers share a burst, busy ones claim several jobs at once, and half of the free slots stay free."""
    queue = StubQueue()
    leases = Leases(cast("JobQueue", queue), LEASE_S)
    claims: list[int] = []
    full, gate = asyncio.Event(), asyncio.Event()

    async def claim(at_most: int, *, short_block: bool = False) -> list[Claim]:  # noqa: ARG001 -- as the queue's
        claims.append(at_most)
        if len(claims) == len(asked):
            full.set()
        return [HeldRun().claim for _ in range(at_most)]

    async def execute(_claim: Claim, _called_again: object = None) -> None:
        await gate.wait()

    queue.claim = claim  # type: ignore[method-assign]
    runner = type("HeldRuns", (NoRuns,), {"execute": staticmethod(execute)})()
    stop = asyncio.Event()
    working = asyncio.create_task(worker_of(queue, leases, runner, slots=Slots(slots)).run(stop))
    async with asyncio.timeout(TIMEOUT_S):
        await full.wait()
        stop.set()
        gate.set()
        await working
    assert claims == asked
