"""The topology of a cluster: which server has which slots, as the servers themselves say."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from agentstream.errors import BusError, ConnectionRefused, WrongBroker
from agentstream.protocol.broker_url import Address, show_address
from agentstream.store.connection.endpoint import Endpoint, close_client
from agentstream.store.connection.refusals import joined, words_of
from agentstream.store.connection.slots import SLOTS

ASK_TIMEOUT_S: Final = 1.0  # there are other servers to ask
Ask = Callable[..., Awaitable[Any]]  # sends a command to one server and returns its reply


@dataclass(frozen=True, slots=True)
class Topology:
    """The primaries by slot, None for a slot that no server has; and all servers, replicas included.

    ``rank`` orders what different servers say: the view of a server that reaches the majority and has seen the latest
    failover is the highest.
    """

    owners: Sequence[Address | None]
    servers: frozenset[Address]
    rank: tuple[bool, int, int]

    @property
    def primaries(self) -> frozenset[Address]:
        """The servers that have slots."""
        return frozenset(owner for owner in self.owners if owner is not None)


async def read_topology(endpoint: Endpoint, known: Mapping[Address, Ask], others: Sequence[Address]) -> Topology:
    """Return the best view of the servers: those with a connection (``known``), and ``others`` by new connections.

    A server that is cut off from the others has an old view, so several are asked at once. Raises BusError with the
    reason if none of them answers.
    """
    async with asyncio.TaskGroup() as asking:  # if cancelled, it waits until all connections are closed
        asked = [asking.create_task(_view_of(address, ask)) for address, ask in known.items()]
        asked += [
            asking.create_task(_view_by_new_connection(endpoint, address)) for address in others if address not in known
        ]
    views = [task.result() for task in asked]
    found = [view for view in views if isinstance(view, Topology)]
    if not found:
        raise joined([view for view in views if isinstance(view, BusError)])
    best = max(found, key=lambda view: view.rank)
    if not best.primaries:
        message = f"no server of {endpoint} has slots; join its servers with `redis-cli --cluster create`"
        raise BusError(message)
    return best


async def _view_of(address: Address, ask: Ask) -> Topology | BusError:
    """Return the view of one server, or the reason why it has none."""
    where = show_address(*address)
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            info, slots = await ask("CLUSTER", "INFO"), await ask("CLUSTER", "SLOTS")
    except TimeoutError:
        return BusError(f"{where} does not answer within {ASK_TIMEOUT_S:g} s")
    except (RedisError, BusError, OSError) as exc:
        return _why_no_view(where, exc)
    try:
        return parse_view(address, info, slots)
    except (TypeError, ValueError, IndexError, AttributeError) as exc:
        return BusError(f"{where}: its topology cannot be read: {exc}")


def _why_no_view(where: str, error: Exception) -> BusError:
    words = words_of(error) or type(error).__name__
    if "cluster support disabled" in words:
        return WrongBroker(
            f"{where} is not a part of a cluster; write redis:// instead of redis+cluster:// in REDIS_URL"
        )
    if "unknown command" in words:
        return WrongBroker(
            f"{where} has no cluster commands; write redis:// instead of redis+cluster:// in REDIS_URL, or "
            "redis+sentinel://host:port/master if it is a sentinel"
        )
    if isinstance(error, AuthenticationError):
        return ConnectionRefused(f"{where} refuses: {words} (check the user and password in REDIS_URL)", words=words)
    if isinstance(error, NoPermissionError) or words.startswith("NOPERM"):
        return ConnectionRefused(f"{where} refuses: {words}", words=words)
    return BusError(f"{where}: {words}")


async def _view_by_new_connection(endpoint: Endpoint, address: Address) -> Topology | BusError:
    client = endpoint.at(*address).redis(read_timeout_s=ASK_TIMEOUT_S)
    # Under a name of one word redis-py returns the reply as the server has sent it.
    try:
        return await _view_of(address, client.execute_command)
    finally:
        await close_client(client)


def parse_view(address: Address, info: bytes | str, slots: Sequence[Any]) -> Topology:
    """Return the view in the replies of CLUSTER INFO and CLUSTER SLOTS of the server at ``address``."""
    text = info.decode() if isinstance(info, bytes) else str(info)
    fields = dict(line.partition(":")[::2] for line in text.split())
    owners: list[Address | None] = [None] * SLOTS
    servers = set()
    for start, stop, primary, *replicas in slots:
        owner = _address_of(primary, address)
        owners[start : stop + 1] = [owner] * (stop + 1 - start)
        servers |= {owner, *(_address_of(replica, address) for replica in replicas)}
    epoch = int(fields.get("cluster_current_epoch", 0))
    rank = (fields.get("cluster_state") == "ok", epoch, int(fields.get("cluster_my_epoch", 0)))
    return Topology(owners, frozenset(servers), rank)


def _address_of(node: Sequence[Any], asked: Address) -> Address:
    """Return the address of a server in CLUSTER SLOTS. Without a host it has the host of the server that was asked."""
    host = node[0].decode() if isinstance(node[0], bytes) else node[0]
    return (host if host and host != "?" else asked[0]), int(node[1])
