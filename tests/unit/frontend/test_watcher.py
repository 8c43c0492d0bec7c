"""Deadlines and the sweep, with a clock of the test's own."""

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
    """A feed that counts how often it was doubted."""

    def __init__(self) -> None:
        self.doubts = 0

    def resync(self, cause: str) -> None:
        assert cause == "silence"
        self.doubts += 1


class Scene:
    """Deadlines that begin at 0 s."""

    def __init__(self, *, new: bool = True) -> None:
        self.feed = CountingFeed()
        self.unstarted_doubts = 0
        self.deadlines = Deadlines(
            cast("RunFeed", self.feed),
            0.0,
            queue_timeout_s=QUEUE_TIMEOUT_S,
            run_timeout_s=RUN_TIMEOUT_S,
            on_silence_before_start=self._on_silence_before_start if new else None,
        )

    def _on_silence_before_start(self) -> None:
        self.unstarted_doubts += 1

    def hear(self, now_s: float, *, seq: int) -> None:
        if seq == 1:
            self.deadlines.attempt_started(now_s)
        self.deadlines.events_received(now_s)


def test_a_queued_run_is_given_up_after_queue_timeout_and_grace() -> None:
    """Nothing heard of a new run: queue_timeout, not a moment before the worker would say so itself."""
    scene = Scene()
    assert scene.deadlines.check(QUEUE_TIMEOUT_S + GRACE_S - 0.1) is None
    verdict = scene.deadlines.check(QUEUE_TIMEOUT_S + GRACE_S)
    assert verdict is not None
    assert verdict[0] == QUEUE_TIMEOUT


def test_a_run_of_unknown_age_gets_its_whole_life() -> None:
    """A run attached to may wait in the queue and then run, each for its full time."""
    scene = Scene(new=False)
    assert scene.deadlines.check(QUEUE_TIMEOUT_S + RUN_TIMEOUT_S + GRACE_S - 0.1) is None
    assert scene.deadlines.check(QUEUE_TIMEOUT_S + RUN_TIMEOUT_S + GRACE_S) is not None
    assert scene.unstarted_doubts == 0


def test_a_started_run_is_given_up_after_run_timeout_and_grace() -> None:
    """The first event starts the run's own time; later events of the attempt do not prolong it."""
    scene = Scene()
    scene.hear(50, seq=1)
    scene.hear(55, seq=2)
    assert scene.deadlines.check(50 + RUN_TIMEOUT_S + GRACE_S - 0.1) is None
    verdict = scene.deadlines.check(50 + RUN_TIMEOUT_S + GRACE_S)
    assert verdict is not None
    assert verdict[0] == STREAM_LOST


def test_a_log_that_is_still_read_is_not_given_up() -> None:
    """Events that a slow reader hears of after the run's time postpone the verdict by the grace, and so does a wait."""
    scene = Scene()
    scene.hear(0, seq=1)
    over_s = RUN_TIMEOUT_S + GRACE_S
    scene.hear(over_s - 1, seq=2)
    assert scene.deadlines.check(over_s) is None
    scene.deadlines.postpone(over_s + 5)
    assert scene.deadlines.check(over_s + 5 + GRACE_S - 0.1) is None
    assert scene.deadlines.check(over_s + 5 + GRACE_S) is not None


def test_a_new_attempt_has_its_own_time() -> None:
    """The first event of a second attempt starts the run's time again."""
    scene = Scene()
    scene.hear(10, seq=1)
    scene.hear(400, seq=1)
    assert scene.deadlines.check(10 + RUN_TIMEOUT_S + GRACE_S) is None
    assert scene.deadlines.check(400 + RUN_TIMEOUT_S + GRACE_S) is not None


def test_a_silent_run_is_doubted_less_and_less_often() -> None:
    """Doubts come after 5, 10, 20, 40 and then every 60 s of silence; any event starts over."""
    scene = Scene()
    scene.hear(0, seq=1)
    doubted_at = []
    for now_s in range(300):
        before = scene.feed.doubts
        assert scene.deadlines.check(now_s) is None
        if scene.feed.doubts > before:
            doubted_at.append(now_s)
    gaps = [later - earlier for earlier, later in zip([0, *doubted_at], doubted_at, strict=False)]
    assert gaps == [
        MIN_LOG_CHECK_INTERVAL_S,
        10,
        20,
        40,
        MAX_LOG_CHECK_INTERVAL_S,
        MAX_LOG_CHECK_INTERVAL_S,
        MAX_LOG_CHECK_INTERVAL_S,
    ]
    doubts = scene.feed.doubts
    scene.hear(300, seq=2)
    scene.deadlines.check(300 + MIN_LOG_CHECK_INTERVAL_S - 0.1)
    assert scene.feed.doubts == doubts
    scene.deadlines.check(300 + MIN_LOG_CHECK_INTERVAL_S)
    assert scene.feed.doubts == doubts + 1


def test_an_unstarted_run_is_looked_after_until_it_is_heard_of() -> None:
    """Each doubt about a run nothing was heard of asks whether its job was lost; none after its first event."""
    scene = Scene()
    scene.deadlines.check(5)
    scene.deadlines.check(15)
    assert scene.unstarted_doubts == scene.feed.doubts == 2
    scene.hear(16, seq=1)
    scene.deadlines.check(21)
    assert (scene.unstarted_doubts, scene.feed.doubts) == (2, 3)


class Ticked:
    """An open run that counts its ticks, or fails at each."""

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


async def test_the_sweep_survives_a_run_that_cannot_be_looked_after(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One run's fault is logged and takes no other run's ticks away; a removed run gets none."""
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
    """True at once without runs, false when time is up, true as soon as the last run leaves."""
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
