"""The collector folds a run, and gives up on it if it cannot be read."""

from collections.abc import Sequence
from typing import cast

import pytest

from agentstream.errors import AGENT_ERROR, STREAM_LOST, LogTrimmed, RunFailed
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import RUN_CANCELLED, RUN_FAILED, Event
from agentstream.stream.views import CHAT_VIEW
from tests.helpers import batch, completed, events
from tests.unit.frontend.fakes import HEAD, FakeDeadlines, said


async def collected(*batches: Sequence[Event]) -> Collector:
    """Return a collector that has received these batches."""
    collector = Collector(CHAT_VIEW.fold(HEAD))
    for run in batches:
        collector.on_batch(batch(run))
    return collector


async def test_collector_folds_a_run_to_its_end() -> None:
    """The content is all texts joined; events after the terminal event are ignored."""
    collector = await collected(said("a", "b"), events(completed(), first_seq=3), said("late", first_seq=4))
    await collector.wait_ended()
    collector.raise_if_failed()
    assert collector.ended
    assert collector.fold.body()["choices"][0]["message"]["content"] == "ab"


async def test_collector_raises_for_failed_runs_only() -> None:
    """A failed run raises RunFailed with its code; a cancelled run gives a completion."""
    failed = await collected(events((RUN_FAILED, {"code": AGENT_ERROR, "message": "no"})))
    await failed.wait_ended()
    with pytest.raises(RunFailed, match="no"):
        failed.raise_if_failed()
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    cancelled = await collected(said("a"), events((RUN_CANCELLED, {"usage": usage}), first_seq=2))
    await cancelled.wait_ended()
    cancelled.raise_if_failed()
    assert cancelled.fold.body()["status"] == "cancelled"


async def test_a_run_that_the_collector_gives_up_does_not_count_as_ended() -> None:
    """A failed feed, an expired deadline and a too long answer each raise RunFailed, but the run has not ended."""
    lost = await collected(said("a"))
    lost.on_failure(LogTrimmed("cut"))
    expired = await collected(said("a"))
    deadlines = FakeDeadlines()
    expired.attach(cast("Deadlines", deadlines))
    expired.tick(0)
    deadlines.expired = (STREAM_LOST, "too long")
    expired.tick(1)
    large = await collected(*(said("x" * (1 << 20), first_seq=seq) for seq in range(1, 18)))
    for collector, words in ((lost, "cut"), (expired, "too long"), (large, "use stream: true")):
        with pytest.raises(RunFailed, match=words) as raised:
            await collector.wait_ended()
        assert raised.value.error_code == STREAM_LOST
        assert not collector.ended
