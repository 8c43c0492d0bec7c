"""The checks of sentinels, and of the primary and the replicas that they watch."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from agentstream.cli.doctor import replication
from agentstream.cli.doctor.results import CheckResult, Level, check
from agentstream.errors import BusError
from agentstream.protocol.broker_url import Address, show_address
from agentstream.store.admin.sentinel_state import SentinelView, read_sentinels
from agentstream.store.admin.server_state import ServerState
from agentstream.store.connection.endpoint import Endpoint

MIN_SENTINELS: Final = 3  # so that a majority remains if one is lost
PRIMARY_TIMEOUT_S: Final = 2.0

_NO_FAILOVER: Final = "if the primary is lost, no replica takes over, and every request gets 503"


async def check_sentinels(endpoint: Endpoint) -> tuple[list[Endpoint], list[CheckResult]]:
    """Return the primary and the results of the checks; raises BusError if no sentinel names a primary."""
    views = await read_sentinels(endpoint)
    primary = named_primary(views)
    one, where = endpoint.at(*primary), show_address(*primary)
    known = max(view.replicas or 0 for view in views)
    async with ServerState(one, timeout_s=PRIMARY_TIMEOUT_S) as server:
        results = [sentinels(views), quorum(views), await check("primary", server.role(), partial(role_of, views))]
        results += [
            await check("replicas", server.info(), lambda info: replication.replicas({where: known}, {where: info})),
            await check("replication lag", server.info(), lambda info: replication.lag({where: info})),
            await check("min-replicas-to-write", _min_replicas(server), lambda read: replication.min_replicas(*read)),
        ]
    return [one], results


async def _min_replicas(server: ServerState) -> tuple[str, dict[str, Any]]:
    return await server.config("min-replicas-to-write"), await server.info()


def named_primary(views: Sequence[SentinelView]) -> Address:
    """Return the server that most sentinels name; at least one names one."""
    named = Counter(view.primary for view in views if not isinstance(view.primary, BusError))
    return named.most_common(1)[0][0]


def sentinels(views: Sequence[SentinelView]) -> CheckResult:
    """Judge whether the sentinels in REDIS_URL answer and know the master, and whether there are enough of them."""
    name, silent = "sentinels", [str(view.primary) for view in views if isinstance(view.primary, BusError)]
    all_of_them = max(len(views), *(view.sentinels or 0 for view in views))
    what = f"{len(views) - len(silent)} of {len(views)} in REDIS_URL answer and know the primary"
    if silent:
        level: Level = "fault" if 2 * len(silent) >= len(views) and len(views) > 1 else "warning"
        why = _NO_FAILOVER if level == "fault" else f"if more of them are lost: {_NO_FAILOVER}"
        fix = ("start each of them again, or remove it from REDIS_URL if it is gone",)
        return CheckResult(name, level, f"{what}; {'; '.join(silent)}", why, fix)
    if all_of_them < MIN_SENTINELS:
        why = f"if one of {all_of_them} is lost, there is no majority: {_NO_FAILOVER}"
        fix = (f"run {MIN_SENTINELS} or more sentinels on different machines, and name all of them in REDIS_URL",)
        return CheckResult(name, "warning", f"{what}; there are {all_of_them}", why, fix)
    if len(views) == 1:
        why = "if this sentinel is lost, no process finds the primary after a failover"
        fix = ("name all sentinels in REDIS_URL",)
        return CheckResult(name, "warning", f"REDIS_URL names 1 of {all_of_them}", why, fix)
    return CheckResult(name, "ok", what)


def quorum(views: Sequence[SentinelView]) -> CheckResult:
    """Judge the sentinels' answers to SENTINEL CKQUORUM."""
    name = "quorum"
    asked = [view for view in views if view.has_quorum is not None]
    if not asked:
        allow = ("allow this user of the sentinels SENTINEL CKQUORUM, such as `client` of deploy/sentinel-users.acl",)
        words = next((view.quorum for view in views if view.quorum), "no sentinel was asked")
        return CheckResult(name, "unknown", f"cannot be read: {words}", "this check was skipped", allow)
    if without := [view for view in asked if not view.has_quorum]:
        what = "; ".join(f"{view.address}: {view.quorum}" for view in without)
        fix = (
            "start the sentinels that are down, and check the network between sentinels",
            "the quorum in `sentinel monitor` must not exceed their number",
        )
        return CheckResult(name, "fault", what, _NO_FAILOVER, fix)
    return CheckResult(name, "ok", f"reachable: {asked[0].quorum.removeprefix('OK ')}")


def role_of(views: Sequence[SentinelView], role: str) -> CheckResult:
    """Judge whether all sentinels name one server, and whether its ROLE is that of a primary."""
    name, primary = "primary", show_address(*named_primary(views))
    named = {view.address: show_address(*view.primary) for view in views if not isinstance(view.primary, BusError)}
    if len(set(named.values())) > 1:
        what = ", ".join(f"{sentinel} names {server}" for sentinel, server in named.items())
        why = "processes connect to the server that most sentinels name; the others may lose writes"
        wait = ("run this again: during a failover this lasts some seconds; then check the network between sentinels",)
        return CheckResult(name, "fault", what, why, wait)
    if role != "master":
        why = "it refuses writes, so every request gets 503"
        fix = (
            "run this again: sentinels promote another server within some seconds",
            "if this stays, see the log of the sentinels, and run SENTINEL FAILOVER on one of them",
        )
        return CheckResult(name, "fault", f"{primary} says that its role is {role}", why, fix)
    return CheckResult(name, "ok", f"{primary}, as all sentinels say")
