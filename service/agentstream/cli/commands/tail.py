"""``agentstream tail``: shows the stream of a run."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

import click

from agentstream.cli.api_client import ApiClient, run_path
from agentstream.cli.completion import open_run_ids
from agentstream.cli.exits import Interrupted, Unreachable, run_command
from agentstream.cli.flags import events_flag, front_end_flags
from agentstream.cli.terminal.display import Display
from agentstream.cli.terminal.interrupts import until_interrupted

GIVE_UP_S: Final = 60.0  # without a byte; longer than a restart of a front end takes
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 5.0


@click.command()
@click.argument("run_id", metavar="RUN", shell_complete=open_run_ids)
@front_end_flags
@events_flag
def tail(run_id: str, url: str, api_key: str | None, event_types: str | None) -> None:
    """Show the stream of a run.

    RUN is a run id, as shown by `agentstream ps`. Shows the run from its beginning and follows it until it ends. If
    the connection breaks, the command reconnects and resumes; it gives up after 60 s without data. ctrl-C ends the
    command, but not the run. Exits with 0 if the run completed, and with 1 if it failed or was cancelled.

    \b
      agentstream tail chatcmpl-6f1c…
    """
    run_command(_tail(partial(ApiClient, url, api_key, event_types), run_id))


async def _tail(connect: Callable[[], ApiClient], run_id: str) -> int:
    display = Display()
    async with connect() as api:
        try:
            await until_interrupted(_follow(api, run_id, display))
        except Interrupted as exc:
            display.end_line()
            message = "detached; the run continues"
            raise Interrupted(message) from exc
    return 0


async def _follow(api: ApiClient, run_id: str, display: Display) -> None:
    """Show a run to its end. Raises Refused, Failed, or Unreachable after GIVE_UP_S without data."""
    clock = asyncio.get_running_loop().time
    path = f"{run_path(run_id)}?stream=true"
    received_at_s: float | None = None
    backoff_s = FIRST_BACKOFF_S
    while True:
        error: Unreachable | None = None
        try:
            async with contextlib.aclosing(api.stream("GET", path, after=display.last_event_id)) as pieces:
                async for messages in pieces:
                    received_at_s, backoff_s = clock(), FIRST_BACKOFF_S
                    if any(map(display.receive, messages)):
                        display.close()
                        return
        except Unreachable as exc:
            error = exc
        if received_at_s is None or clock() - received_at_s > GIVE_UP_S:
            raise error or Unreachable(f"{api.url} closes the stream before the run has ended")
        display.note(f"{error.message if error else 'the stream ended too early'}; reconnecting")
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
