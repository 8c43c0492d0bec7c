"""A short chaos run. ``make chaos`` runs a long one."""

from pathlib import Path

import pytest

from tests.faults.chaos import SETTLE_S, run_chaos
from tests.helpers import TIME_SCALE

SECONDS = 40 * TIME_SCALE
SEED = 20


@pytest.mark.timeout(SECONDS + 3 * SETTLE_S)
async def test_no_stream_loses_or_repeats_words_under_faults(tmp_path: Path) -> None:
    """Under random faults no stream loses, repeats or reorders a word, and every stream ends."""
    report = await run_chaos(SECONDS, SEED, tmp_path)
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] > report.runs / 3, f"\n{report}"
