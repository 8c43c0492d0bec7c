"""Short chaos runs on servers with sentinels and on a cluster. ``make chaos BROKER=cluster`` runs a long one."""

from pathlib import Path

import pytest

from tests.faults.chaos import SETTLE_S, run_chaos
from tests.faults.chaos_resumable import run_resumable_chaos
from tests.helpers import TIME_SCALE

SECONDS = 25 * TIME_SCALE
SEED = 20

pytestmark = pytest.mark.timeout(SECONDS + 3 * SETTLE_S)


@pytest.mark.parametrize("broker", ["sentinel", "cluster"])
async def test_no_stream_loses_or_repeats_words_during_failovers(tmp_path: Path, broker: str) -> None:
    """While primaries and workers are lost, no stream loses, repeats or reorders a word, and every stream ends."""
    report = await run_chaos(SECONDS, SEED, tmp_path, broker=broker)
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] > report.runs / 3, f"\n{report}"


@pytest.mark.parametrize("broker", ["sentinel", "cluster"])
async def test_no_run_of_a_resumable_agent_fails_during_failovers(tmp_path: Path, broker: str) -> None:
    """While primaries and workers are lost, every run of a resumable agent completes, whole, with each tool once."""
    report = await run_resumable_chaos(SECONDS, SEED, tmp_path, broker=broker)
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] == report.runs, f"\n{report}"
