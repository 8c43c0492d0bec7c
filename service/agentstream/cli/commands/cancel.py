"""``agentstream cancel``: cancel a run."""

import click

from agentstream.cli.api_client import ApiClient
from agentstream.cli.completion import open_run_ids
from agentstream.cli.exits import run_command
from agentstream.cli.flags import front_end_flags


@click.command()
@click.argument("run_id", metavar="RUN", shell_complete=open_run_ids)
@front_end_flags
def cancel(run_id: str, url: str, api_key: str | None) -> None:
    """Cancel a run and wait until it has ended.

    RUN is a run id, as shown by `agentstream ps`. Prints the final status of the run and the number of tokens that it
    wrote. If the run has already ended, nothing changes.

    \b
      agentstream cancel chatcmpl-6f1c…
      agentstream ps --json | jq -r '.runs[].run' | xargs -n1 agentstream cancel
    """
    run_command(_cancel(url, api_key, run_id))


async def _cancel(url: str, api_key: str | None, run_id: str) -> int:
    async with ApiClient(url, api_key) as api:
        answer = await api.cancel(run_id)
    click.echo(f"{answer['status']}  {run_id}  {answer['usage']['completion_tokens']} tokens written")
    return 0
