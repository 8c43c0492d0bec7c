"""The scripts that compose.yaml's profiles `cluster` and `sentinel` run, with real servers in place of containers."""

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis

from tests.brokers.network import addresses
from tests.brokers.servers import executables
from tests.brokers.waiting import until
from tests.processes import ROOT, Process

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
KEEPER = ROOT / "deploy/cluster-keeper.sh"
SENTINEL_NODE = ROOT / "deploy/sentinel-node.sh"
IN_CONTAINERS = {
    "$$": "$",
    "${REDIS_MAXMEMORY:-1gb}": "100mb",
    "/etc/cluster-keeper.sh": str(KEEPER),
    "/etc/sentinel-node.sh": str(SENTINEL_NODE),
    "redis-server": str(executables()["valkey-server"]),
}
NODES = [f"cluster-{number}" for number in range(1, 7)]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="each server needs its own loopback address"),
    pytest.mark.skipif(shutil.which("redis-cli") is None, reason="the script uses redis-cli, which is not on PATH"),
]


def command_of(service: str, here: dict[str, str]) -> list[str]:
    """Return the entry point and the command of a service of compose.yaml, with these replacements in each word."""
    command = SERVICES[service]["command"]
    words = [*SERVICES[service]["entrypoint"], *(shlex.split(command) if isinstance(command, str) else command)]
    for there, replacement in (IN_CONTAINERS | here).items():
        words = [word.replace(there, replacement) for word in words]
    return words


async def start(command: Sequence[str], ready: str, **variables: str) -> Process:
    """Start a command with these variables, and return when its output matches ``ready``."""
    process = Process(
        await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    )
    try:
        await process.until(ready)
    except BaseException:
        await process.stop()
        raise
    return process


@contextlib.asynccontextmanager
async def containers(places: dict[str, str], folder: Path, here: dict[str, str], port: int) -> AsyncIterator[None]:
    """Run services at addresses (``places``). Their data is in the folder, one folder for each service.

    They are known by their addresses, because a test has no name server.
    """
    async with contextlib.AsyncExitStack() as stack:
        for service, place in places.items():
            data = folder / service
            data.mkdir(exist_ok=True)
            own = ("--dir", str(data), "--port", str(port), "--bind", place, "--bind-source-addr", place)
            command = [*command_of(service, here), *own]
            process = await start(command, "Ready to accept|Sentinel ID is", HOSTNAME=place, DATA_DIR=str(data))
            stack.push_async_callback(process.stop)
        yield


@contextlib.asynccontextmanager
async def keeper(places: dict[str, str], folder: Path, port: int) -> AsyncIterator[Process]:
    """Run the keeper of the cluster with the nodes at these addresses."""
    here = {f"{service}:6379": f"{place}:{port}" for service, place in places.items()}
    process = await start(command_of("cluster-keeper", here), "", STATE_DIR=str(folder), EVERY_S="0.2")
    try:
        yield process
    finally:
        await process.stop()


async def ask(place: str, port: int, *words: str) -> Any:
    """Send a command to a server and return its answer."""
    async with Redis(host=place, port=port, protocol=2, decode_responses=True, socket_timeout=3) as redis:
        redis.response_callbacks.clear()
        return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


async def nodes_of(place: str, port: int) -> list[list[str]]:
    """Return the words of each line of CLUSTER NODES: id, address, flags, primary, ..., link, slots."""
    text: str = await ask(place, port, "CLUSTER", "NODES")
    return [line.split() for line in text.splitlines()]


async def test_the_keeper_makes_a_cluster_and_keeps_it_when_all_addresses_change(tmp_path: Path) -> None:
    """Six new nodes become 3 primaries with a replica each, and find each other again at swapped addresses."""
    port = 7379  # no other server uses these addresses, and the cluster bus uses the port 17379
    at = addresses()[:6]
    places = dict(zip(NODES, at, strict=True))

    async def all_know_all() -> bool:
        views = [await nodes_of(place, port) for place in at]
        return all(
            len(view) == len(at) and all("fail" not in line[2] and line[7] == "connected" for line in view)
            for view in views
        )

    async def replicas() -> set[str]:
        return {line[3] for line in await nodes_of(at[0], port) if "slave" in line[2]}

    async def each_primary_has_a_replica() -> bool:
        lines = await nodes_of(at[0], port)
        return {line[0] for line in lines if "master" in line[2]} == await replicas() and len(lines) == len(at)

    async with containers(places, tmp_path, {}, port), keeper(places, tmp_path, port) as keeping:
        await keeping.until("every slot has a primary")
        await until(each_primary_has_a_replica, "each primary has a replica")
        assert len(await replicas()) == 3
        slots = [word for line in await nodes_of(at[0], port) for word in line[8:]]
        assert sorted(slots) == ["0-5460", "10922-16383", "5461-10921"]
        assert (tmp_path / "whole").exists()
        before = {line[0] for line in await nodes_of(at[0], port)}
        (end,) = [line for line in await ask(at[0], port, "CLUSTER", "SLOTS") if line[0] == 0]
        assert end[2][0] == places["cluster-1"]  # clients get the announced name
    moved = dict(zip(NODES, [*at[1:], at[0]], strict=True))
    async with containers(moved, tmp_path, {}, port), keeper(moved, tmp_path, port) as keeping:
        await keeping.until("every slot has a primary")
        await until(all_know_all, "all nodes know the new addresses of all")
        assert {line[0] for line in await nodes_of(at[0], port)} == before
        assert re.findall("gets the slots|becomes a replica", keeping.output) == []


async def test_servers_and_sentinels_start_with_the_roles_that_they_had(tmp_path: Path) -> None:
    """After a failover and a start of everything, the promoted server is still the primary for all of them."""
    port, sentinel_port = 7380, 27380
    *at, one, two, three = addresses()[:6]
    servers = dict(zip(("redis-1", "redis-2", "redis-3"), at, strict=True))
    sentinels = dict(zip(("sentinel-1", "sentinel-2", "sentinel-3"), (one, two, three), strict=True))
    here = {"redis-1": at[0], "6379": str(port)}

    async def primary() -> str:
        """Return the primary if all sentinels agree, or else nothing."""
        answers = [
            await ask(place, sentinel_port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "agentstream")
            for place in sentinels.values()
        ]
        return answers[0][0] if answers == [answers[0]] * 3 else ""

    async def roles() -> dict[str, str]:
        return {place: (await ask(place, port, "ROLE"))[0] for place in at}

    async def all_follow(expected: str) -> bool:
        found = await roles()
        return (
            await primary() == expected
            and [place for place, role in found.items() if role == "master"] == [expected]
            and int((await ask(expected, port, "INFO", "replication")).partition("min_slaves_good_slaves:")[2][0]) == 2
        )

    async def sentinels_know_all() -> bool:
        answer = await ask(one, sentinel_port, "INFO", "sentinel")
        return "slaves=2,sentinels=3" in answer and await all_follow(at[0])

    async with containers(servers, tmp_path, here, port), containers(sentinels, tmp_path, here, sentinel_port):
        await until(sentinels_know_all, "the sentinels know all servers")
        await ask(at[0], port, "SET", "key", "before")
        assert await ask(at[0], port, "CONFIG", "GET", "min-replicas-to-write") == ["min-replicas-to-write", "1"]
        await ask(one, sentinel_port, "SENTINEL", "FAILOVER", "agentstream")

        async def promoted() -> bool:
            return await primary() not in {"", at[0]} and await all_follow(await primary())

        await until(promoted, "another server is the primary")
        new = await primary()
        await ask(new, port, "SET", "key", "after")
    async with containers(servers, tmp_path, here, port), containers(sentinels, tmp_path, here, sentinel_port):
        await until(lambda: all_follow(new), "all follow the promoted server again")
        assert await ask(new, port, "GET", "key") == "after"
