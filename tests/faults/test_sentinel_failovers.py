"""Streams during the faults of servers with sentinels: a short form of ``failover_table``."""

import asyncio
from pathlib import Path

import pytest

from agentstream.protocol.broker_url import show_address
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.new_link import new_link
from tests.brokers.network import can_cut
from tests.brokers.sentinel import SentinelServers
from tests.brokers.servers import executables
from tests.brokers.waiting import until
from tests.faults.broker_faults import KEEPS_REPLICAS
from tests.faults.failover_table import Scene, as_table
from tests.helpers import TIME_SCALE, TIMEOUT_S

STREAMS = 40


@pytest.mark.timeout(300 * TIME_SCALE)
async def test_streams_survive_the_faults_of_a_primary_with_sentinels(tmp_path: Path) -> None:
    """Whatever happens to the primary or its network, each answer is whole, and new requests are served."""
    executable = executables().get("redis-server")  # the other tests of this kind use the bundled server
    servers = SentinelServers(executable, settings=KEEPS_REPLICAS)
    async with servers, Scene.open(servers, tmp_path) as scene:
        rows = [await scene.row(name, fault, STREAMS) for name, fault in scene.faults(frozen_s=5).items()]
    assert all(row.clean for row in rows), f"\n{as_table(rows)}"


@pytest.mark.skipif(not can_cut(), reason="only root on Linux with nftables can cut the network")
async def test_a_link_leaves_an_isolated_primary_although_it_answers() -> None:
    """A link without any trouble on its connection learns from the sentinels that another server is the primary."""
    async with SentinelServers(replicas=1) as servers:
        link = new_link(Endpoint(servers.url), name="test")
        link.open()
        try:
            await link.wait_ready(TIMEOUT_S)
            old = await servers.primary()
            await asyncio.to_thread(servers.isolate, old)
            new = await servers.wait_failover(old)

            async def moved() -> bool:
                return link.connections == {show_address(*new.place): True}

            await until(moved, "the link is connected to the new primary")
        finally:
            await link.close()
