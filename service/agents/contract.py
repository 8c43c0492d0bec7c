"""Run, AgentResult, ToolResult: the types users write against. Kept stable."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

from service.errors import InvalidAgentOutput, RunCancelled
from service.protocol.events import TEXT, check_agent_event
from service.protocol.openai import ChatCompletionRequest, FinishReason, Usage


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What one tool call came to. ``latency_seconds`` is its wall-clock duration."""

    tool_name: str
    content: str
    success: bool = True
    latency_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AgentResult:
    """An agent's answer.

    ``metadata`` may hold ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``; without a total
    the usage is estimated. ``finish_reason`` is one of stop, length, content_filter, tool_calls.
    """

    content: str
    tool_results: list[ToolResult] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = "stop"

    def check(self) -> None:
        """Raise InvalidAgentOutput if a field has the wrong type; says which."""
        for name, fine in (
            ("content", _is(self.content, str)),
            ("tool_results", _is(self.tool_results, list, tuple) and all(map(_is_tool_result, self.tool_results))),
            ("metadata", _is(self.metadata, dict)),
            ("finish_reason", self.finish_reason in get_args(FinishReason)),
        ):
            if not fine:
                value = getattr(self, name)
                message = f"AgentResult.{name} cannot be {value!r:.120} ({type(value).__name__})"
                raise InvalidAgentOutput(message)

    def usage(self) -> Usage | None:
        """Return the usage told in ``metadata``, or None if there is none (total 0 or absent)."""
        counts = {name: self.metadata.get(name) or 0 for name in Usage.model_fields}
        if not counts["total_tokens"]:
            return None
        try:
            return Usage.model_validate(counts)
        except ValueError as exc:
            message = f"AgentResult.metadata has unusable token counts: {counts!r}"
            raise InvalidAgentOutput(message) from exc


def _is(value: object, *types: type) -> bool:
    """Return whether a user's value really has the type it is declared with."""
    return isinstance(value, types)


def _is_tool_result(value: object) -> bool:
    return (
        isinstance(value, ToolResult)
        and _is(value.tool_name, str)
        and _is(value.content, str)
        and _is(value.latency_seconds, int, float)
        and math.isfinite(value.latency_seconds)
    )


class EventSink(Protocol):
    """Where a run's events go. Callable from any thread; ``put`` may block a thread, never the loop."""

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Take one event."""

    async def room(self) -> None:
        """Return when there is room for more."""


class Run:
    """One execution of an agent for one request: what the agent sees of it.

    ``id`` is the completion id, ``request`` the validated request (``.model``, ``.messages`` ...).
    """

    def __init__(self, run_id: str, request: ChatCompletionRequest, sink: EventSink) -> None:
        """Bind the run to where its events go."""
        self.id = run_id
        self.request = request
        self._sink = sink
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled; a threaded agent checks it in long loops that emit nothing."""
        return self._cancelled

    def cancel(self) -> None:
        """Mark the run cancelled: from now on ``emit`` and ``write`` raise RunCancelled."""
        self._cancelled = True

    def emit(self, type: str, data: dict[str, Any]) -> None:  # noqa: A002 -- the published name
        """Publish an event, from any thread. ``data`` is JSON-serialisable.

        Sent to clients: agent_turn_start, inference_start, inference_end, tool_call_start, tool_call_end;
        other types are stored, not sent. Raises RunCancelled after a cancel, InvalidAgentOutput for a
        reserved or malformed type or unserialisable data.
        """
        self._raise_if_cancelled()
        check_agent_event(type, data)
        self._sink.put(type, data)

    def write(self, text: str) -> None:
        """Stream answer text, from any thread. Raises RunCancelled after a cancel."""
        self._raise_if_cancelled()
        if not _is(text, str):
            message = f"run.write takes a str, got {type(text).__name__}"
            raise InvalidAgentOutput(message)
        if text:
            self._sink.put(TEXT, text)

    async def drain(self) -> None:
        """Wait until there is room for more output; for async agents that write a lot.

        Await it between ``emit("tool_call_start", ...)`` and the tool itself: it returns when the start is stored, so
        that no later attempt runs the tool again. In a thread ``emit`` waits for that by itself.
        """
        await self._sink.room()

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            message = f"run {self.id} was cancelled"
            raise RunCancelled(message)


Agent = Callable[[Run], Awaitable[AgentResult]] | Callable[[Run], AgentResult]
