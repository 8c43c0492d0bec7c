"""``agentstream doctor``: finds faults of a deployment and prints the reason and the fix of each."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from agentstream.cli.doctor import checks
from agentstream.cli.doctor.broker import check_redis
from agentstream.cli.doctor.buffering import check_buffering
from agentstream.cli.doctor.results import CheckResult, Level
from agentstream.cli.exits import exit_on_redis_errors, run_command
from agentstream.cli.flags import redis_url_of, setting_flags, settings_from
from agentstream.cli.terminal.display import sanitize
from agentstream.config import Settings
from agentstream.processes.file_limit import file_limit, raise_file_limit
from agentstream.processes.runtime import EXIT_FAILED
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint

_LEVEL_NAMES: Final[dict[Level, str]] = {"fault": "faults", "warning": "warnings", "unknown": "unknown"}
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

    Checks each primary of Redis (REDIS_URL): version, role, append-only file, eviction, memory, output buffer, latency
    and clock. With Sentinel also checks the sentinels, their quorum, and the replicas; with Cluster the state, the
    slots, the replicas, open moves of slots and the versions. Checks the workers and jobs of each queue in the
    settings, and where doctor runs the limit of open files and the temporary folder. With --url, also checks that no
    proxy buffers streams: it writes a test run to Redis, reads its stream through the URL and deletes the run. No agent
    runs.

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
