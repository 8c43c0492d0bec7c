"""The rules for replicas: how many a primary has, and how far they are behind."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentstream.cli.doctor.checks import mebibytes, version_of
from agentstream.cli.doctor.results import CheckResult
from agentstream.protocol.broker_url import show_address

# A replica confirms every second, also if there is nothing to replicate.
LATE_S: Final = 5
MIN_SHARDED_VERSION: Final = 7
BEHIND_BYTES: Final = 16 << 20  # about what one front end's streams write in a second

_LOSS: Final = (
    "a failover loses what the replica lacks: workers send it again, but cancels and idempotency keys are lost"
)


def replicas(known: Mapping[str, int], connected: Mapping[str, Mapping[str, Any]]) -> CheckResult:
    """Judge how many replicas each primary has.

    ``known`` has the number of replicas of each primary that the sentinels or the cluster know, ``connected`` the INFO
    of each primary that answers.
    """
    name = "replicas"
    counts = {primary: len(list(connected_replicas(info))) for primary, info in connected.items()}
    what = ", ".join(f"{primary}: {counts[primary]} of {max(known[primary], counts[primary])}" for primary in counts)
    if bare := [primary for primary, count in counts.items() if not count]:
        why = "if this primary is lost, nobody can take over, and its runs wait until it is back"
        fix = ("start a replica of it again, or add one: REPLICAOF, or `redis-cli --cluster add-node --cluster-slave`",)
        return CheckResult(name, "warning", f"{', '.join(bare)} has no connected replica", why, fix)
    if fewer := [primary for primary, count in counts.items() if count < known[primary]]:
        why = "if more are lost, nobody can take over from the primary"
        fix = ("start them again; if they are gone for good, let them be forgotten: SENTINEL RESET, or CLUSTER FORGET",)
        what = ", ".join(f"{primary} has {counts[primary]} of {known[primary]} replicas" for primary in fewer)
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", f"connected to {what}" if what else "no primary answers")


def lag(infos: Mapping[str, Mapping[str, Any]]) -> CheckResult:
    """Judge how far the connected replicas are behind. ``infos`` has the INFO of each primary that answers."""
    name = "replication lag"
    late, most_bytes = [], 0
    for info in infos.values():
        for address, replica in connected_replicas(info):
            behind = max(0, int(info.get("master_repl_offset", 0)) - int(replica.get("offset", 0)))
            most_bytes = max(most_bytes, behind)
            silent_s, state = int(replica.get("lag", 0)), str(replica.get("state"))
            if state != "online":
                late.append(f"{address} is not in step yet ({state})")
            elif silent_s >= LATE_S:
                late.append(f"{address} has confirmed nothing for {silent_s} s ({behind} bytes behind)")
            elif behind > BEHIND_BYTES:
                late.append(f"{address} is {mebibytes(behind)} behind")
    if late:
        fix = ("check this replica, its disk and the network to its primary: INFO replication, LATENCY DOCTOR",)
        return CheckResult(name, "warning", "; ".join(late), _LOSS, fix)
    return CheckResult(name, "ok", f"at most {most_bytes} bytes behind")


def min_replicas(minimum: str, info: Mapping[str, Any]) -> CheckResult:
    """Judge min-replicas-to-write of the primary, which stops writes on a primary that is cut off from its replicas."""
    name, connected = "min-replicas-to-write", len(list(connected_replicas(info)))
    wanted = int(minimum or 0)
    good = int(info.get("min_slaves_good_slaves", connected))
    if wanted > good:
        why = "the primary refuses every write with NOREPLICAS, so no request is accepted"
        fix = ("start the replicas again", f"or, until then: CONFIG SET min-replicas-to-write {good}")
        return CheckResult(name, "fault", f"{wanted}, but {good} replicas are in step", why, fix)
    if not wanted and connected > 1:
        why = "a primary that is cut off from the sentinels still accepts runs, which a failover then loses"
        fix = (
            "CONFIG SET min-replicas-to-write 1, on the primary and its replicas",
            "in redis.conf: min-replicas-to-write 1, min-replicas-max-lag 10",
        )
        return CheckResult(name, "warning", f"0, with {connected} replicas", why, fix)
    if wanted and wanted == connected:
        why = "if one replica is lost, the primary refuses every write"
        fix = ("add a replica", f"or allow the loss of one: CONFIG SET min-replicas-to-write {wanted - 1}")
        return CheckResult(name, "warning", f"{wanted} of {connected} replicas", why, fix)
    return CheckResult(name, "ok", f"{wanted} of {connected} replicas")


def versions(infos: Mapping[str, Mapping[str, Any]], *, sharded: bool) -> CheckResult:
    """Judge whether all servers have one version, which in a cluster has sharded pub/sub (``sharded``)."""
    name, named = "versions", {address: version_of(info) for address, info in infos.items()}
    if sharded and (old := [at for at, info in infos.items() if major_version(info) < MIN_SHARDED_VERSION]):
        why = "the events of runs go through sharded channels (SPUBLISH), which Redis has since 7.0"
        fix = ("install Redis 7 or newer, or Valkey, on each server of the cluster, the replicas first",)
        return CheckResult(name, "fault", ", ".join(f"{at}: {named[at]}" for at in old), why, fix)
    if len(set(named.values())) > 1:
        what = ", ".join(f"{address}: {version}" for address, version in named.items())
        why = "an older replica cannot load the data of a newer primary, so after a failover it may be of no use"
        fix = ("finish the update: first the replicas, then the primaries after a planned failover",)
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", f"{next(iter(named.values()), 'unknown')} on all {len(named)} servers")


def major_version(info: Mapping[str, Any]) -> int:
    """Return the first number of the version of Redis, or of the Redis with which a Valkey is compatible."""
    return int(str(info.get("redis_version", "0")).partition(".")[0])


def connected_replicas(info: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the address and the fields of each replica that a primary has, as its INFO shows them."""
    for number in range(int(info.get("connected_slaves", 0))):
        if isinstance(replica := info.get(f"slave{number}"), dict):
            yield show_address(str(replica["ip"]), int(replica["port"])), replica
