"""The part of a turn that clients have seen when its worker was lost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream import errors
from agentstream.agents.checkpoint import EmittedEvent, Restored
from agentstream.agents.orchestrator.inference import INFERENCE_ECHO
from agentstream.agents.tool_calls import RestoredToolCall
from agentstream.engines.base import EngineToolCall
from agentstream.protocol.events import TOOL_CALL_END, TOOL_CALL_START
from agentstream.protocol.openai import Usage

# The finish reasons of inferences that were not the model's answer to a turn. ACCEPTED and REJECTED say whether the
# model completed a JSON text that was lost.
LOST: Final = errors.WORKER_LOST
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
_NOT_AN_ANSWER: Final = frozenset({errors.CONTEXT_LENGTH, LOST, ACCEPTED, REJECTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The events after the last checkpoint, of all attempts since.

    An inference that ends well leads to the end of the run or to a checkpoint before the next inference begins. So
    there is at most one ``answer``, which is the data of its ``inference_end``; all ``text`` belongs to one turn.
    """

    agent_started: bool = False
    agent_ended: bool = False
    text: str = ""
    reasoning: str = ""
    client_calls: Sequence[RestoredToolCall] = ()
    inference_open: bool = False  # whether the last inference has no end
    answer: dict[str, Any] | None = None
    echo: dict[str, Any] = field(default_factory=dict)  # of the answer
    tools_started: frozenset[str] = frozenset()  # call ids
    tool_ends: dict[str, dict[str, Any]] = field(default_factory=dict)  # by call id
    ends: Sequence[dict[str, Any]] = ()  # of inferences

    @property
    def begun(self) -> bool:
        """Whether an inference of the turn has begun."""
        return self.inference_open or bool(self.ends)

    @property
    def rejected(self) -> int:
        """The number of times that the model was asked for the rest of a JSON text without success."""
        return sum(end["finish_reason"] == REJECTED for end in self.ends)

    @property
    def calls(self) -> list[EngineToolCall]:
        """The calls of the answer."""
        calls = self.answer["tool_calls"] if self.answer else ()
        return [EngineToolCall(call["id"], call["name"], call["arguments"]) for call in calls]

    def call_ids(self) -> Iterable[str]:
        """Return the ids of all calls."""
        return [*(call.id for call in self.client_calls), *(call.id for call in self.calls), *self.tools_started]

    def usages(self, prompt_characters: int) -> list[Usage | None]:
        """Return the usages of the inferences. That of a lost one is an estimate: 4 characters are a token."""
        reporting = [end for end in self.ends if end["finish_reason"] not in {errors.CONTEXT_LENGTH, LOST}]
        usages = [Usage.model_validate(end["usage"]) if end.get("usage") else None for end in reporting]
        lost = sum(end["finish_reason"] == LOST for end in self.ends) + self.inference_open
        if lost:
            shown = len(self.text) + len(self.reasoning) + sum(len(call.arguments) for call in self.client_calls)
            counted = sum(len(end["content"]) for end in reporting) + sum(len(call.arguments) for call in self.calls)
            prompt, completion = lost * prompt_characters // 4, max(0, shown - counted) // 4
            usages.append(Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion))
        return usages


NOTHING_LOST: Final = Lost()


def read_lost(restored: Restored) -> Lost:
    """Return the part of a turn that earlier attempts left after their last checkpoint."""
    ends = _data_of(restored.events, "inference_end")
    answers = [end for end in ends if end["finish_reason"] not in _NOT_AN_ANSWER]
    begun = _data_of(restored.events, "inference_start")
    return Lost(
        agent_started=restored.state is not None or bool(_data_of(restored.events, "agent_turn_start")),
        agent_ended=bool(_data_of(restored.events, "agent_turn_end")),
        text=restored.text,
        reasoning=restored.reasoning,
        client_calls=restored.tool_calls,
        inference_open=len(begun) > len(ends),
        answer=answers[-1] if answers else None,
        echo=(_data_of(restored.events, INFERENCE_ECHO) or [{}])[-1],
        tools_started=frozenset(data["tool_call_id"] for data in _data_of(restored.events, TOOL_CALL_START)),
        tool_ends={data["tool_call_id"]: data for data in _data_of(restored.events, TOOL_CALL_END)},
        ends=ends,
    )


def _data_of(events: Iterable[EmittedEvent], event_type: str) -> list[dict[str, Any]]:
    return [event.data for event in events if event.type == event_type]
