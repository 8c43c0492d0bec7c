"""``agentstream doctor``: finds faults of a deployment and prints the reason and the fix of each."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import PurePath
from typing import Any, Final, TypeVar

import click

from agentstream.cli.doctor import checks
from agentstream.cli.doctor.buffering import check_buffering
from agentstream.cli.doctor.checks import CheckResult
from agentstream.cli.exits import exit_on_redis_errors, run_command
from agentstream.cli.flags import redis_url_of, setting_flags, settings_from
from agentstream.cli.terminal.display import sanitize
from agentstream.config import Settings
from agentstream.errors import BusError
from agentstream.processes.broker import FOLDER_PREFIX
from agentstream.processes.file_limit import file_limit, raise_file_limit
from agentstream.processes.runtime import EXIT_FAILED
from agentstream.protocol.keys import Keys
from agentstream.store.admin.server_state import ServerState
from agentstream.store.connection.endpoint import Endpoint

Fact = TypeVar("Fact")

_LEVEL_NAMES: Final[dict[checks.Level, str]] = {"fault": "faults", "warning": "warnings", "unknown": "unknown"}
_LEVEL_COLORS: Final = {"ok": "green", "warning": "yellow", "fault": "red", "unknown": "yellow"}


@click.command()
@setting_flags("redis_url", "key_prefix", "queue", "queues", "agents", "max_queued")
@click.option("--url", metavar="URL", help="Public address of the front ends. Tests streaming for about 2 s.")
@click.option(
    "--api-key",
    envvar="AGENTSTREAM_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="API key, if the front ends require one. Default: the first of AGENTSTREAM_API_KEYS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(url: str | None, api_key: str | None, *, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """Check a deployment and explain how to fix faults.

    Checks the Redis server (REDIS_URL): version, role, append-only file, eviction, memory, output buffer, latency and
    clock. Checks the workers and jobs of each queue in the settings, and where doctor runs the limit of open files and
    the temporary folder. With --url, also checks that no proxy buffers streams: it writes a test run to Redis,
    reads its stream through the URL and deletes the run. No agent runs.

    For each fault, prints why it matters and the exact fix. A check is "unknown" if the Redis user lacks the
    permission. Exits with 1 if there is a fault. Warnings and unknown checks do not change the exit code.

    \b
      REDIS_URL=redis://… agentstream doctor
      agentstream doctor --url https://agents.example.com --api-key sk-1
      agentstream doctor --json | jq '.checks[] | select(.level == "fault")'
    """
    settings = settings_from(flags)
    key = next(iter(settings.api_keys), None) if api_key is None else api_key
    run_command(_run_checks(settings, url, key, as_json=as_json))


async def _run_checks(settings: Settings, url: str | None, api_key: str | None, *, as_json: bool) -> int:
    endpoint, keys = Endpoint(redis_url_of(settings)), Keys(settings.key_prefix)
    with exit_on_redis_errors():
        results = await check_redis(endpoint, keys, settings.served_queues, max_queued=settings.max_queued)
        if url is not None:
            results.append(await check_buffering(endpoint, keys, url, api_key))
    results += check_process()
    count = Counter(result.level for result in results)
    if as_json:
        report = {"redis": str(endpoint), "checks": [asdict(result) for result in results]}
        click.echo(json.dumps(report | {"faults": count["fault"], "warnings": count["warning"]}))
    else:
        _print_results(results)
    return EXIT_FAILED if count["fault"] else 0


async def check_redis(endpoint: Endpoint, keys: Keys, queues: Sequence[str], *, max_queued: int) -> list[CheckResult]:
    """Run all checks of Redis. Raises BrokerUnavailable, and BusError if Redis refuses the login."""
    async with ServerState(endpoint, keys) as server:
        latency = checks.latency(await server.ping_times_s())  # first: it raises if Redis is unreachable
        private = await _is_private(server)
        results = [
            await _check("version", server.info(), checks.version),
            await _check("role", server.info(), checks.role),
            await _check("append-only file", server.info(), partial(checks.persistence, private=private)),
            await _check("eviction", server.info(), checks.eviction),
            await _check("memory", server.info(), partial(checks.memory, private=private)),
            await _check("output buffer", server.config("client-output-buffer-limit"), checks.output_buffer),
            latency,
            await _check("clock", server.clock(), checks.clock),
        ]
        for queue in queues:
            results.append(await _check(f"workers of {queue}", server.queue(queue), partial(checks.workers, queue)))
            depth = partial(checks.depth, queue, max_queued=max_queued)
            results.append(await _check(f"jobs of {queue}", server.queue(queue), depth))
    return results


def check_process() -> list[CheckResult]:
    """Check what processes may do where doctor runs. In a container this holds for the service too."""
    raise_file_limit()  # as the service does
    user = f"user {os.geteuid()}" if hasattr(os, "geteuid") else "this user"
    reason = None
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as exc:
        reason = str(exc)
    return [checks.open_files(file_limit(), user), checks.temporary_folder(reason)]


async def _is_private(server: ServerState) -> bool:
    """Return whether the server is the private broker of an `agentstream up`, which stores nothing on purpose."""
    try:
        return PurePath(await server.config("dir")).name.startswith(FOLDER_PREFIX)
    except BusError:  # this Redis user may not read it: it is not the private broker's user
        return False


async def _check(name: str, reading: Awaitable[Fact], judge: Callable[[Fact], CheckResult]) -> CheckResult:
    """Read a fact and judge it. The result is "unknown" if the Redis user may not read the fact."""
    try:
        fact = await reading
    except BusError as exc:
        fix = ("run doctor with a Redis user that may read it, such as `operator` of deploy/redis-users.acl",)
        return CheckResult(name, "unknown", f"cannot be read: {exc}", "this check was skipped", fix)
    return judge(fact)


def _print_results(results: Sequence[CheckResult]) -> None:
    width = max(len(result.name) for result in results)
    for result in results:
        level = click.style(f"{result.level:<7}", fg=_LEVEL_COLORS[result.level])
        click.echo(f"{level}  {result.name:<{width}}  {sanitize(result.what)}")
        if result.why:
            click.echo(f"         why  {result.why}")
        for line in result.fix:
            click.echo(f"         fix  {line}")
    count = Counter(result.level for result in results)
    summary = [f"{name}: {count[level]}" for level, name in _LEVEL_NAMES.items() if count[level]]
    click.echo(", ".join(summary) or "no faults found")
