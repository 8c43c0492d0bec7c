"""Streams during the faults of servers with sentinels: a short form of ``failover_table``."""

from pathlib import Path

import pytest

from tests.brokers.sentinel import SentinelServers
from tests.brokers.servers import executables
from tests.faults.broker_faults import KEEPS_REPLICAS
from tests.faults.failover_table import Scene, as_table
from tests.helpers import TIME_SCALE

STREAMS = 40


@pytest.mark.timeout(300 * TIME_SCALE)
async def test_streams_survive_the_faults_of_a_primary_with_sentinels(tmp_path: Path) -> None:
    """Whatever happens to the primary or its network, each answer is whole, and new requests are served."""
    executable = executables().get("redis-server")  # the other tests of this kind use the bundled server
    servers = SentinelServers(executable, settings=KEEPS_REPLICAS)
    async with servers, Scene.open(servers, tmp_path) as scene:
        rows = [await scene.row(name, fault, STREAMS) for name, fault in scene.faults(frozen_s=5).items()]
    assert all(row.clean for row in rows), f"\n{as_table(rows)}"
