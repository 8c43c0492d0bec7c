"""``agentstream ps``: the runs that wait or run now."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from service.cli.display import harmless
from service.cli.exits import finish, redis_errors
from service.cli.flags import redis_url_of, setting_flags, settings_from
from service.config import Settings
from service.protocol.keys import Keys
from service.store.endpoint import Endpoint
from service.store.inspect import Inspector, Listing, OpenRun

MAX_MODEL_CHARACTERS: Final = 40
MAX_WORKER_CHARACTERS: Final = 40  # host-pid-random

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600

HEADINGS: Final = ("RUN", "STATE", "AGE", "MODEL", "QUEUE", "ATTEMPT", "EVENTS", "WORKER")


@click.command()
@setting_flags("redis_url", "queue", "queues", "agents")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of a table")
def ps(*, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """List the runs that wait or run now.

    The oldest come first. It asks Redis (REDIS_URL) for the queues of the settings. Runs that have ended are not
    listed, but can be shown by `agentstream tail` for as long as they are kept. EVENTS are those of the latest attempt;
    a streamed token is one.

    \b
      REDIS_URL=redis://… agentstream ps
      agentstream ps --queues research,writing --json
    """
    finish(_list(settings_from(flags), as_json=as_json))


async def _list(settings: Settings, *, as_json: bool) -> int:
    with redis_errors():
        async with Inspector(Endpoint(redis_url_of(settings)), Keys()) as inspector:
            listings = await inspector.open_runs(settings.served_queues)
    click.echo(_json(listings) if as_json else _table(listings))
    return 0


def _json(listings: Sequence[Listing]) -> str:
    runs = [{"run": run.pop("run_id"), **run} for listing in listings for run in map(asdict, listing.runs)]
    return json.dumps({"queues": {listing.queue: listing.outstanding for listing in listings}, "runs": runs})


def _table(listings: Sequence[Listing]) -> str:
    rows = [_row(run) for listing in listings for run in listing.runs]
    lines = columns([HEADINGS, *rows]) if rows else [f"no open runs (queue {', '.join(x.queue for x in listings)})"]
    for listing in listings:
        if more := listing.outstanding - len(listing.runs):
            lines.append(f"and {more} more in queue {listing.queue}")
    return "\n".join(lines)


def _row(run: OpenRun) -> tuple[str, ...]:
    return (
        run.run_id or "(not a job)",
        run.state,
        duration(run.age_s),
        harmless(run.model)[:MAX_MODEL_CHARACTERS],
        run.queue,
        str(run.attempt),
        str(run.events),
        harmless(run.worker)[:MAX_WORKER_CHARACTERS],
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """Return a time as people read it: 7s, 3m20s, 2h05m."""
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
