"""Deadlines and the sweep of the watcher, with a clock that the test controls."""

import asyncio
import contextlib
from typing import cast

import pytest

from agentstream.errors import QUEUE_TIMEOUT, STREAM_LOST
from agentstream.frontend.runs import watcher as watch
from agentstream.frontend.runs.watcher import (
    GRACE_S,
    MAX_LOG_CHECK_INTERVAL_S,
    MIN_LOG_CHECK_INTERVAL_S,
    Deadlines,
    Watcher,
)
from agentstream.store.bus.feed import RunFeed
from agentstream.telemetry.log_context import LogContext
from tests.helpers import TIMEOUT_S

QUEUE_TIMEOUT_S, RUN_TIMEOUT_S = 60.0, 600.0


class CountingFeed:
    """A feed that counts its comparisons with the replay log."""

    def __init__(self) -> None:
        self.log_checks = 0

    def resync(self, cause: str) -> None:
        assert cause == "silence"
        self.log_checks += 1


class Scene:
    """Deadlines that start at 0 s."""

    def __init__(self, *, new: bool = True) -> None:
        self.feed = CountingFeed()
        self.checks_before_start = 0
        self.deadlines = Deadlines(
            cast("RunFeed", self.feed),
            0.0,
            queue_timeout_s=QUEUE_TIMEOUT_S,
            run_timeout_s=RUN_TIMEOUT_S,
            on_silence_before_start=self._on_silence_before_start if new else None,
        )

    def _on_silence_before_start(self) -> None:
        self.checks_before_start += 1

    def receive(self, now_s: float, *, seq: int) -> None:
        if seq == 1:
            self.deadlines.attempt_started(now_s)
        self.deadlines.events_received(now_s)


def test_a_queued_run_is_given_up_after_queue_timeout_and_grace() -> None:
    """A new run without any event is given up as queue_timeout after the queue timeout and the grace, not earlier."""
    scene = Scene()
    assert scene.deadlines.check(QUEUE_TIMEOUT_S + GRACE_S - 0.1) is None
    expired = scene.deadlines.check(QUEUE_TIMEOUT_S + GRACE_S)
    assert expired is not None
    assert expired[0] == QUEUE_TIMEOUT


def test_a_run_of_unknown_age_gets_its_whole_life() -> None:
    """An existing run may wait in the queue and then run, each for its full time."""
    scene = Scene(new=False)
    assert scene.deadlines.check(QUEUE_TIMEOUT_S + RUN_TIMEOUT_S + GRACE_S - 0.1) is None
    assert scene.deadlines.check(QUEUE_TIMEOUT_S + RUN_TIMEOUT_S + GRACE_S) is not None
    assert scene.checks_before_start == 0


def test_a_started_run_is_given_up_after_run_timeout_and_grace() -> None:
    """The first event of an attempt starts the run timeout; later events of the attempt do not extend it."""
    scene = Scene()
    scene.receive(50, seq=1)
    scene.receive(55, seq=2)
    assert scene.deadlines.check(50 + RUN_TIMEOUT_S + GRACE_S - 0.1) is None
    expired = scene.deadlines.check(50 + RUN_TIMEOUT_S + GRACE_S)
    assert expired is not None
    assert expired[0] == STREAM_LOST


def test_a_log_that_is_still_read_is_not_given_up() -> None:
    """Events that a slow reader gets after the run timeout extend the deadline by the grace, as ``postpone`` does."""
    scene = Scene()
    scene.receive(0, seq=1)
    over_s = RUN_TIMEOUT_S + GRACE_S
    scene.receive(over_s - 1, seq=2)
    assert scene.deadlines.check(over_s) is None
    scene.deadlines.postpone(over_s + 5)
    assert scene.deadlines.check(over_s + 5 + GRACE_S - 0.1) is None
    assert scene.deadlines.check(over_s + 5 + GRACE_S) is not None


def test_a_new_attempt_restarts_the_run_timeout() -> None:
    """The first event of a second attempt restarts the run timeout."""
    scene = Scene()
    scene.receive(10, seq=1)
    scene.receive(400, seq=1)
    assert scene.deadlines.check(10 + RUN_TIMEOUT_S + GRACE_S) is None
    assert scene.deadlines.check(400 + RUN_TIMEOUT_S + GRACE_S) is not None


def test_a_silent_run_is_compared_with_its_log_less_and_less_often() -> None:
    """A silent run is compared with its replay log after 5, 10, 20, 40 and then every 60 s; an event resets this."""
    scene = Scene()
    scene.receive(0, seq=1)
    checked_at = []
    for now_s in range(300):
        before = scene.feed.log_checks
        assert scene.deadlines.check(now_s) is None
        if scene.feed.log_checks > before:
            checked_at.append(now_s)
    intervals = [later - earlier for earlier, later in zip([0, *checked_at], checked_at, strict=False)]
    assert intervals == [
        MIN_LOG_CHECK_INTERVAL_S,
        10,
        20,
        40,
        MAX_LOG_CHECK_INTERVAL_S,
        MAX_LOG_CHECK_INTERVAL_S,
        MAX_LOG_CHECK_INTERVAL_S,
    ]
    log_checks = scene.feed.log_checks
    scene.receive(300, seq=2)
    scene.deadlines.check(300 + MIN_LOG_CHECK_INTERVAL_S - 0.1)
    assert scene.feed.log_checks == log_checks
    scene.deadlines.check(300 + MIN_LOG_CHECK_INTERVAL_S)
    assert scene.feed.log_checks == log_checks + 1


def test_silence_before_the_start_is_reported() -> None:
    """Each comparison before a run's first event also calls ``on_silence_before_start``; later ones do not."""
    scene = Scene()
    scene.deadlines.check(5)
    scene.deadlines.check(15)
    assert scene.checks_before_start == scene.feed.log_checks == 2
    scene.receive(16, seq=1)
    scene.deadlines.check(21)
    assert (scene.checks_before_start, scene.feed.log_checks) == (2, 3)


class Ticked:
    """An open run that counts its ticks. If ``broken``, each tick also raises."""

    def __init__(self, *, broken: bool = False) -> None:
        self.log_context = LogContext()
        self.ticks = 0
        self.ticked_twice = asyncio.Event()
        self._broken = broken

    def tick(self, now_s: float) -> None:
        assert now_s > 0
        self.ticks += 1
        if self.ticks == 2:
            self.ticked_twice.set()
        if self._broken:
            message = "broken on purpose"
            raise ValueError(message)


async def test_the_sweep_continues_after_a_tick_that_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in the tick of one run is logged, and all runs still get their ticks, except a removed run."""
    monkeypatch.setattr(watch, "SWEEP_S", 0.001)
    watcher = Watcher()
    broken, fine, gone = Ticked(broken=True), Ticked(), Ticked()
    for run in (broken, fine, gone):
        watcher.add(run)
    watcher.remove(gone)
    assert len(watcher) == 2
    sweeping = asyncio.create_task(watcher.sweep())
    async with asyncio.timeout(TIMEOUT_S):
        await fine.ticked_twice.wait()
        await broken.ticked_twice.wait()
    sweeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sweeping
    assert gone.ticks == 0
    assert "broken on purpose" in caplog.text


async def test_wait_empty_says_whether_all_runs_ended() -> None:
    """It returns true at once without runs, false after the timeout, and true as soon as the last run is removed."""
    watcher = Watcher()
    assert await watcher.wait_empty(0.001)
    runs = [Ticked(), Ticked()]
    for run in runs:
        watcher.add(run)
    assert not await watcher.wait_empty(0.001)
    waiting = asyncio.create_task(watcher.wait_empty(TIMEOUT_S))
    watcher.remove(runs[0])
    watcher.remove(runs[0])
    assert not await watcher.wait_empty(0.001)
    watcher.remove(runs[1])
    assert await waiting
