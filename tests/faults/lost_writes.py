"""A primary that loses its last writes for certain: its replicas miss them, and then one of them takes over."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

from redis.crc import key_slot

from agentstream.protocol.keys import Keys
from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.brokers.server import Server


@contextlib.asynccontextmanager
async def losing_writes(servers: ClusterServers | SentinelServers, primary: Server) -> AsyncIterator[None]:
    """Lose all writes of the block: they reach no replica, then the primary is killed and a replica takes over.

    The replicas are frozen and their connections closed, because a frozen server still gets data into its buffers.
    """
    async with starved(servers, primary):
        yield
        primary.kill()
    await servers.wait_failover(primary)


@contextlib.asynccontextmanager
async def starved(servers: ClusterServers | SentinelServers, primary: Server) -> AsyncIterator[Sequence[Server]]:
    """Freeze the replicas of a primary and close their connections."""
    if isinstance(servers, ClusterServers):
        replicas = await servers.replicas_of(primary)
    else:
        replicas = await servers.replicas()
    for replica in replicas:
        replica.freeze()
    try:
        await primary.call("CLIENT", "KILL", "TYPE", "replica")
        yield replicas
    finally:
        for replica in replicas:
            replica.thaw()


async def queue_at(servers: ClusterServers, primary: Server) -> str:
    """Return the name of a queue whose slot belongs to this primary."""
    ranges = [(first, last) for first, last, place in await servers.ranges() if place == primary.place]
    while True:
        queue = f"test-{secrets.token_hex(6)}"
        slot = key_slot(Keys().jobs(queue).encode())
        if any(first <= slot <= last for first, last in ranges):
            return queue
