"""``agentstream tail``: shows the stream of a run."""

from collections.abc import Callable
from functools import partial

import click

from agentstream.cli.api_client import ApiClient
from agentstream.cli.completion import open_run_ids
from agentstream.cli.exits import Interrupted, run_command
from agentstream.cli.flags import events_flag, front_end_flags
from agentstream.cli.following import follow
from agentstream.cli.terminal.display import Display
from agentstream.cli.terminal.interrupts import until_interrupted


@click.command()
@click.argument("run_id", metavar="RUN", shell_complete=open_run_ids)
@front_end_flags
@events_flag
def tail(run_id: str, url: str, api_key: str | None, event_types: str | None) -> None:
    """Show the stream of a run.

    RUN is a run id, as shown by `agentstream ps`. Shows the run from its beginning and follows it until it ends. If
    the connection breaks, the command reconnects and resumes; it gives up after 60 s without data. ctrl-C ends the
    command, but not the run. If the run waits for people, the command shows the question, and goes on when somebody has
    answered it (see `agentstream answer`). Exits with 0 if the run completed, and with 1 if it failed or was cancelled.

    \b
      agentstream tail chatcmpl-6f1c…
    """
    run_command(_tail(partial(ApiClient, url, api_key, event_types), run_id))


async def _tail(connect: Callable[[], ApiClient], run_id: str) -> int:
    display = Display()
    async with connect() as api:
        try:
            await until_interrupted(follow(api, run_id, display, wait_for_people=True))
        except Interrupted as exc:
            display.end_line()
            message = "detached; the run continues"
            raise Interrupted(message) from exc
    return 0
