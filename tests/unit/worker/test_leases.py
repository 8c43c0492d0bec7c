"""Leases: renewing, losing and taking them over, also while Redis is unavailable."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.store.queue import Claim, JobQueue
from agentstream.worker.ended_runs import EndedRuns
from agentstream.worker.leases import PRUNE_EVERY, Leases, warn_if_unavailable
from agentstream.worker.parking import Parking
from agentstream.worker.runner import Runner
from agentstream.worker.slots import Slots
from agentstream.worker.worker import Worker
from tests.helpers import TIMEOUT_S

LEASE_S = 0.003


class NoRuns:
    """A runner without runs."""

    def __init__(self) -> None:
        self.ended_runs = EndedRuns(cast("JobQueue", StubQueue()))

    async def deliver(self, run_id: str) -> None:
        """Do nothing."""

    def hand_over_all(self) -> None:
        """Do nothing."""

    def stop_all(self) -> None:
        """Do nothing."""


class NoParking:
    """A part that finds no parked runs."""

    async def expire(self) -> None:
        """Do nothing."""


class HeldRun:
    """A run under lease that records the calls of its methods."""

    def __init__(self) -> None:
        run_id = new_run_id()
        self.claim = Claim(f"{run_id}-entry", Job(run_id=run_id, request={"model": "m"}, created=1, start_by=2), 0.0)
        self.begun = True
        self.waits = self.takes_inputs = False
        self.agent_name = "herd"
        self.text_events = 7
        self.calls: list[str] = []
        self.called = asyncio.Event()

    @property
    def run_id(self) -> str:
        return self.claim.job.run_id

    def abandon(self) -> None:
        self._record("abandon")

    def cancel(self) -> None:
        self._record("cancel")

    def _record(self, call: str) -> None:
        self.calls.append(call)
        self.called.set()


class StubQueue:
    """A worker's side of a queue without Redis. Each answer can be set, and may be an error."""

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
        self.short_blocks = 0
        self.closed = False
        self._call_made = asyncio.Event()

    async def renew(self, entry_ids: list[str]) -> list[str]:
        self.renewed.append(entry_ids)
        self._record("renew")
        return [entry_id for entry_id in self.lost if entry_id in entry_ids]

    async def superseded(self, run_ids: list[str]) -> list[str]:
        self._record("superseded")
        return [run_id for run_id in self.taken if run_id in run_ids]

    async def cancel_requested(self, run_ids: list[str]) -> list[str]:
        self._record("cancelled")
        return [run_id for run_id in self.flagged if run_id in run_ids]

    async def report_progress(self, runs: list[tuple[str, str, int]]) -> None:
        self.progress = runs
        self._record("progress")

    async def prune(self) -> None:
        self.prunes += 1
        self._record("prune")

    async def close(self) -> None:
        self.closed = True

    async def heartbeat(self) -> None:
        self._record("beat")

    async def claim(self, at_most: int, *, short_block: bool = False) -> list[Claim]:  # noqa: ARG002
        self.short_blocks += short_block
        self._record("claim")
        await asyncio.sleep(LEASE_S)
        return []

    async def reclaim(self, _lease_s: float) -> Claim | None:
        self.reclaims += 1
        self._record("reclaim")
        return None

    async def until(self, found: Callable[[], bool]) -> None:
        """Return when ``found`` is true. It is checked after each call."""
        async with asyncio.timeout(TIMEOUT_S):
            while not found():
                self._call_made.clear()
                await self._call_made.wait()

    def _record(self, call: str) -> None:
        self._call_made.set()
        if (error := self.errors.get(call)) is not None:
            raise error


@pytest.fixture
def queue() -> StubQueue:
    """A queue that answers."""
    return StubQueue()


@pytest.fixture
def leases(queue: StubQueue) -> Leases:
    """The leases of a worker that holds nothing."""
    return Leases(cast("JobQueue", queue), LEASE_S)


async def calls_of(run: HeldRun) -> list[str]:
    async with asyncio.timeout(TIMEOUT_S):
        await run.called.wait()
    return run.calls


class Renewing:
    """Renews leases while the block runs."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def __aenter__(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._leases.renew_forever())
        return self._task

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_held_runs_are_renewed_until_they_are_released(queue: StubQueue, leases: Leases) -> None:
    """Every held run is in every renewal, from the moment it is held until it is released."""
    kept, released = HeldRun(), HeldRun()
    leases.hold(kept)
    leases.hold(released)
    async with Renewing(leases):
        await queue.until(lambda: len(queue.renewed) >= 2)
        leases.release(released)
        before = len(queue.renewed)
        await queue.until(lambda: len(queue.renewed) >= before + 2)
    both = [kept.claim.entry_id, released.claim.entry_id]
    assert queue.renewed[:2] == [both, both]
    assert queue.renewed[-1] == [kept.claim.entry_id]
    assert kept.calls == released.calls == []


async def test_progress_is_reported_with_the_renewal(queue: StubQueue, leases: Leases) -> None:
    """Each renewal reports the agent and tokens of every held run whose agent was called, and of no other run."""
    called, waiting, lost = HeldRun(), HeldRun(), HeldRun()
    waiting.agent_name = ""
    for run in (called, waiting, lost):
        leases.hold(run)
    queue.lost = [lost.claim.entry_id]
    async with Renewing(leases):
        await queue.until(lambda: bool(lost.calls))
        renewals = len(queue.renewed)
        await queue.until(lambda: len(queue.renewed) > renewals + 1)
    assert queue.progress == [(called.run_id, "herd", 7)]


async def test_a_lease_lasts_three_renewal_intervals(leases: Leases) -> None:
    """A lease lasts three renewal intervals, so it survives two failed renewals."""
    assert leases.interval_s == pytest.approx(LEASE_S / 3)


async def test_lost_run_is_abandoned_once_and_not_renewed(queue: StubQueue, leases: Leases) -> None:
    """A run whose lease another worker holds is abandoned once and never renewed again."""
    lost, kept = HeldRun(), HeldRun()
    leases.hold(lost)
    leases.hold(kept)
    queue.lost = [lost.claim.entry_id]
    async with Renewing(leases):
        assert await calls_of(lost) == ["abandon"]
        before = len(queue.renewed)
        await queue.until(lambda: len(queue.renewed) >= before + 2)
    assert queue.renewed[-1] == [kept.claim.entry_id]
    assert (lost.calls, kept.calls) == (["abandon"], [])


async def test_run_that_another_worker_ended_is_lost(queue: StubQueue, leases: Leases) -> None:
    """A run that another worker began and ended is abandoned too, although its job no longer exists."""
    lost = HeldRun()
    leases.hold(lost)
    queue.taken = [lost.run_id]
    async with Renewing(leases):
        assert await calls_of(lost) == ["abandon"]


async def test_run_not_begun_is_not_taken_for_lost(queue: StubQueue, leases: Leases) -> None:
    """A run that this worker took over but has not begun is not lost, although its hash names the earlier worker."""
    run = HeldRun()
    run.begun = False
    leases.hold(run)
    queue.taken = [run.run_id]
    async with Renewing(leases):
        await queue.until(lambda: len(queue.renewed) >= 3)
    assert run.calls == []


async def test_flagged_run_is_cancelled(queue: StubQueue, leases: Leases) -> None:
    """A run whose cancel is stored is cancelled at the next renewal, even without a control message."""
    flagged, other = HeldRun(), HeldRun()
    leases.hold(flagged)
    leases.hold(other)
    queue.flagged = [flagged.run_id]
    async with Renewing(leases):
        assert set(await calls_of(flagged)) == {"cancel"}
    assert other.calls == []


async def test_control_message_cancels_the_run_it_names(leases: Leases) -> None:
    """A control message cancels the held run that it names, and other messages are ignored."""
    run, other = HeldRun(), HeldRun()
    leases.hold(run)
    leases.hold(other)
    for message in (b"\xff\x00", b"", new_run_id().encode(), run.run_id.encode()):
        leases.on_control(message)
    assert (run.calls, other.calls) == (["cancel"], [])


async def test_renewal_continues_while_redis_is_unavailable(
    queue: StubQueue, leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is unavailable, the worker keeps its runs, logs a warning and retries the renewal."""
    run = HeldRun()
    leases.hold(run)
    queue.errors["renew"] = BrokerUnavailable("away")
    async with Renewing(leases):
        await queue.until(lambda: len(queue.renewed) >= 3)
        assert run.calls == []
        queue.lost = [run.claim.entry_id]
        queue.errors.clear()
        assert await calls_of(run) == ["abandon"]
    assert "cannot renew leases: away" in caplog.text


async def test_unexpected_error_ends_the_renewal(queue: StubQueue, leases: Leases) -> None:
    """An error other than an unavailable Redis ends the renewal and is raised."""
    leases.hold(HeldRun())
    queue.errors["renew"] = ValueError("broken on purpose")
    with pytest.raises(ValueError, match="broken on purpose"):
        async with asyncio.timeout(TIMEOUT_S):
            await leases.renew_forever()


async def test_dead_workers_are_removed_every_hundred_renewals(queue: StubQueue, leases: Leases) -> None:
    """Consumers of dead workers are removed every hundred renewals, also by a worker that holds no run."""
    leases.interval_s = 0
    async with Renewing(leases):
        await queue.until(lambda: queue.prunes >= 2)
    assert queue.renewed == []
    assert PRUNE_EVERY == 100


async def test_only_an_unavailable_redis_is_tolerated() -> None:
    """``warn_if_unavailable`` raises every error except BrokerUnavailable."""

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
        cast("Parking", NoParking()),
        slots=slots or Slots(1),
        drain_timeout_s=0,
        is_connected=is_connected,
    )


async def test_no_job_is_taken_over_while_redis_is_unavailable_or_just_back(
    queue: StubQueue, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the link is down, and until others had time to renew after it is up, no job is taken over."""
    monkeypatch.setattr("agentstream.worker.worker.SETTLE_S", 20 * LEASE_S)
    leases.hold(HeldRun())
    link = {"up": False}
    worker = worker_of(
        queue,
        leases,
        NoRuns(),
        lambda: link["up"],
    )
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


@pytest.mark.parametrize("side_task", ["beat", "reclaim", "renew"])
async def test_worker_ends_with_its_side_task(queue: StubQueue, leases: Leases, side_task: str) -> None:
    """A worker whose heartbeat, reclaim or renewal fails with an unexpected error ends with that error."""
    leases.hold(HeldRun())
    runner = NoRuns()
    worker = worker_of(queue, leases, runner)
    queue.errors[side_task] = ValueError("broken on purpose")
    started = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        await worker.run(asyncio.Event())
    assert caught.group_contains(ValueError, match="broken on purpose")
    assert queue.closed
    assert time.monotonic() - started < TIMEOUT_S


@pytest.mark.parametrize("side_task", ["beat", "reclaim", "renew", "claim"])
async def test_worker_survives_an_unavailable_redis(queue: StubQueue, leases: Leases, side_task: str) -> None:
    """A worker keeps running while Redis is unavailable, and ends when it is stopped."""
    leases.hold(HeldRun())
    runner: Any = NoRuns()
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


async def test_blocking_reads_are_short_while_another_queue_waits(leases: Leases) -> None:
    """With fewer slots than queues, an idle queue uses short blocking reads, so that every queue gets its turn."""
    queues = [StubQueue(), StubQueue()]
    runner: Any = NoRuns()
    slots, stop = Slots(1), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for queue in queues:
            tasks.create_task(worker_of(queue, leases, runner, slots=slots).run(stop))
        for queue in queues:
            await queue.until(lambda queue=queue: queue.short_blocks >= 3)  # type: ignore[misc]
        stop.set()


async def test_blocking_reads_are_long_if_no_queue_waits(queue: StubQueue, leases: Leases) -> None:
    """With a slot for each queue, a blocking read lasts its full time."""
    runner: Any = NoRuns()
    stop = asyncio.Event()
    working = asyncio.create_task(worker_of(queue, leases, runner, slots=Slots(2)).run(stop))
    await queue.until(lambda: queue.reclaims >= 3)
    assert queue.short_blocks == 0
    stop.set()
    await working


async def test_a_single_slot_is_shared_with_the_reclaim(queue: StubQueue, leases: Leases) -> None:
    """A worker with one slot looks for expired leases in turn with new jobs."""
    runner: Any = NoRuns()
    stop = asyncio.Event()
    working = asyncio.create_task(worker_of(queue, leases, runner).run(stop))
    await queue.until(lambda: queue.reclaims >= 10)
    stop.set()
    await working
