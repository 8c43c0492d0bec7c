"""``agentstream answer``: answers the questions of a run that waits for people."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from agentstream.cli.answering import Connect, ask_here, send_answers
from agentstream.cli.api_client import ApiClient, run_path
from agentstream.cli.completion import open_run_ids
from agentstream.cli.exits import WrongSettings, run_command
from agentstream.cli.flags import front_end_flags
from agentstream.cli.following import follow
from agentstream.cli.terminal.display import Display
from agentstream.cli.terminal.interrupts import until_interrupted
from agentstream.protocol.interrupts import APPROVAL, Interrupt


@click.command()
@click.argument("run_id", metavar="RUN", shell_complete=open_run_ids)
@click.argument("answers", metavar="[ID=ANSWER]...", nargs=-1)
@click.option("--approve/--deny", default=None, help="Answer every open approval.")
@click.option("--reason", help="The reason for --approve or --deny, for the agent.")
@click.option("--tail", "shows_rest", is_flag=True, help="Then show the run from its beginning, as `tail` does.")
@front_end_flags
def answer(  # noqa: PLR0913, PLR0917 -- the flags
    run_id: str,
    answers: Sequence[str],
    approve: bool | None,  # noqa: FBT001
    reason: str | None,
    shows_rest: bool,  # noqa: FBT001
    url: str,
    api_key: str | None,
) -> None:
    """Answer the questions of a run that waits for people.

    RUN is a run id, as shown by `agentstream ps`. ID is the id of a question, and ANSWER is JSON; text that is not JSON
    counts as a JSON string. Without answers, the command asks on the terminal. Without a terminal, it prints the
    questions with their ids and exits with 5.

    Prints the status of the run after the last answer: the run goes on when no question is open any more.

    \b
      agentstream answer chatcmpl-6f1c…
      agentstream answer chatcmpl-6f1c… --approve
      agentstream answer chatcmpl-6f1c… --deny --reason "not today"
      agentstream answer chatcmpl-6f1c… 'form-1={"city": "Oslo"}' question-1=green
    """
    if reason is not None and approve is None:
        message = "--reason needs --approve or --deny"
        raise WrongSettings(message)
    given = dict(map(_parse, answers))
    display = Display()
    display.run_id = run_id
    connect = partial(ApiClient, url, api_key)
    run_command(_read(connect, display))
    if approve is not None:
        decision = {"approve": approve} | ({"reason": reason} if reason else {})
        given |= {asked.id: decision for asked in display.parked if asked.kind == APPROVAL}
        if not given:
            message = f"the run {run_id} waits for no approval"
            raise WrongSettings(message)
    if not given and display.parked:
        given = ask_here(display)
    run_command(_send(connect, display, given, shows_rest=shows_rest))


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        message = f"{text!r} is not an answer: write ID=ANSWER, for example 'approval-1={{\"approve\": true}}'"
        raise WrongSettings(message)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


async def _read(connect: Connect, display: Display) -> int:
    """Read the open questions of the run into ``display``."""
    async with connect() as api:
        state = await until_interrupted(api.get(run_path(display.run_id)))
    display.parked = [Interrupt.from_json(asked) for asked in state.get("interrupts", [])]
    return 0


async def _send(connect: Connect, display: Display, answers: dict[str, Any], *, shows_rest: bool) -> int:
    async with connect() as api:
        if answers:
            await until_interrupted(send_answers(api, display, answers))
        state = await until_interrupted(api.get(run_path(display.run_id)))
        asked = len(state.get("interrupts", []))
        click.echo(f"{state['status']}  {display.run_id}  {asked} open question{'' if asked == 1 else 's'}")
        if shows_rest:
            await until_interrupted(follow(api, display.run_id, display, wait_for_people=True))
    return 0
