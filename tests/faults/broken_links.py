"""Start the command line with a fault in the connection to the broker, to prove that the tests would notice it.

    BROKEN_LINKS=refresh python -m tests.faults.broken_links worker

``refresh``: the topology of a cluster is read once, and sentinels are asked once. ``readonly``: a command that a
server refuses because it is not the primary is sent again on the same connection for ever.
"""

import asyncio
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from agentstream.__main__ import main
from agentstream.protocol.broker_url import Address
from agentstream.store.connection import cluster_link, exchange, handshake, server_link
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.refusals import is_not_now, is_not_primary
from agentstream.store.connection.sentinels import find_primary
from agentstream.store.connection.topology import Topology, read_topology

VARIABLE: Final = "BROKEN_LINKS"
CHOICES: Final = ("refresh", "readonly")


def _replace(name: str, replacement: Callable[..., object], *modules: ModuleType) -> None:
    for module in modules:
        assert hasattr(module, name), f"{module.__name__} does not use {name}"
        setattr(module, name, replacement)


async def _wait_for_ever(*_: object) -> None:
    await asyncio.get_running_loop().create_future()


def _without_refresh() -> None:
    topologies: list[asyncio.Future[Topology]] = []
    primaries: list[Address] = []

    async def read_once(*args: Any) -> Topology:
        if not topologies:
            topologies.append(asyncio.ensure_future(read_topology(*args)))
        return await topologies[0]

    async def ask_once(endpoint: Endpoint) -> Address:
        if not primaries:
            primaries.append(await find_primary(endpoint))
        return primaries[0]

    _replace("read_topology", read_once, cluster_link)
    _replace("find_primary", ask_once, server_link)
    _replace("until_primary_changes", _wait_for_ever, server_link)


def _with_readonly_for_ever() -> None:
    def not_now(words: str) -> bool:
        return is_not_now(words) or is_not_primary(words)

    def never(_words: str) -> bool:
        return False

    _replace("is_not_now", not_now, exchange)
    _replace("is_not_primary", never, exchange, server_link, handshake)
    _replace("until_primary_changes", _wait_for_ever, server_link)


if __name__ == "__main__":
    {"refresh": _without_refresh, "readonly": _with_readonly_for_ever}[os.environ[VARIABLE]]()
    main(prog_name="agentstream")
