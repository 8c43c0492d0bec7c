"""``agentstream doctor`` and ``ps`` with sentinels and in a cluster, and commands with a URL of the wrong kind."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.connection.slots import slot_of
from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.brokers.servers import executables
from tests.cli.conftest import agentstream
from tests.helpers import TIMEOUT_S

Checks = dict[str, dict[str, Any]]


async def checks_of(url: str) -> Checks:
    """Return the results of doctor by the name of the check."""
    ended = await agentstream("doctor", "--json", REDIS_URL=url)
    return {check["name"]: check for check in json.loads(ended.out)["checks"]}


async def checks_until(url: str, wanted: Callable[[Checks], bool]) -> Checks:
    """Run doctor until its results are as wanted: servers need some seconds to notice a fault."""
    async with asyncio.timeout(TIMEOUT_S):
        while not wanted(checks := await checks_of(url)):
            pass
    return checks


def levels(checks: Checks, *names: str) -> list[str]:
    """Return the levels of some checks."""
    return [checks[name]["level"] for name in names]


async def test_a_healthy_cluster_has_no_fault_of_its_own(cluster_servers: ClusterServers) -> None:
    """In a healthy cluster all checks of the cluster are ok, and each check of a server covers all primaries."""
    checks = await checks_of(cluster_servers.url)
    names = ("cluster", "servers", "slots", "moves of slots", "replicas", "replication lag", "versions", "role")
    assert set(levels(checks, *names)) == {"ok"}, checks
    assert "3 primaries" in checks["role"]["what"]
    assert checks["append-only file"]["level"] == "fault"
    assert "2 more of 3 primaries" in checks["append-only file"]["what"]


async def test_a_missing_shard_is_named(cluster: ClusterServers) -> None:
    """If a primary and its replica are down, doctor names both and the slots, and ps lists what the others have."""
    keys = Keys()
    lost = await cluster.primary_of(keys.parked("default"))
    assert lost is not await cluster.primary_of(keys.jobs("default"))
    replicas = await cluster.replicas_of(lost)
    there, away = await _one_run_at_each(cluster, keys, lost_slot_owner=lost)
    for node in (*replicas, lost):
        node.kill()
    checks = await checks_until(cluster.url, lambda checks: checks["slots"]["level"] == "fault")
    assert f"{lost.address}:{lost.port} is down" in checks["slots"]["what"]
    assert "partitions of runs" in checks["slots"]["why"]
    assert checks["servers"]["level"] == "fault"
    assert f"the replica {replicas[0].address}:{replicas[0].port}" in checks["servers"]["what"]
    listed = json.loads((await agentstream("ps", "--json", REDIS_URL=cluster.url)).out)
    assert listed["parked"] == {"default": None}
    assert {run["run"]: run["state"] for run in listed["runs"]} == {there: "unknown", away: "unreachable"}


async def _one_run_at_each(cluster: ClusterServers, keys: Keys, *, lost_slot_owner: object) -> tuple[str, str]:
    """Put two jobs into the queue; return a run of another server, and a run of ``lost_slot_owner``."""
    found: dict[bool, str] = {}
    while len(found) < 2:
        run_id = new_run_id()
        found[await cluster.primary_of(slot_of(keys.run(run_id))) is lost_slot_owner] = run_id
    queue = await cluster.primary_of(keys.jobs("default"))
    for run_id in found.values():
        await queue.call(
            "XADD", keys.jobs("default"), "*", "job", json.dumps({"run_id": run_id}, separators=(",", ":"))
        )
    return found[False], found[True]


async def test_an_open_move_of_a_slot_is_named(cluster: ClusterServers) -> None:
    """A slot that one server gives or another one takes is a warning with its number, until the move is ended."""
    source, target, _ = await cluster.primaries()
    given, taken = 11, 22
    await source.call("CLUSTER", "SETSLOT", given, "MIGRATING", target.id)
    checks = await checks_of(cluster.url)
    assert (checks["moves of slots"]["level"], checks["moves of slots"]["what"]) == ("warning", f"1 open: slot {given}")
    assert "redis-cli --cluster fix" in str(checks["moves of slots"]["fix"])
    await target.call("CLUSTER", "SETSLOT", given, "IMPORTING", source.id)
    await target.call("CLUSTER", "SETSLOT", taken, "IMPORTING", source.id)
    assert (await checks_of(cluster.url))["moves of slots"]["what"] == f"2 open: slot {given}, {taken}"
    for server, slot in ((source, given), (target, given), (target, taken)):
        await server.call("CLUSTER", "SETSLOT", slot, "STABLE")
    assert levels(await checks_of(cluster.url), "moves of slots", "cluster", "slots") == ["ok"] * 3


async def test_servers_that_disagree_about_slots_are_named(cluster: ClusterServers) -> None:
    """If primaries name different owners of a slot, doctor warns with their addresses."""
    owner, mistaken, believed = await cluster.primaries()

    async def keep_mistaken() -> None:
        """Tell one server a wrong owner again and again, because the others correct it within a second."""
        while not corrected.is_set():
            await mistaken.call("CLUSTER", "SETSLOT", 0, "NODE", believed.id)

    corrected = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_mistaken(), name="mistake")
        checks = await checks_until(cluster.url, lambda checks: checks["cluster"]["level"] == "warning")
        corrected.set()
    assert "do not agree about the slots" in checks["cluster"]["what"]
    for server in (owner, mistaken, believed):
        assert f"{server.address}:{server.port}" in checks["cluster"]["what"]
    await checks_until(cluster.url, lambda checks: checks["cluster"]["level"] == "ok")


@pytest.mark.skipif("redis-server" not in executables(), reason="no second kind of server: install redis-server")
async def test_servers_of_different_versions_are_named() -> None:
    """A cluster whose servers have different versions is a warning with the version of each server."""
    names = executables()
    async with ClusterServers(names["redis-server"], replicas=0) as cluster:
        assert (await checks_of(cluster.url))["versions"]["level"] == "ok"
        [primary, *_] = await cluster.primaries()
        cluster.executable = names["valkey-server"]
        replica = await cluster.add_node(replica_of=primary)
        checks = await checks_of(cluster.url)
        assert checks["versions"]["level"] == "warning"
        for server, version in ((primary, "Redis "), (replica, "Valkey ")):
            assert f"{server.address}:{server.port}: {version}" in checks["versions"]["what"]


async def test_a_frozen_replica_is_late(sentinels: SentinelServers) -> None:
    """If a replica hangs, doctor warns that it has confirmed nothing, with its address."""
    [frozen, _] = await sentinels.replicas()
    # Otherwise the primary disconnects it after the 5 s that tests use instead of Redis' 60 s.
    await (await sentinels.primary()).call("CONFIG", "SET", "repl-timeout", "60")
    frozen.freeze()
    checks = await checks_until(sentinels.url, lambda checks: checks["replication lag"]["level"] == "warning")
    assert f"{frozen.address}:{frozen.port} has confirmed nothing" in checks["replication lag"]["what"]


async def test_sentinels_that_are_down_are_named(sentinels: SentinelServers) -> None:
    """Healthy sentinels are ok; one that is down is a warning with its address, two are a fault without a quorum."""
    names = ("sentinels", "quorum", "primary", "replicas", "replication lag")
    assert set(levels(await checks_of(sentinels.url), *names)) == {"ok"}
    first, second, _ = sentinels.sentinels
    first.kill()
    one_down = await checks_of(sentinels.url)
    assert levels(one_down, "sentinels", "quorum", "primary") == ["warning", "ok", "ok"]
    assert f"{first.address}:{first.port}" in one_down["sentinels"]["what"]
    second.kill()
    two_down = await checks_until(sentinels.url, lambda checks: checks["quorum"]["level"] == "fault")
    assert "NOQUORUM" in two_down["quorum"]["what"]
    assert two_down["sentinels"]["level"] == "fault"


async def test_replicas_and_min_replicas_are_judged(sentinels: SentinelServers) -> None:
    """A primary with more min-replicas-to-write than replicas is a fault, and a lost replica a warning."""
    primary = await sentinels.primary()
    assert (await checks_of(sentinels.url))["min-replicas-to-write"]["level"] == "warning"  # 0, with two replicas
    await primary.call("CONFIG", "SET", "min-replicas-to-write", "2")
    (await sentinels.replicas())[0].kill()
    checks = await checks_until(sentinels.url, lambda checks: checks["replicas"]["level"] == "warning")
    assert "1 of 2 replicas" in checks["replicas"]["what"]
    assert checks["min-replicas-to-write"]["level"] == "fault"


WRONG: dict[str, tuple[Callable[[ClusterServers, SentinelServers], Awaitable[str]], str]] = {}


def _wrong(name: str, says: str) -> Callable[[Any], Any]:
    def add(url: Callable[[ClusterServers, SentinelServers], Awaitable[str]]) -> None:
        WRONG[name] = url, says

    return add


@_wrong("a cluster's server", "write redis+cluster:// instead of redis://")
async def _(cluster: ClusterServers, _: SentinelServers) -> str:
    [node, *_rest] = cluster.nodes
    return f"redis://{node.address}:{node.port}"


@_wrong("a standalone server", "write redis:// instead of redis+cluster://")
async def _(_: ClusterServers, sentinels: SentinelServers) -> str:
    primary = await sentinels.primary()
    return f"redis+cluster://{primary.address}:{primary.port}"


@_wrong("a sentinel", "write redis+sentinel://host:port/master")
async def _(_: ClusterServers, sentinels: SentinelServers) -> str:
    return f"redis://{sentinels.sentinels[0].address}:{sentinels.sentinels[0].port}"


@_wrong("no sentinel", "is not a sentinel; name the sentinels in REDIS_URL")
async def _(_: ClusterServers, sentinels: SentinelServers) -> str:
    primary = await sentinels.primary()
    return f"redis+sentinel://{primary.address}:{primary.port}/main"


@_wrong("an unknown master", "does not know a master 'other'")
async def _(_: ClusterServers, sentinels: SentinelServers) -> str:
    return sentinels.url.replace("/main", "/other")


@_wrong("a cluster's server with RESP2", "write redis+cluster:// instead of redis://")
async def _(cluster: ClusterServers, _: SentinelServers) -> str:
    return f"redis://{cluster.nodes[0].address}:{cluster.nodes[0].port}?protocol=2"


@_wrong("a cluster's replica with RESP2", "write redis+cluster:// instead of redis://")
async def _(cluster: ClusterServers, _: SentinelServers) -> str:
    [replica, *_rest] = await cluster.replicas_of(await cluster.primary_of(0))
    return f"redis://{replica.address}:{replica.port}?protocol=2"


@_wrong("a sentinel with RESP2", "write redis+sentinel://host:port/master")
async def _(_: ClusterServers, sentinels: SentinelServers) -> str:
    return f"redis://{sentinels.sentinels[0].address}:{sentinels.sentinels[0].port}?protocol=2"


@_wrong("no sentinel with RESP2", "is not a sentinel; name the sentinels in REDIS_URL")
async def _(_: ClusterServers, sentinels: SentinelServers) -> str:
    primary = await sentinels.primary()
    return f"redis+sentinel://{primary.address}:{primary.port}/main?protocol=2"


@pytest.mark.parametrize("command", ["frontend", "worker", "doctor", "ps"])
@pytest.mark.parametrize("wrong", WRONG)
async def test_a_url_of_the_wrong_kind_is_refused(
    wrong: str, command: str, cluster_servers: ClusterServers, sentinel_servers: SentinelServers
) -> None:
    """Each command ends with exit code 2 and one message that says what to write, also if it would wait for Redis."""
    url, says = WRONG[wrong]
    settings = {"AGENTSTREAM_PORT": "0", "AGENTSTREAM_METRICS_PORT": "0", "AGENTSTREAM_BROKER_WAIT_S": "3600"}
    async with asyncio.timeout(TIMEOUT_S):
        ended = await agentstream(command, REDIS_URL=await url(cluster_servers, sentinel_servers), **settings)
    assert ended.code == 2, ended
    assert says in ended.err.splitlines()[-1]
