"""The outcome of a run of an agent in a test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentstream.agents import AgentResult, EmittedEvent
from agentstream.protocol.events import RESERVED_EVENTS, TEXT, Event
from agentstream.protocol.openai import Usage
from agentstream.stream.transcript import AnswerFold


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the client's tools. ``arguments`` is JSON text, as the agent wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """The outcome of a run of an agent.

    ``text`` is the answer: what the agent wrote, or else the ``content`` of its result. ``pieces`` are the texts that
    the agent wrote or yielded, one by one. ``reasoning`` is the model's reasoning. ``events`` are the events that the
    agent emitted, in order; they include those that no client sees. ``tool_calls`` are its calls of the client's tools.
    ``result`` is the AgentResult. ``finish_reason`` and ``usage`` are those that a client gets.
    """

    text: str
    pieces: list[str]
    reasoning: str
    events: list[EmittedEvent]
    tool_calls: list[ToolCall]
    result: AgentResult
    finish_reason: str
    usage: Usage

    def events_of(self, type: str) -> list[dict[str, Any]]:  # noqa: A002 -- as in ``Run.emit``
        """Return the data of the events of one type, for example ``tool_call_start``."""
        return [event.data for event in self.events if event.type == type]


def fold(events: Sequence[Event]) -> AnswerFold:
    """Return the answer of a run, as a client gets it, from its events."""
    folded = AnswerFold()
    for event in events:
        folded.receive(event)
    return folded


def outcome_of(events: Sequence[Event], result: AgentResult) -> AgentOutcome:
    """Return the outcome of a run from all its events, of which the last one is the terminal event."""
    folded = fold(events)
    terminal = events[-1].data
    return AgentOutcome(
        text=folded.content,
        pieces=[event.data for event in events if event.type == TEXT],
        reasoning=folded.reasoning,
        events=[EmittedEvent(event.type, event.data) for event in events if event.type not in RESERVED_EVENTS],
        tool_calls=[ToolCall(call["id"], **call["function"]) for call in folded.tool_calls],
        result=result,
        finish_reason=terminal["finish_reason"],
        usage=Usage.model_validate(terminal["usage"]),
    )
