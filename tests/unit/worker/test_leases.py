"""What a worker does about what it holds, and what it does when it cannot."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.store.queue import Claim, JobQueue
from agentstream.worker.leases import PRUNE_EVERY, Leases, warn_if_unavailable
from agentstream.worker.runner import Runner
from agentstream.worker.slots import Slots
from agentstream.worker.worker import Worker
from tests.helpers import TIMEOUT_S

LEASE_S = 0.003


class HeldRun:
    """A run under lease that takes note of what it is told."""

    def __init__(self) -> None:
        run_id = new_run_id()
        self.claim = Claim(f"{run_id}-entry", Job(run_id=run_id, request={"model": "m"}, created=1, start_by=2), 0.0)
        self.begun = True
        self.agent_name = "herd"
        self.text_events = 7
        self.told: list[str] = []
        self.news = asyncio.Event()

    @property
    def run_id(self) -> str:
        return self.claim.job.run_id

    def abandon(self) -> None:
        self._note("lose")

    def cancel(self) -> None:
        self._note("cancel")

    def _note(self, what: str) -> None:
        self.told.append(what)
        self.news.set()


class StubQueue:
    """A worker's side of a queue without a broker; each answer can be set, and may be an error."""

    worker_id = "stub"

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.taken: list[str] = []
        self.flagged: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.renewed: list[list[str]] = []
        self.progress: list[tuple[str, str, int]] = []
        self.prunes = 0
        self.reclaims = 0
        self.hurried = 0
        self.closed = False
        self._turned = asyncio.Event()

    async def renew(self, entry_ids: list[str]) -> list[str]:
        self.renewed.append(entry_ids)
        self._turn("renew")
        return [entry_id for entry_id in self.lost if entry_id in entry_ids]

    async def superseded(self, run_ids: list[str]) -> list[str]:
        self._turn("superseded")
        return [run_id for run_id in self.taken if run_id in run_ids]

    async def cancel_requested(self, run_ids: list[str]) -> list[str]:
        self._turn("cancelled")
        return [run_id for run_id in self.flagged if run_id in run_ids]

    async def report_progress(self, runs: list[tuple[str, str, int]]) -> None:
        self.progress = runs
        self._turn("progress")

    async def prune(self) -> None:
        self.prunes += 1
        self._turn("prune")

    async def close(self) -> None:
        self.closed = True

    async def heartbeat(self) -> None:
        self._turn("beat")

    async def claim(self, *, short_block: bool = False) -> Claim | None:
        self.hurried += short_block
        self._turn("claim")
        await asyncio.sleep(LEASE_S)
        return None

    async def reclaim(self, _lease_s: float) -> Claim | None:
        self.reclaims += 1
        self._turn("reclaim")
        return None

    async def until(self, found: Callable[[], bool]) -> None:
        """Return when calls have made it true."""
        async with asyncio.timeout(TIMEOUT_S):
            while not found():
                self._turned.clear()
                await self._turned.wait()

    def _turn(self, call: str) -> None:
        self._turned.set()
        if (error := self.errors.get(call)) is not None:
            raise error


@pytest.fixture
def queue() -> StubQueue:
    """A queue that answers."""
    return StubQueue()


@pytest.fixture
def leases(queue: StubQueue) -> Leases:
    """Nothing held."""
    return Leases(cast("JobQueue", queue), LEASE_S)


async def told(run: HeldRun) -> list[str]:
    async with asyncio.timeout(TIMEOUT_S):
        await run.news.wait()
    return run.told


class Keeping:
    """Keeps leases as long as the block lasts."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def __aenter__(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._leases.renew_forever())
        return self._task

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_held_runs_are_renewed_until_they_are_released(queue: StubQueue, leases: Leases) -> None:
    """Every held run is in every renewal from the moment it is held to the moment it is released."""
    kept, released = HeldRun(), HeldRun()
    leases.hold(kept)
    leases.hold(released)
    async with Keeping(leases):
        await queue.until(lambda: len(queue.renewed) >= 2)
        leases.release(released)
        before = len(queue.renewed)
        await queue.until(lambda: len(queue.renewed) >= before + 2)
    both = [kept.claim.entry_id, released.claim.entry_id]
    assert queue.renewed[:2] == [both, both]
    assert queue.renewed[-1] == [kept.claim.entry_id]
    assert kept.told == released.told == []


async def test_progress_is_told_with_the_lease(queue: StubQueue, leases: Leases) -> None:
    """After each renewal the agent and tokens of every run whose agent was called are told, and of no other."""
    called, waiting, lost = HeldRun(), HeldRun(), HeldRun()
    waiting.agent_name = ""
    for run in (called, waiting, lost):
        leases.hold(run)
    queue.lost = [lost.claim.entry_id]
    async with Keeping(leases):
        await queue.until(lambda: len(queue.renewed) >= 2 and bool(queue.progress))
    assert queue.progress == [(called.run_id, "herd", 7)]


async def test_renewed_three_times_as_often_as_it_runs_out(leases: Leases) -> None:
    """A lease outlives two renewals that fail: it lasts three intervals."""
    assert leases.interval_s == pytest.approx(LEASE_S / 3)


async def test_lost_run_is_told_once_and_renewed_no_more(queue: StubQueue, leases: Leases) -> None:
    """A run whose lease another worker has is told so once; renewing it would steal it back."""
    lost, kept = HeldRun(), HeldRun()
    leases.hold(lost)
    leases.hold(kept)
    queue.lost = [lost.claim.entry_id]
    async with Keeping(leases):
        assert await told(lost) == ["lose"]
        before = len(queue.renewed)
        await queue.until(lambda: len(queue.renewed) >= before + 2)
    assert queue.renewed[-1] == [kept.claim.entry_id]
    assert (lost.told, kept.told) == (["lose"], [])


async def test_run_that_another_worker_ended_is_lost(queue: StubQueue, leases: Leases) -> None:
    """A run that another worker began and ended is lost too, though its lease is gone with the job."""
    lost = HeldRun()
    leases.hold(lost)
    queue.taken = [lost.run_id]
    async with Keeping(leases):
        assert await told(lost) == ["lose"]


async def test_run_not_begun_is_not_taken_for_lost(queue: StubQueue, leases: Leases) -> None:
    """A run taken over, but not begun yet, still bears the name of the worker before: it is not lost."""
    run = HeldRun()
    run.begun = False
    leases.hold(run)
    queue.taken = [run.run_id]
    async with Keeping(leases):
        await queue.until(lambda: len(queue.renewed) >= 3)
    assert run.told == []


async def test_flagged_run_is_cancelled(queue: StubQueue, leases: Leases) -> None:
    """A run whose cancel is stored is cancelled at the next renewal, even if no message came."""
    flagged, other = HeldRun(), HeldRun()
    leases.hold(flagged)
    leases.hold(other)
    queue.flagged = [flagged.run_id]
    async with Keeping(leases):
        assert set(await told(flagged)) == {"cancel"}
    assert other.told == []


async def test_control_message_cancels_the_run_it_names(leases: Leases) -> None:
    """A control message cancels the held run it names at once; ids that are not held, or no ids, are ignored."""
    run, other = HeldRun(), HeldRun()
    leases.hold(run)
    leases.hold(other)
    for message in (b"\xff\x00", b"", new_run_id().encode(), run.run_id.encode()):
        leases.on_control(message)
    assert (run.told, other.told) == (["cancel"], [])


async def test_absent_broker_is_outlived(queue: StubQueue, leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """While the broker is away nothing is given up: renewing goes on, with a warning, until it is back."""
    run = HeldRun()
    leases.hold(run)
    queue.errors["renew"] = BrokerUnavailable("away")
    async with Keeping(leases):
        await queue.until(lambda: len(queue.renewed) >= 3)
        assert run.told == []
        queue.lost = [run.claim.entry_id]
        queue.errors.clear()
        assert await told(run) == ["lose"]
    assert "cannot renew leases: away" in caplog.text


async def test_unforeseen_error_ends_the_keeping(queue: StubQueue, leases: Leases) -> None:
    """An error that is no absence of the broker is not swallowed: leases that are not kept must be noticed."""
    leases.hold(HeldRun())
    queue.errors["renew"] = ValueError("broken on purpose")
    with pytest.raises(ValueError, match="broken on purpose"):
        async with asyncio.timeout(TIMEOUT_S):
            await leases.renew_forever()


async def test_dead_workers_are_forgotten_now_and_then(queue: StubQueue, leases: Leases) -> None:
    """Consumers of dead workers are pruned once in a hundred renewals, also by a worker that holds nothing."""
    leases.interval_s = 0
    async with Keeping(leases):
        await queue.until(lambda: queue.prunes >= 2)
    assert queue.renewed == []
    assert PRUNE_EVERY == 100


async def test_only_the_brokers_absence_is_tolerated() -> None:
    """``warn_if_unavailable`` lets every other error through."""

    async def broken() -> None:
        message = "broken on purpose"
        raise ValueError(message)

    with pytest.raises(ValueError, match="broken on purpose"):
        await warn_if_unavailable(broken, "do it")


def worker_of(
    queue: StubQueue,
    leases: Leases,
    runner: object,
    is_connected: Callable[[], bool] = lambda: True,
    slots: Slots | None = None,
) -> Worker:
    return Worker(
        cast("JobQueue", queue),
        cast("Runner", runner),
        leases,
        slots=slots or Slots(1),
        drain_timeout_s=0,
        is_connected=is_connected,
    )


async def test_nothing_is_taken_over_around_an_absence_of_the_broker(
    queue: StubQueue, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the link is down, and until others had time to renew after it is up, expired leases say nothing."""
    monkeypatch.setattr("agentstream.worker.worker.SETTLE_S", 20 * LEASE_S)
    leases.hold(HeldRun())
    link = {"up": False}
    worker = worker_of(queue, leases, type("NoRuns", (), {"stop_all": lambda _: None})(), lambda: link["up"])
    stop = asyncio.Event()
    working = asyncio.create_task(worker.run(stop))
    await queue.until(lambda: len(queue.renewed) >= 10)
    assert queue.reclaims == 0
    link["up"] = True
    worker.on_reconnect()
    await queue.until(lambda: len(queue.renewed) >= 20)
    assert queue.reclaims == 0
    await queue.until(lambda: queue.reclaims > 0)
    stop.set()
    await working


async def test_a_job_is_begun_before_the_next_is_asked_for(queue: StubQueue, leases: Leases) -> None:
    """A client waits for a claimed job: what begins it is sent before the request for another one."""
    order: list[str] = []
    jobs = [HeldRun().claim]
    asked_again = asyncio.Event()

    async def claim(*, short_block: bool = False) -> Claim | None:
        order.append(f"claim {short_block}")
        if jobs:
            return jobs.pop()
        asked_again.set()
        await asyncio.sleep(LEASE_S)
        return None

    async def execute(_claim: Claim, _called_again: object = None) -> None:
        order.append("begin")

    queue.claim = claim  # type: ignore[method-assign]
    runner = type("OneRun", (), {"execute": staticmethod(execute), "stop_all": lambda _: None})()
    worker = worker_of(queue, leases, runner, slots=Slots(2))
    stop = asyncio.Event()
    working = asyncio.create_task(worker.run(stop))
    async with asyncio.timeout(TIMEOUT_S):
        await asked_again.wait()
    stop.set()
    await working
    assert order[:3] == ["claim False", "begin", "claim False"]


@pytest.mark.parametrize("side_task", ["beat", "reclaim", "renew"])
async def test_worker_dies_with_its_side_task(queue: StubQueue, leases: Leases, side_task: str) -> None:
    """A worker whose heartbeat, reclaim or renewal dies of something unforeseen ends with that error, unasked."""
    leases.hold(HeldRun())
    runner: Any = None
    worker = worker_of(queue, leases, runner)
    queue.errors[side_task] = ValueError("broken on purpose")
    started = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        await worker.run(asyncio.Event())
    assert caught.group_contains(ValueError, match="broken on purpose")
    assert queue.closed
    assert time.monotonic() - started < TIMEOUT_S


@pytest.mark.parametrize("side_task", ["beat", "reclaim", "renew", "claim"])
async def test_worker_outlives_an_absent_broker(queue: StubQueue, leases: Leases, side_task: str) -> None:
    """A worker whose broker is away waits for it, and ends when it is told to stop."""
    leases.hold(HeldRun())
    runner: Any = type("NoRuns", (), {"stop_all": lambda _: None})()
    worker = worker_of(queue, leases, runner)
    queue.errors[side_task] = BrokerUnavailable("away")
    stop = asyncio.Event()
    working = asyncio.create_task(worker.run(stop))
    await queue.until(lambda: len(queue.renewed) >= 3)
    assert not working.done()
    stop.set()
    async with asyncio.timeout(TIMEOUT_S):
        await working
    assert queue.closed


async def test_a_queue_that_waits_hurries_the_others(leases: Leases) -> None:
    """With fewer slots than queues, an idle queue's blocking read is kept short, and each gets its turn."""
    queues = [StubQueue(), StubQueue()]
    runner: Any = type("NoRuns", (), {"stop_all": lambda _: None})()
    slots, stop = Slots(1), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for queue in queues:
            tasks.create_task(worker_of(queue, leases, runner, slots=slots).run(stop))
        for queue in queues:
            await queue.until(lambda queue=queue: queue.hurried >= 3)  # type: ignore[misc]
        stop.set()


async def test_a_queue_alone_is_in_no_hurry(queue: StubQueue, leases: Leases) -> None:
    """A worker with a slot for each queue waits for jobs as long as a blocking read may last."""
    runner: Any = type("NoRuns", (), {"stop_all": lambda _: None})()
    stop = asyncio.Event()
    working = asyncio.create_task(worker_of(queue, leases, runner, slots=Slots(2)).run(stop))
    await queue.until(lambda: queue.reclaims >= 3)
    assert queue.hurried == 0
    stop.set()
    await working


async def test_leases_are_looked_after_with_a_single_slot(queue: StubQueue, leases: Leases) -> None:
    """A worker with one slot looks for expired leases in turn with new jobs."""
    runner: Any = type("NoRuns", (), {"stop_all": lambda _: None})()
    stop = asyncio.Event()
    working = asyncio.create_task(worker_of(queue, leases, runner).run(stop))
    await queue.until(lambda: queue.reclaims >= 10)
    stop.set()
    await working
