"""A cluster of primaries and replicas."""

import asyncio
from pathlib import Path
from typing import Any

from redis.crc import key_slot

from tests.brokers.security import Security
from tests.brokers.server import Server
from tests.brokers.servers import Servers, start_together
from tests.brokers.slots import SLOTS, even_ranges, move_slots
from tests.brokers.waiting import until

_NO_SECURITY = Security()

Ranges = list[tuple[int, int, tuple[str, int]]]  # first slot, last slot, place of the primary


class ClusterServers(Servers):
    """Three primaries with one replica each, unless told otherwise.

    A node regards another one as down after ``node_timeout_ms``. Replicas stay with their primary, also if another
    primary has lost its replica (``cluster-allow-replica-migration no``). ``full_coverage`` is the setting
    cluster-require-full-coverage: whether all slots refuse commands while one of them has no primary.
    """

    def __init__(
        self,
        executable: Path | None = None,
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 1500,
        full_coverage: bool = False,
        append_only: bool = False,
        security: Security = _NO_SECURITY,
        settings: tuple[str, ...] = (),
    ) -> None:
        """Choose the servers. ``replicas`` is the number for each primary."""
        super().__init__(executable, append_only=append_only, security=security, settings=settings)
        self._primaries = primaries
        self._replicas = replicas
        self._node_timeout_ms = node_timeout_ms
        self._full_coverage = full_coverage
        self._nodes: list[Server] = []
        self._seeds: list[Server] = []
        self._names = 0

    @property
    def nodes(self) -> list[Server]:
        """All members of the cluster, also ended and frozen ones."""
        return list(self._nodes)

    def url_as(self, login: Security) -> str:
        """Return the URL with the username and password of ``login``. It names the first three servers."""
        scheme = "rediss+cluster" if self.security.tls else "redis+cluster"
        places = ",".join(f"{node.address}:{node.port}" for node in self._seeds)
        return f"{scheme}://{login.userinfo()}{places}{self._query()}"

    async def ranges(self) -> Ranges:
        """Return the ranges of slots and their primaries, as the awake members see them that say state ok."""
        views = await self._views(only_ok=True)
        assert views, "no awake member says that the state of the cluster is ok"
        return max(views, key=views.count)

    async def primaries(self) -> list[Server]:
        """Return the primaries that own slots, in the order of their first slots."""
        return list(dict.fromkeys(self._at(place) for _, _, place in await self.ranges()))

    async def primary_of(self, key: str | bytes | int) -> Server:
        """Return the primary of a key or of a slot number."""
        slot = key if isinstance(key, int) else key_slot(key.encode() if isinstance(key, str) else key)
        return next(self._at(place) for first, last, place in await self.ranges() if first <= slot <= last)

    async def replicas_of(self, primary: Server) -> list[Server]:
        """Return the awake replicas that follow this primary, as they say themselves."""
        awake = [node for node in self._nodes if node.awake and node is not primary]
        roles = await asyncio.gather(*(node.role() for node in awake))
        return [
            node
            for node, role in zip(awake, roles, strict=True)
            if role[0] == "slave" and (role[1], int(role[2])) == primary.place
        ]

    async def failover(self, primary: Server | None = None, how: str = "") -> Server:
        """Promote a replica of ``primary`` (of the first primary, if None) and return the replica.

        Planned: the primary hands over, and no write is lost. With ``how`` "FORCE" or "TAKEOVER" the primary is not
        asked. Returns when all awake members know the new primary.
        """
        old = primary or (await self.primaries())[0]
        replica = (await self.replicas_of(old))[0]

        async def promoted() -> bool:
            if (await replica.role())[0] == "master":
                return True
            await replica.call("CLUSTER", "FAILOVER", *([how] if how else []))
            return False

        await until(promoted, f"{replica} takes over from {old}")
        await self.wait_failover(old)
        return replica

    async def cut(self, primary: Server) -> None:
        """Cut the network between a primary and its replicas (data and cluster bus) until ``heal``.

        The other primaries still see both, so nobody takes over, and the replicas fall behind. ``isolate`` cuts the
        primary off from all members: a replica takes over, and the old primary refuses commands after the node timeout.
        """
        await asyncio.to_thread(self.cut_between, [primary], await self.replicas_of(primary))

    async def move_slots(self, count: int, source: Server, target: Server) -> list[int]:
        """Move the first ``count`` slots of ``source`` to ``target``, with their keys and under load; return them.

        Raises redis-py's errors if one of the servers fails meanwhile. Then some slots may stay in migration.
        """
        ranges = [(first, last) for first, last, place in await self.ranges() if place == source.place]
        slots = [slot for first, last in ranges for slot in range(first, last + 1)][:count]
        others = [node for node in await self._awake_primaries() if node not in {source, target}]
        await move_slots(slots, source, target, others, self.security)
        return slots

    async def add_node(self, replica_of: Server | None = None) -> Server:
        """Start a server that joins as a primary without slots, or as a replica; return it when it accepts commands.

        That takes 2 s, because a new primary waits before it regards the cluster as whole.
        """
        node = self._new_node()
        await node.start()
        await self._join([node])
        if replica_of is not None:
            await self._replicate(node, replica_of)

        async def accepts() -> bool:
            return await _view(node, only_ok=True) is not None

        await until(accepts, f"{node} regards the cluster as whole")
        return node

    async def remove_node(self, node: Server) -> None:
        """Take a member out: move its slots and replicas to the other primaries, forget it everywhere, and end it."""
        others = [one for one in await self.primaries() if one is not node]
        owned = sum(last + 1 - first for first, last, place in await self.ranges() if place == node.place)
        for number, other in enumerate(others):
            share = owned * (number + 1) // len(others) - owned * number // len(others)
            if share:
                await self.move_slots(share, node, other)
        for replica in await self.replicas_of(node):
            await self._replicate(replica, others[0])
        self._nodes.remove(node)
        for one in self._nodes:
            if one.awake and node.id in await self._known_by(one):
                await one.call("CLUSTER", "FORGET", node.id)
        node.kill()

        async def forgotten() -> bool:
            awake = [one for one in self._nodes if one.awake]
            return not any(node.id in known for known in await asyncio.gather(*map(self._known_by, awake)))

        await until(forgotten, f"all members forget {node}")

    async def wait_failover(self, old: Server) -> None:
        """Wait until all awake members, except ``old``, agree on primaries for all slots, and ``old`` is none of them.

        An old primary that still runs, but does not know of its replacement, does not count.
        """

        async def moved() -> bool:
            views = await self._views(without=old, only_ok=True)
            agreed = len(views) == sum(node.awake and node is not old for node in self._nodes)
            return agreed and _whole(views) and old.place not in {place for _, _, place in views[0]}

        await until(moved, f"another node takes over from {old}")

    async def wait_ok(self) -> None:
        """Wait until the awake members agree on awake primaries for all slots, and all replicas are in step."""
        await until(self._is_ok, "all slots have a primary, and all replicas are in step")

    async def _is_ok(self) -> bool:
        awake = [node for node in self._nodes if node.awake]
        views = await self._views(only_ok=True)
        if len(views) != len(awake) or not _whole(views):
            return False
        owners = {self._at(place) for _, _, place in views[0]}
        infos = await asyncio.gather(*(node.info("replication") for node in awake))
        roles = dict(zip(awake, infos, strict=True))
        linked = [info.get("master_link_status") == "up" for info in infos if info["role"] == "slave"]
        return all(roles.get(owner, {}).get("role") == "master" for owner in owners) and all(linked)

    async def _views(self, *, without: Server | None = None, only_ok: bool) -> list[Ranges]:
        """Return the slots as each awake member sees them."""
        awake = [node for node in self._nodes if node.awake and node is not without]
        answers = await asyncio.gather(*(_view(node, only_ok=only_ok) for node in awake), return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, list)]

    async def _awake_primaries(self) -> list[Server]:
        """Return all members that are primaries, also without slots."""
        awake = [node for node in self._nodes if node.awake]
        roles = await asyncio.gather(*(node.role() for node in awake))
        return [node for node, role in zip(awake, roles, strict=True) if role[0] == "master"]

    @staticmethod
    async def _known_by(node: Server) -> set[str]:
        """Return the ids of the members that a node knows and has met."""
        lines = str(await node.call("CLUSTER", "NODES")).splitlines()
        return {line.split()[0] for line in lines if "handshake" not in line}

    async def _replicate(self, replica: Server, primary: Server) -> None:
        await replica.call("CLUSTER", "REPLICATE", primary.id)

        async def follows() -> bool:
            info = await replica.info("replication")
            return info.get("master_link_status") == "up" and replica in await self.replicas_of(primary)

        await until(follows, f"{replica} replicates {primary}")

    async def _join(self, new: list[Server]) -> None:
        """Make all members know each other: each new one meets all others, so nobody waits for gossip."""
        await asyncio.gather(
            *(
                node.pipeline(
                    [
                        ("CLUSTER", "MEET", other.address, other.port, other.bus_port)
                        for other in self._nodes
                        if other is not node
                    ]
                )
                for node in new
            )
        )
        for node in new:
            node.id = str(await node.call("CLUSTER", "MYID"))
        awake = [node for node in self._nodes if node.awake]
        ids = {node.id for node in awake}

        async def acquainted() -> bool:
            return all(ids <= known for known in await asyncio.gather(*map(self._known_by, awake)))

        await until(acquainted, "all members know each other")

    def _at(self, place: tuple[str, int]) -> Server:
        return next(node for node in self._nodes if node.place == place)

    def _new_node(self) -> Server:
        node = self._new_server(f"node-{self._names}", self.security)
        self._names += 1
        node.configure(
            *self._data_lines(node),
            "cluster-enabled yes",
            f"cluster-port {node.bus_port}",
            f"cluster-announce-ip {node.address}",
            f"cluster-node-timeout {self._node_timeout_ms}",
            f"cluster-require-full-coverage {'yes' if self._full_coverage else 'no'}",
            "cluster-allow-replica-migration no",
            *(["tls-cluster yes"] if self.security.tls else []),
        )
        self._nodes.append(node)
        return node

    async def _start_all(self) -> None:
        self._nodes.clear()
        nodes = [self._new_node() for _ in range(self._primaries * (1 + self._replicas))]
        self._seeds = nodes[:3]
        await start_together(nodes)
        primaries = nodes[: self._primaries]
        for number, (primary, (first, last)) in enumerate(zip(primaries, even_ranges(len(primaries)), strict=True), 1):
            await primary.call("CLUSTER", "SET-CONFIG-EPOCH", number)
            await primary.call("CLUSTER", "ADDSLOTSRANGE", first, last)
        await self._join(nodes)
        replicas = nodes[self._primaries :]
        await asyncio.gather(
            *(self._replicate(replica, primaries[number % len(primaries)]) for number, replica in enumerate(replicas))
        )
        await self.wait_ok()


def _whole(views: list[Ranges]) -> bool:
    """Return whether all views are the same and cover all slots."""
    return all(view == views[0] for view in views) and sum(last + 1 - first for first, last, _ in views[0]) == SLOTS


async def _view(node: Server, *, only_ok: bool) -> Any:
    """Return the ranges of slots that a node knows, without those of a primary that it regards as down."""
    state, slots = await node.pipeline([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
    if only_ok and "cluster_state:ok" not in state:
        return None
    return sorted((int(first), int(last), (str(primary[0]), int(primary[1]))) for first, last, primary, *_ in slots)
