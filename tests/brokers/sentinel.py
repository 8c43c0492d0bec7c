"""A primary, its replicas and the sentinels that watch them."""

import asyncio
import contextlib
import secrets
from pathlib import Path

import redis.exceptions

from tests.brokers.security import Security
from tests.brokers.server import Server
from tests.brokers.servers import Servers, start_together
from tests.brokers.waiting import until

_NO_SECURITY = Security()


class SentinelServers(Servers):
    """One primary, two replicas and three sentinels with a quorum of two, unless told otherwise.

    A sentinel regards a server as down after ``down_after_ms``. ``sentinel_login`` is the login at the sentinels.
    The first start knows all servers, so it needs no discovery. The sentinels' timers are shorter than the defaults
    (INFO every 1 s instead of 10 s, greetings every 0.5 s instead of 2 s), so a demoted primary is noticed after 2 s.
    """

    def __init__(
        self,
        executable: Path | None = None,
        *,
        replicas: int = 2,
        sentinels: int = 3,
        quorum: int = 2,
        down_after_ms: int = 1000,
        master: str = "main",
        append_only: bool = False,
        security: Security = _NO_SECURITY,
        sentinel_login: Security = _NO_SECURITY,
        settings: tuple[str, ...] = (),
    ) -> None:
        """Choose the servers. ``master`` is the sentinels' name for the primary and its replicas."""
        super().__init__(executable, append_only=append_only, security=security, settings=settings)
        self.master = master
        self.sentinels: list[Server] = []
        self.sentinel_login = Security(
            sentinel_login.username,
            sentinel_login.password,
            sentinel_login.users,
            security.tls,
            security.client_certificates,
        )
        self._replicas = replicas
        self._sentinels = sentinels
        self._quorum = quorum
        self._down_after_ms = down_after_ms
        self._nodes: list[Server] = []

    @property
    def nodes(self) -> list[Server]:
        """All servers that hold data."""
        return list(self._nodes)

    def url_as(self, login: Security) -> str:
        """Return the URL with the username and password of ``login``, and the login at the sentinels."""
        further: dict[str, str] = {}
        if self.sentinel_login.password:
            user, _, password = self.sentinel_login.userinfo().removesuffix("@").partition(":")
            further = {"sentinel_username": user or "default", "sentinel_password": password}
        scheme = "rediss+sentinel" if self.security.tls else "redis+sentinel"
        places = ",".join(f"{one.address}:{one.port}" for one in self.sentinels)
        return f"{scheme}://{login.userinfo()}{places}/{self.master}{self._query(**further)}"

    async def primary(self) -> Server:
        """Return the primary that most of the awake sentinels name. Raises AssertionError if they do not agree."""
        named = await self._named()
        assert named, "no sentinel is awake"
        place = max(set(named), key=named.count)
        assert 2 * named.count(place) > len(named), f"the sentinels name {named}"
        return self._at(place)

    async def primaries(self) -> list[Server]:
        """Return the primary in a list, as a cluster has several."""
        return [await self.primary()]

    async def primary_of(self, _: str | int = "") -> Server:
        """Return the primary, which has every key."""
        return await self.primary()

    async def replicas(self) -> list[Server]:
        """Return the other servers, also ended and frozen ones."""
        primary = await self.primary()
        return [node for node in self._nodes if node is not primary]

    async def failover(self) -> Server:
        """Make the sentinels promote a replica although the primary works (SENTINEL FAILOVER); return the new primary.

        Returns when all awake sentinels name the new primary. A sentinel refuses a second failover for some seconds.
        """
        old = await self.primary()

        async def accepted() -> bool:
            with contextlib.suppress(redis.exceptions.ResponseError):  # NOGOODSLAVE or INPROG, for a moment
                await self._awake_sentinels()[0].call("SENTINEL", "FAILOVER", self.master)
                return True
            return False

        await until(accepted, "a sentinel accepts the planned failover")
        return await self.wait_failover(old)

    async def demote(self, primary: Server) -> Server:
        """Make the primary a replica of one of its replicas, without the sentinels' knowledge; return that replica.

        Nobody is primary then. The sentinels notice it and promote a replica or the old primary: see ``wait_ok``.
        """
        replica = next(node for node in self._nodes if node is not primary and node.awake)
        await primary.call("REPLICAOF", replica.address, replica.port)
        return replica

    async def cut(self, primary: Server) -> None:
        """Cut the network between the primary and all other servers, but not its sentinels, until ``heal``.

        The sentinels still see the primary, so they promote nobody. The replicas fall behind. ``isolate`` also cuts
        off the sentinels: they promote a replica while the old primary still accepts writes.
        """
        await asyncio.to_thread(self.cut_between, [primary], self._nodes)

    async def wait_failover(self, old: Server) -> Server:
        """Wait until all awake sentinels name another primary than ``old`` and it accepts writes; return it."""

        async def moved() -> bool:
            named = set(await self._named())
            if len(named) != 1 or old.place in named:
                return False
            return bool((await self._at(named.pop()).role())[0] == "master")

        await until(moved, f"the sentinels name another primary than {old}")
        return await self.primary()

    async def wait_ok(self) -> None:
        """Wait until the awake sentinels agree on the primary, and all awake servers replicate it and are in step."""
        await until(self._is_ok, "all servers replicate one primary")

    async def _is_ok(self) -> bool:
        named = set(await self._named())
        if len(named) != 1:
            return False
        primary = self._at(named.pop())
        info = await primary.info("replication")
        others = [node for node in self._nodes if node is not primary and node.awake]
        states = [await node.info("replication") for node in others]
        return (
            info["role"] == "master"
            and info["connected_slaves"] == str(len(others))
            and all(
                (state["role"], state.get("master_link_status")) == ("slave", "up")
                and (state["master_host"], int(state["master_port"])) == primary.place
                for state in states
            )
        )

    async def _named(self) -> list[tuple[str, int]]:
        """Return the primary that each awake sentinel names."""
        answers = await asyncio.gather(
            *(one.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.master) for one in self._awake_sentinels())
        )
        return [(host, int(port)) for host, port in answers]

    def _awake_sentinels(self) -> list[Server]:
        return [one for one in self.sentinels if one.awake]

    def _at(self, place: tuple[str, int]) -> Server:
        return next(node for node in self._nodes if node.place == place)

    async def _start_all(self) -> None:
        self._nodes = [self._new_server(f"node-{n}", self.security) for n in range(1 + self._replicas)]
        self.sentinels = [
            self._new_server(f"sentinel-{n}", self.sentinel_login, "--sentinel") for n in range(self._sentinels)
        ]
        primary = self._nodes[0]
        for node in self._nodes:
            following = [] if node is primary else [f"replicaof {primary.address} {primary.port}"]
            node.configure(*self._data_lines(node), *following)
        for one in self.sentinels:
            one.id = secrets.token_hex(20)
        for one in self.sentinels:
            one.configure(*self._sentinel_lines(one))
        await start_together(self._nodes)
        await start_together(self.sentinels)
        for one in self.sentinels:
            await one.call("SENTINEL", "DEBUG", "INFO-PERIOD", 1000, "PUBLISH-PERIOD", 500)
        await self.wait_ok()
        await until(self._sentinels_ready, "every sentinel sees all servers and the other sentinels")

    def _sentinel_lines(self, one: Server) -> list[str]:
        primary, name = self._nodes[0], self.master
        return [
            *self._network_lines(one, self.sentinel_login),
            *self.sentinel_login.login_to("sentinel sentinel-user", "sentinel sentinel-pass"),
            f"sentinel myid {one.id}",
            f"sentinel announce-ip {one.address}",
            f"sentinel announce-port {one.port}",
            f"sentinel monitor {name} {primary.address} {primary.port} {self._quorum}",
            f"sentinel down-after-milliseconds {name} {self._down_after_ms}",
            f"sentinel failover-timeout {name} 5000",
            *self.security.login_to(f"sentinel auth-user {name}", f"sentinel auth-pass {name}"),
            *(f"sentinel known-replica {name} {node.address} {node.port}" for node in self._nodes[1:]),
            *(
                f"sentinel known-sentinel {name} {other.address} {other.port} {other.id}"
                for other in self.sentinels
                if other is not one
            ),
        ]

    async def _sentinels_ready(self) -> bool:
        for one in self.sentinels:
            flat = await one.call("SENTINEL", "MASTER", self.master)
            master = dict(zip(flat[::2], flat[1::2], strict=True))
            if master["num-other-sentinels"] != str(self._sentinels - 1) or master["flags"] != "master":
                return False
            for replica in await one.call("SENTINEL", "REPLICAS", self.master):
                fields = dict(zip(replica[::2], replica[1::2], strict=True))
                if fields["flags"] != "slave" or fields["master-link-status"] != "ok":
                    return False
            if not str(await one.call("SENTINEL", "CKQUORUM", self.master)).startswith("OK"):
                return False
        return True
