"""Streams during the faults of a cluster: a short form of ``failover_table``."""

from pathlib import Path

import pytest

from tests.brokers.cluster import ClusterServers
from tests.faults.cluster_spread import Spread
from tests.faults.failover_table import FRONTENDS, WORKERS, Scene, as_table
from tests.helpers import TIME_SCALE

STREAMS = 40


@pytest.mark.timeout(300 * TIME_SCALE)
async def test_streams_survive_the_faults_of_a_cluster(tmp_path: Path) -> None:
    """Whatever happens to a primary, each answer is whole, and before it all primaries share the work."""
    async with ClusterServers() as servers, Scene.open(servers, tmp_path) as scene:
        rows = [await scene.row(name, fault, STREAMS) for name, fault in scene.faults(frozen_s=3).items()]
    assert all(row.clean for row in rows), f"\n{as_table(rows)}"
    check_spread(scene.spread)


def check_spread(spread: Spread | None) -> None:
    """Check that all primaries share the work, and that connections do not grow with the streams."""
    assert spread is not None
    shares = [count / sum(counts.values()) for counts in (spread.keys, spread.commands) for count in counts.values()]
    assert min(shares) > 0.15, f"\n{spread}"
    for counts in spread.connections.values():
        assert (counts["agentstream-frontend"], counts["agentstream-worker"]) == (FRONTENDS, WORKERS), f"\n{spread}"
        assert counts.get("agentstream-claims", 0) <= WORKERS, f"\n{spread}"
        assert counts.keys() <= {"agentstream-frontend", "agentstream-worker", "agentstream-claims"}, f"\n{spread}"
