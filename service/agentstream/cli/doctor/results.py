"""The result of a check, and the results of the same check for several servers."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

from agentstream.errors import BrokerUnavailable, BusError

Level = Literal["ok", "warning", "fault", "unknown"]
Fact = TypeVar("Fact")

_BADNESS: Final[dict[Level, int]] = {"ok": 0, "unknown": 1, "warning": 2, "fault": 3}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. Each line of ``fix`` is a command or an instruction."""

    name: str
    level: Level
    what: str
    why: str = ""
    fix: Sequence[str] = ()


async def check(name: str, reading: Awaitable[Fact], judge: Callable[[Fact], CheckResult]) -> CheckResult:
    """Read a fact and judge it. The result is "unknown" if the Redis user may not read the fact."""
    try:
        fact = await reading
    except BrokerUnavailable as exc:
        fix = ("look at the other results: a server is down, or REDIS_URL does not lead to the primary",)
        return CheckResult(name, "unknown", f"cannot be read: {exc}", "this check was skipped", fix)
    except BusError as exc:
        return unreadable(name, exc)
    return judge(fact)


def unreadable(name: str, reason: BusError) -> CheckResult:
    """Return the result of a check whose fact the Redis user may not read."""
    fix = ("run doctor with a Redis user that may read it, such as `operator` of deploy/redis-users.acl",)
    return CheckResult(name, "unknown", f"cannot be read: {reason}", "this check was skipped", fix)


def worst_of(results: Sequence[tuple[str, CheckResult]]) -> CheckResult:
    """Return the worst result of one check on several servers, with the address of its server.

    ``results`` have the address of each server.
    """
    address, worst = max(results, key=lambda each: _BADNESS[each[1].level])
    if len(results) == 1:
        return worst
    same = sum(result.level == worst.level for _, result in results)
    if worst.level == "ok":
        more = f" (all {len(results)} primaries are ok)"
    else:
        more = f" (the same on {same - 1} more of {len(results)} primaries)" if same > 1 else ""
    return replace(worst, what=f"{address}: {worst.what}{more}")
