"""The link to a real cluster while its slots move and its servers change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from agentstream.errors import BusError
from agentstream.protocol.keys import PARTITIONS, Keys
from agentstream.store.connection.cluster_link import ClusterLink
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.new_link import new_link
from agentstream.store.connection.slots import slot_of
from tests.brokers.cluster import ClusterServers
from tests.brokers.security import Security
from tests.brokers.server import Server
from tests.brokers.servers import running
from tests.helpers import TIME_SCALE, TIMEOUT_S

pytestmark = pytest.mark.timeout(90 * TIME_SCALE)
KEYS = Keys("moving")


@pytest.fixture(scope="module")
def cluster(broker_runner: asyncio.Runner) -> Iterator[ClusterServers]:
    """A cluster whose slots the tests of this module move."""
    yield from running(broker_runner, ClusterServers())


@contextlib.asynccontextmanager
async def linked(url: str) -> AsyncIterator[ClusterLink]:
    """Provide a connected link."""
    link = new_link(Endpoint(url), KEYS, name="test")
    assert isinstance(link, ClusterLink)
    link.open()
    await link.wait_ready(TIMEOUT_S)
    try:
        yield link
    finally:
        await link.close()


@pytest.fixture
async def link(cluster: ClusterServers) -> AsyncIterator[ClusterLink]:
    """A link to the cluster."""
    async with linked(cluster.url) as opened:
        yield opened


class Reader:
    """A subscriber of a channel. It counts its messages and its resyncs."""

    def __init__(self, channel: str) -> None:
        self.channel = channel.encode()
        self.messages = asyncio.Queue[bytes]()
        self.resynced = asyncio.Event()

    def resync(self) -> None:
        """Note the call."""
        self.resynced.set()

    async def open(self, link: ClusterLink) -> None:
        """Subscribe."""
        link.add_subscriber(self)
        async with asyncio.timeout(TIMEOUT_S):
            await link.subscribe(self.channel, self.messages.put_nowait)

    async def receives(self, link: ClusterLink, message: bytes) -> None:
        """Publish a message and wait for it; skip others."""
        async with asyncio.timeout(TIMEOUT_S):
            await link.call("SPUBLISH", self.channel, message)
            while await self.messages.get() != message:
                pass


def in_slot_of(server_slots: range, among: int = PARTITIONS) -> list[str]:
    """Return the names of probes whose slot is in a range."""
    return [name for name in map(KEYS.probe, range(among)) if slot_of(name) in server_slots]


async def first_range(cluster: ClusterServers, primary: Server) -> range:
    """Return the first range of slots of a primary."""
    return next(range(first, last + 1) for first, last, place in await cluster.ranges() if place == primary.place)


async def test_commands_reach_the_server_of_their_key(link: ClusterLink) -> None:
    """Commands with keys of all slots each get their own reply, in order."""
    names = [KEYS.events(f"run-{number}") for number in range(200)]
    async with asyncio.timeout(TIMEOUT_S):
        for expected in (1, 2):
            assert await asyncio.gather(*(link.call("INCR", name) for name in names)) == [expected] * len(names)


async def test_moving_slots_disturbs_nothing(cluster: ClusterServers, link: ClusterLink) -> None:
    """While slots move, each command runs once, in order, and each channel gets messages again and is resynced."""
    source, target, _ = await cluster.primaries()
    names = in_slot_of((await first_range(cluster, source))[:1500])
    assert len(names) > 5
    readers = [Reader(f"{name}:channel") for name in names]
    for reader in readers:
        await reader.open(link)
        await reader.receives(link, b"before")
    counts = dict.fromkeys(names, 0)
    moving = asyncio.create_task(cluster.move_slots(1500, source, target))
    while not moving.done():
        for name, reply in zip(
            names, await asyncio.gather(*(link.call("INCR", f"{name}:n") for name in names)), strict=True
        ):
            counts[name] += 1
            assert reply == counts[name]
    await moving
    async with asyncio.timeout(TIMEOUT_S):
        for reader in readers:
            await reader.resynced.wait()
    for reader in readers:
        await reader.receives(link, b"after")
    await cluster.move_slots(1500, target, source)


@pytest.mark.parametrize("subscribed", [False, True])
async def test_a_connection_to_the_wrong_server_is_left(
    cluster: ClusterServers, link: ClusterLink, *, subscribed: bool
) -> None:
    """If the address of a server led to another one for a time, the link connects again, and loses nothing."""
    right, wrong, _ = await cluster.primaries()
    name = in_slot_of(await first_range(cluster, right))[0]
    reader = Reader(f"{name}:misled")
    if subscribed:
        await reader.open(link)
    server = link._links[right.place]
    endpoint, reconnects = server._endpoint, server.reconnects
    server._endpoint = endpoint.at(*wrong.place)
    server._drop_connections()
    async with asyncio.timeout(TIMEOUT_S):
        while server.reconnects == reconnects or not server.connected:  # noqa: ASYNC110 -- it can only be polled
            await asyncio.sleep(0.01)
        server._endpoint = endpoint
        if not subscribed:
            assert await link.call("INCR", f"{name}:misled") == 1
            return
        while not await right.call("SPUBLISH", f"{name}:misled", "again"):  # noqa: ASYNC110 -- it can only be polled
            await asyncio.sleep(0.05)
        assert await reader.messages.get() == b"again"


async def test_a_subscription_at_the_wrong_server_moves(cluster: ClusterServers, link: ClusterLink) -> None:
    """A subscription that is refused because the slot has moved is made at the right server, and shifts no reply."""
    source, target, _ = await cluster.primaries()
    name = in_slot_of((await first_range(cluster, source))[:200])[0]
    link._stale.clear()
    await cluster.move_slots(200, source, target)
    reader = Reader(f"{name}:late")
    opening = asyncio.create_task(reader.open(link))
    replies = await asyncio.gather(*(link.call("SET", f"{name}:{number}", number) for number in range(20)))
    assert replies == [b"OK"] * 20
    await opening
    assert await asyncio.gather(*(link.call("GET", f"{name}:{number}") for number in range(20))) == [
        str(number).encode() for number in range(20)
    ]
    await reader.receives(link, b"message")
    await cluster.move_slots(200, target, source)


async def test_an_unsubscription_at_the_wrong_server_shifts_no_reply(
    cluster: ClusterServers, link: ClusterLink
) -> None:
    """After channels have moved, unsubscribing and other commands at once leave every reply with its command."""
    source, target, _ = await cluster.primaries()
    names = in_slot_of((await first_range(cluster, source))[:1000])
    readers = [Reader(f"{name}:gone") for name in names]
    for reader in readers:
        await reader.open(link)
    moving = asyncio.create_task(cluster.move_slots(1000, source, target))
    number = 0
    while not moving.done() or readers:
        number += 1
        if readers:
            reader = readers.pop()
            link.remove_subscriber(reader)
            link.unsubscribe(reader.channel, reader.messages.put_nowait)
        values = [f"{number}-{place}".encode() for place in range(10)]
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(
                *(link.call("SET", f"{names[0]}:{place}", value) for place, value in enumerate(values))
            )
            got = await asyncio.gather(*(link.call("GET", f"{names[0]}:{place}") for place in range(10)))
        assert got == values
    await moving
    await cluster.move_slots(1000, target, source)


async def test_the_order_is_known(cluster: ClusterServers, link: ClusterLink) -> None:
    """Names of one primary keep the order of sending, names of two do not, and one script has names of one slot."""
    first, second, _ = await cluster.primaries()
    mine = in_slot_of(await first_range(cluster, first))
    other = in_slot_of(await first_range(cluster, second))
    assert link.keeps_order(mine[0], mine[1])
    assert not link.keeps_order(mine[0], other[0])
    assert link.group_of(mine[0]) == link.group_of(f"{mine[0]}:more") != link.group_of(mine[1])


async def test_a_command_waits_for_a_server(cluster: ClusterServers) -> None:
    """While a slot has no server its commands wait, the reason is known, others go on, and then they run."""
    primary, other, _ = await cluster.primaries()
    name, away = [in_slot_of(await first_range(cluster, each))[0] for each in (primary, other)]
    async with linked(cluster.url) as link, asyncio.timeout(TIMEOUT_S):
        await link.call("SET", name, "kept")
        async with primary.client() as redis:
            assert await redis.wait(1, 5000) == 1
        primary.kill()
        waiting = asyncio.create_task(link.call("GET", name))
        assert await link.call("SET", away, "x") == b"OK"
        assert await waiting == b"kept"
        assert link.reconnects >= 1
        await link.prove_writable()
    await cluster.restart(primary)
    await cluster.wait_ok()


async def test_a_refused_subscription_is_an_error_and_shifts_no_reply() -> None:
    """If the user may not subscribe to a channel, its subscription fails with the server's words, and nothing else."""
    security = Security("admin", "all", users=("user narrow on >secret ~* resetchannels &allowed* +@all",))
    async with ClusterServers(replicas=0, security=security) as servers:
        narrow = servers.url_as(Security("narrow", "secret"))
        async with linked(narrow) as link, asyncio.timeout(TIMEOUT_S):
            refused = link.subscribe(b"{p1}forbidden", lambda _: None)
            replies = [link.start_call("SET", f"{{p1}}{number}", number) for number in range(5)]
            with pytest.raises(BusError, match="NOPERM"):
                await refused
            assert await asyncio.gather(*replies) == [b"OK"] * 5
            await link.subscribe(b"allowed{p1}", lambda _: None)
            assert await link.call("GET", "{p1}4") == b"4"
