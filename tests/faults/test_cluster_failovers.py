"""Streams during the faults of a cluster: a short form of ``failover_table``."""

from pathlib import Path

import pytest

from tests.brokers.cluster import ClusterServers
from tests.faults.failover_table import FRONTENDS, WORKERS, Scene, as_table
from tests.helpers import TIME_SCALE

STREAMS = 40


@pytest.mark.timeout(300 * TIME_SCALE)
async def test_streams_survive_the_faults_of_a_cluster(tmp_path: Path) -> None:
    """Whatever happens to a primary, its slots or its network, each answer is whole, and new requests are served."""
    async with ClusterServers() as servers, Scene.open(servers, tmp_path) as scene:
        rows = [await scene.row(name, fault, STREAMS) for name, fault in scene.faults(frozen_s=3).items()]
    assert all(row.clean for row in rows), f"\n{as_table(rows)}"


@pytest.mark.timeout(120 * TIME_SCALE)
async def test_runs_spread_over_a_cluster_and_connections_do_not_grow(tmp_path: Path) -> None:
    """Each primary has its share of keys and commands, and one connection for each process, whatever is open."""
    async with ClusterServers() as servers, Scene.open(servers, tmp_path) as scene:
        row = await scene.row("no fault", scene.measure, 2 * STREAMS)
    assert row.clean, f"\n{as_table([row])}"
    spread = scene.spread
    assert spread is not None
    shares = [count / sum(counts.values()) for counts in (spread.keys, spread.commands) for count in counts.values()]
    assert min(shares) > 0.15, f"\n{spread}"
    for counts in spread.connections.values():
        assert (counts["agentstream-frontend"], counts["agentstream-worker"]) == (FRONTENDS, WORKERS), f"\n{spread}"
        assert counts.get("agentstream-claims", 0) <= WORKERS, f"\n{spread}"
