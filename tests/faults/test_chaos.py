"""The chaos test in its short form; ``make chaos`` runs it long."""

from pathlib import Path

import pytest

from tests.faults.chaos import SETTLE_S, run_chaos
from tests.helpers import TIME_SCALE

SECONDS = 40 * TIME_SCALE
SEED = 20


@pytest.mark.timeout(SECONDS + 3 * SETTLE_S)
async def test_nothing_is_lost_doubled_or_hung_whatever_is_hit(tmp_path: Path) -> None:
    """Killed, frozen, cut and restarted in any order, no stream loses, doubles or mixes a word, and every one ends."""
    report = await run_chaos(SECONDS, SEED, tmp_path)
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] > report.runs / 3, f"\n{report}"
