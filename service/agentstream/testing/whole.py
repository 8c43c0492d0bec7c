"""Checks that a run whose worker was killed gives its client the same as a run without a kill."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import orjson

from agentstream.agents import Restored
from agentstream.protocol.events import TOOL_CALL_START, Event
from agentstream.testing.outcome import AgentOutcome, fold

MAX_SHOWN: Final = 200  # characters of a text in an error


def check_tools(
    whole: AgentOutcome,
    killed: AgentOutcome,
    interrupted: Counter[str],
    idempotent: Collection[str],
    description: str,
) -> bool:
    """Raise AssertionError if a tool ran twice or never. Return whether a tool was interrupted and did not run again.

    ``interrupted`` counts the tools that ran when the worker was killed.
    """
    expected, found = _calls(whole), _calls(killed)
    for (tool, arguments), times in (found - expected).items():
        if tool not in idempotent:
            why = "it ran when the worker was killed" if interrupted[tool] else "it had ended before the kill"
            message = (
                f"{description}, the agent runs the tool {tool!r} again ({why}): {times} more than without a kill, "
                f"with the arguments {_shown(arguments)}\n"
                "Read the calls in run.restored.events, or store them in the checkpoint. "
                "If the tool may run twice, name it in idempotent_tools."
            )
            raise AssertionError(message)
    again = Counter(tool for tool, _ in (found - expected).elements())
    if interrupted - again:
        return True
    for tool, arguments in expected - found:
        message = f"{description}, the agent never runs the tool {tool!r} with the arguments {_shown(arguments)}"
        raise AssertionError(message)
    return False


def check_answer(
    whole: AgentOutcome,
    killed: AgentOutcome,
    before: Sequence[Event],
    restored: Restored | None,
    description: str,
) -> None:
    """Raise AssertionError if the answer differs. ``before`` are the events before the last kill."""
    seen = fold(before)
    for name, expected, found, shown in (
        ("text", whole.text, killed.text, seen.content),
        ("reasoning", whole.reasoning, killed.reasoning, seen.reasoning),
    ):
        if found != expected:
            message = (
                f"{description}, {_difference(expected, found, shown, name)}\n"
                f"  without a kill: {_shown(expected)}\n"
                f"  with the kill:  {_shown(shown)} and then {_shown(found[len(shown) :])}\n"
                f"  run.restored:   {_shown_restored(restored)}\n"
                f"Clients keep what they have seen. Continue after run.restored.{name}."
            )
            raise AssertionError(message)
    for name, wanted, got in (
        ("calls of the client's tools", _client_calls(whole), _client_calls(killed)),
        ("finish reason", whole.finish_reason, killed.finish_reason),
    ):
        if wanted != got:
            message = f"{description}, the {name} differ: without a kill {wanted}, with the kill {got}"
            raise AssertionError(message)


def _difference(expected: str, found: str, seen: str, name: str) -> str:
    """Say how the answer differs. ``seen`` is the part of ``found`` from before the kill."""
    if not expected.startswith(seen):
        return f"the {name} was different before the kill already; it must be the same in each run"
    rest, added = expected[len(seen) :], found[len(seen) :]
    if added.endswith(rest) and len(added) > len(rest):
        more = added[: len(added) - len(rest)]
        return f"the {name} {_shown(more)} is " + ("shown twice" if more in seen else "shown too much")
    if rest.endswith(added):
        return f"the {name} {_shown(rest[: len(rest) - len(added)])} is lost"
    same = next((n for n, (a, b) in enumerate(zip(rest, added, strict=False)) if a != b), min(len(rest), len(added)))
    return f"the {name} differs from character {len(seen) + same} on"


def _calls(outcome: AgentOutcome) -> Counter[tuple[str, str]]:
    return Counter(
        (data["tool"], orjson.dumps(data.get("arguments"), option=orjson.OPT_SORT_KEYS).decode())
        for data in outcome.events_of(TOOL_CALL_START)
    )


def _client_calls(outcome: AgentOutcome) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in outcome.tool_calls]


def _shown(text: str) -> str:
    return repr(text) if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]!r}… ({len(text)} characters)"


def _shown_restored(restored: Restored | None) -> str:
    if restored is None:
        return "None"
    state = repr(restored.state)
    state = state if len(state) <= MAX_SHOWN else f"{state[:MAX_SHOWN]}…"
    return f"state {state}, text {_shown(restored.text)}, {len(restored.events)} events"
