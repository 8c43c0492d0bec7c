"""Short chaos runs on servers with sentinels and on a cluster. ``make chaos BROKER=cluster`` runs a long one."""

from pathlib import Path

import pytest

from tests.brokers.network import can_cut
from tests.faults.chaos import SETTLE_S, Chaos
from tests.faults.chaos_brokers import ISOLATION, ChaosBroker, Fault
from tests.faults.chaos_resumable import ResumableChaos
from tests.helpers import TIME_SCALE

SECONDS = 20 * TIME_SCALE
SEED = 20

pytestmark = pytest.mark.timeout(SECONDS + 3 * SETTLE_S)


async def test_no_stream_loses_or_repeats_words_during_failovers(tmp_path: Path) -> None:
    """While primaries of a cluster and workers are lost, no stream loses or repeats a word, and every stream ends."""
    report = await Chaos(SECONDS, SEED, tmp_path, broker="cluster").run()
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] > report.runs / 3, f"\n{report}"


class _Isolating(Chaos):
    """Chaos whose only fault of the broker is a primary that is cut off from all other servers."""

    def _faults_of(self, broker: ChaosBroker) -> list[Fault]:
        return [fault for fault in super()._faults_of(broker) if fault[0] == ISOLATION]


@pytest.mark.skipif(not can_cut(), reason="only root on Linux with nftables can cut the network")
async def test_an_isolated_primary_that_accepts_writes_loses_no_run(tmp_path: Path) -> None:
    """What an isolated primary behind sentinels has accepted is stored again: no run, word or event is lost."""
    report = await _Isolating(SECONDS / 2, SEED, tmp_path, broker="sentinel").run()
    assert report.clean, f"\n{report}"
    assert report.faults[ISOLATION], f"\n{report}"
    assert report.outcomes["complete"] > report.runs / 3, f"\n{report}"


async def test_no_run_of_a_resumable_agent_fails_during_failovers(tmp_path: Path) -> None:
    """While sentinels replace primaries and workers are lost, every run of a resumable agent completes, whole."""
    report = await ResumableChaos(SECONDS, SEED, tmp_path, broker="sentinel").run()
    assert report.clean, f"\n{report}"
    assert report.outcomes["complete"] == report.runs, f"\n{report}"
