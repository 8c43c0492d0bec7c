"""Slots, partitions and the topology of a cluster."""

from collections import Counter

import pytest
from redis.crc import key_slot

from agentstream.errors import BusError
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import PARTITIONS, Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.slots import SLOTS, by_slot, first_key, slot_of
from agentstream.store.connection.topology import parse_view, read_topology
from agentstream.store.scripts import CLUSTER_SCRIPTS, SCRIPTS

INFO = b"cluster_state:ok\r\ncluster_current_epoch:7\r\ncluster_my_epoch:3\r\n"
ASKED = ("asked", 1)


@pytest.mark.parametrize("name", ["key", "", "{tag}key", "a{tag}b{other}", "{}key", "a{b", "}a{b}", "{{a}}", "é{ü}"])
def test_a_slot_is_that_of_redis_py(name: str) -> None:
    """The slot of a name is the one that redis-py computes, with and without a hash tag."""
    assert slot_of(name) == slot_of(name.encode()) == key_slot(name.encode())


def test_all_keys_of_a_run_share_a_slot() -> None:
    """The hash and the replay log of a run are in one slot, and the partition does not depend on the prefix."""
    for _ in range(100):
        run_id = new_run_id()
        names = [name for keys in (Keys("a"), Keys("b")) for name in (keys.run(run_id), keys.events(run_id))]
        assert len({slot_of(name) for name in names}) == 1
        assert len(set(names)) == 4


@pytest.mark.parametrize(("primaries", "most"), [(2, 1.01), (3, 1.05), (4, 1.01), (6, 1.06), (8, 1.1), (12, 1.13)])
def test_partitions_spread_evenly(primaries: int, most: float) -> None:
    """No primary gets many more partitions than its share."""
    shares = Counter(slot_of(Keys().probe(number)) * primaries // SLOTS for number in range(PARTITIONS))
    assert max(shares.values()) <= most * PARTITIONS / primaries


def test_runs_spread_evenly_over_partitions() -> None:
    """The ids of runs use all partitions, and none much more often than the others."""
    counts = Counter(slot_of(Keys().run(new_run_id())) for _ in range(PARTITIONS * 100))
    assert len(counts) == PARTITIONS
    assert max(counts.values()) < 200


def test_names_are_grouped_by_slot() -> None:
    """Each group has the names of one slot, and no name is lost."""
    names = [f"{{p{number % 3}}}:{number}".encode() for number in range(9)]
    groups = by_slot(names)
    assert sorted(map(len, groups)) == [3, 3, 3]
    assert all(len({slot_of(name) for name in group}) == 1 for group in groups)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("HGET", "run", "status"), "run"),
        (("EVALSHA", b"sha", 2, "run", "log", "argument"), "run"),
        (("XREADGROUP", "GROUP", "workers", "w", "COUNT", 1, "BLOCK", 1, "STREAMS", "jobs", ">"), "jobs"),
    ],
)
def test_the_first_key_is_found(words: tuple[str | bytes | int, ...], key: str) -> None:
    """The first key decides which server runs a command."""
    assert first_key(words) == key


def test_only_channels_of_runs_are_sharded() -> None:
    """In a cluster the scripts publish batches with SPUBLISH, and control messages with PUBLISH."""
    for name, script in SCRIPTS.items():
        lines, sharded = script.source.splitlines(), CLUSTER_SCRIPTS[name].source.splitlines()
        changed = [line for line, other in zip(lines, sharded, strict=True) if line != other]
        assert all(b"'PUBLISH'" in line and b"'PUBLISH', ARGV" not in line for line in changed)
        assert not any(b"'SPUBLISH', ARGV" in line for line in sharded)
        assert not any(b"'PUBLISH', KEYS" in line or b"'PUBLISH', log" in line for line in sharded)


def test_a_view_has_owners_and_servers() -> None:
    """CLUSTER SLOTS becomes the owner of each slot; a server without a host has the host of the asked one."""
    slots = [[0, 99, [b"one", 11, b"id"], [b"two", 12, b"id", []]], [200, SLOTS - 1, [None, 13, b"id", {}]]]
    view = parse_view(ASKED, INFO, slots)
    assert view.owners[0] == view.owners[99] == ("one", 11)
    assert view.owners[100] is None
    assert view.owners[-1] == ("asked", 13)
    assert view.servers == {("one", 11), ("two", 12), ("asked", 13)}
    assert view.primaries == {("one", 11), ("asked", 13)}


async def test_the_view_of_the_latest_failover_counts() -> None:
    """The view of a server that reaches the majority and has the highest epoch wins; failed servers are ignored."""

    def server(state: str, epoch: int, host: str):  # type: ignore[no-untyped-def] # noqa: ANN202
        async def ask(*words: str) -> object:
            if words == ("CLUSTER", "INFO"):
                return f"cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n".encode()
            return [[0, SLOTS - 1, [host.encode(), 1, b"id"]]]

        return ask

    async def refused(*_words: str) -> object:
        message = "NOPERM"
        raise BusError(message)

    endpoint = Endpoint("redis+cluster://one,two")
    known = {
        ("cut off", 1): server("fail", 9, "cut off"),
        ("old", 1): server("ok", 7, "old"),
        ("new", 1): server("ok", 8, "new"),
        ("refusing", 1): refused,
    }
    topology = await read_topology(endpoint, known, ())
    assert topology.primaries == {("new", 1)}
    with pytest.raises(BusError, match="NOPERM"):
        await read_topology(endpoint, {("refusing", 1): refused}, ())
