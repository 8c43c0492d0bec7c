"""A server of a cluster, as a line of CLUSTER NODES describes it."""

from collections.abc import Iterator
from dataclasses import dataclass

from agentstream.protocol.broker_url import Address


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A server of a cluster. ``slots`` are ranges, both ends included; ``moving`` are slots whose move is open.

    ``primary_id`` is empty for a primary. ``hostname`` is empty if the server has none.
    """

    node_id: str
    host: str
    port: int
    hostname: str
    flags: frozenset[str]
    primary_id: str
    slots: tuple[tuple[int, int], ...]
    moving: tuple[int, ...]

    @property
    def failed(self) -> bool:
        """Whether most primaries regard it as down."""
        return "fail" in self.flags

    @property
    def member(self) -> bool:
        """Whether it has joined the cluster and has an address."""
        return not self.flags & {"handshake", "noaddr"}

    @property
    def names(self) -> tuple[Address, Address]:
        """Return its address, and its address by hostname."""
        return (self.host, self.port), (self.hostname or self.host, self.port)

    def each_slot(self) -> Iterator[int]:
        """Yield each slot."""
        for first, last in self.slots:
            yield from range(first, last + 1)


def parse_node(line: str) -> ClusterNode:
    """Return the server of one line. Source: the documentation of CLUSTER NODES, "Serialization format"."""
    node_id, place, flags, primary_id, _, _, _, _, *slots = line.split()
    address, *names = place.split(",")
    host, _, port = address.partition("@")[0].rpartition(":")
    return ClusterNode(
        node_id,
        host.strip("[]"),
        int(port),
        names[0] if names and "=" not in names[0] else "",
        frozenset(flags.split(",")),
        "" if primary_id == "-" else primary_id,
        tuple(_range(part) for part in slots if not part.startswith("[")),
        tuple(int(part[1:].partition("-")[0]) for part in slots if part.startswith("[")),
    )


def _range(part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    return int(first), int(last or first)
