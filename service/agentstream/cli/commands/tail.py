"""``agentstream tail``: attach to a run."""

import asyncio
import contextlib
from typing import Final

import click

from agentstream.cli.api_client import ApiClient, run_path
from agentstream.cli.completion import open_run_ids
from agentstream.cli.exits import Interrupted, Unreachable, run_command
from agentstream.cli.flags import front_end_flags
from agentstream.cli.terminal.display import Display
from agentstream.cli.terminal.interrupts import until_interrupted

GIVE_UP_S: Final = 60.0  # without a byte: longer than a front end takes to be started again
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 5.0


@click.command()
@click.argument("run_id", metavar="RUN", shell_complete=open_run_ids)
@front_end_flags
def tail(run_id: str, url: str, api_key: str | None) -> None:
    """Attach to a run.

    Shows RUN from its beginning, and goes on with it live until it ends. RUN is an id as `agentstream ps` shows it. A
    cut connection is taken up again where it broke, for up to 60 s without news. ctrl-C leaves the run alone. Ends with
    0 if the run completed, 1 if it failed or was cancelled.

    \b
      agentstream tail chatcmpl-6f1c…
    """
    run_command(_tail(url, api_key, run_id))


async def _tail(url: str, api_key: str | None, run_id: str) -> int:
    display = Display()
    async with ApiClient(url, api_key) as api:
        try:
            await until_interrupted(_follow(api, run_id, display))
        except Interrupted as exc:
            display.end_line()
            message = "left; the run goes on"
            raise Interrupted(message) from exc
    return 0


async def _follow(api: ApiClient, run_id: str, display: Display) -> None:
    """Show a run to its end; raises Refused, Failed, or Unreachable after GIVE_UP_S without news."""
    clock = asyncio.get_running_loop().time
    path = f"{run_path(run_id)}?stream=true"
    heard_at_s: float | None = None
    backoff_s = FIRST_BACKOFF_S
    while True:
        trouble: Unreachable | None = None
        try:
            async with contextlib.aclosing(api.stream("GET", path, after=display.last_event_id)) as pieces:
                async for messages in pieces:
                    heard_at_s, backoff_s = clock(), FIRST_BACKOFF_S
                    if any(map(display.receive, messages)):
                        display.close()
                        return
        except Unreachable as exc:
            trouble = exc
        if heard_at_s is None or clock() - heard_at_s > GIVE_UP_S:
            raise trouble or Unreachable(f"{api.url} ends the stream without its end")
        display.note(f"{trouble.message if trouble else 'the stream ended early'}; attaching again")
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
