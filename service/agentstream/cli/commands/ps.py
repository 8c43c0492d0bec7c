"""``agentstream ps``: lists the runs that are queued, run, or wait for people."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from agentstream.cli.exits import exit_on_redis_errors, run_command
from agentstream.cli.flags import redis_url_of, setting_flags, settings_from
from agentstream.cli.terminal.display import sanitize
from agentstream.cli.terminal.layout import format_table, format_time
from agentstream.config import Settings
from agentstream.protocol.keys import Keys
from agentstream.store.admin.open_runs import OpenRun, OpenRunReader, QueueListing
from agentstream.store.connection.endpoint import Endpoint

MAX_MODEL_CHARACTERS: Final = 40
MAX_AGENT_CHARACTERS: Final = 24
MAX_ASKS_CHARACTERS: Final = 40
MAX_WORKER_CHARACTERS: Final = 40  # host-pid-random

HEADINGS: Final = (
    "RUN",
    "STATE",
    "AGE",
    "MODEL",
    "AGENT",
    "TOKENS",
    "QUEUE",
    "ATTEMPT",
    "EVENTS",
    "CHECKPOINT",
    "ASKS",
    "WORKER",
)


@click.command()
@setting_flags("redis_url", "key_prefix", "queue", "queues", "agents")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def ps(*, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """List the runs that are queued, run, or wait for people.

    Reads the queues of the settings from Redis (REDIS_URL). The oldest runs come first, then the runs that wait for
    people (requires_action), beginning with the most urgent. Runs that have ended are not listed, but `agentstream
    tail` can show them until they expire.

    ATTEMPT grows when another worker takes the run over. EVENTS counts the events of the latest attempt. CHECKPOINT is
    the age of the last checkpoint, from which another worker would continue. The worker updates AGENT and TOKENS each
    time it renews the lease (about every 3 s with the default lease). ASKS counts the questions for people by kind,
    with the time that is left to answer; `agentstream answer` answers them.

    \b
      REDIS_URL=redis://… agentstream ps
      agentstream ps --queues research,writing --json
    """
    run_command(_list(settings_from(flags), as_json=as_json))


async def _list(settings: Settings, *, as_json: bool) -> int:
    with exit_on_redis_errors():
        async with OpenRunReader(Endpoint(redis_url_of(settings)), Keys(settings.key_prefix)) as reader:
            listings = await reader.open_runs(settings.served_queues)
    click.echo(_json(listings) if as_json else _table(listings))
    return 0


def _json(listings: Sequence[QueueListing]) -> str:
    runs = [{"run": run.pop("run_id"), **run} for listing in listings for run in map(asdict, listing.runs)]
    counts = {
        "queues": {listing.queue: listing.outstanding for listing in listings},
        "parked": {listing.queue: None if listing.parked_unreachable else listing.parked for listing in listings},
    }
    return json.dumps(counts | {"runs": runs})


def _table(listings: Sequence[QueueListing]) -> str:
    rows = [_row(run) for listing in listings for run in listing.runs]
    lines = (
        format_table([HEADINGS, *rows]) if rows else [f"no open runs (queue {', '.join(x.queue for x in listings)})"]
    )
    for listing in listings:
        if (more := listing.outstanding + listing.parked - len(listing.runs)) > 0:
            lines.append(f"and {more} more in queue {listing.queue}")
        if listing.parked_unreachable:
            lines.append(
                f"the runs of queue {listing.queue} that wait for people are missing: their list has no server"
            )
    return "\n".join(lines)


def _row(run: OpenRun) -> tuple[str, ...]:
    return (
        run.run_id or "(not a job)",
        run.state,
        format_time(run.age_s),
        sanitize(run.model)[:MAX_MODEL_CHARACTERS],
        sanitize(run.agent)[:MAX_AGENT_CHARACTERS] or "-",
        str(run.tokens),
        run.queue,
        str(run.attempt),
        str(run.events),
        "-" if run.checkpoint_age_s is None else format_time(run.checkpoint_age_s),
        _asks(run),
        sanitize(run.worker)[:MAX_WORKER_CHARACTERS],
    )


def _asks(run: OpenRun) -> str:
    """Return what people must answer, and how much time is left: ``2 approval, 1 form (23 h)``."""
    if run.answer_by is None:
        return "-"
    kinds = ", ".join(f"{number} {sanitize(kind)}" for kind, number in sorted(Counter(run.asks).items()))
    left_s = run.answer_by - int(time.time())
    return f"{kinds[:MAX_ASKS_CHARACTERS]} ({format_time(left_s) if left_s > 0 else 'expired'})"
