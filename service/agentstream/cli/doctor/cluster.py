"""The checks of a cluster: its state, its slots, and its servers."""

from collections import Counter
from collections.abc import Mapping, Sequence

from agentstream.cli.doctor import replication
from agentstream.cli.doctor.results import CheckResult, unreadable
from agentstream.errors import BusError
from agentstream.protocol.keys import PARTITIONS, Keys
from agentstream.store.admin.cluster_state import ServerView, read_cluster
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.slots import SLOTS, slot_of

_RESTART = "start it again; if it is lost and has a replica, run CLUSTER FAILOVER TAKEOVER on the replica"


async def check_cluster(
    endpoint: Endpoint, keys: Keys, queues: Sequence[str]
) -> tuple[list[Endpoint], list[CheckResult]]:
    """Return the primaries that answer, and the results of the checks; raises BusError if no server does."""
    views = await read_cluster(endpoint)
    primaries = [view for view in views if view.node.slots and not view.unreachable]
    infos = {str(view): view.facts for view in views if not view.unreachable and not isinstance(view.facts, BusError)}
    refused = next((view.facts for view in views if isinstance(view.facts, BusError)), None)
    results = [state(primaries), servers(views), slots(views, keys, queues), migrations(views)]
    of_primaries = {str(view): infos[str(view)] for view in primaries if str(view) in infos}
    if refused is not None:
        results += [unreadable(name, refused) for name in ("replicas", "replication lag", "versions")]
    else:
        results += [
            replication.replicas(_known_replicas(views), of_primaries),
            replication.lag(of_primaries),
            replication.versions(infos, sharded=True),
        ]
    results.append(full_coverage(primaries))
    return [endpoint.at(*view.address) for view in primaries], results


def state(primaries: Sequence[ServerView]) -> CheckResult:
    """Judge whether each primary regards the cluster as usable, and whether they agree about the slots."""
    name = "cluster"
    if down := [str(view) for view in primaries if view.info.get("cluster_state") != "ok"]:
        why = "these servers refuse every command (CLUSTERDOWN), so their runs wait and new requests get 503"
        fix = (
            "see the results about servers and slots: a slot has no server, or a server is cut off from the majority",
        )
        return CheckResult(name, "fault", f"cluster_state is not ok on {', '.join(down)}", why, fix)
    seen = {frozenset((node.node_id, node.slots) for node in view.nodes if node.slots) for view in primaries}
    if len(seen) > 1:
        why = "processes follow the servers that know the latest failover; the others answer with MOVED or old data"
        fix = ("run this again: after a failover or a move this lasts some seconds; then check their network",)
        what = f"{', '.join(map(str, primaries))} do not agree about the slots"
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", f"state ok, {len(primaries)} primaries")


def servers(views: Sequence[ServerView]) -> CheckResult:
    """Judge whether each server answers."""
    name = "servers"
    silent = {str(view): _role(view) for view in views if view.unreachable or view.node.failed}
    if not silent:
        return CheckResult(name, "ok", f"{len(views)} answer")
    what = f"no answer from {' and '.join(f'the {role} {address}' for address, role in silent.items())}"
    if "primary" in silent.values():
        why = "until it answers or a replica has taken over, its runs wait and their requests get 503"
        return CheckResult(name, "fault", what, why, (_RESTART,))
    why = "if its primary is lost too, nobody takes over"
    fix = ("start it again; if it is gone for good: CLUSTER FORGET on all other servers, and add another replica",)
    return CheckResult(name, "warning", what, why, fix)


def slots(views: Sequence[ServerView], keys: Keys, queues: Sequence[str]) -> CheckResult:
    """Judge whether each slot has a server that is up, and count what waits if not."""
    name = "slots"
    down = [view for view in views if view.node.slots and (view.node.failed or view.unreachable)]
    served = {slot for view in views if view not in down for slot in view.node.each_slot()}
    if len(served) == SLOTS:
        return CheckResult(name, "ok", f"all {SLOTS} have a server")
    runs = sum(slot_of(keys.probe(number)) not in served for number in range(PARTITIONS))
    waiting = [f"{runs} of {PARTITIONS} partitions of runs"]
    waiting += [f"the queue {queue}" for queue in queues if slot_of(keys.jobs(queue)) not in served]
    owners = f", {', '.join(map(str, down))} is down" if down else ""
    fix = (_RESTART, "if slots have no owner at all: redis-cli --cluster fix <any server>")
    why = f"{' and '.join(waiting)} wait: new requests for them get 503, and open streams stand still"
    return CheckResult(name, "fault", f"{SLOTS - len(served)} of {SLOTS} have no server{owners}", why, fix)


def migrations(views: Sequence[ServerView]) -> CheckResult:
    """Judge whether moves of slots are open."""
    name = "moves of slots"
    moving = {
        slot for view in views for node in view.nodes if "myself" in node.flags for slot in node.moving
    }  # each server shows only its own
    if not moving:
        return CheckResult(name, "ok", "none is open")
    shown = ", ".join(map(str, sorted(moving)[:5])) + (", …" if len(moving) > 5 else "")  # noqa: PLR2004 -- enough
    why = "while a slot moves, its commands take a second trip; a move that was interrupted stays open for ever"
    fix = ("wait until the resharding is done; if nobody reshards: redis-cli --cluster fix <any server>",)
    return CheckResult(name, "warning", f"{len(moving)} open: slot {shown}", why, fix)


def full_coverage(primaries: Sequence[ServerView]) -> CheckResult:
    """Judge cluster-require-full-coverage: whether one lost shard stops the others."""
    name = "full coverage"
    values = {str(view): view.full_coverage for view in primaries}
    if refused := next((value for value in values.values() if isinstance(value, BusError)), None):
        return unreadable(name, refused)
    if required := [address for address, value in values.items() if value == "yes"]:
        why = "if one primary and its replicas are lost, all others refuse commands too, instead of serving their runs"
        fix = (
            f"CONFIG SET cluster-require-full-coverage no, on {', '.join(required)} and the replicas",
            "in redis.conf: cluster-require-full-coverage no",
        )
        return CheckResult(name, "warning", "cluster-require-full-coverage is yes", why, fix)
    return CheckResult(name, "ok", "cluster-require-full-coverage is no")


def _role(view: ServerView) -> str:
    return "primary" if view.node.slots else "replica"


def _known_replicas(views: Sequence[ServerView]) -> Mapping[str, int]:
    """Return the number of replicas of each primary, also of those that are down."""
    replicas_of = Counter(view.node.primary_id for view in views)
    return {str(view): replicas_of[view.node.node_id] for view in views}
