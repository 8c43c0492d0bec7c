"""Reads what each server of a cluster knows of the cluster and of itself."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.broker_url import Address, show_address
from agentstream.store.admin.cluster_node import ClusterNode
from agentstream.store.admin.server_state import ServerState, map_no_answer
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.topology import read_topology

SERVER_TIMEOUT_S: Final = 2.0  # there are other servers to ask

Fact = TypeVar("Fact")
Failure = BrokerUnavailable | BusError


@dataclass(frozen=True, slots=True)
class ServerView:
    """What one server says. ``unreachable`` has the reason if it does not answer; then the rest is empty.

    ``info`` has the fields of CLUSTER INFO, ``nodes`` its view of all servers, ``facts`` the fields of INFO, and
    ``full_coverage`` the setting `cluster-require-full-coverage`. Each may be the error that says which permission this
    user lacks.
    """

    node: ClusterNode
    address: Address
    unreachable: str = ""
    info: dict[str, str] = field(default_factory=dict)
    nodes: list[ClusterNode] = field(default_factory=list)
    facts: dict[str, Any] | BusError = field(default_factory=dict)
    full_coverage: str | BusError = ""

    def __str__(self) -> str:
        """Return the address."""
        return show_address(*self.address)


async def read_cluster(endpoint: Endpoint) -> list[ServerView]:
    """Ask each server of the cluster, also those that are down.

    If none shows the topology, raises BrokerUnavailable, or ConnectionRefused if they refuse, with the reasons.
    The servers are those that the best view has: the view of a server that reaches the majority of the others.
    """
    with map_no_answer():
        topology = await read_topology(endpoint, {}, endpoint.addresses)
    named = {*endpoint.addresses, *topology.servers}
    asked = sorted(topology.servers)
    answers = dict(zip(asked, await asyncio.gather(*(_ask(endpoint.at(*each)) for each in asked)), strict=True))
    found = [answer for answer in answers.values() if isinstance(answer, _Answer)]
    if not found:
        raise next(answer for answer in answers.values() if not isinstance(answer, _Answer))
    members = [node for node in max(found, key=lambda answer: answer.rank).nodes if node.member]
    views = await asyncio.gather(*(_view(endpoint, node, _address_of(node, named), answers) for node in members))
    return sorted(views, key=lambda view: view.address)


class _Answer(NamedTuple):
    info: dict[str, str]
    nodes: list[ClusterNode]
    facts: dict[str, Any] | BusError
    full_coverage: str | BusError

    @property
    def rank(self) -> tuple[bool, int]:
        return self.info.get("cluster_state") == "ok", int(self.info.get("cluster_current_epoch", 0))


async def _view(
    endpoint: Endpoint, node: ClusterNode, address: Address, answers: Mapping[Address, _Answer | Failure]
) -> ServerView:
    answer = answers.get(address) or await _ask(endpoint.at(*address))
    if isinstance(answer, _Answer):
        return ServerView(node, address, "", *answer)
    return ServerView(node, address, str(answer))


async def _ask(endpoint: Endpoint) -> _Answer | Failure:
    """Return the answers of one server, or the reason why it gives none."""
    try:
        async with asyncio.timeout(SERVER_TIMEOUT_S), ServerState(endpoint, timeout_s=SERVER_TIMEOUT_S) as server:
            return _Answer(
                await server.cluster_info(),
                await server.cluster_nodes(),
                await _or_refusal(server.info()),
                await _or_refusal(server.config("cluster-require-full-coverage")),
            )
    except TimeoutError:
        return BrokerUnavailable(f"no answer within {SERVER_TIMEOUT_S:g} s")
    except (BrokerUnavailable, BusError) as exc:
        return exc


async def _or_refusal(reading: Awaitable[Fact]) -> Fact | BusError:
    try:
        return await reading
    except BusError as exc:
        return exc


def _address_of(node: ClusterNode, named: set[Address]) -> Address:
    """Return the address that clients use: that with the hostname, if the cluster shows it."""
    address, by_name = node.names
    return by_name if by_name in named else address
