"""A short chaos run. ``make chaos`` runs a long one."""

from pathlib import Path

import pytest

from tests.faults.chaos import SETTLE_S, Chaos
from tests.faults.chaos_resumable import ResumableChaos
from tests.helpers import TIME_SCALE

SECONDS = 40 * TIME_SCALE
SEED = 20
RESUMABLE_SECONDS = 30 * TIME_SCALE


@pytest.mark.timeout(SECONDS + 3 * SETTLE_S)
async def test_no_stream_loses_or_repeats_words_under_faults(tmp_path: Path) -> None:
    """Under random faults no stream loses, repeats or reorders a word, and every stream ends."""
    report = await Chaos(SECONDS, SEED, tmp_path).run()
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] > report.runs / 3, f"\n{report}"


@pytest.mark.timeout(RESUMABLE_SECONDS + 3 * SETTLE_S)
async def test_no_run_of_a_resumable_agent_fails_because_of_a_worker(tmp_path: Path) -> None:
    """While workers are killed, frozen and stopped all the time, every run completes, whole, with each tool once."""
    report = await ResumableChaos(RESUMABLE_SECONDS, SEED, tmp_path).run()
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] == report.runs, f"\n{report}"
    assert int(report.more["runs continued on another worker"]) > 0, f"\n{report}"
