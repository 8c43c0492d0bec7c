"""Answers the questions of a run, and shows how it goes on."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from agentstream.cli.api_client import ApiClient
from agentstream.cli.exits import Interrupted, Refused, WaitsForPeople
from agentstream.cli.terminal.display import Display
from agentstream.cli.terminal.questions import ask_people, can_ask, how_to_answer

Connect = Callable[[], ApiClient]

# Somebody else was faster, or nobody was fast enough: the run goes on in any case.
_TOO_LATE: Final = frozenset({"already_answered", "interrupt_expired", "not_waiting"})


def ask_here(display: Display) -> dict[str, Any]:
    """Ask the person at the terminal the open questions of the run; return the answers.

    Raises WaitsForPeople if there is no terminal, and Interrupted if the person leaves the questions open.
    """
    if not can_ask():
        raise WaitsForPeople(how_to_answer(display.run_id, display.parked))
    try:
        return ask_people(display.parked)
    except (KeyboardInterrupt, EOFError) as exc:
        raise Interrupted("\n" + how_to_answer(display.run_id, display.parked)) from exc


async def send_answers(api: ApiClient, display: Display, answers: Mapping[str, Any]) -> None:
    """Send each answer by itself. A question that somebody else has answered, or that is over, gets a note."""
    for name, answer in answers.items():
        try:
            await api.answer(display.run_id, {name: answer})
        except Refused as exc:
            if exc.code not in _TOO_LATE:
                raise
            display.note(exc.message)
