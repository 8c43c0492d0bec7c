"""``agentstream doctor``: what is wrong with a deployment, why it matters, and the exact change."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final, TypeVar

import click

from agentstream.cli.doctor import checks as findings
from agentstream.cli.doctor.buffering import examine_stream
from agentstream.cli.doctor.checks import Finding
from agentstream.cli.exits import finish, redis_errors
from agentstream.cli.flags import redis_url_of, setting_flags, settings_from
from agentstream.cli.terminal.display import harmless
from agentstream.config import Settings
from agentstream.errors import BusError
from agentstream.processes.process import EXIT_FAILED
from agentstream.protocol.keys import Keys
from agentstream.store.admin.server_state import Vitals
from agentstream.store.connection.endpoint import Endpoint

Fact = TypeVar("Fact")

_NAMES: Final[dict[findings.Level, str]] = {"fault": "to mend", "warning": "to consider", "unknown": "unknown"}
_COLORS: Final = {"ok": "green", "warning": "yellow", "fault": "red", "unknown": "yellow"}


@click.command()
@setting_flags("redis_url", "queue", "queues", "agents", "max_queued")
@click.option("--url", metavar="URL", help="public address whose stream shall be looked at; takes about 2 s")
@click.option(
    "--api-key",
    envvar="AGENTSTREAM_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="one of the front ends' keys, if they have any; default: the first of AGENTSTREAM_API_KEYS",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of text")
def doctor(url: str | None, api_key: str | None, *, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """Find what is wrong, and say what to change.

    Looks at Redis (REDIS_URL): version, role, append-only file, eviction, memory, output buffer, latency and clock; at
    the workers and jobs of the settings' queues; and with --url, whether a stream comes through that address as it is
    written, or is held back by a proxy. For that a run is written to Redis, read back, and removed; no agent is asked.

    Each fault is told with why it matters and the exact change. What this user of Redis may not read is said to be
    unknown. Ends with 1 if there is a fault; warnings and unknowns leave it at 0.

    \b
      REDIS_URL=redis://… agentstream doctor
      agentstream doctor --url https://agents.example.com --api-key sk-1
      agentstream doctor --json | jq '.checks[] | select(.level == "fault")'
    """
    settings = settings_from(flags)
    key = next(iter(settings.api_keys), None) if api_key is None else api_key
    finish(_examine(settings, url, key, as_json=as_json))


async def _examine(settings: Settings, url: str | None, api_key: str | None, *, as_json: bool) -> int:
    redis_url = redis_url_of(settings)
    with redis_errors():
        found = await examine_redis(redis_url, settings.served_queues, max_queued=settings.max_queued)
        if url is not None:
            found.append(await examine_stream(redis_url, url, api_key))
    count = Counter(finding.level for finding in found)
    if as_json:
        told = {"redis": str(Endpoint(redis_url)), "checks": [asdict(finding) for finding in found]}
        click.echo(json.dumps(told | {"faults": count["fault"], "warnings": count["warning"]}))
    else:
        _tell(found)
    return EXIT_FAILED if count["fault"] else 0


async def examine_redis(redis_url: str, queues: Sequence[str], *, max_queued: int) -> list[Finding]:
    """Return what is found in Redis. Raises BrokerUnavailable, and BusError if it does not let us in."""
    async with Vitals(Endpoint(redis_url), Keys()) as vitals:
        latency = findings.latency(await vitals.ping_times_s())  # first: nothing can be said of one that is away
        found = [
            await _found("version", vitals.info(), findings.version),
            await _found("role", vitals.info(), findings.role),
            await _found("append-only file", vitals.info(), findings.persistence),
            await _found("eviction", vitals.info(), findings.eviction),
            await _found("memory", vitals.info(), findings.memory),
            await _found("output buffer", vitals.config("client-output-buffer-limit"), findings.output_buffer),
            latency,
            await _found("clock", vitals.clock(), findings.clock),
        ]
        for queue in queues:
            found.append(await _found(f"workers of {queue}", vitals.queue(queue), partial(findings.workers, queue)))
            depth = partial(findings.depth, queue, max_queued=max_queued)
            found.append(await _found(f"jobs of {queue}", vitals.queue(queue), depth))
    return found


async def _found(name: str, reading: Awaitable[Fact], judge: Callable[[Fact], Finding]) -> Finding:
    """Return what a fact means; that it is unknown, if this user may not read it."""
    try:
        fact = await reading
    except BusError as exc:
        fix = ("run doctor with a user that may read it, such as the operator of deploy/redis-users.acl",)
        return Finding(name, "unknown", f"could not be read: {exc}", "it is not looked at at all", fix)
    return judge(fact)


def _tell(found: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in found)
    for finding in found:
        level = click.style(f"{finding.level:<7}", fg=_COLORS[finding.level])
        click.echo(f"{level}  {finding.name:<{width}}  {harmless(finding.what)}")
        if finding.why:
            click.echo(f"         why  {finding.why}")
        for line in finding.fix:
            click.echo(f"         do   {line}")
    count = Counter(finding.level for finding in found)
    told = [f"{count[level]} {name}" for level, name in _NAMES.items() if count[level]]
    click.echo(", ".join(told) or "nothing is wrong")
