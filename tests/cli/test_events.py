"""``--events`` of ``agentstream chat`` and ``agentstream tail``: an agent's own events, and those of sub-agents."""

from pathlib import Path

import pytest

from tests.cli.conftest import agentstream
from tests.processes import Processes

AGENTS = Path(__file__).parents[1] / "integration"
NOTES = [
    "researcher: ",
    'researcher: search {"for": "time"}',
    "researcher: search -> 12:00",
    "researcher > summariser: thinking with none",
]
ALL_NOTES = [
    'progress {"found": 0}',
    *NOTES[:3],
    'researcher: progress {"found": 1, "event_id": "own"}',
    "researcher: I found ",
    NOTES[3],
    "researcher > summariser: Short.Noon.",
    "note",
]


def notes(err: str) -> list[str]:
    """Return the lines about events."""
    return [line.partition("· ")[2] for line in err.splitlines() if "· " in line]


async def test_the_events_that_were_asked_for_are_shown(processes: Processes) -> None:
    """With --events a command shows an agent's own events; the events of sub-agents always have their path."""
    url = await processes.frontend()
    await processes.worker("child_agents:manager")
    plain = await agentstream("chat", "go", AGENTSTREAM_URL=url)
    assert (plain.code, notes(plain.err)) == (0, NOTES)
    full = await agentstream("chat", "go", "--events", "all", AGENTSTREAM_URL=url)
    assert (full.code, notes(full.err)) == (0, ALL_NOTES)
    assert plain.out == full.out == "Asking.\n\nI found noon.\n"


@pytest.mark.parametrize(("types", "code"), [("text", 4), ("a\nb", 2)])
async def test_wrong_types_are_an_error(processes: Processes, types: str, code: int) -> None:
    """Types that the front end refuses give exit code 4 and its message; types that no header can hold give code 2."""
    url = await processes.frontend()
    ended = await agentstream("chat", "go", "--events", types, AGENTSTREAM_URL=url)
    assert ended.code == code
    assert ("event type 'text' cannot be asked for" in ended.err) == (code == 4)
