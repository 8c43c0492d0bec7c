"""How the work of the service spreads over the primaries of a cluster."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from tests.brokers.cluster import ClusterServers
from tests.brokers.server import Server
from tests.helpers import TIME_SCALE

MEASURED_S: Final = 5 * TIME_SCALE


@dataclass(frozen=True)
class Spread:
    """Shares of each primary, and the connections of each service by their names in CLIENT LIST."""

    keys: Mapping[str, int]
    commands: Mapping[str, int]
    connections: Mapping[str, Mapping[str, int]]

    @classmethod
    async def measure(cls, servers: ClusterServers) -> Self:
        """Watch the primaries for MEASURED_S while streams are open."""
        primaries = await servers.primaries()
        before = await _commands(primaries)
        await asyncio.sleep(MEASURED_S)
        after = await _commands(primaries)
        return cls(
            keys={primary.name: int(await primary.call("DBSIZE")) for primary in primaries},
            commands={name: after[name] - before[name] for name in after},
            connections={primary.name: await connections(primary) for primary in primaries},
        )

    def __str__(self) -> str:
        """Return three lines of text."""
        names = sorted({name for counts in self.connections.values() for name in counts})
        connections = (
            f"{name} {', '.join(str(counts.get(name, 0)) for counts in self.connections.values())}" for name in names
        )
        return "\n".join(
            (
                f"keys on each primary: {_shares(self.keys)}",
                f"commands on each primary: {_shares(self.commands)}",
                f"connections to each primary: {'; '.join(connections)}",
            )
        )


async def connections(server: Server) -> dict[str, int]:
    """Return how many connections of each name a server has."""
    lines = str(await server.call("CLIENT", "LIST", "TYPE", "normal")).splitlines()
    lines += str(await server.call("CLIENT", "LIST", "TYPE", "pubsub")).splitlines()
    fields = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
    return dict(Counter(client["name"] for client in fields if client["name"].startswith("agentstream")))


async def _commands(primaries: list[Server]) -> dict[str, int]:
    return {primary.name: int((await primary.info("stats"))["total_commands_processed"]) for primary in primaries}


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{100 * count / total:.0f} %" for count in counts.values())
