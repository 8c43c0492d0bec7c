"""Faults of sentinel and cluster servers. Each but ``lose`` ends when the servers work together again.

Each returns for how long the servers had no primary that accepts commands, in s, as far as the servers themselves show.
"""

import asyncio
import re
import time
from typing import Final

from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.brokers.server import Server
from tests.brokers.waiting import until

# Settings of servers with sentinels, as the operations guide recommends: a primary that others have replaced has no
# replicas, so it soon accepts no writes that would be lost.
KEEPS_REPLICAS: Final = ("min-replicas-to-write 1", "min-replicas-max-lag 10")

AnyServers = ClusterServers | SentinelServers


async def kill(servers: AnyServers, primary: Server) -> float:
    """Kill a primary, and start it again after another server has taken over."""
    lasted_s = await lose(servers, primary)
    await repair(servers)
    return lasted_s


async def lose(servers: AnyServers, primary: Server) -> float:
    """Kill a primary. It stays dead until ``repair``."""
    began_s = time.monotonic()
    primary.kill()
    await servers.wait_failover(primary)
    return time.monotonic() - began_s


async def repair(servers: AnyServers) -> None:
    """Start dead servers again, and wait until all work together."""
    for node in servers.nodes:
        if not node.running:
            await servers.restart(node)
    await servers.wait_ok()


async def freeze(servers: AnyServers, primary: Server, seconds: float) -> float:
    """Freeze a primary: its connections stay open and silent. Nobody takes over if it is short."""
    began_s = time.monotonic()
    primary.freeze()
    failover = asyncio.create_task(servers.wait_failover(primary), name="failover")
    try:
        await asyncio.wait({failover}, timeout=seconds)
        lasted_s = time.monotonic() - began_s
        await asyncio.sleep(began_s + seconds - time.monotonic())
    finally:
        failover.cancel()
        await asyncio.gather(failover, return_exceptions=True)
        primary.thaw()
    await servers.wait_ok()
    return lasted_s


async def hand_over(servers: AnyServers, primary: Server) -> float:
    """Make a replica the primary, as before maintenance."""
    began_s = time.monotonic()
    if isinstance(servers, ClusterServers):
        await servers.failover(primary)
    else:
        await servers.failover()
    lasted_s = time.monotonic() - began_s
    await servers.wait_ok()
    return lasted_s


async def cut_off_replicas(servers: AnyServers, primary: Server, seconds: float) -> float:
    """Cut the network between a primary and its replicas for a time. It stays the primary."""
    await servers.cut(primary)
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.to_thread(servers.heal)
    await servers.wait_ok()
    await caught_up(primary)
    return 0.0


async def caught_up(primary: Server) -> None:
    """Wait until the replicas have everything that the primary has now, or another server has replaced it.

    After a short cut, their connection still counts as up, but the kernel sends what is missing only seconds later.
    """
    wanted = int((await primary.info("replication"))["master_repl_offset"])

    async def have_it() -> bool:
        fields = await primary.info("replication")
        if fields["role"] != "master":
            return True
        replicas = [value for name, value in fields.items() if re.fullmatch(r"slave\d+", name)]
        offsets = [int(dict(part.split("=") for part in replica.split(","))["offset"]) for replica in replicas]
        return bool(offsets) and min(offsets) >= wanted

    await until(have_it, f"the replicas of {primary} catch up")


async def isolate(servers: AnyServers, primary: Server) -> float:
    """Cut a primary off from all other servers until another one has taken over. Clients still reach it."""
    began_s = time.monotonic()
    await asyncio.to_thread(servers.isolate, primary)
    try:
        await servers.wait_failover(primary)
        lasted_s = time.monotonic() - began_s
    finally:
        await asyncio.to_thread(servers.heal)
    await servers.wait_ok()
    return lasted_s


async def demote(servers: SentinelServers) -> float:
    """Make the primary a replica behind the sentinels' back; they mend it."""
    began_s = time.monotonic()
    await servers.demote(await servers.primary())

    async def has_primary() -> bool:
        primary = await servers.primary()
        return bool((await primary.role())[0] == "master")

    await until(has_primary, "the sentinels promote a server")
    lasted_s = time.monotonic() - began_s
    await servers.wait_ok()
    return lasted_s


async def move_slots(servers: ClusterServers, count: int, source: Server, target: Server) -> float:
    """Move slots to another primary while they are in use."""
    await servers.move_slots(count, source, target)
    await servers.wait_ok()
    return 0.0


async def add_and_remove(servers: ClusterServers, slots: int) -> float:
    """Add a primary, move slots from each of the others to it, and take it out again with its slots."""
    primaries = await servers.primaries()
    node = await servers.add_node()
    for primary in primaries:
        await servers.move_slots(slots, primary, node)
    await servers.remove_node(node)
    await servers.wait_ok()
    return 0.0
