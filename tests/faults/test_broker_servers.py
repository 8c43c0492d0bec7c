"""The servers that tests start themselves: sentinels and clusters, and each fault that they can have."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from tests.brokers.cluster import ClusterServers
from tests.brokers.network import can_cut
from tests.brokers.security import Security, has_tls
from tests.brokers.sentinel import SentinelServers
from tests.brokers.server import Server
from tests.brokers.servers import executables, running
from tests.brokers.waiting import until
from tests.helpers import TIME_SCALE

pytestmark = pytest.mark.timeout(120 * TIME_SCALE)
each_server = pytest.mark.parametrize("executable", executables().values(), ids=lambda path: path.name)
needs_cuts = pytest.mark.skipif(not can_cut(), reason="only root on Linux with nftables can cut the network")

LOCKED = Security("service", "pa:ss/word", ("user reader on >reading ~* &* +@read +@connection +cluster",))


@pytest.fixture(scope="module", params=executables().values(), ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest, broker_runner: asyncio.Runner) -> Iterator[ClusterServers]:
    """A cluster for the tests of this module. Each leaves it whole."""
    yield from running(broker_runner, ClusterServers(request.param))


@pytest.fixture(scope="module", params=executables().values(), ids=lambda path: path.name)
def sentinels(request: pytest.FixtureRequest, broker_runner: asyncio.Runner) -> Iterator[SentinelServers]:
    """A primary, replicas and sentinels for the tests of this module. Each leaves them whole."""
    yield from running(broker_runner, SentinelServers(request.param))


async def first_key(servers: ClusterServers, primary: Server, among: int) -> str:
    """Return a key of the first slots of a primary, which ``move_slots`` moves first."""
    first = next(first for first, _, place in await servers.ranges() if place == primary.place)
    names = (f"key-{number}" for number in itertools.count())
    return next(name for name in names if first <= key_slot(name.encode()) < first + among)


async def write_everywhere(primary: Server, key: str) -> None:
    """Write a key, and wait until a replica has it."""
    async with primary.client() as redis:
        await redis.set(key, "kept")
        assert await redis.wait(1, 10_000) >= 1


async def test_a_cluster_starts_with_even_shares(cluster: ClusterServers) -> None:
    """A third of the slots belongs to each primary, each has a replica, and the URL names three servers."""
    assert cluster.url.startswith("redis+cluster://127.")
    assert cluster.url.count(",") == 2
    primaries = await cluster.primaries()
    shares = [last + 1 - first for first, last, _ in await cluster.ranges()]
    assert (len(primaries), sum(shares)) == (3, 16384)
    assert max(shares) - min(shares) <= 1
    assert [len(await cluster.replicas_of(primary)) for primary in primaries] == [1, 1, 1]


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_cluster_replaces_a_lost_primary(cluster: ClusterServers, fault: str) -> None:
    """A replica takes over from a killed or frozen primary with its keys, and the old primary comes back as replica."""
    old = await cluster.primary_of("key")
    await write_everywhere(old, "key")
    if fault == "kill":
        old.kill()
    else:
        old.freeze()
    await cluster.wait_failover(old)
    new = await cluster.primary_of("key")
    assert await new.call("GET", "key") == "kept"
    if fault == "kill":
        await cluster.restart(old)
    else:
        old.thaw()
    await cluster.wait_ok()
    assert await pair_of(cluster, "key") == {new, old}


async def test_a_cluster_hands_over_as_planned(cluster: ClusterServers) -> None:
    """A planned failover makes the replica the primary, and the old primary its replica."""
    old = await cluster.primary_of("key")
    new = await cluster.failover(old)
    await cluster.wait_ok()
    assert await pair_of(cluster, "key") == {new, old}


async def pair_of(cluster: ClusterServers, key: str) -> set[Server]:
    """Return the primary of a key and its replicas. On a busy machine they may change places once more."""
    primary = await cluster.primary_of(key)
    return {primary, *await cluster.replicas_of(primary)}


class Counters:
    """Counts keys up in a cluster, and follows each redirection at once. redis-py's client fails on many at a time."""

    def __init__(self, clients: dict[tuple[str, int], Redis], place: tuple[str, int], keys: list[str]) -> None:
        self.values = dict.fromkeys(keys, 0)
        self._clients = clients
        self._place = place

    async def count_until(self, done: asyncio.Event) -> None:
        """Count each key up again and again, at least once."""
        while not done.is_set() or 0 in self.values.values():
            for key in self.values:
                self.values[key] = await self._count(key)

    async def _count(self, key: str) -> int:
        place, asking = self._place, False
        while True:
            pipeline = self._clients[place].pipeline(transaction=False)
            if asking:
                pipeline.execute_command("ASKING")
            pipeline.incr(key)
            answer = (await pipeline.execute(raise_on_error=False))[-1]
            if isinstance(answer, int):
                return answer
            assert isinstance(answer, redis.exceptions.AskError | redis.exceptions.MovedError), answer
            place, asking = (answer.host, answer.port), isinstance(answer, redis.exceptions.AskError)


async def test_slots_move_under_load(cluster: ClusterServers) -> None:
    """Slots move with their keys while clients write them, and no write is lost or done twice."""
    source, target, _ = await cluster.primaries()
    first = next(first for first, _, place in await cluster.ranges() if place == source.place)
    moving = range(first, first + 500)
    keys = [key for key in (f"counter-{number}" for number in range(3000)) if key_slot(key.encode()) in moving]
    moved = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        clients = {node.place: await stack.enter_async_context(node.client()) for node in cluster.nodes}
        writers = [Counters(clients, source.place, keys[number::4]) for number in range(4)]
        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.count_until(moved))
            slots = await cluster.move_slots(500, source, target)
            moved.set()
    assert slots == list(moving)
    await cluster.wait_ok()
    for writer in writers:
        assert {key: int(await target.call("GET", key)) for key in writer.values} == writer.values


async def test_a_node_joins_and_leaves(cluster: ClusterServers) -> None:
    """A new node owns the slots that move to it; when it leaves, the others have its slots and keys."""
    source = (await cluster.primaries())[0]
    key = await first_key(cluster, source, among=300)
    await source.call("SET", key, "carried")
    node = await cluster.add_node()
    replica = await cluster.add_node(replica_of=node)
    await cluster.move_slots(300, source, node)
    await cluster.wait_ok()
    assert await cluster.primary_of(key) is node
    assert await cluster.replicas_of(node) == [replica]
    await cluster.remove_node(node)
    await cluster.remove_node(replica)
    await cluster.wait_ok()
    owner = await cluster.primary_of(key)
    assert owner in cluster.nodes
    assert await owner.call("GET", key) == "carried"
    assert not {node, replica} & set(cluster.nodes)
    assert [one for one in (node, replica) if one.running] == []


@needs_cuts
async def test_a_cut_starves_the_replica_of_a_cluster(cluster: ClusterServers) -> None:
    """During a cut the primary still accepts writes, its replica does not get them, and it gets them after the cut."""
    primary = await cluster.primary_of("key")
    (replica,) = await cluster.replicas_of(primary)
    await cluster.cut(primary)
    await primary.call("SET", "key", "late")
    await until(lambda: link_is(replica, "down"), "the replica notices the cut")
    assert await cluster.primary_of("key") is primary
    cluster.heal()
    await cluster.wait_ok()
    async with replica.client() as client:
        await client.readonly()
        assert await client.get("key") == "late"


@needs_cuts
async def test_an_isolated_primary_of_a_cluster_is_replaced(cluster: ClusterServers) -> None:
    """A primary that no other member reaches is replaced, refuses commands, and comes back as a replica."""
    old = await cluster.primary_of("key")
    pair = await pair_of(cluster, "key")
    await asyncio.to_thread(cluster.isolate, old)
    await cluster.wait_failover(old)

    async def refuses() -> bool:
        try:
            await old.call("SET", "key", "lost")
        except redis.exceptions.ClusterDownError:
            return True
        return False

    await until(refuses, "the isolated primary refuses commands")
    cluster.heal()
    await cluster.wait_ok()
    assert await pair_of(cluster, "key") == pair


async def link_is(replica: Server, status: str) -> bool:
    """Return whether the replica says this of the connection to its primary."""
    return (await replica.info("replication"))["master_link_status"] == status


@pytest.mark.parametrize("fault", ["kill", "freeze", "demote", "plan"])
async def test_sentinels_replace_a_primary(sentinels: SentinelServers, fault: str) -> None:
    """The sentinels mend a killed, frozen or demoted primary or hand over as planned, and no replicated key is lost."""
    old = await sentinels.primary()
    await write_everywhere(old, "key")
    if fault == "kill":
        old.kill()
        await sentinels.wait_failover(old)
        await sentinels.restart(old)
    elif fault == "freeze":
        old.freeze()
        await sentinels.wait_failover(old)
        old.thaw()
    elif fault == "demote":
        replica = await sentinels.demote(old)
        assert (await old.role())[:3] == ["slave", replica.address, replica.port]
    else:
        assert await sentinels.failover() is not old
    await sentinels.wait_ok()
    primary = await sentinels.primary()  # not always the first successor: a busy machine may cause a second failover
    assert await primary.call("GET", "key") == "kept"
    assert len(await sentinels.replicas()) == 2


@needs_cuts
async def test_a_cut_starves_the_replicas_of_sentinels(sentinels: SentinelServers) -> None:
    """During a cut the sentinels keep the primary, its replicas get no writes, and they get them after the cut."""
    primary = await sentinels.primary()
    replicas = await sentinels.replicas()
    await sentinels.cut(primary)
    await primary.call("SET", "key", "late")
    for replica in replicas:
        await until(partial(link_is, replica, "down"), "the replica notices the cut")
        assert await replica.call("GET", "key") != "late"
    assert await sentinels.primary() is primary
    sentinels.heal()
    await sentinels.wait_ok()
    assert [await replica.call("GET", "key") for replica in replicas] == ["late", "late"]


@needs_cuts
async def test_an_isolated_primary_behind_sentinels_accepts_writes_that_are_lost(sentinels: SentinelServers) -> None:
    """A primary that the sentinels do not reach is replaced, accepts writes, and loses them when it comes back."""
    old = await sentinels.primary()
    await asyncio.to_thread(sentinels.isolate, old)
    await sentinels.wait_failover(old)
    assert await old.call("SET", "split", "lost") == "OK"
    sentinels.heal()
    await sentinels.wait_ok()
    assert await old.call("GET", "split") is None


@each_server
async def test_servers_end_and_keep_data_over_restarts(executable: Path) -> None:
    """With an append-only file killed servers come back with their data, and all end, also a frozen one."""
    async with ClusterServers(executable, replicas=0, append_only=True) as servers:
        node = await servers.primary_of("key")
        await node.call("SET", "key", "kept")
        for each in servers.nodes:
            await servers.restart(each)
        await servers.wait_ok()
        assert await node.call("GET", "key") == "kept"
        node.freeze()
        nodes = servers.nodes
    assert [each for each in nodes if each.running] == []


@each_server
async def test_a_cluster_with_users_and_certificates(executable: Path) -> None:
    """A cluster with an ACL user, and with client certificates if the server has TLS, fails over and moves keys."""
    tls = has_tls(executable)
    security = Security(LOCKED.username, LOCKED.password, LOCKED.users, tls=tls, client_certificates=tls)
    async with ClusterServers(executable, security=security) as servers:
        assert servers.url.startswith(f"redis{'s' if tls else ''}+cluster://service:pa%3Ass%2Fword@")
        assert ("ssl_certfile=" in servers.url) == tls
        source = await servers.failover((await servers.primaries())[0])
        key = await first_key(servers, source, among=300)
        await source.call("SET", key, "carried")
        node = await servers.add_node()
        await servers.move_slots(300, source, node)
        await servers.wait_ok()
        assert await node.call("GET", key) == "carried"
        await refuses_strangers(node, tls=tls)


@each_server
async def test_sentinels_with_users_and_certificates(executable: Path) -> None:
    """Sentinels with logins of their own, and with client certificates if the server has TLS, fail over."""
    tls = has_tls(executable)
    security = Security(LOCKED.username, LOCKED.password, LOCKED.users, tls=tls, client_certificates=tls)
    asking = Security("watcher", "watching")
    async with SentinelServers(executable, security=security, sentinel_login=asking) as servers:
        assert servers.url.startswith(f"redis{'s' if tls else ''}+sentinel://service:pa%3Ass%2Fword@127.")
        assert "/main?sentinel_username=watcher&sentinel_password=watching" in servers.url
        old = await servers.primary()
        old.kill()
        new = await servers.wait_failover(old)
        await servers.restart(old)
        await servers.wait_ok()
        await refuses_strangers(new, tls=tls)
        await refuses_strangers(servers.sentinels[0], tls=tls)


async def refuses_strangers(server: Server, *, tls: bool) -> None:
    """Check that a server refuses clients without a login, and clients without TLS or a certificate."""
    expected = redis.exceptions.ConnectionError if tls else redis.exceptions.AuthenticationError
    options: dict[str, Any] = {"host": server.address, "port": server.port, "retry": Retry(NoBackoff(), 0)}
    async with Redis(**options) as client:
        with pytest.raises(expected):
            await client.ping()
    if tls:
        ca = server.folder.parent / "ca.pem"
        async with Redis(**options, ssl=True, ssl_ca_certs=str(ca)) as client:
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.ping()


async def test_the_shared_servers_work(cluster_servers: ClusterServers, sentinel_servers: SentinelServers) -> None:
    """redis-py's own clients of clusters and sentinels use the servers that the session shares."""
    async with RedisCluster(startup_nodes=[ClusterNode(*node.place) for node in cluster_servers.nodes]) as client:
        assert await client.set("shared", "1")
    places = [one.place for one in sentinel_servers.sentinels]
    any_sentinel: Any = Sentinel
    finder = any_sentinel(places)
    async with contextlib.AsyncExitStack() as stack:
        for sentinel in finder.sentinels:
            stack.push_async_callback(sentinel.aclose)
        client = await stack.enter_async_context(finder.master_for(sentinel_servers.master))
        assert await client.set("shared", "1")
