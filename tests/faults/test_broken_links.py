"""The table of failovers turns red if the connection to the broker has a fault."""

from pathlib import Path

import pytest

from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.faults.failover_table import Row, Scene, as_table
from tests.helpers import TIME_SCALE

STREAMS = 20  # the chance that a primary of a cluster has none of them is 1 : 3,300

pytestmark = pytest.mark.timeout(180 * TIME_SCALE)


async def row_of(servers: ClusterServers | SentinelServers, broken: str, fault: str, folder: Path) -> Row:
    """Return the row of a fault with processes that have a broken link."""
    async with servers, Scene.open(servers, folder, broken) as scene:
        row = await scene.row(fault, scene.faults()[fault], STREAMS, settle_s=5 * TIME_SCALE)
        for process in scene.processes.started:  # without their broker they would drain for a long time
            process.kill()
        return row


async def test_a_cluster_link_without_refresh_is_noticed(tmp_path: Path) -> None:
    """If processes read the topology only once, answers hang after a primary was killed."""
    row = await row_of(ClusterServers(), "refresh", "primary killed", tmp_path)
    assert row.wrong["streams that do not flow again"], f"\n{as_table([row])}"


async def test_a_link_that_stays_at_a_server_that_refuses_is_noticed(tmp_path: Path) -> None:
    """If a command that a former primary refuses is sent to it again for ever, answers hang after a demotion."""
    # The only replica takes over, which the demoted primary follows already. So nobody cuts its connections.
    row = await row_of(SentinelServers(replicas=1), "readonly", "primary demoted behind the sentinels' back", tmp_path)
    assert row.wrong["streams that do not flow again"], f"\n{as_table([row])}"
