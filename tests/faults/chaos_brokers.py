"""The brokers of the chaos tests, and their faults: one server, a primary that sentinels watch, or a cluster."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, Self

from tests.brokers.cluster import ClusterServers
from tests.brokers.network import can_cut
from tests.brokers.sentinel import SentinelServers
from tests.brokers.server import Server
from tests.faults import broker_faults
from tests.faults.broker_faults import AnyServers
from tests.faults.faults import (
    Broker,
    cut_connections,
    forget_scripts,
    frozen,
    leftovers,
    leftovers_at,
    outage,
    tiny_push_buffer,
)
from tests.helpers import TIME_SCALE

Fault = tuple[str, Callable[[random.Random], Awaitable[object]]]

# A primary that is cut off from all other servers still accepts writes when another one is promoted. So does a frozen
# one, when it wakes. All these writes are lost.
ISOLATION: Final = "isolate primary"
FREEZE: Final = "freeze primary"
# During these faults nothing happens to processes: a process that is lost with what it has just written cannot write
# it again, so its run may be lost, and its tools may run twice.
ALONE: Final = frozenset({ISOLATION, FREEZE})

_FREEZES_S: Final = (0.3, 2, 6)


class ChaosBroker(Protocol):
    """A broker that faults hit. ``async with`` starts and ends it."""

    url: str

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def faults(self) -> list[Fault]:
        """Return the faults by name. Each ends when the broker works again."""
        ...

    async def leftovers(self, queue: str) -> list[str]:
        """Return what is left after all runs have ended."""
        ...


class StandaloneBroker:
    """One server, which keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self._broker = Broker(folder, append_only=True)
        self.url = self._broker.url

    async def __aenter__(self) -> Self:
        await self._broker.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._broker.__aexit__()

    async def leftovers(self, queue: str) -> list[str]:
        return await leftovers(self._broker, queue)

    def faults(self) -> list[Fault]:
        broker = self._broker

        async def cut(_pick: random.Random) -> None:
            await cut_connections(broker)

        async def freeze(pick: random.Random) -> None:
            with frozen(broker.pid):
                await asyncio.sleep(pick.choice(_FREEZES_S) * TIME_SCALE)

        async def restart(pick: random.Random) -> None:
            async with outage(broker):
                await asyncio.sleep(pick.choice((0, 0.5, 3)) * TIME_SCALE)

        async def cut_slow_subscribers(pick: random.Random) -> None:
            async with tiny_push_buffer(broker):
                await asyncio.sleep(pick.uniform(0.3, 1) * TIME_SCALE)

        async def flush_scripts(_pick: random.Random) -> None:
            await forget_scripts(broker)

        return [
            ("cut connections", cut),
            ("cut connections", cut),
            ("freeze broker", freeze),
            ("restart broker", restart),
            ("tiny push buffer", cut_slow_subscribers),
            ("forget scripts", flush_scripts),
        ]


class ReplicatedBroker:
    """A cluster, or a primary with replicas and sentinels."""

    def __init__(self, servers: AnyServers) -> None:
        self.servers = servers
        self.url = ""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.servers)
        self.url = self.servers.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def leftovers(self, queue: str) -> list[str]:
        found: list[str] = []
        for primary in await self.servers.primaries():
            async with primary.client(decode_responses=False) as redis:
                found += await leftovers_at(redis, queue)
        return found

    def faults(self) -> list[Fault]:
        """Return the faults of both kinds, and those of the one that it is."""
        servers = self.servers

        def on_one(fault: Callable[..., Awaitable[object]], *choices: float) -> Callable[[random.Random], Any]:
            async def hit(pick: random.Random) -> None:
                arguments = (pick.choice(choices) * TIME_SCALE,) if choices else ()
                await fault(servers, pick.choice(await servers.primaries()), *arguments)

            return hit

        found: list[Fault] = [
            ("kill primary", on_one(broker_faults.kill)),
            (FREEZE, on_one(broker_faults.freeze, *_FREEZES_S)),
            ("planned failover", on_one(broker_faults.hand_over)),
            ("cut connections", on_one(_cut_connections)),
            ("forget scripts", on_one(_forget_scripts)),
            ("tiny push buffer", on_one(_tiny_push_buffer, 0.3, 1)),
        ]
        if can_cut():
            found.append(("cut off replicas", on_one(broker_faults.cut_off_replicas, 2, 4)))
            found.append((ISOLATION, on_one(broker_faults.isolate)))
        if isinstance(servers, SentinelServers):
            return [*found, ("demote primary", partial(_demote, servers))]
        return [
            *found,
            ("move slots", partial(_move_slots, servers)),
            ("add and remove a node", partial(_add_and_remove, servers)),
        ]


def chaos_broker(kind: str, folder: Path) -> ChaosBroker:
    """Return the broker of a kind: standalone, sentinel or cluster."""
    if kind == "cluster":
        return ReplicatedBroker(ClusterServers())
    if kind == "sentinel":
        return ReplicatedBroker(SentinelServers(settings=broker_faults.KEEPS_REPLICAS))
    return StandaloneBroker(folder)


async def _demote(servers: SentinelServers, _pick: random.Random) -> None:
    await broker_faults.demote(servers)


async def _move_slots(servers: ClusterServers, pick: random.Random) -> None:
    source, target = pick.sample(await servers.primaries(), 2)
    await broker_faults.move_slots(servers, pick.choice((50, 500, 2000)), source, target)


async def _add_and_remove(servers: ClusterServers, _pick: random.Random) -> None:
    await broker_faults.add_and_remove(servers, 100)


async def _cut_connections(_servers: AnyServers, primary: Server) -> None:
    for kind in ("pubsub", "normal"):
        await primary.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def _forget_scripts(_servers: AnyServers, primary: Server) -> None:
    await primary.call("SCRIPT", "FLUSH")


async def _tiny_push_buffer(_servers: AnyServers, primary: Server, seconds: float) -> None:
    name = "client-output-buffer-limit"
    await primary.call("CONFIG", "SET", name, "pubsub 1024 1024 0")
    try:
        await asyncio.sleep(seconds)
    finally:
        await primary.call("CONFIG", "SET", name, "pubsub 33554432 8388608 60")
